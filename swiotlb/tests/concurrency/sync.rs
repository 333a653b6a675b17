//! What `src/sync.rs` offers the allocator, made of a model checker's parts.
//!
//! `crate::checker` is the checker's, stated by the root of each test program.
//! The value behind a lock is in one of the standard library's that is never
//! waited for: two threads in one lock are found even where the lock is broken.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::{Deref, DerefMut};
pub(crate) use std::sync::Arc;
use std::sync::TryLockError;
pub(crate) use std::sync::atomic::Ordering;

use crate::checker::{self, Access, thread};
use crate::mutation::{self, Mutation};

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        #[derive(Debug, Default)]
        pub(crate) struct $name(checker::$name);

        impl $name {
            pub(crate) fn new(value: $value) -> Self {
                $name(checker::$name::new(value))
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                self.0.load(order)
            }

            pub(crate) fn store(&self, value: $value, order: Ordering) {
                self.0.store(value, published(order));
            }

            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                self.update(|_| value, |word| word.swap(value, order))
            }

            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.0.compare_exchange(current, new, success, failure)
            }

            fn update(
                &self,
                torn: impl FnOnce($value) -> $value,
                whole: impl FnOnce(&checker::$name) -> $value,
            ) -> $value {
                if !mutation::is(Mutation::TornUpdates) {
                    return whole(&self.0);
                }
                let before = self.0.load(Ordering::Acquire);
                self.0.store(torn(before), Ordering::Release);
                before
            }
        }
    };
}

atomic!(AtomicBool, bool);
atomic!(AtomicU64, u64);
atomic!(AtomicUsize, usize);

impl AtomicU64 {
    pub(crate) fn fetch_add(&self, n: u64, order: Ordering) -> u64 {
        self.update(|was| was.wrapping_add(n), |word| word.fetch_add(n, order))
    }

    pub(crate) fn fetch_sub(&self, n: u64, order: Ordering) -> u64 {
        self.update(|was| was.wrapping_sub(n), |word| word.fetch_sub(n, order))
    }

    pub(crate) fn fetch_max(&self, n: u64, order: Ordering) -> u64 {
        self.update(|was| was.max(n), |word| word.fetch_max(n, order))
    }

    pub(crate) fn fetch_min(&self, n: u64, order: Ordering) -> u64 {
        self.update(|was| was.min(n), |word| word.fetch_min(n, order))
    }
}

/// The order of a store that may be one of publication.
fn published(order: Ordering) -> Ordering {
    match mutation::is(Mutation::RelaxedPublication) {
        true => Ordering::Relaxed,
        false => order,
    }
}

/// A cell that is written once, found by whoever sees its flag.
#[derive(Debug)]
pub(crate) struct OnceLock<T> {
    is_set: AtomicBool,
    access: Access,
    value: std::sync::OnceLock<T>,
}

impl<T> Default for OnceLock<T> {
    fn default() -> Self {
        OnceLock {
            is_set: AtomicBool::default(),
            access: Access::default(),
            value: std::sync::OnceLock::new(),
        }
    }
}

impl<T> OnceLock<T> {
    /// By one thread at a time: the allocator holds a lock.
    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        self.value.set(value)?;
        self.access.write();
        self.is_set.store(true, Ordering::Release);
        Ok(())
    }

    pub(crate) fn get(&self) -> Option<&T> {
        if !self.is_set.load(Ordering::Acquire) {
            return None;
        }
        self.access.read();
        self.value.get()
    }
}

thread_local! {
    /// The checker's threads that are inside an area's lock.
    static INSIDE: RefCell<HashSet<thread::ThreadId>> = RefCell::default();
}

/// The start of an execution.
pub(crate) fn reset() {
    INSIDE.with_borrow_mut(HashSet::clear);
}

/// Asserts that this thread holds no area's lock: rule of 5.6 for what may
/// block, and for whoever wants another.
pub(crate) fn assert_outside() {
    // one failure is enough: what is dropped on its way takes locks, too
    if std::thread::panicking() {
        return;
    }
    let me = thread::current().id();
    INSIDE.with_borrow(|inside| assert!(!inside.contains(&me), "inside an area's lock"));
}

/// An area's lock. As in the crate, taking it is one exchange and leaving it is
/// one store; whoever waits lets the others run.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T> {
    taken: checker::AtomicBool,
    access: Access,
    value: std::sync::Mutex<T>,
}

#[derive(Debug)]
pub(crate) struct MutexGuard<'a, T> {
    lock: &'a Mutex<T>,
    value: Option<std::sync::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex {
            taken: checker::AtomicBool::new(false),
            access: Access::default(),
            value: std::sync::Mutex::new(value),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        assert_outside();
        let take = || {
            self.taken
                .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
        };
        while take().is_err() && !mutation::is(Mutation::OpenLocks) {
            thread::yield_now();
        }
        self.access.write();
        let value = only_one(&self.value);
        INSIDE.with_borrow_mut(|inside| inside.insert(thread::current().id()));
        MutexGuard {
            lock: self,
            value: Some(value),
        }
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_deref().expect("until dropped")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_deref_mut().expect("until dropped")
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.value = None;
        if std::thread::panicking() {
            return;
        }
        INSIDE.with_borrow_mut(|inside| inside.remove(&thread::current().id()));
        let order = match mutation::is(Mutation::RelaxedUnlock) {
            true => Ordering::Relaxed,
            false => Ordering::Release,
        };
        self.lock.taken.store(false, order);
    }
}

/// The value behind a lock that has been taken.
fn only_one<T>(value: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    match value.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => panic!("two threads in one lock"),
    }
}

/// The lock for what may sleep: the checker's own, which tells of deadlocks.
#[derive(Debug, Default)]
pub(crate) struct SlowMutex<T> {
    gate: checker::Mutex<()>,
    access: Access,
    value: std::sync::Mutex<T>,
}

#[derive(Debug)]
pub(crate) struct SlowGuard<'a, T> {
    // in this order: the gate is opened last
    value: std::sync::MutexGuard<'a, T>,
    _gate: Option<checker::MutexGuard<'a, ()>>,
}

impl<T> SlowMutex<T> {
    pub(crate) fn new(value: T) -> Self {
        SlowMutex {
            gate: checker::Mutex::new(()),
            access: Access::default(),
            value: std::sync::Mutex::new(value),
        }
    }

    pub(crate) fn lock(&self) -> SlowGuard<'_, T> {
        assert_outside();
        let gate = match mutation::is(Mutation::OpenLocks) {
            true => None,
            false => Some(self.gate.lock().expect("no holder panics")),
        };
        self.access.write();
        let value = only_one(&self.value);
        SlowGuard { value, _gate: gate }
    }
}

impl<T> Deref for SlowGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for SlowGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}
