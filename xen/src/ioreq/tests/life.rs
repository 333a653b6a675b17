//! A server's life: creation, ranges, enabling, and an end that leaves
//! neither waiting vCPUs nor anything else behind.

use super::*;

#[test]
fn destroying_the_server_lets_waiting_vcpus_go() {
    let fixture = running_server(2);
    let page = page(&fixture);
    let Fixture {
        domain, mut server, ..
    } = fixture;

    let (taken, waiting, answer) = thread::scope(|scope| {
        let taken = scope.spawn(|| domain.vcpu(0).read(STATUS, 4));
        let ticket = one(&mut server);
        let waiting = scope.spawn(|| domain.vcpu(1).read(STATUS, 4));
        wait_until_ready(&page, 1);
        server.destroy().unwrap();
        let answer = ticket.respond(1);
        (taken.join().unwrap(), waiting.join().unwrap(), answer)
    });

    assert_eq!(taken.unwrap(), 0xffff_ffff);
    assert_eq!(waiting.unwrap(), 0xffff_ffff);
    assert!(matches!(answer, Err(Error::Stale { vcpu: 0, .. })));
}

/// Waits for a request that nobody takes.
fn wait_until_ready(page: &Mapping, vcpu: usize) {
    let deadline = Instant::now() + PATIENCE;
    let slot = page.volatile();
    let state = || slot.load::<u8>(32 * vcpu + 30, Ordering::Acquire).unwrap() & abi::BITS_STATE;
    while state() != abi::STATE_READY {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn nothing_is_left_of_a_dropped_server() {
    let fixture = enabled_server(2);
    let id = fixture.domain.id();
    let during = fixture.machine.census()[&id];

    drop(fixture.server);

    let after = fixture.machine.census()[&id];
    assert_eq!((during.ioreq_servers, during.event_channels), (1, 2));
    assert!(after.is_clean(), "{after:?}");
}

#[test]
fn a_failed_binding_disables_the_server_again() {
    let mut fixture = server_on(MachineConfig::default(), 2);
    fixture
        .machine
        .fail(Target::Call(Call::Bind), 2, libc::ENOSPC);

    let failed = fixture.server.enable();
    let census = fixture.machine.census()[&fixture.domain.id()];
    let second = fixture.server.enable();

    assert!(matches!(failed, Err(Error::Events { .. })));
    assert_eq!(census.event_channels, 0);
    second.unwrap();
    assert_eq!(fixture.server.ports().len(), 2);
}

#[test]
fn calls_in_the_wrong_state_are_refused() {
    let mut fixture = server_on(MachineConfig::default(), 1);
    let early = fixture.server.pending(&mut Vec::new());
    fixture.server.enable().unwrap();

    let twice = fixture.server.enable();

    assert!(matches!(early, Err(Error::State { enabled: false, .. })));
    assert!(matches!(twice, Err(Error::State { enabled: true, .. })));
}

#[test]
fn a_range_given_up_is_no_longer_claimed() {
    let mut fixture = running_server(1);

    fixture.server.unmap_range(WINDOW).unwrap();

    let access = fixture.domain.vcpu(0).read(STATUS, 4);
    assert!(matches!(
        access,
        Err(crate::fake::AccessFault::Unclaimed { .. })
    ));
    assert!(fixture.server.ranges().is_empty());
}

#[test]
fn a_xen_without_ioreq_servers_is_named() {
    let machine = Machine::with_config(MachineConfig {
        ioreq_server: false,
        ..MachineConfig::default()
    })
    .unwrap();
    let domain = machine.create_domain(DomainConfig::default()).unwrap();
    let host = Host::Fake(machine);

    let created = IoreqServer::create(
        &host.open_privcmd().unwrap(),
        host.open_evtchn().unwrap(),
        domain.id(),
    );

    assert!(matches!(
        created,
        Err(Error::DmOp(dm_op::Error::NoIoreqServer { .. }))
    ));
}

#[test]
fn a_domain_that_is_not_there_is_named() {
    let host = Host::Fake(Machine::new().unwrap());

    let created = IoreqServer::create(
        &host.open_privcmd().unwrap(),
        host.open_evtchn().unwrap(),
        DomId(77),
    );

    let error = created.unwrap_err();
    assert!(matches!(error, Error::DmOp(dm_op::Error::NoDomain { .. })));
    assert!(error.to_string().contains("domain 77"));
}

#[test]
fn a_ninth_server_is_one_too_many() {
    let machine = Machine::new().unwrap();
    let domain = machine.create_domain(DomainConfig::default()).unwrap();
    let privcmd = Host::Fake(machine).open_privcmd().unwrap();
    let ids: Vec<_> = (0..8)
        .map(|_| privcmd.create_ioreq_server(domain.id()).unwrap())
        .collect();

    let ninth = privcmd.create_ioreq_server(domain.id());

    assert!(matches!(ninth, Err(dm_op::Error::TooManyServers { .. })));
    let destroyed = privcmd.destroy_ioreq_server(domain.id(), ids[3]);
    destroyed.unwrap();
    privcmd.create_ioreq_server(domain.id()).unwrap();
}

#[test]
fn a_server_left_behind_can_be_destroyed_by_its_id() {
    let fixture = enabled_server(1);
    let (dom, id) = (fixture.domain.id(), fixture.server.id());
    std::mem::forget(fixture.server);

    fixture.privcmd.destroy_ioreq_server(dom, id).unwrap();

    let again = fixture.privcmd.destroy_ioreq_server(dom, id);
    assert!(matches!(again, Err(dm_op::Error::NotFound { .. })));
}

#[test]
fn the_end_waits_until_woken_vcpus_have_run() {
    let fixture = running_server(1);
    let page = page(&fixture);
    let Fixture {
        domain, mut server, ..
    } = fixture;

    let (free, read) = thread::scope(|scope| {
        let guest = scope.spawn(|| domain.vcpu(0).read(STATUS, 4));
        one(&mut server).respond(9).unwrap();
        drop(server);
        let bits: u8 = page.volatile().load(30, Ordering::Acquire).unwrap();
        (bits & abi::BITS_STATE, guest.join().unwrap())
    });

    assert_eq!(free, abi::STATE_NONE);
    assert_eq!(read.unwrap(), 9);
}

#[test]
fn servers_and_requests_may_change_threads() {
    fn assert_send<T: Send>() {}

    assert_send::<IoreqServer>();
    assert_send::<Pending>();
}
