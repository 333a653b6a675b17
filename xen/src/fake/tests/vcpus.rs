//! Accesses of vCPUs to emulated registers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::slot::{
    STATE_INPROCESS, STATE_NONE, STATE_READY, STATE_RESP_READY, TYPE_COPY, TYPE_INVALIDATE,
};
use super::support::{BASE, LAST, Rig, Server, eventually};
use crate::fake::{AccessFault, DomainConfig, MachineConfig};

fn patient() -> MachineConfig {
    MachineConfig {
        access_timeout: Duration::from_secs(3600),
        ..MachineConfig::default()
    }
}

fn impatient() -> MachineConfig {
    MachineConfig {
        access_timeout: Duration::from_millis(200),
        ..MachineConfig::default()
    }
}

#[test]
fn read_gets_the_answer_cut_to_its_size() {
    let rig = Arc::new(Rig::new());
    let attached = Arc::new(rig.attach(1));
    let _server = Server::run(rig.clone(), attached, |_, request| {
        assert!(request.read && request.data == 0 && request.kind == TYPE_COPY);
        0x1122_3344_5566_7788
    });
    let vcpu = rig.domain.vcpu(0);
    assert_eq!(vcpu.read(BASE, 8).unwrap(), 0x1122_3344_5566_7788);
    assert_eq!(vcpu.read(BASE, 4).unwrap(), 0x5566_7788);
    assert_eq!(vcpu.read(BASE, 1).unwrap(), 0x88);
}

#[test]
fn write_shows_its_value_cut_to_its_size() {
    let rig = Arc::new(Rig::new());
    let attached = Arc::new(rig.attach(1));
    let seen = Arc::new(AtomicU64::new(0));
    let _server = Server::run(rig.clone(), attached, {
        let seen = seen.clone();
        move |_, request| {
            assert!(!request.read);
            assert_eq!((request.address, request.size), (BASE + 0x50, 2));
            seen.store(request.data, Ordering::SeqCst);
            0
        }
    });
    rig.domain
        .vcpu(0)
        .write(BASE + 0x50, 2, 0xdead_beef)
        .unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 0xbeef);
}

#[test]
fn slot_is_none_again_after_the_answer() {
    let rig = Arc::new(Rig::new());
    let attached = Arc::new(rig.attach(1));
    let _server = Server::run(rig.clone(), attached.clone(), |_, _| 0);
    rig.domain.vcpu(0).read(BASE, 4).unwrap();
    assert_eq!(attached.slot(0).state(), STATE_NONE);
}

#[test]
fn unclaimed_access_is_a_data_abort() {
    let rig = Rig::new();
    let fault = rig.domain.vcpu(0).read(BASE, 4).unwrap_err();
    assert_eq!(
        fault,
        AccessFault::Unclaimed {
            address: BASE,
            size: 4
        }
    );
}

#[test]
fn server_that_is_not_enabled_answers_nothing() {
    let rig = Rig::new();
    let attached = rig.attach(1);
    rig.set_state(attached.id, false).unwrap();
    let fault = rig.domain.vcpu(0).read(BASE, 4).unwrap_err();
    assert!(matches!(fault, AccessFault::Unclaimed { .. }));
}

#[test]
fn access_has_to_lie_within_one_range() {
    let rig = Rig::new();
    rig.start_unheard();
    let _attached = rig.attach(1);
    let fault = rig.domain.vcpu(0).read(LAST - 1, 4).unwrap_err();
    assert!(matches!(fault, AccessFault::Unclaimed { .. }));
}

#[test]
fn access_of_a_size_that_does_not_exist_is_malformed() {
    let rig = Rig::new();
    let vcpu = rig.domain.vcpu(0);
    for size in [0, 3, 5, 16] {
        assert!(matches!(
            vcpu.read(BASE, size),
            Err(AccessFault::Malformed { .. })
        ));
    }
    assert!(matches!(
        vcpu.write(u64::MAX, 4, 0),
        Err(AccessFault::Malformed { .. })
    ));
}

#[test]
fn later_server_is_asked_first() {
    let rig = Arc::new(Rig::new());
    rig.start_unheard();
    let first = rig.attach(1);
    rig.read_ports();
    let second = Arc::new(rig.attach(1));
    let _server = Server::run(rig.clone(), second, |_, _| 2);
    assert_eq!(rig.domain.vcpu(0).read(BASE, 4).unwrap(), 2);
    assert_eq!(first.slot(0).state(), STATE_NONE);
}

#[test]
fn silent_device_model_is_reported_as_hung() {
    let rig = Rig::with(impatient(), DomainConfig::default());
    rig.start_unheard();
    let attached = rig.attach(1);
    let fault = rig.domain.vcpu(0).read(BASE, 4).unwrap_err();
    assert_eq!(
        fault,
        AccessFault::Hung {
            vcpu: 0,
            address: BASE,
            state: STATE_READY
        }
    );
    let fault = rig.domain.vcpu(0).read(BASE, 4).unwrap_err();
    assert!(matches!(fault, AccessFault::BadState { .. }));
    drop(attached);
}

#[test]
fn answer_without_notification_leaves_the_vcpu_blocked() {
    let rig = Rig::with(impatient(), DomainConfig::default());
    rig.start_unheard();
    let attached = rig.attach(1);
    let vcpu = rig.domain.vcpu(0);
    let guest = std::thread::spawn(move || vcpu.read(BASE, 4));
    eventually("a request", || attached.slot(0).state() == STATE_READY);
    attached.answer(0, 7);
    let fault = guest.join().unwrap().unwrap_err();
    assert!(matches!(fault, AccessFault::Hung { state, .. } if state == STATE_RESP_READY));
}

#[test]
fn answer_that_is_there_at_once_still_needs_its_notification() {
    let config = MachineConfig {
        access_timeout: Duration::from_millis(50),
        ..MachineConfig::default()
    };
    let rig = Rig::with(config, DomainConfig::default());
    rig.start_unheard();
    let attached = rig.attach(1);
    // The answer races with the vCPU's first look; it wins in most rounds.
    for _ in 0..10 {
        let vcpu = rig.domain.vcpu(0);
        let guest = std::thread::spawn(move || vcpu.read(BASE, 4));
        while attached.slot(0).state() != STATE_READY && !guest.is_finished() {
            std::hint::spin_loop();
        }
        attached.slot(0).set_state(STATE_RESP_READY);
        let fault = guest.join().unwrap().unwrap_err();
        assert!(matches!(fault, AccessFault::Hung { .. }));
        attached.slot(0).set_state(STATE_NONE);
    }
}

#[test]
fn notification_without_answer_is_waited_through() {
    let rig = Rig::new();
    rig.start_unheard();
    let attached = rig.attach(1);
    let vcpu = rig.domain.vcpu(0);
    let guest = std::thread::spawn(move || vcpu.read(BASE, 4));
    eventually("a request", || attached.slot(0).state() == STATE_READY);
    rig.evtchn.notify(attached.ports[0]).unwrap();
    rig.evtchn.notify(attached.ports[0]).unwrap();
    attached.answer(0, 7);
    rig.evtchn.notify(attached.ports[0]).unwrap();
    assert_eq!(guest.join().unwrap().unwrap(), 7);
}

#[test]
fn state_that_goes_back_crashes_the_domain() {
    let rig = Rig::new();
    rig.start_unheard();
    let attached = rig.attach(1);
    let vcpu = rig.domain.vcpu(0);
    let guest = std::thread::spawn(move || vcpu.read(BASE, 4));
    eventually("a request", || attached.slot(0).state() == STATE_READY);
    attached.slot(0).set_state(STATE_INPROCESS);
    rig.evtchn.notify(attached.ports[0]).unwrap();
    // The vCPU sees INPROCESS, and then READY again.
    eventually("the vCPU to look", || {
        attached.slot(0).set_state(STATE_READY);
        rig.evtchn.notify(attached.ports[0]).unwrap();
        attached.slot(0).set_state(STATE_INPROCESS);
        rig.evtchn.notify(attached.ports[0]).unwrap();
        rig.domain.is_crashed()
    });
    let fault = guest.join().unwrap().unwrap_err();
    assert_eq!(
        fault,
        AccessFault::Crashed {
            vcpu: 0,
            from: STATE_INPROCESS,
            to: STATE_READY
        }
    );
    assert!(matches!(
        rig.domain.vcpu(0).read(BASE, 4),
        Err(AccessFault::Gone { .. })
    ));
}

#[test]
fn state_that_does_not_exist_crashes_the_domain() {
    let rig = Rig::new();
    rig.start_unheard();
    let attached = rig.attach(1);
    let vcpu = rig.domain.vcpu(0);
    let guest = std::thread::spawn(move || vcpu.read(BASE, 4));
    eventually("a request", || attached.slot(0).state() == STATE_READY);
    attached.slot(0).set_state(9);
    rig.evtchn.notify(attached.ports[0]).unwrap();
    assert!(matches!(
        guest.join().unwrap(),
        Err(AccessFault::Crashed { to: 9, .. })
    ));
}

#[test]
fn state_left_behind_is_a_data_abort() {
    let rig = Rig::new();
    rig.start_unheard();
    let attached = rig.attach(1);
    attached.slot(0).set_state(STATE_RESP_READY);
    assert_eq!(
        rig.domain.vcpu(0).read(BASE, 4),
        Err(AccessFault::BadState {
            vcpu: 0,
            state: STATE_RESP_READY
        })
    );
}

#[test]
fn slot_that_names_another_port_is_a_data_abort() {
    let rig = Rig::new();
    rig.start_unheard();
    let attached = rig.attach(1);
    let expected = attached.slot(0).event_port();
    attached.slot(0).set_event_port(expected + 1);
    assert_eq!(
        rig.domain.vcpu(0).read(BASE, 4),
        Err(AccessFault::BadPort {
            vcpu: 0,
            found: Some(expected + 1),
            expected
        })
    );
}

#[test]
fn destroying_the_server_strands_the_waiting_vcpu() {
    let rig = Rig::with(patient(), DomainConfig::default());
    rig.start_unheard();
    let attached = rig.attach(1);
    let vcpu = rig.domain.vcpu(0);
    let guest = std::thread::spawn(move || vcpu.read(BASE, 4));
    eventually("a request", || attached.slot(0).state() == STATE_READY);
    rig.destroy(attached.id).unwrap();
    eventually("the vCPU to go", || guest.is_finished());
    assert_eq!(
        guest.join().unwrap(),
        Err(AccessFault::Stranded { vcpu: 0 })
    );
}

#[test]
fn destroying_the_domain_ends_the_waiting_vcpu() {
    let rig = Rig::with(patient(), DomainConfig::default());
    rig.start_unheard();
    let attached = rig.attach(1);
    let vcpu = rig.domain.vcpu(0);
    let guest = std::thread::spawn(move || vcpu.read(BASE, 4));
    eventually("a request", || attached.slot(0).state() == STATE_READY);
    rig.domain.destroy();
    eventually("the vCPU to go", || guest.is_finished());
    assert_eq!(guest.join().unwrap(), Err(AccessFault::Gone { vcpu: 0 }));
}

#[test]
fn first_activity_begins_with_an_invalidate() {
    let rig = Arc::new(Rig::new());
    let attached = Arc::new(rig.attach(1));
    let server = Server::run(rig.clone(), attached, |_, _| 0);
    rig.domain.vcpu(0).read(BASE, 4).unwrap();
    assert_eq!(server.invalidates(), 1);
    rig.domain.vcpu(0).read(BASE, 4).unwrap();
    assert_eq!(server.invalidates(), 1);
}

#[test]
fn ballooning_out_tells_every_enabled_server() {
    let rig = Arc::new(Rig::new());
    rig.start_unheard();
    let evtchn = rig.machine.open_evtchn().unwrap();
    let other = Arc::new(Rig {
        machine: rig.machine.clone(),
        domain: rig.domain.clone(),
        dom: rig.dom,
        privcmd: rig.machine.open_privcmd().unwrap(),
        evtchn,
    });
    let servers = [
        Server::run(rig.clone(), Arc::new(rig.attach(1)), |_, _| 0),
        Server::run(other.clone(), Arc::new(other.attach(1)), |_, _| 0),
    ];
    let _disabled = rig.create().unwrap();
    rig.domain.balloon_out(0x40000, 3).unwrap();
    assert_eq!(servers.each_ref().map(Server::invalidates), [1, 1]);
    rig.domain.balloon_out(0x40000, 3).unwrap();
    rig.domain.balloon_in(0x40000, 3).unwrap();
    rig.domain.vcpu(0).read(BASE, 4).unwrap();
    assert_eq!(servers.each_ref().map(Server::invalidates), [1, 1]);
}

#[test]
fn invalidate_looks_as_xen_makes_it() {
    let rig = Rig::new();
    let attached = rig.attach(1);
    let vcpu = rig.domain.vcpu(0);
    let guest = std::thread::spawn(move || vcpu.read(u64::MAX - 8, 1));
    eventually("a request", || attached.slot(0).state() == STATE_READY);
    let request = attached.slot(0).request();
    assert_eq!(request.kind, TYPE_INVALIDATE);
    assert_eq!((request.address, request.data), (0, u64::MAX));
    assert_eq!((request.size, request.read), (4, false));
    attached.answer(0, 0);
    rig.evtchn.notify(attached.ports[0]).unwrap();
    assert!(matches!(
        guest.join().unwrap(),
        Err(AccessFault::Unclaimed { .. })
    ));
}

#[test]
fn unanswered_invalidate_hangs_the_vcpu() {
    let rig = Rig::with(impatient(), DomainConfig::default());
    let _attached = rig.attach(1);
    let fault = rig.domain.vcpu(0).read(BASE, 4).unwrap_err();
    assert!(matches!(fault, AccessFault::Hung { address: 0, .. }));
}

#[test]
fn paused_domain_runs_after_unpausing() {
    let rig = Arc::new(Rig::with(
        MachineConfig::default(),
        DomainConfig::default().paused(),
    ));
    let attached = Arc::new(rig.attach(1));
    let _server = Server::run(rig.clone(), attached.clone(), |_, _| 5);
    let vcpu = rig.domain.vcpu(0);
    let guest = std::thread::spawn(move || vcpu.read(BASE, 4));
    std::thread::sleep(Duration::from_millis(20));
    assert!(!guest.is_finished());
    assert_eq!(attached.slot(0).state(), STATE_NONE);
    rig.domain.unpause().unwrap();
    assert_eq!(guest.join().unwrap().unwrap(), 5);
}

#[test]
fn pauses_are_counted() {
    let rig = Rig::with(impatient(), DomainConfig::default());
    rig.domain.pause().unwrap();
    rig.domain.pause().unwrap();
    rig.domain.unpause().unwrap();
    assert_eq!(
        rig.domain.vcpu(0).read(BASE, 4),
        Err(AccessFault::Paused { vcpu: 0 })
    );
    rig.domain.unpause().unwrap();
    assert!(rig.domain.unpause().is_err());
    assert!(matches!(
        rig.domain.vcpu(0).read(BASE, 4),
        Err(AccessFault::Unclaimed { .. })
    ));
}

#[test]
fn vcpus_of_one_guest_run_at_once() {
    let rig = Arc::new(Rig::with(
        MachineConfig::default(),
        DomainConfig::default().vcpus(4),
    ));
    let attached = Arc::new(rig.attach(4));
    let server = Server::run(rig.clone(), attached, |vcpu, request| {
        request.address + u64::from(vcpu)
    });
    let guests: Vec<_> = (0..4u32)
        .map(|number| {
            let vcpu = rig.domain.vcpu(number);
            std::thread::spawn(move || {
                (0..100u64).all(|round| {
                    let address = BASE + (round % 64) * 8;
                    vcpu.read(address, 8) == Ok(address + u64::from(number))
                })
            })
        })
        .collect();
    for guest in guests {
        assert!(guest.join().unwrap());
    }
    assert_eq!(server.invalidates(), 1);
}

#[test]
fn one_vcpu_shared_by_threads_does_one_thing_at_a_time() {
    let rig = Arc::new(Rig::new());
    let attached = Arc::new(rig.attach(1));
    let _server = Server::run(rig.clone(), attached, |_, request| request.address);
    let guests: Vec<_> = (0..4u64)
        .map(|thread| {
            let vcpu = rig.domain.vcpu(0);
            std::thread::spawn(move || {
                (0..50).all(|_| vcpu.read(BASE + thread * 8, 8) == Ok(BASE + thread * 8))
            })
        })
        .collect();
    for guest in guests {
        assert!(guest.join().unwrap());
    }
}

#[test]
fn vcpu_that_does_not_exist_cannot_run() {
    let rig = Rig::new();
    assert_eq!(
        rig.domain.vcpu(1).read(BASE, 4),
        Err(AccessFault::Gone { vcpu: 1 })
    );
}
