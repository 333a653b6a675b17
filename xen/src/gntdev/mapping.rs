//! Granted pages, mapped, until given back.

use std::fmt;

use vm_memory::VolatileSlice;

use super::{Error, Gntdev, Mapping, Result};
use crate::domid::DomId;

/// What gntdev keeps for a mapping, and has to be told exactly to forget it.
/// Dropped after the range was unmapped from the process.
pub(super) struct Announced {
    gntdev: Gntdev,
    index: u64,
    count: u32,
    dom: DomId,
    first: u32,
    given_back: bool,
}

impl Announced {
    /// Returns the grants; the range must be unmapped from the process.
    pub(super) fn give_back(mut self) -> Result<()> {
        self.unmap()
    }

    fn unmap(&mut self) -> Result<()> {
        self.given_back = true;
        self.gntdev
            .unmap_raw(self.index, self.count)
            .map_err(|source| Error::Unmap {
                dom: self.dom,
                first: self.first,
                count: self.count,
                source,
            })
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        if self.given_back {
            return;
        }
        if let Err(error) = self.unmap() {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(cause, "{error}");
        }
    }
}

/// Granted pages as one contiguous mapping, made by [`Gntdev::map`].
///
/// Giving it back, by [`GrantMapping::unmap`] or by dropping it, unmaps the
/// range and then names the very index and count that gntdev gave. While the
/// kernel itself holds a page (direct I/O in flight) it defers the rest.
pub struct GrantMapping {
    // The order of the fields is the order of dropping: first munmap.
    mapping: Mapping,
    announced: Announced,
}

impl GrantMapping {
    pub(super) fn new(
        gntdev: Gntdev,
        mapping: Mapping,
        index: u64,
        count: u32,
        (dom, first): (DomId, u32),
    ) -> GrantMapping {
        GrantMapping {
            mapping,
            announced: Announced {
                gntdev,
                index,
                count,
                dom,
                first,
                given_back: false,
            },
        }
    }

    /// The pages. Writing to them needs [`Mapping::is_writable`].
    #[must_use]
    pub fn volatile(&self) -> VolatileSlice<'_> {
        self.mapping.volatile()
    }

    /// The mapping: its address, length and whether it may be written to.
    #[must_use]
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Number of pages.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.announced.count
    }

    /// Gives the grants back.
    ///
    /// # Errors
    /// [`Error::Unmap`]; the mapping is gone nevertheless.
    pub fn unmap(self) -> Result<()> {
        self.detach().give_back()
    }

    /// Unmaps the range from the process and hands over what remains to do.
    pub(super) fn detach(self) -> Announced {
        let GrantMapping { mapping, announced } = self;
        drop(mapping);
        announced
    }
}

impl fmt::Debug for GrantMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrantMapping")
            .field("dom", &self.announced.dom)
            .field("first", &self.announced.first)
            .field("mapping", &self.mapping)
            .finish_non_exhaustive()
    }
}
