//! Addresses that name grants (`xen,grant-dma`), and mapping what they name.
//!
//! A guest with the grant DMA layer puts `1 << 63 | gref << 12 | offset` into
//! its rings; the pages of one buffer have consecutive references (Linux
//! `drivers/xen/grant-dma-ops.c`).

use std::fmt;

use thiserror::Error;

use super::{MappedRange, Pages, pages_of};
use crate::domid::DomId;
use crate::gntdev::{self, Gntdev};
use crate::sys::abi::{PAGE_SHIFT, PAGE_SIZE};

/// Bit that tells a grant address from a guest-physical one.
const GRANT_BIT: u64 = 1 << 63;
const OFFSET_MASK: u64 = PAGE_SIZE as u64 - 1;

/// Why a grant address or range is none.
#[derive(Debug, Error)]
pub enum GrantError {
    /// Bit 63 is clear: a guest-physical address.
    #[error("{0:#x} is no grant address")]
    NotAGrant(u64),
    /// The reference, or that of a later page of the range, needs more than
    /// 32 bits.
    #[error("{len} bytes at grant address {address:#x} go beyond the last grant reference")]
    Overflow {
        /// The address.
        address: u64,
        /// Bytes.
        len: usize,
    },
    /// A range without bytes.
    #[error("no bytes at grant address {0:#x}")]
    Empty(u64),
    /// The pages could not be mapped.
    #[error("{len} bytes at grant address {address:#x} of domain {dom} could not be mapped")]
    Map {
        /// The granting domain.
        dom: DomId,
        /// The address.
        address: u64,
        /// Bytes.
        len: usize,
        /// Why.
        source: gntdev::Error,
    },
}

/// A grant reference and an offset in its page, as a guest writes them.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct GrantAddress {
    gref: u32,
    offset: u16,
}

impl GrantAddress {
    /// The byte `offset` (below 4096) of the page `gref`; none for a larger
    /// offset.
    #[must_use]
    pub fn new(gref: u32, offset: u16) -> Option<GrantAddress> {
        (usize::from(offset) < PAGE_SIZE).then_some(GrantAddress { gref, offset })
    }

    /// Whether an address of a ring names a grant.
    #[must_use]
    pub const fn is_grant(address: u64) -> bool {
        address & GRANT_BIT != 0
    }

    /// Reads an address of a ring.
    ///
    /// # Errors
    /// [`GrantError::NotAGrant`]; [`GrantError::Overflow`] for a reference of
    /// more than 32 bits, which no guest has.
    pub fn from_raw(address: u64) -> Result<GrantAddress, GrantError> {
        if !Self::is_grant(address) {
            return Err(GrantError::NotAGrant(address));
        }
        let overflow = GrantError::Overflow { address, len: 1 };
        let Ok(gref) = u32::try_from((address & !GRANT_BIT) >> PAGE_SHIFT) else {
            return Err(overflow);
        };
        let Ok(offset) = u16::try_from(address & OFFSET_MASK) else {
            return Err(overflow);
        };
        Ok(GrantAddress { gref, offset })
    }

    /// The address as a guest writes it.
    #[must_use]
    pub fn raw(self) -> u64 {
        GRANT_BIT | u64::from(self.gref) << PAGE_SHIFT | u64::from(self.offset)
    }

    /// The reference.
    #[must_use]
    pub const fn gref(self) -> u32 {
        self.gref
    }

    /// The offset in the page, below 4096.
    #[must_use]
    pub const fn offset(self) -> u16 {
        self.offset
    }

    /// The pages that `len` bytes from here touch.
    ///
    /// # Errors
    /// [`GrantError::Empty`], [`GrantError::Overflow`].
    pub fn range(self, len: usize) -> Result<GrantRange, GrantError> {
        if len == 0 {
            return Err(GrantError::Empty(self.raw()));
        }
        let overflow = || GrantError::Overflow {
            address: self.raw(),
            len,
        };
        let pages = pages_of(usize::from(self.offset), len).ok_or_else(overflow)?;
        let count = u32::try_from(pages).map_err(|_| overflow())?;
        // `count` is at least 1: the last reference must still be a u32.
        self.gref.checked_add(count - 1).ok_or_else(overflow)?;
        Ok(GrantRange {
            first: self,
            count,
            len,
        })
    }
}

impl fmt::Display for GrantAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.raw())
    }
}

/// Bytes in granted pages with consecutive references; never empty, and all
/// its references fit.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct GrantRange {
    first: GrantAddress,
    count: u32,
    len: usize,
}

impl GrantRange {
    /// Where it begins.
    #[must_use]
    pub const fn address(&self) -> GrantAddress {
        self.first
    }

    /// Number of pages, which is that of references.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes; never.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The references, in order.
    pub fn refs(&self) -> impl Iterator<Item = u32> + use<> {
        let first = self.first.gref;
        first..=first.saturating_add(self.count - 1)
    }

    /// Maps the range, read-only or read-write; data that a driver only gives
    /// to the device is granted read-only and cannot be mapped read-write.
    ///
    /// # Errors
    /// [`GrantError::Map`] if any page's reference is bad or does not allow it.
    pub fn map(&self, gntdev: &Gntdev, dom: DomId, write: bool) -> Result<MappedRange, GrantError> {
        let refs: Vec<(DomId, u32)> = self.refs().map(|gref| (dom, gref)).collect();
        let grants = gntdev.map(&refs, write).map_err(|source| GrantError::Map {
            dom,
            address: self.first.raw(),
            len: self.len,
            source,
        })?;
        Ok(MappedRange {
            pages: Pages::Granted(grants),
            offset: usize::from(self.first.offset),
            len: self.len,
        })
    }
}
