//! A guest's memory for another process: which file it maps, and which frames
//! of the guest are there.
//!
//! On Xen the file is privcmd, opened anew and restricted to the guest: whoever
//! has it can map this guest's frames, and nothing of others'. The fake's
//! memory is a file.
//!
//! There Xen is asked where the guest's RAM lies, frame by frame, and not which
//! frames there are: a guest gives pages back one by one, and whoever maps memory
//! finds itself what of it is there. So what lies between two pieces of RAM is
//! taken for RAM, and so is what was RAM once. A guest can place its frames and
//! pages of Xen's wherever it likes: no more is looked at than a guest on Arm has
//! addresses for RAM, and no more is told than twice what it may have.

use std::fs::File;
use std::sync::{Arc, PoisonError};

use super::foreign::{ASSUMED_HIGHEST, ForeignRam, Guest};
use super::{CHUNK_FRAMES, Error};
use crate::privcmd;
use crate::sys::abi::PAGE_SHIFT;

/// Frames that are mapped at once to see whether they are there.
const BATCH: usize = 1024;
/// Frames of a chunk that are looked at if its ends differ.
const SAMPLES: u64 = 8;
/// Frames up to the end of the second bank of RAM.
const FRAMES: u64 = ASSUMED_HIGHEST + 1;
/// Frames of the largest gap that is taken for memory which is out: 1 GiB. What
/// lies between the two banks is more.
const GAP: u64 = 1 << (30 - PAGE_SHIFT);
/// Frames that may be told beyond twice those that the guest may have: the
/// rest of chunks at the ends, and small guests.
const SLACK: u64 = 1 << (26 - PAGE_SHIFT);

/// A guest's memory, as another process can map it.
#[derive(Debug)]
pub enum SharedRam {
    /// By `IOCTL_PRIVCMD_MMAPBATCH_V2` on this file, which takes no other domain.
    Foreign {
        /// privcmd.
        file: File,
        /// Memory of the guest's, of which pages may be missing.
        runs: Vec<SharedRun>,
    },
    /// By mapping the file.
    File {
        /// All of the memory.
        file: Arc<File>,
        /// Where in it.
        runs: Vec<SharedRun>,
    },
}

/// Pages that follow each other.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct SharedRun {
    /// Guest-physical address of the first.
    pub address: u64,
    /// Bytes.
    pub len: u64,
    /// Where in the file the first is, bytes; 0 in privcmd's.
    pub offset: u64,
}

impl ForeignRam {
    /// Whether another process needs Xen to map this memory, or only a file.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.guest().privcmd().is_kernel()
    }

    /// How many pages the guest has; `None` where Xen may not be asked. Pages that
    /// have left it count for as long as somebody has them mapped.
    ///
    /// # Errors
    /// There is no such guest any more.
    pub fn pages(&self) -> privcmd::Result<Option<u64>> {
        let guest = self.guest();
        match guest.privcmd().current_reservation(guest.dom()) {
            Ok(pages) => Ok(Some(pages)),
            Err(privcmd::Error::Restricted { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The memory for another process. Takes a while: it is looked where it is.
    ///
    /// # Errors
    /// [`Error::Map`], with what the kernel or Xen said. [`Error::Strewn`]: the
    /// guest has its memory in more places than it has memory for.
    pub fn share(&self) -> Result<SharedRam, Error> {
        let guest = self.guest();
        let failed = |source| Error::Map {
            dom: guest.dom(),
            gfn: 0,
            source,
        };
        let privcmd = guest.privcmd();
        if let Some((file, runs)) = privcmd.memory_file(guest.dom()).map_err(failed)? {
            return Ok(SharedRam::File { file, runs });
        }
        let highest = guest.ask().map_err(failed)?;
        let found = runs(highest, |gfns| present(guest, gfns))?;
        let most = guest.most().saturating_mul(2).saturating_add(SLACK);
        let mut seen = self.seen().lock().unwrap_or_else(PoisonError::into_inner);
        let told = whole(&found, &seen, highest, most).ok_or(Error::Strewn {
            dom: guest.dom(),
            most,
        })?;
        seen.clone_from(&told);
        drop(seen);
        let runs = told.into_iter().map(|(first, frames)| SharedRun {
            address: first << PAGE_SHIFT,
            len: frames << PAGE_SHIFT,
            offset: 0,
        });
        Ok(SharedRam::Foreign {
            file: privcmd.restricted_file(guest.dom()).map_err(failed)?,
            runs: runs.collect(),
        })
    }
}

/// Which of these frames can be mapped.
fn present(guest: &Guest, gfns: &[u64]) -> Result<Vec<bool>, Error> {
    let mut found = Vec::with_capacity(gfns.len());
    for batch in gfns.chunks(BATCH) {
        let pages = guest.map_each(batch)?;
        found.extend((0..batch.len()).map(|index| pages.error(index).is_none()));
    }
    Ok(found)
}

/// Runs of chunks up to frame `highest` that hold memory, as (first frame, frames).
/// Both ends of a chunk are looked at, and more of it where they differ: what has
/// a few frames only, such as Xen's grant table, is not the guest's RAM.
fn runs<E>(
    highest: u64,
    present: impl Fn(&[u64]) -> Result<Vec<bool>, E>,
) -> Result<Vec<(u64, u64)>, E> {
    let end = highest.saturating_add(1).min(FRAMES);
    let ends_of = |chunk: u64| {
        let first = chunk * CHUNK_FRAMES;
        (first, (first + CHUNK_FRAMES).min(end) - 1)
    };
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut next = 0;
    let last_chunk = end.div_ceil(CHUNK_FRAMES);
    while next < last_chunk {
        let batch = next..last_chunk.min(next + BATCH as u64 / 2);
        next = batch.end;
        let chunks: Vec<(u64, u64)> = batch.map(ends_of).collect();
        let ends: Vec<u64> = chunks.iter().flat_map(|(a, b)| [*a, *b]).collect();
        let found = present(&ends)?;
        let (found, _) = found.as_chunks::<2>();
        for ((first, last), ends) in chunks.into_iter().zip(found) {
            let is_there = match ends {
                [true, true] => true,
                [false, false] => false,
                _ => is_mostly_there(first, last, &present)?,
            };
            if is_there {
                add(&mut runs, first, last - first + 1);
            }
        }
    }
    Ok(runs)
}

fn is_mostly_there<E>(
    first: u64,
    last: u64,
    present: impl Fn(&[u64]) -> Result<Vec<bool>, E>,
) -> Result<bool, E> {
    let step = (last - first + 1).div_ceil(SAMPLES);
    let samples: Vec<u64> = (0..SAMPLES)
        .map(|sample| (first + sample * step + step / 2).min(last))
        .collect();
    let found = present(&samples)?;
    Ok(found.iter().filter(|found| **found).count() * 2 > found.len())
}

/// Adds a run that begins no earlier than those that there are.
fn add(runs: &mut Vec<(u64, u64)>, first: u64, frames: u64) {
    match runs.last_mut() {
        Some((start, len)) if first <= *start + *len => {
            *len = (*len).max(first + frames - *start);
        }
        _ => runs.push((first, frames)),
    }
}

/// The runs that were found, with what was `seen` before and with the gaps that a
/// balloon leaves, the smallest first, as far as all together are no more than
/// `most` frames. The highest frame was RAM once, too. `None`: what was found is
/// more by itself.
fn whole(
    found: &[(u64, u64)],
    seen: &[(u64, u64)],
    highest: u64,
    most: u64,
) -> Option<Vec<(u64, u64)>> {
    let sum = |runs: &[(u64, u64)]| runs.iter().map(|(_, frames)| frames).sum::<u64>();
    let mut all: Vec<(u64, u64)> = [found, seen].concat();
    all.sort_unstable();
    let mut runs = Vec::new();
    for (first, frames) in all {
        add(&mut runs, first, frames);
    }
    if sum(&runs) > most {
        runs = found.to_vec();
    }
    let mut room = most.checked_sub(sum(&runs))?;
    let end = highest.saturating_add(1).min(FRAMES);
    let next = |runs: &[(u64, u64)], at: usize| runs.get(at).map_or(end, |(first, _)| *first);
    let mut gaps: Vec<(u64, u64)> = (1..)
        .zip(&runs)
        .map(|(at, (first, frames))| {
            let start = first + frames;
            (next(&runs, at).saturating_sub(start), start)
        })
        .filter(|(frames, _)| (1..=GAP).contains(frames))
        .collect();
    gaps.sort_unstable();
    for (frames, start) in gaps {
        if frames > room {
            break;
        }
        room -= frames;
        runs.push((start, frames));
    }
    runs.sort_unstable();
    let mut whole = Vec::new();
    for (first, frames) in runs {
        add(&mut whole, first, frames);
    }
    Some(whole)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// More than any of these guests has.
    const MOST: u64 = 1 << 30;

    /// The runs of a guest whose frames are those of `there`.
    fn found(highest: u64, there: &[std::ops::Range<u64>]) -> Vec<(u64, u64)> {
        let is_there = |gfn: &u64| there.iter().any(|range| range.contains(gfn));
        let runs = runs(highest, |gfns| {
            Ok::<_, Infallible>(gfns.iter().map(is_there).collect())
        });
        runs.unwrap()
    }

    #[test]
    fn two_banks_are_two_runs_up_to_the_last_frame() {
        let there = [0x40000..0x50000, 0x20_0000..0x20_0123];

        let found = found(0x20_0122, &there);
        let told = whole(&found, &[], 0x20_0122, MOST).unwrap();

        assert_eq!(found, [(0x40000, 0x10000), (0x20_0000, 0x123)]);
        assert_eq!(told, found);
    }

    #[test]
    fn a_grant_table_of_a_few_frames_is_no_memory() {
        let there = [0x38000..0x38040, 0x39000..0x39004, 0x40000..0x48000];

        assert_eq!(found(0x47fff, &there), [(0x40000, 0x8000)]);
    }

    #[test]
    fn a_chunk_that_lacks_an_end_is_memory_if_most_of_it_is_there() {
        let there = [0x40000..0x401f0, 0x40200..0x40210, 0x40400..0x40600];

        assert_eq!(found(0x405ff, &there), [(0x40000, 0x200), (0x40400, 0x200)]);
    }

    #[test]
    fn what_a_balloon_has_taken_is_told_in_the_middle_and_at_the_end() {
        let ballooned = [(0x40200, 0x200), (0x41000, 0x400)];

        let told = whole(&ballooned, &[], 0x47fff, MOST).unwrap();

        assert_eq!(told, [(0x40200, 0x7e00)]);
    }

    #[test]
    fn what_was_told_once_is_told_again() {
        let seen = [(0x40000, 0x8000), (0x20_0000, 0x400)];

        let told = whole(&[(0x40200, 0x200)], &seen, 0x20_03ff, MOST).unwrap();

        assert_eq!(told, seen);
    }

    #[test]
    fn gaps_are_told_the_smallest_first_up_to_what_a_guest_may_have() {
        let found = [(0x40000, 0x200), (0x41000, 0x200), (0x41400, 0x200)];

        let told = whole(&found, &[], 0x415ff, 0x1000).unwrap();

        assert_eq!(told, [(0x40000, 0x200), (0x41000, 0x600)]);
    }

    #[test]
    fn memory_in_more_places_than_a_guest_may_have_is_not_told() {
        let strewn: Vec<(u64, u64)> = (0..9).map(|at| (at << 18, 0x200)).collect();

        assert_eq!(whole(&strewn, &[], u64::MAX, 0x1000), None);
        // what was seen before does not count then
        let told = whole(&strewn[..1], &strewn[1..], 0x1ff, 0x1000).unwrap();
        assert_eq!(told, strewn[..1]);
    }

    #[test]
    fn a_guest_with_a_frame_at_the_highest_address_is_looked_at_as_far_as_banks_go() {
        let looked = std::cell::Cell::new(0);
        let found = runs(u64::MAX, |gfns| {
            looked.set(looked.get() + gfns.len() as u64);
            Ok::<_, Infallible>(vec![false; gfns.len()])
        });

        assert_eq!(found.unwrap(), []);
        assert_eq!(looked.get(), FRAMES / CHUNK_FRAMES * 2);
    }
}
