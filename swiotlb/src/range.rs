//! Addresses and ranges as a ring states them, and what a consumer needs.

use crate::fault::Fault;

/// Xen's page: all grant and frame arithmetic uses it, whatever the host
/// kernel's page size is. Bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Set in an address that stands for a grant reference.
/// Linux `drivers/xen/grant-dma-ops.c`.
pub const GRANT_BIT: u64 = 1 << 63;

/// Who may write a mapped range. Seen from the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// The device only reads it (the driver's data to the device).
    Read,
    /// The device writes it, and may read it.
    Write,
}

/// A range of guest memory, as the guest's ring wrote it.
///
/// Checked when made: never empty, never wrapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    address: u64,
    len: u32,
}

impl Range {
    /// The range of `len` bytes at `address`.
    ///
    /// # Errors
    /// [`Fault::ZeroLength`] and [`Fault::AddressOverflow`].
    pub fn new(address: u64, len: u32) -> Result<Self, Fault> {
        if len == 0 {
            return Err(Fault::ZeroLength { address });
        }
        if address.checked_add(u64::from(len) - 1).is_none() {
            return Err(Fault::AddressOverflow { address, len });
        }
        Ok(Range { address, len })
    }

    /// First address, with the grant bit if it has one.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Length in bytes, never zero.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// The grant address, if this range is granted rather than plain.
    ///
    /// # Errors
    /// [`Fault::GrantRange`] if its references would run past the last one.
    pub fn grant(&self) -> Result<Option<GrantAddress>, Fault> {
        if self.address & GRANT_BIT == 0 {
            return Ok(None);
        }
        GrantAddress::of(*self).map(Some)
    }

    /// The part of this range that starts `skip` bytes in, at most `len` long;
    /// `None` when nothing is left.
    pub fn part(&self, skip: u32, len: u32) -> Option<Range> {
        let left = self.len.checked_sub(skip)?.min(len);
        if left == 0 {
            return None;
        }
        Some(Range {
            address: self.address.checked_add(u64::from(skip))?,
            len: left,
        })
    }
}

/// A range of consecutive granted pages.
///
/// `1 << 63 | reference << 12 | offset`; the pages of one range have
/// consecutive references.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantAddress {
    /// Reference of the first page.
    pub first: u32,
    /// Pages touched, the offset included; at least one.
    pub count: u32,
    /// Offset into the first page, below 4096.
    pub offset: u16,
}

impl GrantAddress {
    fn of(range: Range) -> Result<Self, Fault> {
        let refused = || Fault::GrantRange {
            address: range.address,
            len: range.len,
        };
        let first = (range.address & !GRANT_BIT) / PAGE_SIZE;
        let first = u32::try_from(first).map_err(|_| refused())?;
        let offset = range.address % PAGE_SIZE;
        let bytes = offset + u64::from(range.len);
        let count = u32::try_from(bytes.div_ceil(PAGE_SIZE)).map_err(|_| refused())?;
        // the last reference is first + count - 1 and must exist
        first.checked_add(count - 1).ok_or_else(refused)?;
        let offset = u16::try_from(offset).map_err(|_| refused())?;
        Ok(GrantAddress {
            first,
            count,
            offset,
        })
    }
}

/// What the consumer of a mapping asks of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Takes several segments for one range (an iovec); otherwise each range
    /// must be one contiguous piece.
    pub scatter: bool,
    /// Pins the pages (O_DIRECT, registered buffers, zero-copy send).
    pub pinned: bool,
    /// Highest address of its own address space that it can use, if limited.
    pub limit: Option<u64>,
    /// Alignment of every segment's start and length, bytes, a power of two.
    pub align: u32,
}

impl Need {
    /// A consumer that copies with the processor and takes an iovec.
    pub const COPY: Need = Need {
        scatter: true,
        pinned: false,
        limit: None,
        align: 1,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(reference: u64, offset: u64, len: u32) -> Result<GrantAddress, Fault> {
        let range = Range::new(GRANT_BIT | reference << 12 | offset, len)?;
        Ok(range.grant()?.expect("bit 63 is set"))
    }

    #[test]
    fn v27_grant_addresses_decode() {
        let low = grant(5, 0x123, 1).unwrap();
        assert_eq!((low.first, low.offset, low.count), (5, 0x123, 1));
        let high = grant(0xFFFF_FFFF, 0, 1).unwrap();
        assert_eq!((high.first, high.offset), (0xFFFF_FFFF, 0));
    }

    #[test]
    fn v28_the_offset_counts_towards_the_pages() {
        assert_eq!(grant(0, 0xff0, 0x20).unwrap().count, 2);
        assert_eq!(grant(0, 0, 4096).unwrap().count, 1);
        assert_eq!(grant(0, 1, 4096).unwrap().count, 2);
    }

    #[test]
    fn v28_references_never_wrap() {
        assert!(matches!(
            grant(0xFFFF_FFFF, 0xff0, 0x20),
            Err(Fault::GrantRange { .. })
        ));
        // a reference above 32 bits is no reference
        assert!(matches!(
            grant(1 << 32, 0, 1),
            Err(Fault::GrantRange { .. })
        ));
    }

    #[test]
    fn v31_v32_empty_and_wrapping_ranges_do_not_exist() {
        assert!(matches!(Range::new(7, 0), Err(Fault::ZeroLength { .. })));
        assert!(matches!(
            Range::new(0xFFFF_FFFF_FFFF_F000, 8192),
            Err(Fault::AddressOverflow { .. })
        ));
        assert!(Range::new(0xFFFF_FFFF_FFFF_F000, 4096).is_ok());
    }

    #[test]
    fn part_stays_inside_the_range() {
        let range = Range::new(0x1000, 100).unwrap();
        assert_eq!(range.part(90, 50), Range::new(0x105a, 10).ok());
        assert_eq!(range.part(100, 1), None);
        assert_eq!(range.part(101, 1), None);
    }
}
