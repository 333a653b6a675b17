//! An open `/dev/xen/gntdev` of the fake, with the lifetimes that
//! `drivers/xen/gntdev.c` has on an auto-translated dom0.
//!
//! A map lives as long as the file lists it or a VMA shows it, and after
//! that as long as one of its pages is pinned.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::errno::Errno;
use super::faults::Call;
use super::foreign::{Region, register};
use super::grants::{BAD_DOMAIN, BAD_PAGE};
use super::ram::PAGE_SHIFT;
use super::state::{Inner, World};
use crate::gntdev::CopySegment;
use crate::{DomId, Mapping};

/// The file.
pub struct GntdevFile {
    open: Arc<OpenFile>,
}

/// What closes when the file and its last VMA are gone.
struct OpenFile {
    inner: Arc<Inner>,
    id: u64,
}

/// `struct gntdev_grant_map`.
pub(super) struct GrantMap {
    file: u64,
    /// Page offset in the file.
    index: u64,
    grants: Vec<(DomId, u32)>,
    /// Which of them Xen has mapped.
    held: Vec<bool>,
    /// The file lists it.
    listed: bool,
    /// It was given to a VMA once; there is no second time.
    in_use: bool,
    /// The file's reference and the VMA's.
    users: u32,
    /// Pins of its pages.
    pins: u32,
}

impl fmt::Debug for GntdevFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GntdevFile").finish_non_exhaustive()
    }
}

impl GntdevFile {
    pub(super) fn open(inner: &Arc<Inner>) -> GntdevFile {
        GntdevFile {
            open: Arc::new(OpenFile {
                inner: Arc::clone(inner),
                id: inner.with(World::fresh_id),
            }),
        }
    }

    /// Announces references; nothing is looked at yet. Gives the index for
    /// [`GntdevFile::mmap`] and [`GntdevFile::unmap`].
    ///
    /// # Errors
    /// `EINVAL`: none, or more than the driver's limit.
    pub(crate) fn map(&self, refs: &[(DomId, u32)]) -> io::Result<u64> {
        let file = self.open.id;
        self.open.inner.call(|world| {
            world.faults.check(Call::GrantMap)?;
            if refs.is_empty() || refs.len() > world.config.gntdev_limit {
                return Err(Errno(libc::EINVAL));
            }
            let index = world.free_index(file, refs.len() as u64);
            let id = world.fresh_id();
            world.maps.insert(
                id,
                GrantMap {
                    file,
                    index,
                    grants: refs.to_vec(),
                    held: vec![false; refs.len()],
                    listed: true,
                    in_use: false,
                    users: 1,
                    pins: 0,
                },
            );
            Ok(index << PAGE_SHIFT)
        })
    }

    /// Maps announced references: here Xen is asked. All of them or an
    /// error; after an error those Xen did map stay held until
    /// [`GntdevFile::unmap`].
    ///
    /// # Errors
    /// `EINVAL`: not exactly one announced range, mapped once already, a bad
    /// reference, or a read-only one mapped for writing.
    pub(crate) fn mmap(&self, index: u64, count: u32, write: bool) -> io::Result<Mapping> {
        let file = self.open.id;
        let (id, memory, offsets) = self.open.inner.call(|world| {
            world.faults.check(Call::GrantMmap)?;
            let id = world
                .listed_map(file, index >> PAGE_SHIFT, u64::from(count))
                .filter(|_| count > 0)
                .ok_or(Errno(libc::EINVAL))?;
            let offsets = world.map_grants(id, write)?;
            let dom = world.single_domain(id)?;
            let memory = world.domain(dom)?.ram.file();
            let map = world.maps.get_mut(&id).ok_or(Errno(libc::EINVAL))?;
            map.users += 1;
            Ok((id, memory, offsets))
        })?;
        let mapped = Mapping::of_pages(memory.as_fd(), &offsets, write);
        let open = Arc::clone(&self.open);
        register(&self.open.inner, mapped, Region::Grant(id), move |world| {
            world.put_map(id);
            // The VMA keeps the file open; letting go of it may take the
            // world's lock, so that is left to after the call.
            world.closing.push(open);
        })
    }

    /// Takes a range off the file's list; its pages are given back once no
    /// VMA shows them either.
    ///
    /// # Errors
    /// `ENOENT`: not exactly one announced range.
    pub(crate) fn unmap(&self, index: u64, count: u32) -> io::Result<()> {
        let file = self.open.id;
        self.open.inner.call(|world| {
            world.faults.check(Call::GrantUnmap)?;
            let id = world
                .listed_map(file, index >> PAGE_SHIFT, u64::from(count))
                .ok_or(Errno(libc::ENOENT))?;
            world.unlist(id);
            Ok(())
        })
    }

    /// Copies between local memory and granted pages; each segment gets its
    /// status, and one that fails does not keep the others from running.
    ///
    /// # Errors
    /// `EINVAL`: a segment that leaves its granted page. `EFAULT`: local
    /// memory that the kernel cannot pin. Segments from that one on, and
    /// some before it, were not copied then.
    pub(crate) fn copy(&self, segments: &mut [CopySegment<'_>]) -> io::Result<()> {
        self.open.inner.call(|world| {
            world.faults.check(Call::GrantCopy)?;
            world.grant_copy(segments)
        })
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.inner.with(|world| {
            let listed: Vec<u64> = world
                .maps
                .iter()
                .filter(|(_, map)| map.file == self.id && map.listed)
                .map(|(id, _)| *id)
                .collect();
            for id in listed {
                world.unlist(id);
            }
        });
    }
}

/// A file that may close once the lock is free.
pub(super) type Closing = Arc<dyn Send + Sync>;

impl World {
    // gntdev_add_map: the first gap of the file's offsets.
    fn free_index(&self, file: u64, count: u64) -> u64 {
        let mut taken: Vec<(u64, u64)> = self
            .maps
            .values()
            .filter(|map| map.file == file && map.listed)
            .map(|map| (map.index, map.grants.len() as u64))
            .collect();
        taken.sort_unstable();
        let mut index = 0;
        for (start, len) in taken {
            if index + count < start {
                break;
            }
            index = start + len;
        }
        index
    }

    // gntdev_find_map_index
    fn listed_map(&self, file: u64, index: u64, count: u64) -> Option<u64> {
        self.maps
            .iter()
            .find(|(_, map)| {
                map.file == file
                    && map.listed
                    && map.index == index
                    && (count == 0 || map.grants.len() as u64 == count)
            })
            .map(|(id, _)| *id)
    }

    // gntdev_map_grant_pages: all are tried, one failure is the result.
    fn map_grants(&mut self, id: u64, write: bool) -> Result<Vec<Option<u64>>, Errno> {
        let map = self.maps.get_mut(&id).ok_or(Errno(libc::EINVAL))?;
        if std::mem::replace(&mut map.in_use, true) {
            return Err(Errno(libc::EINVAL));
        }
        let grants = map.grants.clone();
        let offsets: Vec<Option<u64>> = grants
            .iter()
            .map(|(dom, gref)| self.map_grant(*dom, *gref, write).ok())
            .collect();
        if let Some(map) = self.maps.get_mut(&id) {
            map.held = offsets.iter().map(Option::is_some).collect();
        }
        if offsets.contains(&None) {
            return Err(Errno(libc::EINVAL));
        }
        Ok(offsets)
    }

    // map_grant_ref; the error is a GNTST_* value.
    fn map_grant(&mut self, dom: DomId, gref: u32, write: bool) -> Result<u64, i16> {
        let domain = self.domains.get_mut(&dom).ok_or(BAD_DOMAIN)?;
        let gfn = domain.grants.page(gref, write)?;
        let offset = domain
            .ram
            .offset(gfn)
            .filter(|_| !domain.dying)
            .ok_or(BAD_PAGE)?;
        domain.grants.hold(gref);
        Ok(offset)
    }

    // One memfd backs one mapping: the fake maps one domain's grants at a time.
    fn single_domain(&self, id: u64) -> Result<DomId, Errno> {
        let map = self.maps.get(&id).ok_or(Errno(libc::EINVAL))?;
        let (dom, _) = map.grants.first().ok_or(Errno(libc::EINVAL))?;
        if map.grants.iter().any(|(other, _)| other != dom) {
            tracing::error!("the fake cannot map grants of several domains as one range");
            return Err(Errno(libc::EINVAL));
        }
        Ok(*dom)
    }

    fn unlist(&mut self, id: u64) {
        if let Some(map) = self.maps.get_mut(&id) {
            map.listed = false;
            self.put_map(id);
        }
    }

    // gntdev_put_map
    fn put_map(&mut self, id: u64) {
        if let Some(map) = self.maps.get_mut(&id) {
            map.users -= 1;
            self.unmap_grants(id);
        }
    }

    /// The kernel took pages of a map for I/O.
    pub(super) fn pin_grants(&mut self, id: u64) {
        if let Some(map) = self.maps.get_mut(&id) {
            map.pins += 1;
        }
    }

    /// The kernel let them go; an unmap that waited for it is done now.
    pub(super) fn unpin_grants(&mut self, id: u64) {
        if let Some(map) = self.maps.get_mut(&id) {
            map.pins -= 1;
            self.unmap_grants(id);
        }
    }

    // gnttab_unmap_refs_async: a page that somebody holds defers the whole.
    fn unmap_grants(&mut self, id: u64) {
        let done = self
            .maps
            .get(&id)
            .is_some_and(|map| map.users == 0 && map.pins == 0);
        let Some(map) = done.then(|| self.maps.remove(&id)).flatten() else {
            return;
        };
        for ((dom, gref), held) in map.grants.into_iter().zip(map.held) {
            if held && let Some(domain) = self.domains.get_mut(&dom) {
                domain.grants.let_go(gref);
                self.reap(dom);
            }
        }
    }
}
