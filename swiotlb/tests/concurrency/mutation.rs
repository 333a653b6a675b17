//! Faults that a test puts into the locks and atomics, to show that its checks
//! would find them in the allocator.

use std::cell::Cell;

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Locks let everybody in.
    OpenLocks,
    /// Unlocking an area publishes nothing of what was done inside.
    RelaxedUnlock,
    /// The list of pools is published without what the pools are made of.
    RelaxedPublication,
    /// What reads, changes and writes a word does so in two steps.
    TornUpdates,
}

thread_local! {
    // a checker runs all of its threads on the one that called it
    static MUTATION: Cell<Option<Mutation>> = const { Cell::new(None) };
}

/// Runs `f` with a fault.
pub fn with(mutation: Mutation, f: impl FnOnce()) {
    struct Healed;
    impl Drop for Healed {
        fn drop(&mut self) {
            MUTATION.set(None);
        }
    }
    let _healed = Healed;
    MUTATION.set(Some(mutation));
    f();
}

/// Whether this is broken.
pub fn is(mutation: Mutation) -> bool {
    MUTATION.get() == Some(mutation)
}
