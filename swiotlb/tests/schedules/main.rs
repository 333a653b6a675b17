//! The whole allocator under shuttle: thousands of schedules of two and three
//! threads, drawn by chance and by priorities (PCT), with everything that a
//! device model does to one.
//!
//! loom looks at every order of few steps (`tests/exhaustive`); these look at
//! some orders of many steps. Seeds are fixed: a failure comes again.

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
    use std::sync::atomic::{AtomicI64, Ordering};

    pub use shuttle::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
    pub use shuttle::sync::{Mutex, MutexGuard};
    pub use shuttle::thread;

    /// Accesses to something: two of them, one a write, have to be apart. Each
    /// takes a while, in which others may come.
    #[derive(Debug, Default)]
    pub struct Access(AtomicI64);

    /// What a writer adds.
    const WRITER: i64 = 1 << 32;

    impl Access {
        pub fn read(&self) {
            self.during(1);
        }

        pub fn write(&self) {
            self.during(WRITER);
        }

        fn during(&self, weight: i64) {
            let others = self.0.fetch_add(weight, Ordering::SeqCst);
            let alone = others == 0 || (weight == 1 && others < WRITER);
            assert!(alone || std::thread::panicking(), "accesses at one time");
            if !std::thread::panicking() {
                thread::yield_now();
            }
            self.0.fetch_sub(weight, Ordering::SeqCst);
        }
    }
}

mod life;
mod mutants;

use std::sync::Arc;

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

/// Runs `f` under as many schedules of each kind.
fn many_schedules(count: usize, f: impl Fn() + Copy + Send + Sync + 'static) {
    let random = run(RandomScheduler::new_from_seed(0x5eed, count), f);
    let pct = run(PctScheduler::new_from_seed(0x5eed, 3, count), f);
    assert_eq!((random, pct), (count, count));
    let name = std::thread::current();
    let name = name.name().unwrap_or("a test");
    println!("{name}: {random} random schedules, {pct} by priorities");
}

fn run(scheduler: impl Scheduler + 'static, f: impl Fn() + Send + Sync + 'static) -> usize {
    let mut config = Config::new();
    config.failure_persistence = FailurePersistence::Print;
    // whoever waits for ever is found
    config.max_steps = MaxSteps::FailAfter(100_000);
    config.stack_size = 1 << 19;
    Runner::new(scheduler, config).run(move || {
        stand::fresh();
        f();
    })
}
