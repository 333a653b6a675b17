//! The address ranges one ioreq server claims of one kind.
//!
//! Keeps the rules of `xen/common/rangeset.c`: adjacent ranges become one,
//! and only separate ranges count towards the limit.

use std::collections::BTreeMap;

use super::errno::Errno;

/// `MAX_NR_IO_RANGES` (`xen/include/xen/ioreq.h`).
const MAX_RANGES: usize = 256;

/// Disjoint, inclusive ranges by their first value.
#[derive(Default, Debug)]
pub(super) struct Rangeset {
    ranges: BTreeMap<u64, u64>,
}

impl Rangeset {
    /// Whether any value of `start..=end` is in the set.
    pub(super) fn overlaps(&self, start: u64, end: u64) -> bool {
        self.ranges
            .range(..=end)
            .next_back()
            .is_some_and(|(_, last)| *last >= start)
    }

    /// Whether every value of `start..=end` is in one range of the set.
    pub(super) fn contains(&self, start: u64, end: u64) -> bool {
        self.holding(start).is_some_and(|(_, last)| last >= end)
    }

    /// Adds a range that overlaps none of the set (the caller has asked).
    ///
    /// # Errors
    /// `ENOMEM` when it would be one separate range too many.
    pub(super) fn add(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        let below = start
            .checked_sub(1)
            .and_then(|last| self.holding(last))
            .map(|(first, _)| first);
        let above = end
            .checked_add(1)
            .and_then(|first| self.ranges.get(&first).map(|last| (first, *last)));
        if below.is_none() && above.is_none() && self.ranges.len() >= MAX_RANGES {
            return Err(Errno(libc::ENOMEM));
        }
        if let Some((first, _)) = above {
            self.ranges.remove(&first);
        }
        self.ranges
            .insert(below.unwrap_or(start), above.map_or(end, |(_, last)| last));
        Ok(())
    }

    /// Takes out a range that the set contains (the caller has asked).
    ///
    /// # Errors
    /// `ENOMEM` when a range falls in two and that is one too many.
    pub(super) fn remove(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        let Some((first, last)) = self.holding(start) else {
            return Ok(());
        };
        let splits = first < start && last > end;
        if splits && self.ranges.len() >= MAX_RANGES {
            return Err(Errno(libc::ENOMEM));
        }
        self.ranges.remove(&first);
        if first < start {
            self.ranges.insert(first, start - 1);
        }
        if last > end {
            self.ranges.insert(end + 1, last);
        }
        Ok(())
    }

    fn holding(&self, value: u64) -> Option<(u64, u64)> {
        let (first, last) = self.ranges.range(..=value).next_back()?;
        (*last >= value).then_some((*first, *last))
    }
}
