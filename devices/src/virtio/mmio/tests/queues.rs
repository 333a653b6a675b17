//! Queues that start, stop, break, and are reset.

use std::sync::Mutex;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::*;
use crate::virtio::descriptor::borrow;
use crate::virtio::ring::{Ring, RingServer};

/// The test device, which serves its rings itself, and refuses them if asked to.
struct Outside {
    echo: Echo,
    rings: Mutex<Vec<Ring>>,
}

impl RingServer for Outside {
    fn ring_features(&self) -> u64 {
        0
    }
    fn attach_memory(&self, _: &Arc<dyn DmaProvider>) -> Result<(), DeviceError> {
        Ok(())
    }
    fn start(&self, ring: Ring) -> Result<(), DeviceError> {
        if self.echo.0.refuse_start.load(Ordering::SeqCst) {
            return Err("no".into());
        }
        self.rings.lock().unwrap().push(ring);
        Ok(())
    }
}

impl Device for Outside {
    fn device_type(&self) -> DeviceType {
        self.echo.device_type()
    }
    fn features(&self) -> u64 {
        self.echo.features()
    }
    fn queue_sizes(&self) -> &[u16] {
        self.echo.queue_sizes()
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.echo.read_config(offset, data);
    }
    fn start_queue(&mut self, _: u16, _: u64) -> Result<Box<dyn QueueHandler>, DeviceError> {
        Err("its rings are served outside".into())
    }
    fn ring_server(&self) -> Option<&dyn RingServer> {
        Some(self)
    }
    fn stopping(&mut self, _: u16) {
        self.rings.lock().unwrap().clear();
    }
}

#[test]
fn a_ring_that_was_refused_is_not_taken_for_the_next_one() {
    let mut bench = Bench::of(false, |probe| {
        Box::new(Outside {
            echo: Echo(probe),
            rings: Mutex::default(),
        })
    });
    let ring = DriverRing::new(&bench.ram, 8);
    let up = |bench: &mut Bench| {
        bench.negotiate(VERSION_1);
        bench.place(0, &ring);
        bench.now(Register::Status, UP_TO_FEATURES | STATUS_DRIVER_OK);
    };
    bench.probe.refuse_start.store(true, Ordering::SeqCst);
    up(&mut bench);
    let refused = bench.read(Register::Status);
    bench.probe.refuse_start.store(false, Ordering::SeqCst);

    // the refused ring has come back, and nobody has looked
    let reset = bench.write(Register::Status, 0);
    bench.settle();
    up(&mut bench);
    bench.transport.collect();

    assert_ne!(refused & STATUS_NEEDS_RESET, 0);
    assert_eq!(reset, Answer::Later);
    assert_eq!(bench.read(Register::Status) & STATUS_NEEDS_RESET, 0);
    assert!(bench.transport.is_running());
    bench.now(Register::QueueSel, 0);
    assert_eq!(bench.read(Register::QueueReady), 1);
}

#[test]
fn a_doorbell_that_whoever_serves_the_ring_has_filled_and_made_wait_stops_nobody() {
    let mut bench = Bench::of(false, |probe| {
        Box::new(Outside {
            echo: Echo(probe),
            rings: Mutex::default(),
        })
    });
    let ring = DriverRing::new(&bench.ram, 8);
    bench.negotiate(VERSION_1);
    bench.place(0, &ring);
    bench.now(Register::Status, UP_TO_FEATURES | STATUS_DRIVER_OK);
    let doorbell = bench.transport.doorbell(0).unwrap().try_clone().unwrap();
    let flags = fcntl_getfl(borrow(&doorbell)).unwrap();
    fcntl_setfl(borrow(&doorbell), flags & !OFlags::NONBLOCK).unwrap();
    doorbell.write(u64::MAX - 1).unwrap();

    bench.now(Register::QueueNotify, 0);
    let kicks = doorbell.read().unwrap();
    // and now it is empty
    let reset = bench.write(Register::Status, 0);
    bench.settle();

    assert_eq!((kicks, reset), (1, Answer::Later));
    assert_eq!(bench.read(Register::Status), 0);
}

#[test]
fn only_the_ready_queues_are_started_and_more_may_follow() {
    let (mut bench, mut ring) = Bench::running();
    let mut late = DriverRing::new(&bench.ram, 16);
    bench.now(Register::QueueNotify, 1);
    assert_eq!(bench.transport.malformed(), 1);

    bench.place(1, &late);
    let address = bench.ram.alloc(16);
    late.add(&[Buffer::writable(address, 16)]);
    bench.now(Register::QueueNotify, 1);
    bench.kick(&mut ring);

    let probe = bench.probe.clone();
    eventually("both queues served", || {
        probe.served.load(Ordering::SeqCst) == 2
    });
}

#[test]
fn a_driver_may_make_buffers_available_before_it_is_ready() {
    let mut bench = Bench::new();
    let mut ring = DriverRing::new(&bench.ram, 8);
    let address = bench.ram.alloc(16);
    ring.add(&[Buffer::writable(address, 16)]);
    bench.negotiate(VERSION_1);
    bench.place(0, &ring);
    bench.now(Register::Status, UP_TO_FEATURES | STATUS_DRIVER_OK);
    let probe = bench.probe.clone();
    eventually("it is served", || probe.served.load(Ordering::SeqCst) == 1);
}

#[test]
fn a_reset_is_answered_after_the_queue_was_given_back() {
    let (mut bench, mut ring) = Bench::running();
    bench.probe.hold.store(true, Ordering::SeqCst);
    bench.kick(&mut ring);

    let answer = bench.write(Register::Status, 0);
    let early = bench.transport.collect();
    let status = bench.read(Register::Status);
    bench.now(Register::QueueNotify, 0); // ignored
    bench.probe.hold.store(false, Ordering::SeqCst);
    bench.settle();

    assert_eq!(answer, Answer::Later);
    assert!(!early);
    assert_ne!(status, 0);
    assert_eq!(bench.read(Register::Status), 0);
    assert_eq!(bench.probe.dropped.load(Ordering::SeqCst), 1);
    assert_eq!(bench.probe.resets.load(Ordering::SeqCst), 1);
    assert_eq!(bench.transport.registers(), &Registers::default());
    assert_eq!(bench.read(Register::InterruptStatus), 0);
}

#[test]
fn a_reset_with_nothing_running_is_answered_at_once_and_forgets_everything() {
    let mut bench = Bench::new();
    let ring = DriverRing::new(&bench.ram, 8);
    bench.negotiate(VERSION_1);
    bench.place(0, &ring);
    bench.now(Register::Status, 0);
    bench.now(Register::QueueSel, 0);
    assert_eq!(bench.read(Register::QueueReady), 0);
    // the addresses are gone: it does not become ready by itself
    bench.negotiate(VERSION_1);
    bench.now(Register::QueueReady, 1);
    assert_eq!(bench.read(Register::QueueReady), 0);
}

#[test]
fn the_device_works_again_after_a_reset() {
    let (mut bench, mut ring) = Bench::running();
    for round in 0..5 {
        bench.kick(&mut ring);
        assert_eq!(bench.write(Register::Status, 0), Answer::Later);
        bench.settle();
        ring = DriverRing::new(&bench.ram, 8);
        bench.negotiate(VERSION_1 | RING_RESET);
        bench.place(0, &ring);
        bench.now(Register::Status, UP_TO_FEATURES | STATUS_DRIVER_OK);
        bench.kick(&mut ring);
        eventually("served again", || ring.used_index() == 1);
        assert_eq!(bench.transport.malformed(), 0, "round {round}");
    }
}

#[test]
fn queue_ready_0_stops_one_queue_and_keeps_its_registers() {
    let (mut bench, mut ring) = Bench::running();
    bench.kick(&mut ring);
    assert_eq!(bench.write(Register::QueueReady, 0), Answer::Later);
    bench.settle();
    assert_eq!(bench.read(Register::QueueReady), 0);
    assert_ne!(bench.read(Register::Status) & STATUS_DRIVER_OK, 0);
    // stopping what is stopped is done at once
    bench.now(Register::QueueReady, 0);
}

#[test]
fn queue_reset_puts_one_queue_back_to_its_defaults() {
    let (mut bench, mut ring) = Bench::running();
    bench.probe.hold.store(true, Ordering::SeqCst);
    bench.kick(&mut ring);
    assert_eq!(bench.write(Register::QueueReset, 1), Answer::Later);
    assert_eq!(bench.read(Register::QueueReset), 1);
    bench.probe.hold.store(false, Ordering::SeqCst);
    bench.settle();
    assert_eq!(bench.read(Register::QueueReset), 0);
    assert_eq!(bench.read(Register::QueueReady), 0);

    let mut ring = DriverRing::new(&bench.ram, 8);
    bench.place(0, &ring);
    bench.kick(&mut ring);
    eventually("served again", || ring.used_index() == 1);
}

#[test]
fn kicks_are_counted_whoever_rings_and_the_end_is_none() {
    let (mut bench, mut ring) = Bench::running();
    let kicks = Arc::clone(bench.transport.queue_stats(0).unwrap());
    let kicks = || kicks.kicks.load(Ordering::SeqCst);

    bench.kick(&mut ring);
    bench.transport.doorbell(0).unwrap().write(1).unwrap();
    eventually("both were counted", || kicks() == 2);
    assert_eq!(bench.write(Register::Status, 0), Answer::Later);
    bench.settle();

    assert_eq!(kicks(), 2);
}

#[test]
fn queue_reset_that_was_not_negotiated_is_ignored() {
    let mut bench = Bench::new();
    let ring = DriverRing::new(&bench.ram, 8);
    bench.negotiate(VERSION_1);
    bench.place(0, &ring);
    bench.now(Register::QueueReset, 1);
    assert_eq!(bench.read(Register::QueueReady), 1);
}

#[test]
fn a_broken_ring_needs_a_reset_and_gets_a_config_interrupt() {
    let (mut bench, mut ring) = Bench::running();
    ring.offer(100);
    bench.now(Register::QueueNotify, 0);
    let line = bench.line.clone();
    eventually("an interrupt", || line.edges() == 1);
    assert_ne!(bench.read(Register::Status) & STATUS_NEEDS_RESET, 0);
    assert_eq!(bench.read(Register::InterruptStatus), 2);
    assert_eq!(bench.write(Register::Status, 0), Answer::Later);
    bench.settle();
    assert_eq!(bench.read(Register::Status), 0);
}

#[test]
fn rings_out_of_reach_need_a_reset() {
    let mut bench = Bench::new();
    let ring = DriverRing::new(&bench.ram, 8);
    bench.negotiate(VERSION_1);
    bench.place(0, &ring);
    bench.now(Register::QueueReady, 0);
    bench.now(Register::QueueDeviceHigh, 0x7fff);
    bench.now(Register::QueueReady, 1);
    bench.now(Register::Status, UP_TO_FEATURES | STATUS_DRIVER_OK);
    assert_ne!(bench.read(Register::Status) & STATUS_NEEDS_RESET, 0);
    bench.now(Register::Status, 0);
    assert_eq!(bench.read(Register::Status), 0);
}

#[test]
fn a_device_that_cannot_start_a_queue_needs_a_reset() {
    let mut bench = Bench::new();
    bench.probe.refuse_start.store(true, Ordering::SeqCst);
    let ring = DriverRing::new(&bench.ram, 8);
    bench.negotiate(VERSION_1);
    bench.place(0, &ring);
    bench.now(Register::Status, UP_TO_FEATURES | STATUS_DRIVER_OK);
    assert_ne!(bench.read(Register::Status) & STATUS_NEEDS_RESET, 0);
}

#[test]
fn what_a_guest_can_repeat_fills_no_log() {
    let bench = Bench::new();

    let lines = (0..1000)
        .filter(|_| bench.transport.notifier().may_log())
        .count();
    bench.transport.notifier().reset();

    assert_eq!(lines, 63);
    assert!(!bench.transport.notifier().may_log());
}

#[test]
fn a_worker_that_dies_gives_its_queue_back() {
    let (mut bench, mut ring) = Bench::running();
    bench.probe.panic.store(true, Ordering::SeqCst);
    bench.kick(&mut ring);
    bench.settle();
    assert_ne!(bench.read(Register::Status) & STATUS_NEEDS_RESET, 0);
    bench.now(Register::Status, 0);
    assert_eq!(bench.read(Register::Status), 0);
}

#[test]
fn driver_ok_without_features_ok_starts_nothing() {
    let mut bench = Bench::new();
    bench.now(Register::Status, STATUS_ACKNOWLEDGE | STATUS_DRIVER_OK);
    assert_eq!(bench.read(Register::Status), STATUS_ACKNOWLEDGE);
    assert!(!bench.transport.is_running());
}

#[test]
fn registers_of_a_queue_in_use_do_not_change() {
    let (mut bench, mut ring) = Bench::running();
    let before = bench.transport.malformed();
    bench.now(Register::QueueSize, 4);
    bench.now(Register::QueueDescLow, 0);
    bench.now(Register::QueueReady, 1);
    assert_eq!(bench.transport.malformed() - before, 3);
    bench.kick(&mut ring);
    eventually("still served", || ring.used_index() == 1);
}
