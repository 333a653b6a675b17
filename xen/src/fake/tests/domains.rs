//! Life and death of domains, planned failures.

use super::super::slot::Slot;
use super::support::{Rig, errno};
use crate::DomId;
use crate::fake::{Call, DeviceFile, DomainConfig, MachineConfig, Target};
use crate::xenstore::Xenstore;

const GFN: u64 = 0x40000;

#[test]
fn ids_are_not_given_again() {
    let rig = Rig::new();
    assert_eq!(rig.dom, DomId(1));
    rig.domain.destroy();
    let next = rig.machine.create_domain(DomainConfig::default()).unwrap();
    assert_eq!(next.id(), DomId(2));
}

#[test]
fn domain_has_between_1_and_128_vcpus() {
    let rig = Rig::new();
    for vcpus in [0, 129] {
        let config = DomainConfig::default().vcpus(vcpus);
        assert_eq!(errno(rig.machine.create_domain(config)), libc::EINVAL);
    }
}

#[test]
fn memory_is_laid_out_in_two_banks() {
    let rig = Rig::with(
        MachineConfig::default(),
        DomainConfig::with_memory((3 << 30) + 8192),
    );
    let mut byte = [0];
    let mut at = |address| rig.domain.read_memory(address, &mut byte);
    at(0x4000_0000).unwrap();
    at(0xffff_ffff).unwrap();
    at(0x2_0000_1fff).unwrap();
    assert_eq!(errno(at(0x3fff_ffff)), libc::EFAULT);
    assert_eq!(errno(at(0x1_0000_0000)), libc::EFAULT);
    assert_eq!(errno(at(0x2_0000_2000)), libc::EFAULT);
}

#[test]
fn destroyed_domain_is_gone_when_nobody_holds_it() {
    let rig = Rig::new();
    rig.domain.destroy();
    assert!(!rig.domain.exists() && !rig.domain.is_zombie());
    assert_eq!(errno(rig.create()), libc::ESRCH);
    assert!(rig.machine.domain(rig.dom).is_none());
}

#[test]
fn foreign_mapping_keeps_a_zombie() {
    let rig = Rig::new();
    let map = rig
        .privcmd
        .mmap_batch(rig.dom, &[GFN], &mut [0], true)
        .unwrap();
    rig.domain.destroy();
    assert!(rig.domain.is_zombie());
    drop(map);
    assert!(!rig.domain.is_zombie() && !rig.domain.exists());
}

#[test]
fn ioreq_page_keeps_a_zombie() {
    let rig = Rig::new();
    let attached = rig.attach(1);
    rig.domain.destroy();
    assert!(rig.domain.is_zombie());
    drop(attached);
    assert!(!rig.domain.exists());
}

#[test]
fn grant_map_keeps_a_zombie() {
    let rig = Rig::new();
    let gref = rig.domain.grant(GFN, false).unwrap();
    let gntdev = rig.machine.open_gntdev().unwrap();
    let index = gntdev.map(&[(rig.dom, gref)]).unwrap();
    let map = gntdev.mmap(index, 1, true).unwrap();
    rig.domain.destroy();
    assert!(rig.domain.is_zombie());
    gntdev.unmap(index, 1).unwrap();
    assert!(rig.domain.is_zombie());
    drop(map);
    assert!(!rig.domain.exists());
}

#[test]
fn zombie_has_no_servers_and_takes_none() {
    let rig = Rig::new();
    let attached = rig.attach(1);
    let gref = rig.domain.grant(GFN, false).unwrap();
    rig.domain.destroy();
    assert_eq!(errno(rig.create()), libc::EINVAL);
    assert_eq!(errno(rig.destroy(attached.id)), libc::ENOENT);
    let port = Slot::of(&attached.page, 0).unwrap().event_port();
    rig.evtchn.unbind(attached.ports[0]).unwrap();
    assert_eq!(
        errno(rig.evtchn.bind_interdomain(rig.dom, port)),
        libc::EINVAL
    );
    let mut errors = [0];
    let map = rig.privcmd.mmap_batch(rig.dom, &[GFN], &mut errors, true);
    assert!(map.is_ok());
    assert_eq!(errors, [-libc::EINVAL]);
    let gntdev = rig.machine.open_gntdev().unwrap();
    let index = gntdev.map(&[(rig.dom, gref)]).unwrap();
    assert_eq!(errno(gntdev.mmap(index, 1, true)), libc::EINVAL);
}

#[test]
fn leaked_event_channel_is_seen_after_the_domain() {
    let rig = Rig::new();
    let attached = rig.attach(1);
    let port = attached.ports[0];
    drop(attached);
    rig.domain.destroy();
    assert_eq!(rig.machine.census()[&rig.dom].event_channels, 1);
    rig.evtchn.unbind(port).unwrap();
    assert!(!rig.machine.census().contains_key(&rig.dom));
}

#[test]
fn nth_call_of_a_file_fails_once() {
    let rig = Rig::new();
    rig.machine
        .fail(Target::Device(DeviceFile::Privcmd), 2, libc::EIO);
    rig.privcmd.version().unwrap();
    assert_eq!(errno(rig.create()), libc::EIO);
    rig.create().unwrap();
}

#[test]
fn planned_failure_counts_its_own_calls_only() {
    let rig = Rig::new();
    rig.machine.fail(Target::Call(Call::DmOp), 1, libc::EINTR);
    rig.machine
        .fail(Target::Device(DeviceFile::Evtchn), 1, libc::ENOMEM);
    rig.machine
        .fail(Target::Device(DeviceFile::Gntdev), 1, libc::ENOMEM);
    rig.privcmd.version().unwrap();
    assert_eq!(errno(rig.create()), libc::EINTR);
    assert_eq!(errno(rig.evtchn.read(&mut [0])), libc::ENOMEM);
    let gntdev = rig.machine.open_gntdev().unwrap();
    assert_eq!(errno(gntdev.map(&[(rig.dom, 8)])), libc::ENOMEM);
    gntdev.map(&[(rig.dom, 8)]).unwrap();
}

#[test]
fn xenstored_knows_a_domain_until_it_is_destroyed() {
    let rig = Rig::new();
    let store = Xenstore::from_stream(rig.machine.xenstore_stream().unwrap()).unwrap();
    assert!(store.is_domain_introduced(rig.dom).unwrap());
    rig.domain.destroy();
    assert!(!store.is_domain_introduced(rig.dom).unwrap());
}
