//! The allocator under loom: every order in which two or three threads can go,
//! and every value that a relaxed load may see, up to a bound of preemptions.
//!
//! INV-23 to INV-30 by number; `mutants.rs` breaks locks and atomics and shows
//! that these tests notice.

// the crate's files are whole here, private, and used in part
#![allow(dead_code, unused_imports, unfulfilled_lint_expectations)]
#![allow(clippy::wrong_self_convention, clippy::arc_with_non_send_sync)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

include!("../concurrency/tree.rs");

#[path = "../concurrency/mutation.rs"]
mod mutation;
#[path = "../concurrency/segment.rs"]
mod segment;
#[path = "../concurrency/shadow.rs"]
mod shadow;
#[path = "../concurrency/stand.rs"]
mod stand;
#[path = "../concurrency/sync.rs"]
mod sync;

/// The parts that `sync.rs` is made of here.
mod checker {
    pub use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
    pub use loom::sync::{Mutex, MutexGuard};
    pub use loom::thread;

    /// Accesses to something: two of them, one a write, have to be ordered.
    #[derive(Debug, Default)]
    pub struct Access(loom::cell::UnsafeCell<()>);

    impl Access {
        pub fn read(&self) {
            self.0.with(|_| ());
        }

        pub fn write(&self) {
            self.0.with_mut(|_| ());
        }
    }
}

mod areas;
mod growth;
mod mutants;
mod pools;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs `f` in every order with at most this many preemptions, and says how
/// many there were.
fn every_order(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let orders = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&orders);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        stand::fresh();
        counted.fetch_add(1, Ordering::Relaxed);
        f();
    });
    let name = std::thread::current();
    let orders = orders.load(Ordering::Relaxed);
    println!("{}: {orders} orders", name.name().unwrap_or("a test"));
    assert!(orders > 1, "the threads never met");
}
