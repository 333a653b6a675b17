//! Broken locks and atomics, and the tests that notice.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use loom::thread;

use crate::direction::Direction;
use crate::mutation::{Mutation, with};
use crate::originals::Originals;
use crate::stand::*;
use crate::{areas, every_order, growth, pools};

/// Runs a test that has to fail and returns what it said.
fn said_of(test: impl FnOnce()) -> String {
    let said = catch_unwind(AssertUnwindSafe(test)).expect_err("nobody noticed");
    let text = said.downcast_ref::<String>().cloned();
    text.or_else(|| said.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_default()
}

/// Runs a test with a fault.
fn caught(mutation: Mutation, test: fn()) -> String {
    said_of(|| with(mutation, || every_order(3, test)))
}

#[test]
fn inv23_an_area_whose_lock_is_open_is_noticed() {
    let said = caught(Mutation::OpenLocks, areas::two_threads_in_one_area);
    assert!(said.contains("Causality violation"), "{said}");
}

#[test]
fn inv24_a_claim_without_a_lock_is_noticed() {
    let said = caught(Mutation::OpenLocks, areas::two_threads_unmap_one_address);
    assert!(said.contains("Causality violation"), "{said}");
}

#[test]
fn inv25_a_pool_that_is_shown_before_it_is_made_is_noticed() {
    let said = caught(
        Mutation::RelaxedPublication,
        pools::an_address_from_a_pool_that_is_being_added,
    );
    assert!(said.contains("Causality violation"), "{said}");
}

#[test]
fn inv26_transient_pools_without_a_lock_are_noticed() {
    let said = caught(
        Mutation::OpenLocks,
        growth::two_threads_end_a_transient_pool,
    );
    assert!(said.contains("Causality violation"), "{said}");
}

#[test]
fn inv27_a_request_in_two_steps_is_noticed() {
    let said = caught(Mutation::TornUpdates, growth::two_threads_ask_for_a_pool);
    assert!(said.contains("left: 2"), "{said}");
}

#[test]
fn inv28_a_high_water_mark_in_two_steps_is_noticed() {
    let said = caught(
        Mutation::TornUpdates,
        areas::two_threads_count_what_they_hold,
    );
    assert!(said.contains("right: 3"), "{said}");
}

#[test]
fn inv29_an_unlock_that_publishes_nothing_is_noticed() {
    let said = caught(Mutation::RelaxedUnlock, areas::two_threads_in_one_area);
    assert!(said.contains("Causality violation"), "{said}");
}

#[test]
fn inv29_bytes_that_are_copied_after_their_slots_are_free_are_noticed() {
    let said = said_of(|| {
        every_order(3, || {
            let allocator = allocator("128,1");
            let device = device(&allocator);
            let ram = Ram::new(0x1000);
            let mapping = map(&device.worker(0), &ram, 0, 64).expect("room");
            let other = {
                let (worker, ram) = (device.worker(0), Arc::clone(&ram));
                thread::spawn(move || drop(map(&worker, &ram, 0, 64)))
            };
            // what the crate does in the other order
            drop(mapping);
            let pool = allocator.pool(0).expect("a pool");
            let bytes = pool.bytes(0, 0, 64).expect("its first slot");
            ram.copy_back(0, &bytes).expect("ram");
            other.join().expect("the other thread");
        });
    });
    assert!(said.contains("Causality violation"), "{said}");
}
