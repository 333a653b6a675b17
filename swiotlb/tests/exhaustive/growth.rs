//! Transient pools and pools that are asked for.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::thread;

use crate::device::Device;
use crate::direction::{Direction, SyncFor};
use crate::error::Error;
use crate::every_order;
use crate::stand::*;

/// Two threads end one transient mapping, and the pool that was made for it.
pub fn two_threads_end_a_transient_pool() {
    let (allocator, _watch) = growing("128,1");
    let device = device(&allocator);
    let ram = Ram::new(0x1000);
    let all = segment(&device);
    let mapping = map(&device.worker(0), &ram, 0, 64).expect("a transient pool");
    let address = mapping.into_dma_address();
    let end = |device: Arc<Device>, ram: Arc<Ram>| move || unmap(&device, &ram, address, 64);
    let other = thread::spawn(end(Arc::clone(&device), Arc::clone(&ram)));
    let ours = end(Arc::clone(&device), Arc::clone(&ram))();
    let theirs = other.join().expect("the other thread");
    // who comes too late finds no mapping, or no pool any more
    for outcome in [ours, theirs] {
        assert!(matches!(
            outcome,
            Ok(()) | Err(Error::NotMapped { .. } | Error::NoPool)
        ));
    }
    let stats = allocator.stats();
    assert_eq!(stats.bytes_out, 64, "copied back once");
    assert_eq!(stats.transient_nslots, 0);
    drop(all);
    assert_as_new(&allocator);
}

#[test]
fn inv26_a_transient_pool_ends_once() {
    every_order(9, two_threads_end_a_transient_pool);
}

#[test]
fn inv26_whoever_has_found_a_transient_pool_keeps_its_memory() {
    every_order(9, || {
        let (allocator, _watch) = growing("128,1");
        let device = device(&allocator);
        let ram = Ram::new(0x1000);
        let all = segment(&device);
        let mapping = map(&device.worker(0), &ram, 0, 64).expect("a transient pool");
        let address = mapping.into_dma_address();
        let other = {
            let (device, ram) = (Arc::clone(&device), Arc::clone(&ram));
            thread::spawn(move || {
                device.sync(&*ram, address, 64, Direction::FromDevice, SyncFor::Cpu)
            })
        };
        assert_eq!(unmap(&device, &ram, address, 64), Ok(()));
        let synced = other.join().expect("the other thread");
        assert!(matches!(synced, Ok(()) | Err(Error::OutOfRange { .. })));
        drop(all);
        assert_as_new(&allocator);
    });
}

#[test]
fn inv26_two_threads_have_transient_pools_of_their_own() {
    every_order(3, || {
        let (allocator, watch) = growing("128,1");
        let device = device(&allocator);
        let ram = Ram::new(0x1000);
        let all = segment(&device);
        let turn = || {
            let (worker, ram) = (device.worker(0), Arc::clone(&ram));
            move || {
                let mapping = map(&worker, &ram, 0, 64).expect("a transient pool");
                let address = mapping.dma_address();
                mapping.unmap(&*ram).expect("mapped");
                address
            }
        };
        let other = thread::spawn(turn());
        let (ours, theirs) = (turn()(), other.join().expect("the other thread"));
        assert_ne!(ours, theirs);
        assert_eq!(watch.made.load(Ordering::SeqCst), 2);
        drop(all);
        assert_as_new(&allocator);
    });
}

/// Two threads find no room.
pub fn two_threads_ask_for_a_pool() {
    let (allocator, watch) = growing("128,1");
    let device = device(&allocator);
    let ram = Ram::new(0x1000);
    let all = segment(&device);
    let turn = || {
        let (worker, ram) = (device.worker(0), Arc::clone(&ram));
        move || drop(map(&worker, &ram, 0, 64).expect("a transient pool"))
    };
    let other = thread::spawn(turn());
    turn()();
    other.join().expect("the other thread");
    assert_eq!(watch.woken.load(Ordering::SeqCst), 1);
    drop(all);
}

#[test]
fn inv27_whoever_finds_no_room_asks_once_for_all() {
    every_order(4, two_threads_ask_for_a_pool);
}

#[test]
fn inv27_one_request_adds_one_pool() {
    every_order(9, || {
        let (allocator, _watch) = growing("128,1");
        let device = device(&allocator);
        let ram = Ram::new(0x1000);
        let all = segment(&device);
        drop(map(&device.worker(0), &ram, 0, 64).expect("a transient pool"));
        let other = {
            let allocator = Arc::clone(&allocator);
            thread::spawn(move || allocator.grow().expect("memory"))
        };
        let ours = allocator.grow().expect("memory");
        let theirs = other.join().expect("the other thread");
        assert_eq!(u32::from(ours) + u32::from(theirs), 1);
        assert_eq!(allocator.stats().grow_ok, 1);
        drop(all);
    });
}

#[test]
fn inv27_bring_up_below_a_limit_waits_for_nobody_for_ever() {
    every_order(9, || {
        let (allocator, _watch) = growing("128,1");
        let other = {
            let allocator = Arc::clone(&allocator);
            thread::spawn(move || allocator.grow())
        };
        // out of reach, and so is whatever could be added
        let ensured = ensure(&allocator, Some(0xFFF_FFFF));
        assert!(matches!(ensured, Err(Error::PoolUnreachable { .. })));
        assert_eq!(other.join().expect("the other thread"), Ok(false));
    });
}
