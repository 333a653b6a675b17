//! A domain's memory: one sparse memfd, and which of its pages each guest
//! frame shows.
//!
//! A page that the guest balloons out loses its frame but not its bytes, so
//! that mappings made before keep showing it, as references keep a page alive
//! in Xen; a frame that comes back shows a new, zeroed page.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::errno::Errno;
use crate::abi::PAGE_SIZE;
use crate::memory::SharedRun;
use crate::sys::memfd::memfd;

/// Bytes of a page.
pub(super) const PAGE: u64 = PAGE_SIZE as u64;
/// Shift of a page.
pub(super) const PAGE_SHIFT: u32 = PAGE.trailing_zeros();

/// A run of guest frames that is RAM.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Bank {
    /// First guest frame.
    pub first_gfn: u64,
    /// Number of frames.
    pub frames: u64,
}

/// A domain's pages.
#[derive(Debug)]
pub(super) struct Ram {
    file: Arc<File>,
    len: u64,
    banks: Vec<(Bank, u64)>,
    /// Frames that do not show the page of their bank: another, or none.
    moved: BTreeMap<u64, Option<u64>>,
}

impl Ram {
    /// Memory of `banks`, whose frames in `holes` are not there.
    pub(super) fn new(banks: &[Bank], holes: &[Bank]) -> io::Result<Ram> {
        let mut len: u64 = 0;
        let mut placed = Vec::new();
        for bank in banks {
            placed.push((*bank, len));
            len = bank
                .frames
                .checked_mul(PAGE)
                .and_then(|bytes| len.checked_add(bytes))
                .ok_or(Errno(libc::ENOMEM))?;
        }
        let mut ram = Ram {
            file: Arc::new(memfd(len)?),
            len,
            banks: placed,
            moved: BTreeMap::new(),
        };
        for hole in holes {
            for gfn in hole.first_gfn..hole.first_gfn.saturating_add(hole.frames) {
                ram.release(gfn);
            }
        }
        Ok(ram)
    }

    /// The memfd, for mappings.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Where in the memfd the page of `gfn` is.
    pub(super) fn offset(&self, gfn: u64) -> Option<u64> {
        match self.moved.get(&gfn) {
            Some(moved) => *moved,
            None => self.home(gfn),
        }
    }

    /// The frames that have pages, in runs that follow each other in the memfd,
    /// too.
    pub(super) fn runs(&self) -> Vec<SharedRun> {
        let frames = |bank: &Bank| bank.first_gfn..bank.first_gfn.saturating_add(bank.frames);
        let mut runs: Vec<SharedRun> = Vec::new();
        for gfn in self.banks.iter().flat_map(|(bank, _)| frames(bank)) {
            let Some(offset) = self.offset(gfn) else {
                continue;
            };
            let address = gfn << PAGE_SHIFT;
            match runs.last_mut() {
                Some(run) if (run.address + run.len, run.offset + run.len) == (address, offset) => {
                    run.len += PAGE;
                }
                _ => runs.push(SharedRun {
                    address,
                    len: PAGE,
                    offset,
                }),
            }
        }
        runs
    }

    /// The highest frame that was ever RAM (`XENMEM_maximum_gpfn`).
    pub(super) fn maximum_gfn(&self) -> u64 {
        self.banks
            .iter()
            .map(|(bank, _)| (bank.first_gfn + bank.frames).saturating_sub(1))
            .max()
            .unwrap_or(0)
    }

    /// Frames that can be RAM (`XENMEM_maximum_reservation`).
    pub(super) fn frames(&self) -> u64 {
        self.banks.iter().map(|(bank, _)| bank.frames).sum()
    }

    /// Frames that are RAM now (`XENMEM_current_reservation`).
    pub(super) fn present(&self) -> u64 {
        let gone = self.moved.values().filter(|page| page.is_none()).count();
        self.frames().saturating_sub(gone as u64)
    }

    /// Takes the page away from `gfn`; `false` when none was there.
    pub(super) fn release(&mut self, gfn: u64) -> bool {
        let present = self.offset(gfn).is_some();
        if present {
            self.moved.insert(gfn, None);
        }
        present
    }

    /// Gives `gfn` a new page.
    ///
    /// # Errors
    /// `EINVAL` for a frame that is no RAM, `EEXIST` for one that has a page.
    pub(super) fn populate(&mut self, gfn: u64) -> Result<(), Errno> {
        if self.home(gfn).is_none() {
            return Err(Errno(libc::EINVAL));
        }
        if self.offset(gfn).is_some() {
            return Err(Errno(libc::EEXIST));
        }
        let offset = self.extra_page().map_err(|_| Errno(libc::ENOMEM))?;
        self.moved.insert(gfn, Some(offset));
        Ok(())
    }

    /// A new zeroed page that no frame shows: its offset in the memfd.
    pub(super) fn extra_page(&mut self) -> io::Result<u64> {
        let offset = self.len;
        let len = offset.checked_add(PAGE).ok_or(Errno(libc::ENOMEM))?;
        self.file.set_len(len)?;
        self.len = len;
        Ok(offset)
    }

    /// The pieces `(offset in the memfd, bytes)` of a guest-physical range.
    ///
    /// # Errors
    /// `EFAULT` when a page of it is not there.
    pub(super) fn pieces(&self, address: u64, len: usize) -> Result<Vec<(u64, usize)>, Errno> {
        let mut pieces = Vec::new();
        let mut address = address;
        let mut left = len;
        while left > 0 {
            let within = address % PAGE;
            let room = usize::try_from(PAGE - within).unwrap_or(PAGE_SIZE);
            let bytes = left.min(room);
            let offset = self
                .offset(address >> PAGE_SHIFT)
                .ok_or(Errno(libc::EFAULT))?;
            pieces.push((offset + within, bytes));
            left -= bytes;
            address = address
                .checked_add(bytes as u64)
                .ok_or(Errno(libc::EFAULT))?;
        }
        Ok(pieces)
    }

    fn home(&self, gfn: u64) -> Option<u64> {
        self.banks.iter().find_map(|(bank, offset)| {
            let index = gfn.checked_sub(bank.first_gfn)?;
            (index < bank.frames).then(|| offset + index * PAGE)
        })
    }
}

/// Reads the pieces of a memfd into `into`, one after the other.
pub(super) fn read_pieces(
    file: &File,
    pieces: &[(u64, usize)],
    mut into: &mut [u8],
) -> io::Result<()> {
    for (offset, bytes) in pieces {
        let (now, later) = into
            .split_at_mut_checked(*bytes)
            .ok_or(Errno(libc::EINVAL))?;
        file.read_exact_at(now, *offset)?;
        into = later;
    }
    Ok(())
}

/// Writes `from` to the pieces of a memfd, one after the other.
pub(super) fn write_pieces(
    file: &File,
    pieces: &[(u64, usize)],
    mut from: &[u8],
) -> io::Result<()> {
    for (offset, bytes) in pieces {
        let (now, later) = from.split_at_checked(*bytes).ok_or(Errno(libc::EINVAL))?;
        file.write_all_at(now, *offset)?;
        from = later;
    }
    Ok(())
}
