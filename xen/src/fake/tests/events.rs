//! Event channels as `/dev/xen/evtchn` has them.

use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::super::slot::{STATE_NONE, STATE_READY, Slot};
use super::support::{BASE, Rig, errno, eventually};
use crate::DomId;
use crate::fake::DomainConfig;

/// A port of the guest's, and the server it belongs to.
fn open_port(rig: &Rig) -> (u16, u32) {
    let id = rig.create().unwrap();
    let page = rig.page(id).unwrap();
    rig.set_state(id, true).unwrap();
    (id, Slot::of(&page, 0).unwrap().event_port())
}

fn readable(rig: &Rig) -> bool {
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll
        .ctl(ControlOperation::Add, rig.evtchn.fd().as_raw_fd(), event)
        .unwrap();
    epoll.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
}

#[test]
fn bound_port_fires_at_once() {
    let rig = Rig::new();
    let (_, remote) = open_port(&rig);
    assert!(!readable(&rig));
    let port = rig.evtchn.bind_interdomain(rig.dom, remote).unwrap();
    assert!(readable(&rig));
    assert_eq!(rig.read_ports(), [port]);
    assert!(!readable(&rig));
}

#[test]
fn bind_checks_domain_and_port() {
    let rig = Rig::new();
    let (_, remote) = open_port(&rig);
    assert_eq!(
        errno(rig.evtchn.bind_interdomain(DomId(50), remote)),
        libc::ESRCH
    );
    assert_eq!(
        errno(rig.evtchn.bind_interdomain(rig.dom, remote + 1)),
        libc::EINVAL
    );
    assert_eq!(errno(rig.evtchn.bind_interdomain(rig.dom, 0)), libc::EINVAL);
}

#[test]
fn port_is_bound_once_at_a_time() {
    let rig = Rig::new();
    let (_, remote) = open_port(&rig);
    let port = rig.evtchn.bind_interdomain(rig.dom, remote).unwrap();
    assert_eq!(
        errno(rig.evtchn.bind_interdomain(rig.dom, remote)),
        libc::EINVAL
    );
    rig.evtchn.unbind(port).unwrap();
    rig.evtchn.bind_interdomain(rig.dom, remote).unwrap();
}

#[test]
fn closing_the_file_frees_its_ports() {
    let rig = Rig::new();
    let (_, remote) = open_port(&rig);
    let other = rig.machine.open_evtchn().unwrap();
    other.bind_interdomain(rig.dom, remote).unwrap();
    assert_eq!(
        errno(rig.evtchn.bind_interdomain(rig.dom, remote)),
        libc::EINVAL
    );
    drop(other);
    rig.evtchn.bind_interdomain(rig.dom, remote).unwrap();
}

#[test]
fn ports_of_other_files_cannot_be_used() {
    let rig = Rig::new();
    let (_, remote) = open_port(&rig);
    let port = rig.evtchn.bind_interdomain(rig.dom, remote).unwrap();
    let other = rig.machine.open_evtchn().unwrap();
    assert_eq!(errno(other.notify(port)), libc::ENOTCONN);
    assert_eq!(errno(other.unbind(port)), libc::ENOTCONN);
    assert_eq!(errno(other.unbind(1 << 17)), libc::EINVAL);
    assert_eq!(errno(other.notify(4000)), libc::ENOTCONN);
    // Unmasking another's port is ignored: it stays masked.
    other.unmask(port).unwrap();
    rig.read_ports();
    rig.machine.raise(&rig, remote);
    assert!(rig.read_ports().is_empty());
}

#[test]
fn port_stays_masked_until_it_is_written_back() {
    let rig = Rig::new();
    let (_, remote) = open_port(&rig);
    let port = rig.evtchn.bind_interdomain(rig.dom, remote).unwrap();
    assert_eq!(rig.read_ports(), [port]);
    rig.machine.raise(&rig, remote);
    rig.machine.raise(&rig, remote);
    assert!(rig.read_ports().is_empty());
    rig.evtchn.unmask(port).unwrap();
    assert_eq!(rig.read_ports(), [port]);
    rig.evtchn.unmask(port).unwrap();
    assert!(rig.read_ports().is_empty());
}

#[test]
fn unmasked_port_fires_again() {
    let rig = Rig::new();
    let (_, remote) = open_port(&rig);
    let port = rig.evtchn.bind_interdomain(rig.dom, remote).unwrap();
    rig.read_ports();
    rig.evtchn.unmask(port).unwrap();
    rig.machine.raise(&rig, remote);
    assert!(readable(&rig));
    assert_eq!(rig.read_ports(), [port]);
}

#[test]
fn event_of_a_closed_port_stays_in_the_ring() {
    let rig = Rig::new();
    let (_, remote) = open_port(&rig);
    let port = rig.evtchn.bind_interdomain(rig.dom, remote).unwrap();
    rig.evtchn.unbind(port).unwrap();
    assert_eq!(rig.read_ports(), [port]);
}

#[test]
fn overflow_is_told_until_reset() {
    let rig = Rig::new();
    let (_, remote) = open_port(&rig);
    // Each round leaves an entry of a port that is closed again.
    for _ in 0..65 {
        let port = rig.evtchn.bind_interdomain(rig.dom, remote).unwrap();
        rig.evtchn.unbind(port).unwrap();
    }
    let mut ports = [0; 4];
    assert!(readable(&rig));
    assert_eq!(errno(rig.evtchn.read(&mut ports)), libc::EFBIG);
    assert_eq!(errno(rig.evtchn.read(&mut ports)), libc::EFBIG);
    rig.evtchn.reset().unwrap();
    assert!(!readable(&rig));
    assert_eq!(errno(rig.evtchn.read(&mut ports)), libc::EAGAIN);
}

#[test]
fn ring_grows_with_its_ports() {
    let config = DomainConfig::default().vcpus(100);
    let rig = Rig::with(Default::default(), config);
    let attached = rig.attach(100);
    let mut read = Vec::new();
    eventually("all ports", || {
        read.extend(rig.read_ports());
        read.len() == 100
    });
    assert_eq!(read, attached.ports);
}

#[test]
fn partial_read_leaves_the_rest_readable() {
    let rig = Rig::with(Default::default(), DomainConfig::default().vcpus(2));
    let attached = rig.attach(2);
    let mut one = [0];
    assert_eq!(rig.evtchn.read(&mut one).unwrap(), 1);
    assert_eq!(one, attached.ports[..1]);
    assert!(readable(&rig));
    assert_eq!(rig.evtchn.read(&mut []).unwrap(), 0);
    assert_eq!(rig.evtchn.read(&mut one).unwrap(), 1);
    assert_eq!(one, attached.ports[1..]);
    assert!(!readable(&rig));
}

#[test]
fn restricted_file_binds_one_domain_only() {
    let rig = Rig::new();
    let (_, remote) = open_port(&rig);
    let other = rig.machine.create_domain(DomainConfig::default()).unwrap();
    assert_eq!(errno(rig.evtchn.restrict(DomId(0))), libc::EINVAL);
    assert_eq!(errno(rig.evtchn.restrict(DomId(0x7ff0))), libc::EINVAL);
    rig.evtchn.restrict(other.id()).unwrap();
    assert_eq!(
        errno(rig.evtchn.bind_interdomain(rig.dom, remote)),
        libc::EACCES
    );
    assert_eq!(errno(rig.evtchn.restrict(other.id())), libc::EACCES);
}

#[test]
fn request_made_before_binding_is_found_after_it() {
    let rig = Rig::new();
    rig.start_unheard();
    let id = rig.create().unwrap();
    let page = rig.page(id).unwrap();
    rig.map_range(id, BASE, BASE + 0xff).unwrap();
    rig.set_state(id, true).unwrap();
    let vcpu = rig.domain.vcpu(0);
    let guest = std::thread::spawn(move || vcpu.read(BASE, 4));
    let slot = Slot::of(&page, 0).unwrap();
    eventually("a request", || slot.state() == STATE_READY);
    let port = rig
        .evtchn
        .bind_interdomain(rig.dom, slot.event_port())
        .unwrap();
    assert_eq!(rig.read_ports(), [port]);
    slot.set_state(super::super::slot::STATE_RESP_READY);
    rig.evtchn.notify(port).unwrap();
    guest.join().unwrap().unwrap();
    assert_eq!(slot.state(), STATE_NONE);
}

#[test]
fn notification_to_a_destroyed_server_is_dropped() {
    let rig = Rig::new();
    let attached = rig.attach(1);
    rig.destroy(attached.id).unwrap();
    rig.evtchn.notify(attached.ports[0]).unwrap();
    rig.domain.destroy();
    rig.evtchn.notify(attached.ports[0]).unwrap();
}

impl crate::fake::Machine {
    /// The guest's end of a port fires, without a request.
    fn raise(&self, rig: &Rig, remote: u32) {
        self.inner()
            .with(|world| world.notify_local(rig.dom, remote));
    }
}
