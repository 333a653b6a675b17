//! The memory of a pool: anonymous, or a file that a back end can map, too.
//!
//! Always zeroed when made and page-aligned; its owner reaches it through
//! volatile slices, because a consumer may write it at any time.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use crate::error::Error;
use crate::range::PAGE_SIZE;
use crate::segment::Segment;
use crate::sizing::SEGMENT_SIZE;

/// Which addresses a pool's memory has for the embedder, before translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Those of this process, aligned to a segment, so that no alignment makes
    /// a request of the largest size impossible.
    Host,
    /// From this address on, a multiple of the page size.
    At(u64),
}

/// Page-aligned memory of a pool.
#[derive(Clone, Debug)]
pub struct PoolMemory {
    region: Arc<MmapRegion>,
    start: usize,
    len: usize,
    base: u64,
    shared: bool,
}

impl PoolMemory {
    /// Memory of this process alone.
    ///
    /// # Errors
    /// [`Error::BadRegion`] for a base that is not page-aligned or a range that
    /// wraps around, [`Error::NoMemory`].
    pub fn anonymous(bytes: u64, base: Base) -> Result<Self, Error> {
        let (start, len, whole) = plan(bytes, base)?;
        let region = MmapRegion::new(whole).map_err(|e| no_memory(bytes, os_error(&e)))?;
        PoolMemory::within(Arc::new(region), start, len, base, false)
    }

    /// Memory that others map by its file. The file can neither shrink nor
    /// grow: whoever has it cannot take pages away from under this process.
    ///
    /// # Errors
    /// As [`PoolMemory::anonymous`].
    pub fn memfd(name: &str, bytes: u64, base: Base) -> Result<Self, Error> {
        let (start, len, whole) = plan(bytes, base)?;
        let failed = |e: rustix::io::Errno| no_memory(bytes, e.raw_os_error());
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create(name, flags).map_err(failed)?;
        rustix::fs::ftruncate(&file, whole as u64).map_err(failed)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(file.as_fd(), seals).map_err(failed)?;
        let file = FileOffset::new(file.into(), 0);
        let region =
            MmapRegion::from_file(file, whole).map_err(|e| no_memory(bytes, os_error(&e)))?;
        PoolMemory::within(Arc::new(region), start, len, base, true)
    }

    /// A part of memory that exists already. `shared` tells whether another
    /// trust domain sees it.
    ///
    /// # Errors
    /// [`Error::BadRegion`] for a part that is not inside the region or not
    /// page-aligned, or a range of addresses that wraps around.
    pub fn of_region(
        region: Arc<MmapRegion>,
        start: usize,
        len: usize,
        base: Base,
        shared: bool,
    ) -> Result<Self, Error> {
        let bad = |reason| Error::BadRegion {
            base: start as u64,
            size: len as u64,
            reason,
        };
        if !(start as u64).is_multiple_of(PAGE_SIZE) {
            return Err(bad("does not start at a page"));
        }
        match start.checked_add(len) {
            Some(end) if len > 0 && end <= region.size() => {}
            _ => return Err(bad("is not inside its mapping")),
        }
        if let Base::At(base) = base {
            check_base(base, len as u64)?;
        }
        PoolMemory::within(region, start, len, base, shared)
    }

    /// `start` is where the part begins, before alignment if the base is the
    /// host's own.
    fn within(
        region: Arc<MmapRegion>,
        start: usize,
        len: usize,
        base: Base,
        shared: bool,
    ) -> Result<Self, Error> {
        let host = region.as_ptr() as usize;
        let (start, base) = match base {
            Base::At(base) => (start, base),
            Base::Host => {
                let wanted = (host as u64 + start as u64).next_multiple_of(SEGMENT_SIZE);
                let aligned = usize::try_from(wanted - host as u64).unwrap_or(start);
                // a part of someone's region has no slack to align in
                let fits = aligned.saturating_add(len) <= region.size();
                let start = if fits { aligned } else { start };
                (start, host as u64 + start as u64)
            }
        };
        Ok(PoolMemory {
            region,
            start,
            len,
            base,
            shared,
        })
    }

    /// Its first address for the embedder.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// `len` bytes of it from `offset` on, as memory of their own.
    ///
    /// # Errors
    /// [`Error::BadRegion`] for bytes that are not inside.
    pub fn part(&self, offset: u64, len: u64) -> Result<Self, Error> {
        let bad = || Error::BadRegion {
            base: self.base.saturating_add(offset),
            size: len,
            reason: "is not inside its memory",
        };
        let end = offset.checked_add(len).filter(|&end| end <= self.len());
        end.ok_or_else(bad)?;
        let size = |bytes: u64| usize::try_from(bytes).map_err(|_| bad());
        Ok(PoolMemory {
            region: Arc::clone(&self.region),
            start: self.start + size(offset)?,
            len: size(len)?,
            base: self.base + offset,
            shared: self.shared,
        })
    }

    /// Whether it has no bytes, which no constructor allows.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether another trust domain may see it.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// The file behind it, if any, and where in the file the pool starts.
    pub fn file(&self) -> Option<(&std::fs::File, u64)> {
        let file = self.region.file_offset()?;
        Some((file.file(), file.start() + self.start as u64))
    }

    /// All of it, to be registered with an engine (io_uring's fixed buffers).
    pub fn segment(&self) -> Option<Segment> {
        Some(Segment::of(&self.slice(0, self.len())?))
    }

    /// `len` bytes from `offset` on; `None` if they are not inside.
    #[inline(always)]
    pub fn slice(&self, offset: u64, len: u64) -> Option<VolatileSlice<'_>> {
        let end = offset.checked_add(len)?;
        if end > self.len as u64 {
            return None;
        }
        let offset = usize::try_from(offset).ok()?.checked_add(self.start)?;
        self.region
            .get_slice(offset, usize::try_from(len).ok()?)
            .ok()
    }
}

/// Where pools come from. Called during bring-up and growth, never while
/// something is mapped.
pub trait PoolSource: Send {
    /// Zeroed memory of `bytes` bytes, below `limit` if that is possible: the
    /// caller checks.
    ///
    /// # Errors
    /// [`Error::NoMemory`]; the caller asks for less.
    fn allocate(&mut self, bytes: u64, limit: u64) -> Result<PoolMemory, Error>;
}

impl<F> PoolSource for F
where
    F: FnMut(u64, u64) -> Result<PoolMemory, Error> + Send,
{
    fn allocate(&mut self, bytes: u64, limit: u64) -> Result<PoolMemory, Error> {
        self(bytes, limit)
    }
}

/// Pools of this process alone, at its own addresses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anonymous;

impl PoolSource for Anonymous {
    fn allocate(&mut self, bytes: u64, _limit: u64) -> Result<PoolMemory, Error> {
        PoolMemory::anonymous(bytes, Base::Host)
    }
}

/// Pools that a back end maps by their files, at this process's addresses.
#[derive(Clone, Debug)]
pub struct Memfd {
    /// The name that the files show in `/proc`.
    pub name: String,
}

impl PoolSource for Memfd {
    fn allocate(&mut self, bytes: u64, _limit: u64) -> Result<PoolMemory, Error> {
        PoolMemory::memfd(&self.name, bytes, Base::Host)
    }
}

/// Start and length of the pool in its mapping, and the mapping's length.
fn plan(bytes: u64, base: Base) -> Result<(usize, usize, usize), Error> {
    let slack = match base {
        Base::Host => SEGMENT_SIZE,
        Base::At(base) => {
            check_base(base, bytes)?;
            0
        }
    };
    let size = |bytes: u64| usize::try_from(bytes).ok();
    let whole = bytes
        .checked_next_multiple_of(PAGE_SIZE)
        .and_then(|pages| pages.checked_add(slack));
    match (size(bytes), whole.and_then(size)) {
        (Some(len), Some(whole)) if len > 0 => Ok((0, len, whole)),
        _ => Err(no_memory(bytes, 0)),
    }
}

fn check_base(base: u64, size: u64) -> Result<(), Error> {
    let bad = |reason| Error::BadRegion { base, size, reason };
    if !base.is_multiple_of(PAGE_SIZE) {
        return Err(bad("does not start at a page"));
    }
    match base.checked_add(size) {
        Some(_) => Ok(()),
        None => Err(bad("wraps around")),
    }
}

fn os_error(error: &MmapRegionError) -> i32 {
    match error {
        MmapRegionError::Mmap(error) => error.raw_os_error().unwrap_or(0),
        _ => 0,
    }
}

fn no_memory(bytes: u64, os_error: i32) -> Error {
    Error::NoMemory { bytes, os_error }
}
