//! A guest's memory as seen from this process: frames mapped by number, and
//! pages that the guest granted.
//!
//! Consumers are the data path's adapters, on queue workers. What a ring or a
//! buffer is given as decides: a [`GrantAddress`] (bit 63 set) names grants,
//! any other address guest-physical memory.

mod foreign;
mod generation;
mod grant;
mod share;
mod window;

use std::io;

use thiserror::Error;
use vm_memory::VolatileSlice;

pub use foreign::{ForeignRam, most_mappings};
pub use generation::{Generation, Slices};
pub use grant::{GrantAddress, GrantError, GrantRange};
pub use share::{SharedRam, SharedRun};
pub use window::Window;

use crate::domid::DomId;
use crate::gntdev::GrantMapping;
use crate::privcmd;
use crate::sys::mapping::Mapping;

/// Frames of a chunk, which is mapped, or looked at, at once: 2 MiB.
const CHUNK_SHIFT: u32 = 9;
const CHUNK_FRAMES: u64 = 1 << CHUNK_SHIFT;

/// Why guest memory could not be reached.
#[derive(Debug, Error)]
pub enum Error {
    /// A frame that the guest does not have, or does not let be mapped: its
    /// driver named an address that is no memory.
    #[error("domain {dom}: frame {gfn:#x} is not there")]
    NotThere {
        /// The guest.
        dom: DomId,
        /// The frame.
        gfn: u64,
        /// What Xen said of the page.
        source: io::Error,
    },
    /// An address beyond the guest's highest frame.
    #[error("domain {dom}: frame {gfn:#x} lies above the highest, {highest:#x}")]
    TooHigh {
        /// The guest.
        dom: DomId,
        /// The frame.
        gfn: u64,
        /// The guest's highest frame now.
        highest: u64,
    },
    /// A range without bytes, or one that goes past the end of all addresses.
    #[error("domain {dom}: {len} bytes at {address:#x} are no range of memory")]
    NoRange {
        /// The guest.
        dom: DomId,
        /// First address.
        address: u64,
        /// Bytes.
        len: usize,
    },
    /// The mapping as a whole failed: a fault of the host, not of the guest.
    #[error("domain {dom}: frames from {gfn:#x} could not be mapped")]
    Map {
        /// The guest.
        dom: DomId,
        /// The first frame.
        gfn: u64,
        /// Why.
        source: privcmd::Error,
    },
    /// A mapping more than a guest may have: it has its memory mapped in pieces,
    /// and requests of before hold as many.
    #[error(
        "domain {dom}: frame {gfn:#x} would be a mapping beyond the {most} that a guest may have"
    )]
    TooMany {
        /// The guest.
        dom: DomId,
        /// The frame.
        gfn: u64,
        /// Mappings that it may have.
        most: u64,
    },
    /// The guest has placed frames so that its memory is nowhere: told as it lies
    /// it would be more than the guest may have.
    #[error("domain {dom}: its memory lies in so many places that it would take {most} frames")]
    Strewn {
        /// The guest.
        dom: DomId,
        /// Frames that are told at most.
        most: u64,
    },
    /// This process has no addresses left for the guest's memory.
    #[error("domain {dom}: {bytes} bytes of addresses for its memory could not be reserved")]
    Reserve {
        /// The guest.
        dom: DomId,
        /// How many.
        bytes: u64,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// Whether the guest is to blame: it named memory that it does not have.
    #[must_use]
    pub fn is_guests_fault(&self) -> bool {
        !matches!(self, Error::Map { .. } | Error::Reserve { .. })
    }
}

/// A range of guest memory that is mapped for itself and stays so: for rings,
/// which outlive generations.
#[derive(Debug)]
pub struct MappedRange {
    pages: Pages,
    offset: usize,
    len: usize,
}

#[derive(Debug)]
enum Pages {
    Foreign(Mapping),
    Granted(GrantMapping),
}

impl MappedRange {
    fn mapping(&self) -> &Mapping {
        match &self.pages {
            Pages::Foreign(mapping) => mapping,
            Pages::Granted(grants) => grants.mapping(),
        }
    }

    /// Just the range. Writing needs [`MappedRange::is_writable`].
    #[must_use]
    pub fn volatile(&self) -> VolatileSlice<'_> {
        let whole = self.mapping().volatile();
        // The range was checked to lie within its pages when it was made.
        whole
            .subslice(self.offset, self.len)
            .unwrap_or(VolatileSlice::from(&mut [][..]))
    }

    /// Bytes of the range.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the range has no bytes, which no mapped one has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of its first byte in this process.
    #[must_use]
    pub fn address(&self) -> usize {
        self.mapping().address() + self.offset
    }

    /// Whether the range may be written to.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.mapping().is_writable()
    }

    /// Whether the pages are grants, to be given back to the guest.
    #[must_use]
    pub fn is_granted(&self) -> bool {
        matches!(self.pages, Pages::Granted(_))
    }

    /// Gives the range back.
    ///
    /// # Errors
    /// [`gntdev::Error::Unmap`](crate::gntdev::Error::Unmap) if the guest will
    /// see its grants in use; the mapping is gone nevertheless.
    pub fn unmap(self) -> crate::gntdev::Result<()> {
        match self.pages {
            Pages::Foreign(mapping) => {
                drop(mapping);
                Ok(())
            }
            Pages::Granted(grants) => grants.unmap(),
        }
    }
}

/// Whole 4 KiB pages that `len` bytes from `offset` in the first one touch.
fn pages_of(offset: usize, len: usize) -> Option<usize> {
    use crate::sys::abi::PAGE_SIZE;
    Some(offset.checked_add(len)?.div_ceil(PAGE_SIZE))
}

#[cfg(test)]
mod tests;
