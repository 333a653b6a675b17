//! Ends that come while requests are under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use devices::virtio::mmio::Register;
use vmm::demo::guest::Pattern;
use vmm::guest::GuestEvent;

use super::{Bench, bring_up, load, one_request, works};
use crate::raw::{RawDriver, RawQueue, Shared};
use crate::stand::slot;

/// How often each end is tried; the requests are somewhere else each time.
const ROUNDS: usize = 24;

/// Frees everything that a driver has given to its device.
fn free(driver: &RawDriver, queue: RawQueue, requests: Vec<Shared>) {
    // rings first: the device would write its used entries there
    queue.free(&driver.memory);
    for request in requests {
        request.take_back(&driver.memory);
    }
}

/// A driver is bound and unbound again and again.
pub(super) fn rebind(bench: &mut Bench) {
    for _ in 0..ROUNDS {
        bench.works();
    }
}

/// STATUS = 0 while requests are in flight, and everything freed at once.
pub(super) fn reset_under_load(bench: &mut Bench) {
    for _ in 0..ROUNDS {
        let mut queue = bench.up();
        let requests = bench.load(&mut queue);
        bench.driver.reset();
        free(&bench.driver, queue, requests);
        bench.stand.check();
    }
}

/// QUEUE_RESET while requests are in flight; the device itself goes on.
pub(super) fn queue_reset_under_load(bench: &mut Bench) {
    queue_end_under_load(bench, |driver, queue| {
        driver.set(Register::QueueSel, queue.into());
        driver.set(Register::QueueReset, 1);
        assert_eq!(driver.get(Register::QueueReset), 0, "the reset is not over");
        assert_eq!(driver.get(Register::QueueReady), 0);
    });
}

/// QUEUE_READY = 0 while requests are in flight; the device itself goes on.
pub(super) fn queue_stop_under_load(bench: &mut Bench) {
    queue_end_under_load(bench, |driver, queue| {
        driver.set(Register::QueueSel, queue.into());
        driver.set(Register::QueueReady, 0);
        assert_eq!(driver.get(Register::QueueReady), 0);
    });
}

fn queue_end_under_load(bench: &mut Bench, end: fn(&RawDriver, u16)) {
    let mut queue = bench.up();
    for _ in 0..ROUNDS {
        let requests = bench.load(&mut queue);
        end(&bench.driver, bench.subject.queue);
        free(&bench.driver, queue, requests);
        bench.stand.check();
        // only the queue was reset: the device is still up
        queue = bench.driver.queue(bench.subject.queue, super::RING);
        one_request(&bench.driver, bench.subject, &mut bench.pattern, &mut queue);
        end(&bench.driver, bench.subject.queue);
        queue.free(&bench.driver.memory);
        queue = bench.driver.queue(bench.subject.queue, super::RING);
    }
    bench.driver.reset();
    queue.free(&bench.driver.memory);
}

/// The device is removed by the toolstack while requests are in flight.
pub(super) fn stop_under_load(bench: &mut Bench) {
    for _ in 0..ROUNDS {
        let mut queue = bench.up();
        let requests = bench.load(&mut queue);
        let place = bench.place.clone();
        bench.stand.remove(&place);
        let census = bench.stand.machine.census();
        let held = census[&bench.stand.domain.id()];
        assert_eq!(held.mapped_grants, 0);
        assert_eq!(held.foreign_pages, 0);
        assert_eq!((held.irqfds, held.ioeventfds), (0, 0));
        // the guest finds an empty slot, and frees what the device has let go
        assert_eq!(bench.driver.get(Register::DeviceId), 0);
        bench.driver.kick(&queue);
        bench.driver.reset();
        free(&bench.driver, queue, requests);
        bench.stand.check();
        let device = (bench.subject.make)(&bench.stand, 0);
        bench.stand.guest().add(slot(&place, device)).unwrap();
    }
    bench
        .stand
        .wait_event(|event| matches!(event, GuestEvent::DriverUp(_)));
}

/// One vCPU resets a device under load while another pokes the same device,
/// and drives a second one.
pub(super) fn two_vcpus_at_once(bench: &mut Bench) {
    let device = (bench.subject.make)(&bench.stand, 1);
    let second = bench.stand.add(1, bench.place.addresses, device);
    let subject = bench.subject;
    let over = Arc::new(AtomicBool::new(false));
    let other = {
        let over = Arc::clone(&over);
        let poked = bench.stand.raw(&bench.place, 1);
        let driven = bench.stand.raw(&second, 1);
        thread::spawn(move || {
            let mut pattern = Pattern::new(7);
            let mut rounds = 0u64;
            while !over.load(Ordering::SeqCst) || rounds < 4 {
                works(&driven, subject, &mut pattern);
                for _ in 0..8 {
                    poked.get(Register::Status);
                    poked.get(Register::InterruptStatus);
                    poked.set(Register::InterruptAck, 3);
                    poked.set(Register::QueueNotify, pattern.below(4) as u32);
                    poked.peek(0x100 + 4 * pattern.below(16), 4);
                }
                rounds += 1;
            }
            rounds
        })
    };
    for _ in 0..ROUNDS {
        let mut queue = bring_up(&bench.driver, subject);
        let requests = load(&bench.driver, subject, &mut bench.pattern, &mut queue);
        bench.driver.reset();
        free(&bench.driver, queue, requests);
    }
    over.store(true, Ordering::SeqCst);
    let rounds = other.join().expect("the other vCPU went on");
    assert!(rounds >= 4);
}
