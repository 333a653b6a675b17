//! The locks and atomics of the allocator, in one place: the concurrency tests
//! compile the allocator's files against a `sync` module of their own, made of
//! a model checker's types.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
pub(crate) use std::sync::{Arc, OnceLock};

/// How long a waiter stays away from a taken lock at first, and in the end:
/// pauses of the processor, about a microsecond of them.
const PAUSES: std::ops::RangeInclusive<u32> = 64..=256;

/// A lock for sections of a few nanoseconds, without system calls or
/// allocation in them.
///
/// Unlocking is a plain store. A lock that can sleep pays for a second atomic
/// exchange on every unlock, which at 512 bytes costs more than the copy.
///
/// A waiter stays away for a while before it tries again: each look at the lock
/// takes its cache line from the holder, and the area's lines go back and forth
/// with every mapping. Meanwhile the holder's thread maps and unmaps several
/// times with all of them at hand. Where the holder may have lost the processor
/// the waiter yields its own.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(spin::mutex::SpinMutex<T>);

/// Access to what a [`Mutex`] holds, until dropped.
pub(crate) type MutexGuard<'a, T> = spin::mutex::SpinMutexGuard<'a, T>;

impl<T> Mutex<T> {
    /// A free lock around `value`.
    pub(crate) fn new(value: T) -> Self {
        Mutex(spin::mutex::SpinMutex::new(value))
    }

    /// Waits for the lock.
    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        match self.0.try_lock() {
            Some(guard) => guard,
            None => self.wait(),
        }
    }

    #[cold]
    fn wait(&self) -> MutexGuard<'_, T> {
        let mut pauses = *PAUSES.start();
        loop {
            for _ in 0..pauses {
                std::hint::spin_loop();
            }
            if let Some(guard) = self.0.try_lock() {
                return guard;
            }
            if pauses < *PAUSES.end() {
                pauses *= 2;
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// A lock for what may sleep: bring-up, growth. Never taken to map or unmap.
#[derive(Debug, Default)]
pub(crate) struct SlowMutex<T>(std::sync::Mutex<T>);

impl<T> SlowMutex<T> {
    /// A free lock around `value`.
    pub(crate) fn new(value: T) -> Self {
        SlowMutex(std::sync::Mutex::new(value))
    }

    /// Waits for the lock. A panic of its last holder is of no concern: every
    /// change under it is one store.
    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, T> {
        let guard = self.0.lock();
        guard.unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
