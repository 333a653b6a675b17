//! Devices and guests that fail or end.

use super::*;

#[test]
fn a_device_that_is_removed_is_gone_for_the_guest_at_once() {
    let mut bench = Bench::new();
    let (probe, registers) = bench.add(0);
    registers.up();
    probe.hold();

    bench.guest.remove(&key(0)).unwrap();
    let id = registers.get(Register::DeviceId);
    // what it would have to wait for: a reset, which frees the rings
    let resetting = bench.registers(0, 1);
    let reset = on_vcpu(move || resetting.set(Register::Status, 0));
    let early = reset.recv_timeout(Duration::from_millis(50));
    let again = bench.guest.add(device(0, &probe));
    probe.release();
    bench.wait_event(|event| matches!(event, GuestEvent::Removed(id) if *id == key(0)));

    assert_eq!(id, 0);
    assert!(early.is_err(), "rings were still mapped");
    assert!(matches!(again, Err(GuestError::Exists(_))));
    assert_eq!(reset.recv_timeout(PATIENCE), Ok(()));
    assert!(bench.guest.add(device(0, &probe)).is_ok());
    assert_eq!(registers.get(Register::DeviceId), 42);
    bench.finish();
}

#[test]
fn a_failure_in_a_devices_code_breaks_that_device_alone() {
    let mut bench = Bench::new();
    let (probe, registers) = bench.add(0);
    let (_other, neighbour) = bench.add(1);

    probe.panic_in_config.store(true, Ordering::SeqCst);
    let config = registers.vcpu.read(registers.base + 0x100, 4);
    let status = registers.get(Register::Status);
    probe.panic_in_config.store(false, Ordering::SeqCst);
    bench.wait_event(|event| matches!(event, GuestEvent::NeedsReset(id) if *id == key(0)));
    registers.set(Register::Status, 0);

    assert_eq!(config, Ok(0));
    assert_eq!(status, u64::from(features::STATUS_NEEDS_RESET));
    assert_eq!(registers.get(Register::Status), 0);
    assert_eq!(neighbour.get(Register::DeviceId), 42);
    assert_eq!(bench.guest.snapshot().panics, 1);
    bench.finish();
}

#[test]
fn a_failure_while_queues_start_or_end_leaves_no_vcpu_waiting() {
    let mut bench = Bench::new();
    let (starting, first) = bench.add(0);
    let (resetting, second) = bench.add(1);
    starting.panic_in_start.store(true, Ordering::SeqCst);

    first.up();
    second.up();
    resetting.panic_in_reset.store(true, Ordering::SeqCst);
    second.set(Register::Status, 0);

    let needs_reset = u64::from(features::STATUS_NEEDS_RESET);
    assert_ne!(first.get(Register::Status) & needs_reset, 0);
    assert!(bench.guest.snapshot().panics >= 2);
    bench.wait_event(|event| matches!(event, GuestEvent::NeedsReset(id) if *id == key(0)));
    bench.finish();
}

#[test]
fn a_queue_that_breaks_is_told_without_the_guests_help() {
    let mut bench = Bench::new();
    let (_probe, registers) = bench.add(0);
    registers.up();
    let memory = bench.domain.map_memory(0x40000, 1).unwrap();
    // one descriptor of 16 bytes, offered once
    let descriptor = [0x4000_0f00u64, 16];
    memory.volatile().write_obj(descriptor, 0).unwrap();
    memory.volatile().write_obj(1u16, 0x402).unwrap();

    registers.set(Register::QueueNotify, 0);

    bench.wait_event(|event| matches!(event, GuestEvent::NeedsReset(id) if *id == key(0)));
    let rung = bench.wake.read().is_ok();
    assert!(rung, "the control plane was not woken");
    registers.set(Register::Status, 0);
    bench.finish();
}

#[test]
fn a_device_in_an_impossible_place_is_refused() {
    let bench = Bench::new();
    let (probe, _) = bench.add(0);
    let at = |base, irq| DeviceSlot {
        base,
        irq,
        ..device(1, &probe)
    };
    let error = |slot| bench.guest.add(slot).unwrap_err().to_string();

    assert!(error(device(0, &probe)).contains("odd/0 is there already"));
    assert!(error(at(0x0300_0000, 40)).contains("0x3000000"));
    assert!(error(at(0x0200_0100, 40)).contains("0x2000100"));
    assert!(error(at(0x0200_0000, 40)).contains("taken by odd/0"));
    assert!(error(at(0x0200_0200, 33)).contains("interrupt 33 is odd/0's"));
    assert!(error(at(0x0200_0200, 31)).contains("no SPI"));
    assert!(error(at(0x0200_0200, 1019)).contains("cannot be driven"));
    assert!(matches!(
        bench.guest.remove(&key(9)),
        Err(GuestError::Unknown(_))
    ));
    assert_eq!(bench.guest.snapshot().devices.len(), 1);
    bench.finish();
}

#[test]
fn a_guest_that_cannot_be_served_leaves_nothing_behind() {
    let machine = Machine::new().unwrap();
    let domain = machine.create_domain(DomainConfig::default()).unwrap();
    let host = Host::Fake(machine.clone());
    let start = |change: fn(&mut GuestConfig)| {
        let mut config = GuestConfig::new(domain.id(), "tested");
        change(&mut config);
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        Guest::start(&host, config, wake).map(drop).unwrap_err()
    };
    let held = || machine.census().remove(&domain.id()).unwrap_or_default();

    let window = start(|guest| guest.windows[0].size = 0x100);
    let missing = start(|guest| guest.domid = DomId(99));
    let mut failed = Vec::new();
    for call in [Call::DmOp, Call::MmapResource, Call::Bind] {
        for nth in 1..=4 {
            machine.fail(Target::Call(call), nth, libc::EIO);
            let wake = EventFd::new(EFD_NONBLOCK).unwrap();
            let config = GuestConfig::new(domain.id(), "tested");
            failed.push(
                Guest::start(&host, config, wake)
                    .and_then(Guest::stop)
                    .is_err(),
            );
            machine.reconfigure(|_| {});
            assert!(held().is_clean(), "{call:?} {nth}: {:?}", held());
        }
    }

    assert!(matches!(window, GuestError::Window { .. }), "{window}");
    assert!(matches!(missing, GuestError::Open { .. }), "{missing}");
    assert!(failed.contains(&true));
}

#[test]
fn a_guest_that_dies_is_ended_and_let_go() {
    let mut bench = Bench::new();
    let (_probe, registers) = bench.add(0);
    registers.up();
    bench.wait_event(|event| matches!(event, GuestEvent::DriverUp(_)));

    bench.domain.destroy();
    let zombie = bench.domain.is_zombie();
    let ended = bench.guest.stop();

    assert!(zombie, "its pages were still mapped");
    assert!(ended.is_ok(), "{ended:?}");
    assert!(!bench.domain.exists(), "something of it is still held");
}

#[test]
fn a_queue_that_never_stops_does_not_keep_the_guest_from_ending() {
    let bench = Bench::with(MachineConfig::default(), |guest| {
        guest.stop_warning = Duration::from_millis(20);
    });
    let (probe, registers) = bench.add(0);
    registers.up();
    probe.hold();

    let error = bench.guest.stop().unwrap_err();

    assert!(error.to_string().contains("odd/0"), "{error}");
    probe.release();
}

#[test]
fn a_device_that_was_given_up_is_let_go_when_its_queues_stop_at_last() {
    let bench = Bench::with(MachineConfig::default(), |guest| {
        guest.stop_warning = Duration::from_millis(20);
    });
    let (probe, registers) = bench.add(0);
    registers.up();
    probe.hold();
    let held = || {
        let census = bench.machine.census().remove(&bench.domain.id());
        !census.unwrap_or_default().is_clean()
    };

    bench.guest.stop().unwrap_err();
    let before = (held(), Arc::strong_count(&probe) > 1);
    probe.release();

    assert_eq!(before, (true, true), "it has not stopped");
    // the device, its queues' handlers and what they had mapped
    eventually(|| Arc::strong_count(&probe) == 1);
    eventually(|| !held());
}

#[test]
fn event_channels_that_fail_are_tried_again() {
    let mut bench = Bench::new();
    let (_probe, registers) = bench.add(0);
    registers.get(Register::DeviceId);

    let mut answers = Vec::new();
    for call in [Call::Read, Call::Unmask] {
        for nth in 1..=3 {
            bench.machine.fail(Target::Call(call), nth, libc::EIO);
        }
        answers.extend((0..8).map(|_| registers.get(Register::DeviceId)));
    }

    assert_eq!(answers, [42; 16]);
    bench.wait_event(|event| matches!(event, GuestEvent::Failed(_)));
    bench.finish();
}

#[test]
fn what_was_counted_is_known_after_the_end() {
    let bench = Bench::new();
    let (_probe, registers) = bench.add(0);
    registers.get(Register::DeviceId);

    bench.domain.destroy();
    let before = bench.guest.snapshot();

    assert!(before.ioreqs >= 2, "{before:?}");
    assert_eq!(before.devices.len(), 1);
    bench.guest.stop().unwrap();
}
