//! Foreign mappings and what can be pinned.

use vm_memory::Bytes;

use super::support::{Rig, errno};
use crate::DomId;
use crate::fake::DomainConfig;

const GFN: u64 = 0x40000;

#[test]
fn mapped_frames_are_the_guests_memory() {
    let rig = Rig::new();
    rig.domain.write_memory(GFN << 12, b"hello").unwrap();
    rig.domain.write_memory((GFN + 9) << 12, b"again").unwrap();
    let mut errors = [1; 2];
    let map = rig
        .privcmd
        .mmap_batch(rig.dom, &[GFN + 9, GFN], &mut errors, true)
        .unwrap();
    assert_eq!(errors, [0, 0]);
    let mut text = [0; 5];
    map.volatile().read_slice(&mut text, 0).unwrap();
    assert_eq!(&text, b"again");
    map.volatile().read_slice(&mut text, 4096).unwrap();
    assert_eq!(&text, b"hello");
    map.volatile().write_slice(b"HELLO", 4096).unwrap();
    rig.domain.read_memory(GFN << 12, &mut text).unwrap();
    assert_eq!(&text, b"HELLO");
}

#[test]
fn every_frame_has_its_own_error() {
    let rig = Rig::with(
        Default::default(),
        DomainConfig::with_memory(16 << 20).hole(GFN + 1, 1),
    );
    let mut errors = [9; 4];
    let gfns = [GFN, GFN + 1, GFN + 2, 0x10];
    let map = rig
        .privcmd
        .mmap_batch(rig.dom, &gfns, &mut errors, true)
        .unwrap();
    assert_eq!(errors, [0, -libc::EINVAL, 0, -libc::EINVAL]);
    map.volatile().write_obj(1u8, 0).unwrap();
    map.volatile().write_obj(1u8, 2 * 4096).unwrap();
    assert_eq!(rig.machine.census()[&rig.dom].foreign_pages, 2);
}

#[test]
fn unknown_domain_fails_every_frame() {
    let rig = Rig::new();
    let mut errors = [0; 2];
    rig.privcmd
        .mmap_batch(DomId(9), &[GFN, GFN + 1], &mut errors, true)
        .unwrap();
    assert_eq!(errors, [-libc::ESRCH; 2]);
    rig.privcmd
        .mmap_batch(DomId(0), &[GFN, GFN + 1], &mut errors, true)
        .unwrap();
    assert_eq!(errors, [-libc::EPERM; 2]);
}

#[test]
fn batch_of_no_frames_is_refused() {
    let rig = Rig::new();
    assert_eq!(
        errno(rig.privcmd.mmap_batch(rig.dom, &[], &mut [], true)),
        libc::EINVAL
    );
    assert_eq!(
        errno(rig.privcmd.mmap_batch(rig.dom, &[GFN], &mut [], true)),
        libc::EFAULT
    );
}

#[test]
fn ballooned_frame_is_gone_but_its_mapping_stays() {
    let rig = Rig::new();
    let mut errors = [0];
    let old = rig
        .privcmd
        .mmap_batch(rig.dom, &[GFN], &mut errors, true)
        .unwrap();
    old.volatile().write_obj(7u64, 0).unwrap();
    assert_eq!(rig.domain.balloon_out(GFN, 1).unwrap(), 1);
    let gone = rig.privcmd.mmap_batch(rig.dom, &[GFN], &mut errors, true);
    assert_eq!(errors, [-libc::EINVAL]);
    drop(gone);
    rig.domain.balloon_in(GFN, 1).unwrap();
    let new = rig
        .privcmd
        .mmap_batch(rig.dom, &[GFN], &mut errors, true)
        .unwrap();
    assert_eq!(errors, [0]);
    assert_eq!(new.volatile().read_obj::<u64>(0).unwrap(), 0);
    new.volatile().write_obj(8u64, 0).unwrap();
    assert_eq!(old.volatile().read_obj::<u64>(0).unwrap(), 7);
}

#[test]
fn balloon_goes_in_where_ram_was_and_is_not() {
    let rig = Rig::new();
    let eexist = rig.domain.balloon_in(GFN, 1);
    assert_eq!(errno(eexist), libc::EEXIST);
    assert_eq!(errno(rig.domain.balloon_in(0x10, 1)), libc::EINVAL);
    assert_eq!(rig.domain.balloon_out(GFN, 2).unwrap(), 2);
    assert_eq!(rig.domain.balloon_out(GFN, 4).unwrap(), 2);
}

#[test]
fn foreign_and_ioreq_pages_cannot_be_pinned() {
    let rig = Rig::new();
    let map = rig
        .privcmd
        .mmap_batch(rig.dom, &[GFN, GFN + 1], &mut [0; 2], true)
        .unwrap();
    let inside = rig.machine.pin(map.address() + 4096, 16).map(|_| ());
    assert_eq!(errno(inside), libc::EFAULT);
    let across = rig.machine.pin(map.address() - 8, 16).map(|_| ());
    assert_eq!(errno(across), libc::EFAULT);
    let attached = rig.attach(1);
    let ioreq = rig.machine.pin(attached.page.address(), 1).map(|_| ());
    assert_eq!(errno(ioreq), libc::EFAULT);
}

#[test]
fn ordinary_memory_can_be_pinned() {
    let rig = Rig::new();
    let buffer = vec![0u8; 8192];
    let pin = rig.machine.pin(buffer.as_ptr().addr(), buffer.len());
    assert!(pin.is_ok());
}

#[test]
fn address_is_ordinary_again_after_unmapping() {
    let rig = Rig::new();
    let map = rig
        .privcmd
        .mmap_batch(rig.dom, &[GFN], &mut [0], true)
        .unwrap();
    let (address, len) = (map.address(), map.len());
    drop(map);
    assert!(rig.machine.pin(address, len).is_ok());
    assert!(rig.machine.census()[&rig.dom].is_clean());
}
