//! Event channels over the fake; an ioreq server's are the only ones it has.

use vm_memory::Bytes;

use super::*;
use crate::Host;
use crate::fake::{Call, Domain, DomainConfig, Machine, Target};
use crate::privcmd::Privcmd;
use crate::sys::abi::ioreq as abi;

struct Fixture {
    machine: Machine,
    domain: Domain,
    _privcmd: Privcmd,
    evtchn: Evtchn,
    /// vCPU 0's end, as an enabled server names it.
    remote: u32,
}

fn fixture() -> Fixture {
    let machine = Machine::new().unwrap();
    let domain = machine.create_domain(DomainConfig::default()).unwrap();
    let host = Host::Fake(machine.clone());
    let privcmd = host.open_privcmd().unwrap();
    let id = privcmd.create_ioreq_server(domain.id()).unwrap();
    let page = privcmd
        .mmap_resource(
            domain.id(),
            abi::RESOURCE_IOREQ_SERVER,
            id.0.into(),
            abi::RESOURCE_FRAME_IOREQ,
            1,
        )
        .unwrap();
    privcmd
        .set_ioreq_server_state(domain.id(), id, true)
        .unwrap();
    let remote = page.volatile().read_obj(24).unwrap();
    Fixture {
        machine,
        domain,
        _privcmd: privcmd,
        evtchn: host.open_evtchn().unwrap(),
        remote,
    }
}

fn bound(fixture: &Fixture) -> u64 {
    fixture.machine.census()[&fixture.domain.id()].event_channels
}

#[test]
fn a_new_channel_fires_once_until_unmasked() {
    let fixture = fixture();
    let channel = fixture
        .evtchn
        .bind_interdomain(fixture.domain.id(), fixture.remote)
        .unwrap();
    let mut ports = [0; 4];

    let first = fixture.evtchn.read(&mut ports).unwrap();
    let second = fixture.evtchn.read(&mut [0; 4]).unwrap();

    assert_eq!((first, second), (Fired::Ports(1), Fired::Ports(0)));
    assert_eq!(ports[0], channel.port());
    channel.unmask().unwrap();
    channel.notify().unwrap();
}

#[test]
fn a_dropped_channel_is_unbound() {
    let fixture = fixture();
    let channel = fixture
        .evtchn
        .bind_interdomain(fixture.domain.id(), fixture.remote)
        .unwrap();
    let before = bound(&fixture);

    drop(channel);

    assert_eq!((before, bound(&fixture)), (1, 0));
}

#[test]
fn a_port_that_is_not_open_is_refused() {
    let fixture = fixture();

    let result = fixture
        .evtchn
        .bind_interdomain(fixture.domain.id(), fixture.remote + 50);

    let error = result.unwrap_err();
    assert!(matches!(error, Error::Bind { .. }));
    assert!(error.to_string().contains("domain 1"));
}

#[test]
fn an_overflow_is_reported_once_and_reset() {
    let fixture = fixture();
    fixture
        .machine
        .fail(Target::Call(Call::Read), 1, libc::EFBIG);

    let first = fixture.evtchn.read(&mut [0; 4]).unwrap();
    let second = fixture.evtchn.read(&mut [0; 4]).unwrap();

    assert_eq!((first, second), (Fired::Overflow, Fired::Ports(0)));
}

#[test]
fn a_restricted_file_binds_to_its_domain_only() {
    let fixture = fixture();
    let other = fixture
        .machine
        .create_domain(DomainConfig::default())
        .unwrap();
    fixture.evtchn.restrict(fixture.domain.id()).unwrap();

    let refused = fixture.evtchn.bind_interdomain(other.id(), fixture.remote);
    let allowed = fixture
        .evtchn
        .bind_interdomain(fixture.domain.id(), fixture.remote);

    assert!(matches!(refused, Err(Error::Bind { .. })));
    allowed.unwrap();
}
