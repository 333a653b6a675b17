//! Servers: their page, ports and choice.

use super::super::slot::Slot;
use super::support::{BASE, LAST, Rig, errno};
use crate::fake::{DomainConfig, MachineConfig};

#[test]
fn ports_show_when_the_server_is_enabled() {
    let rig = Rig::with(MachineConfig::default(), DomainConfig::default().vcpus(2));
    let id = rig.create().unwrap();
    let page = rig.page(id).unwrap();
    let ports = || [0, 1].map(|vcpu| Slot::of(&page, vcpu).unwrap().event_port());
    assert_eq!(ports(), [0, 0]);
    rig.set_state(id, true).unwrap();
    let [first, second] = ports();
    assert!(first != 0 && second != 0 && first != second);
}

#[test]
fn page_asked_for_after_enabling_has_no_ports() {
    let rig = Rig::new();
    let id = rig.create().unwrap();
    rig.set_state(id, true).unwrap();
    let page = rig.page(id).unwrap();
    assert_eq!(Slot::of(&page, 0).unwrap().event_port(), 0);
    rig.set_state(id, false).unwrap();
    rig.set_state(id, true).unwrap();
    assert_ne!(Slot::of(&page, 0).unwrap().event_port(), 0);
}

#[test]
fn mappings_of_the_page_show_the_same_page() {
    let rig = Rig::new();
    let id = rig.create().unwrap();
    let (one, other) = (rig.page(id).unwrap(), rig.page(id).unwrap());
    Slot::of(&one, 5).unwrap().set_event_port(99);
    assert_eq!(Slot::of(&other, 5).unwrap().event_port(), 99);
}

#[test]
fn new_server_has_new_ports() {
    let rig = Rig::new();
    let old = rig.attach(1);
    let stale = old.slot(0).event_port();
    rig.destroy(old.id).unwrap();
    let id = rig.create().unwrap();
    let page = rig.page(id).unwrap();
    assert_eq!(Slot::of(&page, 0).unwrap().event_port(), 0);
    // The old page lives on with its mapping, apart from the new one.
    assert_eq!(old.slot(0).event_port(), stale);
}

#[test]
fn port_of_a_destroyed_server_cannot_be_bound() {
    let rig = Rig::new();
    let id = rig.create().unwrap();
    let page = rig.page(id).unwrap();
    rig.set_state(id, true).unwrap();
    let port = Slot::of(&page, 0).unwrap().event_port();
    rig.destroy(id).unwrap();
    assert_eq!(
        errno(rig.evtchn.bind_interdomain(rig.dom, port)),
        libc::EINVAL
    );
}

#[test]
fn old_binding_has_no_hold_on_a_port_that_is_used_again() {
    let rig = Rig::new();
    let old = rig.attach(1);
    rig.destroy(old.id).unwrap();
    let new = rig.attach(1);
    let remote = new.slot(0).event_port();
    assert_eq!(old.slot(0).event_port(), remote);
    rig.evtchn.unbind(old.ports[0]).unwrap();
    // The new binding is still there.
    assert_eq!(
        errno(rig.evtchn.bind_interdomain(rig.dom, remote)),
        libc::EINVAL
    );
}

#[test]
fn two_servers_may_claim_the_same_range() {
    let rig = Rig::new();
    let first = rig.create().unwrap();
    let second = rig.create().unwrap();
    rig.map_range(first, BASE, LAST).unwrap();
    rig.map_range(second, BASE, LAST).unwrap();
}

#[test]
fn census_counts_servers_and_pages() {
    let rig = Rig::new();
    let attached = rig.attach(1);
    let census = rig.machine.census()[&rig.dom];
    assert_eq!((census.ioreq_servers, census.ioreq_pages), (1, 1));
    assert_eq!(census.event_channels, 1);
    rig.destroy(attached.id).unwrap();
    rig.evtchn.unbind(attached.ports[0]).unwrap();
    drop(attached);
    assert!(rig.machine.census()[&rig.dom].is_clean());
}
