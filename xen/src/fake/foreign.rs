//! Foreign mappings: which addresses of this process show another domain's
//! pages, and what the kernel can and cannot pin.
//!
//! Memory of privcmd is `VM_PFNMAP`, so get_user_pages fails on it; memory
//! of gntdev can be pinned, and a pinned grant is not given back before the
//! pin goes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::errno::Errno;
use super::ioreq::Page;
use super::state::{Inner, World};
use crate::abi::PAGE_SIZE;
use crate::sys::memfd::memfd;
use crate::sys::reservation::Reservation;
use crate::{DomId, Mapping};

/// What a range of this process's memory is.
pub(super) enum Region {
    /// RAM of a domain, through privcmd.
    Foreign,
    /// Pages of Xen's own that belong to a domain, through privcmd.
    Resource(Arc<Mapping>),
    /// Granted pages: the map they belong to.
    Grant(u64),
}

struct Entry {
    id: u64,
    len: usize,
    region: Region,
}

/// Ranges by their first address.
#[derive(Default)]
pub(super) struct Regions(BTreeMap<usize, Entry>);

impl Regions {
    /// Notes a range. What is noted of the same addresses is stale: the
    /// kernel gave them out again before the earlier owner could say so.
    pub(super) fn insert(&mut self, id: u64, start: usize, len: usize, region: Region) {
        let stale: Vec<usize> = self.overlapping(start, len).map(|(at, _)| at).collect();
        for at in stale {
            self.0.remove(&at);
        }
        self.0.insert(start, Entry { id, len, region });
    }

    /// Forgets a range, unless its addresses are somebody else's by now.
    pub(super) fn remove(&mut self, id: u64, start: usize) {
        if self.0.get(&start).is_some_and(|entry| entry.id == id) {
            self.0.remove(&start);
        }
    }

    /// The ioreq page mapped at `address`.
    pub(super) fn ioreq_page(&self, address: usize) -> Option<Arc<Mapping>> {
        match &self.0.get(&address)?.region {
            Region::Resource(page) => Some(Arc::clone(page)),
            _ => None,
        }
    }

    /// The grant maps of a range.
    ///
    /// # Errors
    /// `EFAULT` when a page of it cannot be pinned.
    pub(super) fn pinnable(&self, address: usize, len: usize) -> Result<Vec<u64>, Errno> {
        self.overlapping(address, len)
            .map(|(_, entry)| match entry.region {
                Region::Grant(map) => Ok(map),
                Region::Foreign | Region::Resource(_) => Err(Errno(libc::EFAULT)),
            })
            .collect()
    }

    fn overlapping(&self, start: usize, len: usize) -> impl Iterator<Item = (usize, &Entry)> {
        let end = start.saturating_add(len);
        self.0
            .range(..end)
            .rev()
            .map(|(at, entry)| (*at, entry))
            // Ranges are disjoint, so the first that ends too early is the last to ask.
            .take_while(move |(at, entry)| at.saturating_add(entry.len) > start)
    }
}

/// Pages that the kernel holds for I/O, as get_user_pages gives them;
/// dropped, they are let go.
pub struct Pin {
    inner: Arc<Inner>,
    maps: Vec<u64>,
}

impl Pin {
    pub(super) fn new(inner: &Arc<Inner>, address: usize, len: usize) -> io::Result<Pin> {
        let maps = inner.call(|world| {
            let maps = world.regions.pinnable(address, len)?;
            for map in &maps {
                world.pin_grants(*map);
            }
            Ok(maps)
        })?;
        Ok(Pin {
            inner: Arc::clone(inner),
            maps,
        })
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin").finish_non_exhaustive()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.inner.with(|world| {
            for map in &self.maps {
                world.unpin_grants(*map);
            }
        });
    }
}

/// Maps frames of a domain as `IOCTL_PRIVCMD_MMAPBATCH_V2` does on an
/// auto-translated dom0: every page by itself, its error in `errors`.
pub(super) fn map_batch(
    inner: &Arc<Inner>,
    dom: DomId,
    gfns: &[u64],
    errors: &mut [i32],
    write: bool,
) -> io::Result<Mapping> {
    let batch = Batch::take(inner, dom, gfns, errors)?;
    let mapped = Mapping::of_pages(batch.file.as_fd(), &batch.offsets, write);
    register(inner, mapped, Region::Foreign, batch.release())
}

/// As [`map_batch`], to place `at` of a reservation.
pub(super) fn map_batch_into(
    inner: &Arc<Inner>,
    dom: DomId,
    gfns: &[u64],
    errors: &mut [i32],
    into: &Reservation,
    at: usize,
) -> io::Result<()> {
    let batch = Batch::take(inner, dom, gfns, errors)?;
    if batch.pages == 0 {
        return Ok(());
    }
    let (start, len) = (into.place(at, 0)?.addr(), gfns.len() * PAGE_SIZE);
    let mapped = into.map_pages(at, batch.file.as_fd(), &batch.offsets);
    let release = batch.release();
    if let Err(error) = mapped {
        inner.with(release);
        return Err(error);
    }
    into.on_drop(note(inner, (start, len), Region::Foreign, release));
    Ok(())
}

/// Frames that are being mapped, counted as their domain's.
struct Batch {
    dom: DomId,
    file: Arc<File>,
    offsets: Vec<Option<u64>>,
    pages: u64,
}

impl Batch {
    fn take(inner: &Arc<Inner>, dom: DomId, gfns: &[u64], errors: &mut [i32]) -> io::Result<Batch> {
        let errors = errors.get_mut(..gfns.len()).ok_or(Errno(libc::EFAULT))?;
        if gfns.is_empty() {
            return Err(Errno(libc::EINVAL).into());
        }
        let (file, offsets, pages) = inner.with(|world| {
            let offsets: Vec<Option<u64>> = gfns
                .iter()
                .zip(&mut *errors)
                .map(|(gfn, error)| match world.foreign_page(dom, *gfn) {
                    Ok(offset) => {
                        *error = 0;
                        Some(offset)
                    }
                    Err(errno) => {
                        *error = errno.negative();
                        None
                    }
                })
                .collect();
            let pages = offsets.iter().flatten().count() as u64;
            let file = world.domains.get_mut(&dom).map(|domain| {
                domain.foreign_pages += pages;
                domain.ram.file()
            });
            (file, offsets, pages)
        });
        let file = match file {
            Some(file) => file,
            // No domain, no page: nothing of the file will be mapped.
            None => Arc::new(memfd(0)?),
        };
        Ok(Batch {
            dom,
            file,
            offsets,
            pages,
        })
    }

    /// Takes them off the count.
    fn release(self) -> impl FnOnce(&mut World) + Send + Sync + 'static {
        let Batch { dom, pages, .. } = self;
        move |world| {
            if let Some(domain) = world.domains.get_mut(&dom) {
                domain.foreign_pages -= pages;
            }
            world.reap(dom);
        }
    }
}

/// Maps pages of Xen's own that belong to a domain
/// (`IOCTL_PRIVCMD_MMAP_RESOURCE`).
pub(super) fn map_resource(
    inner: &Arc<Inner>,
    dom: DomId,
    frames: impl FnOnce(&mut World) -> Result<Vec<Page>, Errno>,
) -> io::Result<Mapping> {
    let (file, pages, first) = inner.call(|world| {
        let pages = frames(world)?;
        let first = pages.first().ok_or(Errno(libc::EINVAL))?.clone();
        let domain = world.domain(dom)?;
        domain.resource_pages += pages.len() as u64;
        Ok((domain.ram.file(), pages, first))
    })?;
    let offsets: Vec<Option<u64>> = pages.iter().map(|page| Some(page.offset)).collect();
    debug_assert_eq!(first.mapping.len(), PAGE_SIZE);
    let count = pages.len() as u64;
    let mapped = Mapping::of_pages(file.as_fd(), &offsets, true);
    let release = move |world: &mut World| {
        if let Some(domain) = world.domains.get_mut(&dom) {
            domain.resource_pages -= count;
        }
        world.reap(dom);
    };
    register(inner, mapped, Region::Resource(first.mapping), release)
}

/// Notes a mapping until it is dropped, and then releases what it held; a
/// mapping that failed releases at once.
pub(super) fn register(
    inner: &Arc<Inner>,
    mapped: io::Result<Mapping>,
    region: Region,
    release: impl FnOnce(&mut World) + Send + Sync + 'static,
) -> io::Result<Mapping> {
    let mapping = match mapped {
        Ok(mapping) => mapping,
        Err(error) => {
            inner.with(release);
            return Err(error);
        }
    };
    let range = (mapping.address(), mapping.len());
    Ok(mapping.on_drop(note(inner, range, region, release)))
}

/// Notes a range; the result forgets it and releases what it held.
fn note(
    inner: &Arc<Inner>,
    (start, len): (usize, usize),
    region: Region,
    release: impl FnOnce(&mut World) + Send + Sync + 'static,
) -> Box<dyn FnOnce() + Send + Sync> {
    let id = inner.with(|world| {
        let id = world.fresh_id();
        world.regions.insert(id, start, len, region);
        id
    });
    let inner = Arc::clone(inner);
    Box::new(move || {
        inner.with(|world| {
            world.regions.remove(id, start);
            release(world);
        });
    })
}

impl World {
    // XENMAPSPACE_gmfn_foreign, xen/arch/arm/mm.c
    fn foreign_page(&mut self, dom: DomId, gfn: u64) -> Result<u64, Errno> {
        let domain = self.remote(dom)?;
        if domain.dying {
            return Err(Errno(libc::EINVAL));
        }
        domain.ram.offset(gfn).ok_or(Errno(libc::EINVAL))
    }
}
