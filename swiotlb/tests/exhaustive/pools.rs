//! Threads and the list of pools: publication, and the end of everything.

use std::sync::Arc;

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use crate::every_order;
use crate::stand::*;

/// One thread adds a pool, one maps and sends the address, one receives it.
pub fn an_address_from_a_pool_that_is_being_added() {
    let (allocator, _watch) = growing("128,1");
    let device = device(&allocator);
    let ram = Ram::new(0x1000);
    let all = segment(&device);
    // asks for another pool
    drop(map(&device.worker(0), &ram, 0, 64).expect("a transient pool"));
    let mail = Arc::new(AtomicU64::new(0));
    let adds = {
        let allocator = Arc::clone(&allocator);
        thread::spawn(move || allocator.grow())
    };
    let maps = {
        let (worker, ram, mail) = (device.worker(0), Arc::clone(&ram), Arc::clone(&mail));
        thread::spawn(move || {
            let mapping = map(&worker, &ram, 0, 64).expect("room somewhere");
            device_writes(&mapping, 7);
            mail.store(mapping.into_dma_address(), Ordering::Release);
        })
    };
    let mut address = 0;
    while address == 0 {
        thread::yield_now();
        address = mail.load(Ordering::Acquire);
    }
    // one that is not found is taken for a direct one, and nothing happens
    assert_eq!(unmap(&device, &ram, address, 64), Ok(()));
    assert_eq!(ram.read(0, 64), vec![7; 64]);
    maps.join().expect("who maps");
    assert_eq!(adds.join().expect("who adds"), Ok(true));
    drop(all);
    assert_as_new(&allocator);
}

#[test]
fn inv25_whoever_receives_an_address_finds_its_pool() {
    every_order(2, an_address_from_a_pool_that_is_being_added);
}

/// A mapping while the allocator ends.
fn a_mapping_and_a_teardown(grows: bool) {
    let (allocator, _watch) = growing("128,1");
    if !grows {
        allocator.each_memory(|_| ());
    }
    let device = device(&allocator);
    let ram = Ram::new(0x1000);
    let other = {
        let (worker, ram) = (device.worker(0), Arc::clone(&ram));
        thread::spawn(move || map(&worker, &ram, 0, 64))
    };
    let ended = allocator.tear_down();
    let mapped = other.join().expect("the other thread");
    assert!(
        ended.is_err() || mapped.is_err(),
        "a mapping without a pool: {:?}",
        mapped.map(|mapping| mapping.dma_address())
    );
}

#[test]
fn inv26_a_teardown_and_a_mapping_never_both_succeed() {
    every_order(9, || a_mapping_and_a_teardown(false));
}

#[test]
fn inv26_a_teardown_and_a_transient_mapping_never_both_succeed() {
    every_order(9, || a_mapping_and_a_teardown(true));
}

#[test]
fn inv25_whoever_is_shown_the_pools_is_shown_all_there_will_be() {
    every_order(9, || {
        let (allocator, _watch) = growing("128,1");
        let device = device(&allocator);
        let all = segment(&device);
        let ram = Ram::new(0x1000);
        drop(map(&device.worker(0), &ram, 0, 64).expect("a transient pool"));
        let other = {
            let allocator = Arc::clone(&allocator);
            thread::spawn(move || allocator.grow())
        };
        let mut shown = 0;
        allocator.each_memory(|memory| shown += memory.len() / 2048);
        // from here on a mapping is in one of them, or is refused
        let late = map(&device.worker(0), &ram, 0, 64);
        other.join().expect("who adds").expect("memory");
        let stats = allocator.stats();
        assert_eq!((stats.nslots, stats.transient_nslots), (shown, 0));
        drop((late, all));
    });
}
