//! Foreign frames of a domain that is otherwise mapped 1:1.
//!
//! Written when the domain maps somebody's frames or gives them back, read on
//! every decision. Where no frame is foreign a look costs one load.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::contiguity::{FrameTranslation, NoTranslation};
use crate::error::Error;
use crate::range::PAGE_SIZE;

/// An ordered map of disjoint runs from guest frames to machine frames; a frame
/// in no run is its own.
#[derive(Debug, Default)]
pub struct ForeignFrames {
    /// Whether there is a run at all.
    any: AtomicBool,
    /// First guest frame → (first machine frame, frames).
    runs: RwLock<BTreeMap<u64, (u64, u64)>>,
}

impl ForeignFrames {
    /// A domain without foreign frames.
    pub fn new() -> Self {
        ForeignFrames::default()
    }

    /// Makes `count` guest frames from `gfn` on stand for the machine frames
    /// from `mfn` on.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty run, one that wraps around, or one that
    /// overlaps another; then nothing has changed.
    pub fn insert(&self, gfn: u64, mfn: u64, count: u64) -> Result<(), Error> {
        let invalid = |what, value| Error::Invalid { what, value };
        let empty_or_wraps = || invalid("the length of a run of foreign frames", count);
        let last = count
            .checked_sub(1)
            .and_then(|n| Some((gfn.checked_add(n)?, mfn.checked_add(n)?)));
        let (last, _) = last.ok_or_else(empty_or_wraps)?;
        let mut runs = self.runs.write().unwrap_or_else(PoisonError::into_inner);
        // of the runs that start at or before our last frame only the last one
        // can reach us
        if let Some((&start, &(_, n))) = runs.range(..=last).next_back()
            && start.saturating_add(n - 1) >= gfn
        {
            return Err(invalid("the first frame of an overlapping run", gfn));
        }
        runs.insert(gfn, (mfn, count));
        self.any.store(true, Ordering::Release);
        Ok(())
    }

    /// Makes the run that starts at `gfn` local again. Returns whether there
    /// was one.
    pub fn remove(&self, gfn: u64) -> bool {
        let mut runs = self.runs.write().unwrap_or_else(PoisonError::into_inner);
        let removed = runs.remove(&gfn).is_some();
        self.any.store(!runs.is_empty(), Ordering::Release);
        removed
    }

    /// The machine frame of a foreign `gfn`; `None` for a local one.
    pub fn lookup(&self, gfn: u64) -> Option<u64> {
        if self.is_empty() {
            return None;
        }
        let runs = self.runs.read().unwrap_or_else(PoisonError::into_inner);
        let (&start, &(mfn, count)) = runs.range(..=gfn).next_back()?;
        let index = gfn - start;
        (index < count).then_some(mfn.wrapping_add(index))
    }

    /// Whether no frame is foreign.
    #[inline]
    pub fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }
}

impl FrameTranslation for ForeignFrames {
    fn gfn_to_bfn(&self, gfn: u64) -> Result<u64, NoTranslation> {
        Ok(self.lookup(gfn).unwrap_or(gfn))
    }

    fn straddles_at(&self, address: u64, len: u64) -> Result<bool, NoTranslation> {
        let first = address / PAGE_SIZE;
        let last = address.saturating_add(len.saturating_sub(1)) / PAGE_SIZE;
        // by runs and not by frames: a range may have any length
        let runs = self.runs.read().unwrap_or_else(PoisonError::into_inner);
        let shift = |gfn: u64| match runs.range(..=gfn).next_back() {
            Some((&start, &(mfn, count))) if gfn - start < count => mfn.wrapping_sub(start),
            _ => 0,
        };
        let base = shift(first);
        let starts = runs.range(first..=last).map(|(&start, _)| start);
        let before = runs
            .range(..=last)
            .rev()
            .map_while(|(&start, &(_, count))| {
                let end = start.saturating_add(count);
                (end > first).then_some(end)
            });
        let mut edges = starts.chain(before.filter(|&end| end <= last));
        Ok(edges.any(|gfn| shift(gfn) != base))
    }

    fn bfn_to_local_gfn(&self, bfn: u64) -> Option<u64> {
        // a local frame is its own; a frame that stands for another is foreign
        self.lookup(bfn).is_none().then_some(bfn)
    }
}
