//! Addresses made of grant references, from the side that grants, and the
//! answers to grant copies.
//!
//! A device with grant addressing is given `1 << 63 | reference << 12 | offset`.

use crate::constraints::DeviceConstraints;
use crate::direction::Direction;
use crate::error::Error;
use crate::range::{GRANT_BIT, PAGE_SIZE};

/// `GNTST_general_error`, `xen/include/public/grant_table.h`.
const GENERAL_ERROR: i16 = -1;
/// `GNTST_eagain`: the page is paged out; the one status worth a retry.
const EAGAIN: i16 = -12;

/// The address that stands for byte `offset` of the page granted by `reference`.
///
/// # Errors
/// [`Error::Invalid`] for an offset beyond the page.
///
/// ```
/// assert_eq!(swiotlb::grant_dma::encode(5, 0x123)?, 0x8000_0000_0000_5123);
/// # Ok::<(), swiotlb::Error>(())
/// ```
pub fn encode(reference: u32, offset: u64) -> Result<u64, Error> {
    if offset >= PAGE_SIZE {
        return Err(Error::Invalid {
            what: "the offset into a granted page",
            value: offset,
        });
    }
    Ok(GRANT_BIT | u64::from(reference) << 12 | offset)
}

/// The grants that a range needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantPlan {
    /// How many pages, and so consecutive references.
    pub count: u32,
    /// Whether the device may only read them.
    pub read_only: bool,
}

/// Plans the grants for `len` bytes at `offset` into their first page.
///
/// # Errors
/// [`Error::BadDirection`], [`Error::ZeroLength`], and [`Error::GrantRange`] for
/// more pages than there are references.
pub fn plan(offset: u64, len: u64, direction: Direction) -> Result<GrantPlan, Error> {
    if direction == Direction::None {
        return Err(Error::BadDirection);
    }
    if len == 0 {
        return Err(Error::ZeroLength { address: offset });
    }
    let pages = (u128::from(offset % PAGE_SIZE) + u128::from(len)).div_ceil(PAGE_SIZE.into());
    let count = u32::try_from(pages).map_err(|_| Error::GrantRange {
        first: 0,
        count: u64::try_from(pages).unwrap_or(u64::MAX),
    })?;
    Ok(GrantPlan {
        count,
        read_only: direction == Direction::ToDevice,
    })
}

/// Gives pages to the peer and takes them back; the embedder implements it.
pub trait GrantPages {
    /// Grants `count` pages from guest frame `gfn` on by consecutive
    /// references. Returns the first one.
    ///
    /// # Errors
    /// Those of the embedder: no references are left.
    fn grant(&mut self, gfn: u64, plan: GrantPlan) -> Result<u32, Error>;

    /// Ends the peer's access by one reference. Returns whether the peer had
    /// given it back; if not, reference and page are lost.
    fn end(&mut self, reference: u32) -> bool;
}

/// A device that is given grant addresses.
#[derive(Debug)]
pub struct GrantDevice<G> {
    grants: G,
    constraints: DeviceConstraints,
    broken: bool,
    leaked: u64,
}

/// Granted pages. They are ended by [`GrantDevice::unmap`]; a plan that is
/// dropped instead leaves them to the peer for ever.
#[must_use = "granted pages are taken back by unmapping them"]
#[derive(Debug, PartialEq, Eq)]
pub struct GrantMapping {
    /// The address for the device.
    pub dma: u64,
    first: u32,
    count: u32,
}

impl<G: GrantPages> GrantDevice<G> {
    /// A device whose pages are granted by `grants`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for constraints without form, [`Error::NotCapable`]
    /// for a device that does not take addresses of 64 bits.
    pub fn new(grants: G, constraints: DeviceConstraints) -> Result<Self, Error> {
        constraints.validate()?;
        let limit = constraints.limit();
        if limit != u64::MAX {
            return Err(Error::NotCapable {
                address: GRANT_BIT,
                len: PAGE_SIZE,
                limit,
            });
        }
        Ok(GrantDevice {
            grants,
            constraints,
            broken: false,
            leaked: 0,
        })
    }

    /// Whether a range is copied through a pool instead of granted: by force,
    /// or because whole pages would show an untrusted device too much. Neither
    /// reach nor contiguity counts: each page has its own reference.
    pub fn needs_bounce(&self, address: u64, len: u64) -> bool {
        let device = &self.constraints;
        let granule = u64::from(device.granule.max(1));
        device.force || device.untrusted && (address | len) & (granule - 1) != 0
    }

    /// Grants the pages of a range.
    ///
    /// # Errors
    /// [`Error::Broken`] after a peer held on to a page; those of [`plan`] and
    /// of the embedder. A range of references that runs past the last one is
    /// ended again.
    pub fn map(
        &mut self,
        address: u64,
        len: u64,
        direction: Direction,
    ) -> Result<GrantMapping, Error> {
        if self.broken {
            return Err(Error::Broken);
        }
        let plan = plan(address % PAGE_SIZE, len, direction)?;
        let first = self.grants.grant(address / PAGE_SIZE, plan)?;
        let count = plan.count;
        if first.checked_add(count - 1).is_none() {
            // as many of them as there can be
            for reference in first..=u32::MAX {
                self.end(reference);
            }
            return Err(Error::GrantRange {
                first,
                count: u64::from(count),
            });
        }
        Ok(GrantMapping {
            dma: encode(first, address % PAGE_SIZE)?,
            first,
            count,
        })
    }

    /// Ends the peer's access.
    ///
    /// # Errors
    /// [`Error::Broken`] if the peer holds on to one of the pages: it and those
    /// behind it are given up, as the peer may still write them, and the device
    /// maps nothing any more.
    pub fn unmap(&mut self, mapping: GrantMapping) -> Result<(), Error> {
        let GrantMapping { first, count, .. } = mapping;
        for index in 0..count {
            if !self.end(first + index) {
                // and those behind it
                self.leaked += u64::from(count - index - 1);
                return Err(Error::Broken);
            }
        }
        Ok(())
    }

    /// Ends one page's access; gives the device up if the peer holds on to it.
    fn end(&mut self, reference: u32) -> bool {
        let ended = self.grants.end(reference);
        if !ended {
            self.broken = true;
            self.leaked += 1;
            tracing::error!(
                target: "swiotlb",
                dev = &*self.constraints.name,
                reference,
                "a peer holds on to a granted page; the device is given up"
            );
        }
        ended
    }

    /// Whether it was given up: 1 in the sum of broken devices.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Grants that a peer never gave back.
    pub fn leaked(&self) -> u64 {
        self.leaked
    }
}

/// Judges the answers to a batch of grant copies: each has its own, and all
/// are looked at even if the call succeeded.
///
/// # Errors
/// [`Error::GrantCopy`] with the first status that is not 0, or for the whole
/// batch if the call itself failed: its statuses say nothing then.
pub fn judge_copies(call: Result<(), i32>, statuses: &[i16]) -> Result<(), Error> {
    if call.is_err() {
        return Err(Error::GrantCopy(GENERAL_ERROR));
    }
    match statuses.iter().find(|&&status| status != 0) {
        Some(&status) => Err(Error::GrantCopy(status)),
        None => Ok(()),
    }
}

/// Whether a copy with this status is worth another try.
pub fn is_transient(status: i16) -> bool {
    status == EAGAIN
}
