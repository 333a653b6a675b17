//! A guest's memory in one range of this process's addresses: guest address
//! plus a constant.
//!
//! For guests that are mapped 1:1. [`ForeignRam`](super::ForeignRam) keeps the
//! current window; queue workers ask it for a range and get it as one piece.
//! The addresses are reserved up to the guest's highest frame and filled in
//! chunks of 2 MiB on first touch, wherever the guest's RAM lies. Frames that
//! are there and follow each other are an extent; in the steady state the
//! check of a range is one comparison with the largest of them, and no lock is
//! taken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use vm_memory::VolatileSlice;

use super::foreign::Guest;
use super::{CHUNK_FRAMES, Error};
use crate::sys::abi::{PAGE_SHIFT, PAGE_SIZE};
use crate::sys::reservation::Reservation;

/// Chunks at most this far from each other are joined: what lies between is
/// mapped along. 64 MiB; a guest's kernel is smaller, and may lie in between.
const GAP: u64 = 32;

/// Why a window does not show a range.
#[derive(Debug)]
pub(super) enum Miss {
    /// It is no memory of the guest's, or could not be mapped.
    Error(Error),
    /// The frame came when its chunk, which cannot be mapped in parts, was
    /// mapped already; or the guest has grown. A new window would show it.
    Outdated { gfn: u64 },
}

impl From<Error> for Miss {
    fn from(error: Error) -> Self {
        Miss::Error(error)
    }
}

/// The mapped memory of a guest between two INVALIDATEs, as one range.
#[derive(Debug)]
pub struct Window {
    guest: Arc<Guest>,
    number: u64,
    /// The largest extent: [`pack`]ed.
    largest: AtomicU64,
    addresses: OnceLock<Reservation>,
    table: Mutex<Table>,
}

/// What has been mapped.
#[derive(Debug, Default)]
struct Table {
    /// Chunks that have been mapped, by number.
    chunks: BTreeSet<u64>,
    /// First frame and the frame after the last of each extent; none touches
    /// another.
    extents: BTreeMap<u64, u64>,
}

impl Window {
    pub(super) fn new(guest: Arc<Guest>, number: u64) -> Window {
        Window {
            guest,
            number,
            largest: AtomicU64::new(0),
            addresses: OnceLock::new(),
            table: Mutex::default(),
        }
    }

    /// Its number, from 0; generations count alike.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The memory of a range, which is one piece.
    ///
    /// # Errors
    /// [`Error::NotThere`] names the first frame that the guest lacks; the
    /// other errors.
    pub fn slice(&self, address: u64, len: usize) -> Result<VolatileSlice<'_>, Error> {
        self.cover(address, len).map_err(|miss| match miss {
            Miss::Error(error) => error,
            Miss::Outdated { gfn } => self.not_there(gfn, libc::ESTALE),
        })?;
        usize::try_from(address)
            .ok()
            .and_then(|at| self.addresses.get()?.slice(at, len))
            .ok_or_else(|| self.no_range(address, len))
    }

    /// Sees to it that a range is there.
    pub(super) fn cover(&self, address: u64, len: usize) -> Result<(), Miss> {
        let last = u64::try_from(len)
            .ok()
            .and_then(|len| len.checked_sub(1))
            .and_then(|more| address.checked_add(more))
            .ok_or_else(|| self.no_range(address, len))?;
        let (first, last) = (address >> PAGE_SHIFT, last >> PAGE_SHIFT);
        let (from, to) = unpack(self.largest.load(Ordering::Acquire));
        match from <= first && last < to {
            true => Ok(()),
            false => self.grow(first, last),
        }
    }

    /// The slow way: maps what is missing of the frames.
    #[cold]
    fn grow(&self, first: u64, last: u64) -> Result<(), Miss> {
        self.guest.check(last)?;
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let addresses = self.addresses()?;
        let mut next = first;
        while next <= last {
            let chunk = next / CHUNK_FRAMES;
            next = match table.end_of(next) {
                Some(end) => end,
                None if table.chunks.contains(&chunk) => return Err(self.missing(next)),
                None => {
                    self.map(&mut table, addresses, chunk, next)?;
                    self.close_gaps(&mut table, addresses, chunk);
                    next
                }
            };
        }
        self.publish(&table, first);
        Ok(())
    }

    /// The addresses, reserved on first touch.
    fn addresses(&self) -> Result<&Reservation, Error> {
        if let Some(addresses) = self.addresses.get() {
            return Ok(addresses);
        }
        let chunks = self.guest.highest() / CHUNK_FRAMES + 1;
        let bytes = (chunks * CHUNK_FRAMES).saturating_mul(PAGE_SIZE as u64);
        let reserved = usize::try_from(bytes)
            .map_err(|_| std::io::Error::from_raw_os_error(libc::ENOMEM))
            .and_then(Reservation::new)
            .map_err(|source| Error::Reserve {
                dom: self.guest.dom(),
                bytes,
                source,
            })?;
        Ok(self.addresses.get_or_init(|| reserved))
    }

    /// Maps a chunk, for the sake of frame `gfn` of it.
    fn map(
        &self,
        table: &mut Table,
        addresses: &Reservation,
        chunk: u64,
        gfn: u64,
    ) -> Result<(), Miss> {
        let first = chunk * CHUNK_FRAMES;
        let outdated = || Miss::Outdated { gfn };
        let at = usize::try_from(first << PAGE_SHIFT).map_err(|_| outdated())?;
        if addresses.len() <= at {
            return Err(outdated());
        }
        let errors = self
            .guest
            .map_into(first, CHUNK_FRAMES, addresses, at)
            .map_err(Miss::Error)?;
        if errors.iter().all(|&error| error != 0) {
            // No memory at all: nothing of it is kept, so that a guest cannot
            // have us collect empty chunks.
            let bytes = errors.len() * PAGE_SIZE;
            addresses
                .clear(at, bytes)
                .map_err(|source| Error::Reserve {
                    dom: self.guest.dom(),
                    bytes: bytes as u64,
                    source,
                })?;
            let index = usize::try_from(gfn - first).unwrap_or(0);
            let errno = errors
                .get(index)
                .map_or(libc::EFAULT, |error| error.saturating_neg());
            return Err(self.not_there(gfn, errno).into());
        }
        table.chunks.insert(chunk);
        for (gfn, error) in (first..).zip(&errors) {
            if *error == 0 {
                table.add(gfn);
            }
        }
        Ok(())
    }

    /// Maps what lies between a chunk and its neighbours, so that a guest that
    /// uses all of its memory ends with one extent. Nobody asked for these
    /// frames: where they are not there, it ends.
    fn close_gaps(&self, table: &mut Table, addresses: &Reservation, chunk: u64) {
        let before = table.chunks.range(..chunk).next_back().copied();
        let after = table.chunks.range(chunk + 1..).next().copied();
        let below = before.filter(|before| chunk - before <= GAP);
        let above = after.filter(|after| after - chunk <= GAP);
        let gaps = [
            below.map_or(0..0, |before| before + 1..chunk),
            above.map_or(0..0, |after| chunk + 1..after),
        ];
        for gap in gaps {
            for chunk in gap {
                if let Err(miss) = self.map(table, addresses, chunk, chunk * CHUNK_FRAMES) {
                    tracing::debug!(?miss, chunk, "nothing to be joined");
                    break;
                }
            }
        }
    }

    /// Makes the extent of a frame the one that is compared first, if it is
    /// the largest so far.
    fn publish(&self, table: &Table, gfn: u64) {
        let (from, to) = unpack(self.largest.load(Ordering::Relaxed));
        if let Some((first, end)) = table.extent_of(gfn)
            && end - first > to - from
            && let Some(packed) = pack(first, end)
        {
            self.largest.store(packed, Ordering::Release);
        }
    }

    /// What becomes of a frame that was not there when its chunk was mapped.
    fn missing(&self, gfn: u64) -> Miss {
        match self.guest.map(gfn, 1, true) {
            Ok(page) if page.is_complete() => Miss::Outdated { gfn },
            Ok(page) => {
                let errno = page.error(0).and_then(|error| error.raw_os_error());
                self.not_there(gfn, errno.unwrap_or(libc::EFAULT)).into()
            }
            Err(error) => error.into(),
        }
    }

    pub(super) fn not_there(&self, gfn: u64, errno: i32) -> Error {
        Error::NotThere {
            dom: self.guest.dom(),
            gfn,
            source: std::io::Error::from_raw_os_error(errno),
        }
    }

    fn no_range(&self, address: u64, len: usize) -> Error {
        Error::NoRange {
            dom: self.guest.dom(),
            address,
            len,
        }
    }
}

impl Table {
    /// The extent with a frame in it.
    fn extent_of(&self, gfn: u64) -> Option<(u64, u64)> {
        let (&first, &end) = self.extents.range(..=gfn).next_back()?;
        (gfn < end).then_some((first, end))
    }

    /// The frame after the last of a frame's extent.
    fn end_of(&self, gfn: u64) -> Option<u64> {
        self.extent_of(gfn).map(|(_, end)| end)
    }

    /// Adds a frame to the extents that it touches.
    fn add(&mut self, gfn: u64) {
        let end = self.extents.remove(&(gfn + 1)).unwrap_or(gfn + 1);
        match self.extents.range_mut(..gfn).next_back() {
            Some((_, before)) if *before == gfn => *before = end,
            _ => {
                self.extents.insert(gfn, end);
            }
        }
    }
}

/// An extent as one word, so that it is read whole; none above 16 TiB.
fn pack(first: u64, end: u64) -> Option<u64> {
    let end = u32::try_from(end).ok()?;
    Some(first << 32 | u64::from(end))
}

fn unpack(word: u64) -> (u64, u64) {
    (word >> 32, word & u64::from(u32::MAX))
}
