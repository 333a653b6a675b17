//! A guest's memory for another process: which file it maps, and which frames
//! of the guest are there.
//!
//! On Xen the file is privcmd, opened anew and restricted to the guest: whoever
//! has it can map this guest's frames, and nothing of others'. The fake's
//! memory is a file.

use std::fs::File;
use std::sync::Arc;

use super::foreign::{ForeignRam, Guest};
use super::{CHUNK_FRAMES, Error};
use crate::sys::abi::PAGE_SHIFT;

/// Frames that are mapped at once to see whether they are there.
const BATCH: usize = 1024;
/// Frames of a chunk that are looked at if its ends differ.
const SAMPLES: u64 = 8;

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

    /// The memory for another process, as it is now. Takes a while: it is looked
    /// which frames there are.
    ///
    /// # Errors
    /// [`Error::Map`], with what the kernel or Xen said.
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
        let runs = runs(highest, |gfns| present(guest, gfns))?;
        let runs = runs.into_iter().map(|(first, frames)| SharedRun {
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

/// Runs of chunks up to frame `highest` that hold memory. Both ends of a chunk
/// are looked at, and more of it where they differ: what has a few frames only,
/// such as Xen's grant table, is not the guest's RAM.
fn runs<E>(
    highest: u64,
    present: impl Fn(&[u64]) -> Result<Vec<bool>, E>,
) -> Result<Vec<(u64, u64)>, E> {
    let chunks: Vec<(u64, u64)> = (0..=highest / CHUNK_FRAMES)
        .map(|chunk| {
            (
                chunk * CHUNK_FRAMES,
                (chunk * CHUNK_FRAMES + CHUNK_FRAMES - 1).min(highest),
            )
        })
        .collect();
    let ends: Vec<u64> = chunks.iter().flat_map(|(a, b)| [*a, *b]).collect();
    let found = present(&ends)?;
    let (found, _) = found.as_chunks::<2>();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for ((first, last), ends) in chunks.into_iter().zip(found) {
        let is_there = match ends {
            [true, true] => true,
            [false, false] => false,
            _ => {
                let step = (last - first + 1).div_ceil(SAMPLES);
                let samples: Vec<u64> = (0..SAMPLES)
                    .map(|sample| (first + sample * step + step / 2).min(last))
                    .collect();
                let found = present(&samples)?;
                found.iter().filter(|found| **found).count() * 2 > found.len()
            }
        };
        if !is_there {
            continue;
        }
        let count = last - first + 1;
        match runs.last_mut() {
            Some((start, len)) if *start + *len == first => *len += count,
            _ => runs.push((first, count)),
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

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

        assert_eq!(found, [(0x40000, 0x10000), (0x20_0000, 0x123)]);
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
}
