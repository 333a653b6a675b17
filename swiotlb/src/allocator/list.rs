//! The pools of an allocator, oldest first. Pools are added and never moved:
//! looking through them takes no lock and writes nothing.

use crate::error::Error;
use crate::pool::Pool;
use crate::sync::{Arc, AtomicUsize, OnceLock, Ordering};

/// More pools than an allocator can use: each is half of the first at worst.
pub(super) const MAX_POOLS: usize = 32;

/// An append-only list.
#[derive(Debug, Default)]
pub(super) struct PoolList {
    pools: [OnceLock<Arc<Pool>>; MAX_POOLS],
    count: AtomicUsize,
}

impl PoolList {
    /// Appends a pool; the caller holds the allocator's bring-up lock. Whoever
    /// is given an address of the pool finds it here from now on.
    pub(super) fn push(&self, pool: Pool) -> Result<(), Error> {
        let count = self.count.load(Ordering::Relaxed);
        let Some(place) = self.pools.get(count) else {
            return Err(Error::NoMemory {
                bytes: pool.memory().len(),
                os_error: 0,
            });
        };
        // free, because only one caller at a time appends
        let _ = place.set(Arc::new(pool));
        self.count.store(count + 1, Ordering::Release);
        Ok(())
    }

    /// How many there are.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// The pool with this number.
    #[inline(always)]
    pub(super) fn get(&self, index: usize) -> Option<&Arc<Pool>> {
        self.pools.get(index)?.get()
    }

    /// The newest pool and its number.
    #[inline(always)]
    pub(super) fn newest(&self) -> Option<(usize, &Arc<Pool>)> {
        let index = self.len().checked_sub(1)?;
        Some((index, self.get(index)?))
    }

    /// All pools and their numbers, newest first.
    #[inline(always)]
    pub(super) fn newest_first(&self) -> impl Iterator<Item = (usize, &Arc<Pool>)> {
        (0..self.len())
            .rev()
            .filter_map(|index| Some((index, self.get(index)?)))
    }
}
