//! One generation of a guest's mapped memory: a table of chunks that only
//! grows, until the whole generation is dropped.
//!
//! Read by queue workers without locks; a chunk that is missing is mapped
//! under one.

use std::iter::FusedIterator;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

use super::foreign::Guest;
use super::{CHUNK_FRAMES, CHUNK_SHIFT, Error};
use crate::privcmd::ForeignPages;
use crate::sys::abi::{PAGE_SHIFT, PAGE_SIZE};

/// Pages of a chunk, in memory.
const CHUNK_PAGES: usize = 1 << CHUNK_SHIFT;
const CHUNK_BYTES: usize = CHUNK_PAGES * PAGE_SIZE;
/// Chunks of a section: 1 GiB.
const SECTION_SHIFT: u32 = 9;
const SECTION_CHUNKS: usize = 1 << SECTION_SHIFT;
/// Group `n` of the table holds 2ⁿ sections; all together they hold 4 PiB,
/// every address that a machine has.
const GROUPS: usize = 23;

/// A mapped chunk.
#[derive(Debug)]
struct Chunk {
    pages: ForeignPages,
    /// Pages that were missing when the chunk was mapped and have come since
    /// (the guest's balloon), each mapped for itself.
    late: OnceLock<Box<[OnceLock<ForeignPages>]>>,
}

type Section = Box<[OnceLock<Chunk>]>;
type Group = Box<[OnceLock<Section>]>;

/// The mapped memory of a guest between two INVALIDATEs.
///
/// Implements [`GuestMemory`], so that rings and parsers can use it; slices
/// borrow from it and keep it alive.
#[derive(Debug)]
pub struct Generation {
    guest: Arc<Guest>,
    number: u64,
    groups: [OnceLock<Group>; GROUPS],
    /// Chunks and late pages that are mapped, each a mapping of the kernel's.
    mappings: AtomicU64,
    /// Held while a chunk or a late page is being mapped.
    mapping: Mutex<()>,
}

impl Generation {
    pub(super) fn new(guest: Arc<Guest>, number: u64) -> Generation {
        Generation {
            guest,
            number,
            groups: [const { OnceLock::new() }; GROUPS],
            mappings: AtomicU64::new(0),
            mapping: Mutex::new(()),
        }
    }

    /// Its number, from 0.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Mappings that it consists of.
    pub(super) fn mappings(&self) -> u64 {
        self.mappings.load(Ordering::Relaxed)
    }

    fn count(&self) {
        self.mappings.fetch_add(1, Ordering::Relaxed);
        self.guest.count();
    }

    /// The memory of a range, as slices in order; chunks are mapped on the
    /// way. A range without bytes has no slices.
    pub fn slices(&self, address: u64, len: usize) -> Slices<'_> {
        Slices {
            memory: self,
            address,
            left: len,
            whole: len,
        }
    }

    /// One contiguous slice from `address` on, at most to the chunk's end.
    fn slice(&self, address: u64, most: usize) -> Result<VolatileSlice<'_>, Error> {
        let gfn = address >> PAGE_SHIFT;
        self.guest.check(gfn)?;
        let chunk = self.chunk(gfn)?;
        let offset = in_chunk(address);
        let most = most.min(CHUNK_BYTES - offset);
        let first = offset / PAGE_SIZE;
        if chunk.pages.is_complete() {
            return self.cut(&chunk.pages, address, offset, most);
        }
        if chunk.pages.error(first).is_some() {
            let page = self.late_page(chunk, first, gfn)?;
            let offset = offset % PAGE_SIZE;
            return self.cut(page, address, offset, most.min(PAGE_SIZE - offset));
        }
        // As far as the pages are there.
        let last = (offset + most - 1) / PAGE_SIZE;
        let end = (first..=last)
            .find(|&page| chunk.pages.error(page).is_some())
            .map_or(offset + most, |page| page * PAGE_SIZE);
        self.cut(&chunk.pages, address, offset, end - offset)
    }

    fn cut<'a>(
        &self,
        pages: &'a ForeignPages,
        address: u64,
        offset: usize,
        len: usize,
    ) -> Result<VolatileSlice<'a>, Error> {
        let whole = pages.mapping().volatile();
        whole.subslice(offset, len).map_err(|_| Error::NoRange {
            dom: self.guest.dom(),
            address,
            len,
        })
    }

    /// The chunk of a frame, mapped if need be.
    fn chunk(&self, gfn: u64) -> Result<&Chunk, Error> {
        if let Some(chunk) = self.find(gfn) {
            return Ok(chunk);
        }
        let _mapping = self.mapping.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(chunk) = self.find(gfn) {
            return Ok(chunk);
        }
        let first = gfn & !(CHUNK_FRAMES - 1);
        let pages = self.guest.map_more(first, CHUNK_PAGES)?;
        if pages.is_void() {
            // No memory at all: nothing of it is kept, so that a guest cannot
            // have us collect empty chunks.
            return Err(self.not_there(&pages, first, in_chunk(gfn << PAGE_SHIFT) / PAGE_SIZE));
        }
        let cell = self.cell(gfn).ok_or_else(|| self.no_page(gfn))?;
        self.count();
        Ok(cell.get_or_init(|| Chunk {
            pages,
            late: OnceLock::new(),
        }))
    }

    /// A page that was missing when its chunk was mapped.
    fn late_page<'a>(
        &self,
        chunk: &'a Chunk,
        index: usize,
        gfn: u64,
    ) -> Result<&'a ForeignPages, Error> {
        let found = || chunk.late.get()?.get(index)?.get();
        if let Some(page) = found() {
            return Ok(page);
        }
        let _mapping = self.mapping.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = found() {
            return Ok(page);
        }
        let page = self.guest.map_more(gfn, 1)?;
        if !page.is_complete() {
            return Err(self.not_there(&page, gfn, 0));
        }
        let late = chunk
            .late
            .get_or_init(|| (0..CHUNK_PAGES).map(|_| OnceLock::new()).collect());
        let cell = late.get(index).ok_or_else(|| self.no_page(gfn))?;
        self.count();
        Ok(cell.get_or_init(|| page))
    }

    fn no_page(&self, gfn: u64) -> Error {
        Error::NoRange {
            dom: self.guest.dom(),
            address: gfn << PAGE_SHIFT,
            len: PAGE_SIZE,
        }
    }

    fn not_there(&self, pages: &ForeignPages, first: u64, index: usize) -> Error {
        Error::NotThere {
            dom: self.guest.dom(),
            gfn: first + index as u64,
            source: pages
                .error(index)
                .unwrap_or_else(|| std::io::Error::from_raw_os_error(libc::EFAULT)),
        }
    }

    /// The chunk of a frame, if it has been mapped.
    fn find(&self, gfn: u64) -> Option<&Chunk> {
        let place = Place::of(gfn)?;
        let sections = self.groups.get(place.group)?.get()?;
        let chunks = sections.get(place.section)?.get()?;
        chunks.get(place.chunk)?.get()
    }

    /// Where a frame's chunk shall be; none beyond all addresses.
    fn cell(&self, gfn: u64) -> Option<&OnceLock<Chunk>> {
        let place = Place::of(gfn)?;
        let sections = self.groups.get(place.group)?.get_or_init(|| {
            (0..1usize << place.group)
                .map(|_| OnceLock::new())
                .collect()
        });
        let chunks = sections
            .get(place.section)?
            .get_or_init(|| (0..SECTION_CHUNKS).map(|_| OnceLock::new()).collect());
        chunks.get(place.chunk)
    }
}

impl Drop for Generation {
    /// What it consists of goes right after.
    fn drop(&mut self) {
        self.guest.uncount(self.mappings());
    }
}

/// Place of a chunk in the table. Groups double in size, so that the table
/// needs no size of its own, takes little for a small guest, and never moves.
struct Place {
    group: usize,
    section: usize,
    chunk: usize,
}

impl Place {
    fn of(gfn: u64) -> Option<Place> {
        let chunk = usize::try_from(gfn >> CHUNK_SHIFT).ok()?;
        let section = (chunk >> SECTION_SHIFT) + 1;
        let group = usize::try_from(section.ilog2()).ok()?;
        Some(Place {
            group,
            section: section - (1 << group),
            chunk: chunk % SECTION_CHUNKS,
        })
    }
}

/// Offset of an address in its chunk.
fn in_chunk(address: u64) -> usize {
    usize::try_from(address & (CHUNK_BYTES as u64 - 1)).unwrap_or(0)
}

/// Slices of a range of guest memory, in order; ends at the first error.
#[derive(Debug)]
pub struct Slices<'a> {
    memory: &'a Generation,
    address: u64,
    left: usize,
    whole: usize,
}

impl<'a> Slices<'a> {
    fn take(&mut self) -> Result<VolatileSlice<'a>, Error> {
        let slice = self.memory.slice(self.address, self.left)?;
        let left = self.left - slice.len();
        if left > 0 {
            let no_range = Error::NoRange {
                dom: self.memory.guest.dom(),
                address: self.address,
                len: self.whole,
            };
            self.address = u64::try_from(slice.len())
                .ok()
                .and_then(|len| self.address.checked_add(len))
                .ok_or(no_range)?;
        }
        self.left = left;
        Ok(slice)
    }
}

impl<'a> Iterator for Slices<'a> {
    type Item = Result<VolatileSlice<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let item = self.take();
        if item.is_err() {
            self.left = 0;
        }
        Some(item)
    }
}

impl FusedIterator for Slices<'_> {}

/// [`Slices`] with vm-memory's errors.
struct GuestSlices<'a>(Slices<'a>);

impl<'a> Iterator for GuestSlices<'a> {
    type Item = vm_memory::GuestMemoryResult<VolatileSlice<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.0.next()?;
        Some(item.map_err(|error| match error {
            Error::NotThere { gfn, .. } | Error::TooHigh { gfn, .. } => {
                vm_memory::GuestMemoryError::InvalidGuestAddress(GuestAddress(gfn << PAGE_SHIFT))
            }
            error => vm_memory::GuestMemoryError::IOError(std::io::Error::other(error)),
        }))
    }
}

impl FusedIterator for GuestSlices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, ()> for GuestSlices<'a> {}

impl GuestMemory for Generation {
    /// Never handed out: nothing below has vm-memory's regions.
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, _access: Permissions) -> bool {
        self.slices(addr.0, count).all(|slice| slice.is_ok())
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        _access: Permissions,
    ) -> vm_memory::GuestMemoryResult<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        Ok(GuestSlices(self.slices(addr.0, count)))
    }
}
