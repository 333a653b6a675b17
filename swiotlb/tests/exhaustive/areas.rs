//! Threads that meet in one area, and threads that meet in several.

use std::sync::Arc;

use loom::thread;

use crate::every_order;
use crate::stand::*;

/// Two threads map and unmap in one area.
pub fn two_threads_in_one_area() {
    let allocator = allocator("128,1");
    let device = device(&allocator);
    let ram = Ram::new(0x2000);
    let claims = Arc::new(Claims::default());
    let turn = |start: u64, len: u64| {
        let (worker, ram, claims) = (device.worker(0), Arc::clone(&ram), Arc::clone(&claims));
        move || {
            let mapping = map(&worker, &ram, start, len).expect("room for both");
            claims.take(&mapping);
            device_writes(&mapping, start as u8 + 1);
            claims.give_back(&mapping);
            mapping.unmap(&*ram).expect("mapped");
        }
    };
    let other = thread::spawn(turn(0x1000, 3000));
    turn(0, 2048)();
    other.join().expect("the other thread");
    assert_eq!(ram.read(0, 2048), vec![1; 2048]);
    assert_eq!(ram.read(0x1000, 3000), vec![1; 3000]);
    assert_as_new(&allocator);
}

#[test]
fn inv23_inv29_two_threads_never_share_slots_nor_race_for_their_bytes() {
    every_order(9, two_threads_in_one_area);
}

#[test]
fn inv23_three_threads_never_share_slots() {
    every_order(1, || {
        let allocator = allocator("128,1");
        let device = device(&allocator);
        let ram = Ram::new(0x1000);
        let claims = Arc::new(Claims::default());
        let turn = |_| {
            let (worker, ram, claims) = (device.worker(0), Arc::clone(&ram), Arc::clone(&claims));
            move || {
                let mapping = map(&worker, &ram, 0, 4000).expect("room for all");
                claims.take(&mapping);
                mapping
            }
        };
        let others = [0, 1].map(|index| thread::spawn(turn(index)));
        let mut live = vec![turn(2)()];
        live.extend(others.map(|other| other.join().expect("another thread")));
        assert_eq!(allocator.used(), 6);
        drop(live);
        assert_as_new(&allocator);
    });
}

#[test]
fn inv24_whoever_unmaps_frees_in_the_owning_area() {
    every_order(9, || {
        let allocator = allocator("256,2");
        let device = device(&allocator);
        let ram = Ram::new(0x1000);
        // a mapping of the second area, by a worker of it
        let mapping = map(&device.worker(1), &ram, 0, 3000).expect("room");
        device_writes(&mapping, 7);
        let other = {
            let (worker, ram) = (device.worker(0), Arc::clone(&ram));
            thread::spawn(move || {
                let own = map(&worker, &ram, 0xf00, 64).expect("room");
                mapping.unmap(&*ram).expect("mapped");
                own
            })
        };
        let third = map(&device.worker(1), &ram, 0xe00, 64).expect("room");
        let own = other.join().expect("the other thread");
        assert_eq!(used_by_area(&allocator), [1, 1]);
        assert_eq!(ram.read(0, 3000), vec![7; 3000]);
        drop((own, third));
        assert_as_new(&allocator);
    });
}

/// An address is unmapped by two threads at once.
pub fn two_threads_unmap_one_address() {
    let allocator = allocator("128,1");
    let device = device(&allocator);
    let ram = Ram::new(0x1000);
    let address = map(&device.worker(0), &ram, 0, 100).expect("room");
    let address = address.into_dma_address();
    let other = {
        let (device, ram) = (Arc::clone(&device), Arc::clone(&ram));
        thread::spawn(move || unmap(&device, &ram, address, 100))
    };
    let ours = unmap(&device, &ram, address, 100);
    let theirs = other.join().expect("the other thread");
    assert_eq!(u32::from(ours.is_ok()) + u32::from(theirs.is_ok()), 1);
    assert_as_new(&allocator);
}

#[test]
fn inv24_one_of_two_who_unmap_an_address_does() {
    every_order(9, two_threads_unmap_one_address);
}

#[test]
fn inv30_a_search_that_goes_on_to_another_area_leaves_nothing_behind() {
    every_order(9, || {
        let allocator = allocator("256,2");
        let device = device(&allocator);
        let ram = Ram::new(0x1000);
        // of the first area, so that a segment fits the second one alone
        let blocker = map(&device.worker(0), &ram, 0, 64).expect("room");
        let other = {
            let device = Arc::clone(&device);
            thread::spawn(move || drop(segment(&device)))
        };
        // while somebody comes and goes there
        let worker = device.worker(0);
        for _ in 0..2 {
            drop(map(&worker, &ram, 0, 2049).expect("room in one of them"));
        }
        other.join().expect("the other thread");
        assert_eq!(used_by_area(&allocator), [1, 0]);
        drop(blocker);
        assert_as_new(&allocator);
    });
}

/// Mappings of two threads that are live at the same time.
pub fn two_threads_count_what_they_hold() {
    let allocator = allocator("256,2,track_hiwater");
    let device = device(&allocator);
    let ram = Ram::new(0x1000);
    let other = {
        let (worker, ram) = (device.worker(1), Arc::clone(&ram));
        thread::spawn(move || map(&worker, &ram, 0, 2049).expect("room"))
    };
    let ours = map(&device.worker(0), &ram, 0, 64).expect("room");
    let theirs = other.join().expect("the other thread");
    assert_eq!(allocator.stats().used_hiwater, 3);
    drop((ours, theirs));
    assert_eq!(allocator.stats().used_hiwater, 3);
}

#[test]
fn inv28_the_high_water_mark_misses_nobody() {
    every_order(9, two_threads_count_what_they_hold);
}

#[test]
fn inv28_the_high_water_mark_never_counts_a_slot_twice() {
    every_order(9, || {
        let allocator = allocator("128,1,track_hiwater");
        let device = device(&allocator);
        let all = segment(&device);
        let other = thread::spawn(move || drop(all));
        // of a full pool, or of the one that has been left
        let worker = device.worker(0);
        let ours = map(&worker, &Ram::new(0x1000), 0, 2049);
        other.join().expect("the other thread");
        assert_eq!(allocator.stats().used_hiwater, 128);
        assert_eq!(allocator.used(), ours.map_or(0, |_| 2));
        assert_as_new(&allocator);
    });
}
