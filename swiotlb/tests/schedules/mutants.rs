//! Broken locks and atomics, and the schedules that notice.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::life::{Life, three_threads_count_what_they_hold};
use crate::many_schedules;
use crate::mutation::{Mutation, with};
use crate::stand::*;

/// Runs a test with a fault and returns what it said of it.
fn caught(mutation: Mutation, test: fn()) -> String {
    let broken = || with(mutation, || many_schedules(200, test));
    let said = catch_unwind(AssertUnwindSafe(broken)).expect_err("nobody noticed");
    let text = said.downcast_ref::<String>().cloned();
    text.or_else(|| said.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_default()
}

#[test]
fn inv23_areas_whose_locks_are_open_are_noticed() {
    let said = caught(Mutation::OpenLocks, || Life::of(2, allocator("256,2"), 0));
    assert!(
        said.contains("at one time") || said.contains("two threads"),
        "{said}"
    );
}

#[test]
fn inv26_transient_pools_without_a_lock_are_noticed() {
    let said = caught(Mutation::OpenLocks, || {
        Life::of(3, growing("128,1").0, 0x3_c000);
    });
    assert!(
        said.contains("at one time") || said.contains("two threads"),
        "{said}"
    );
}

#[test]
fn inv28_a_high_water_mark_in_two_steps_is_noticed() {
    let said = caught(Mutation::TornUpdates, three_threads_count_what_they_hold);
    // below zero, or too low
    assert!(
        said.contains("overflow") || said.contains("it misses"),
        "{said}"
    );
}
