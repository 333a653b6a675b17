//! Walking descriptor chains. virtio 1.3 §2.7.5
//!
//! Every descriptor is copied out of guest memory once and then judged: a
//! guest may write to its tables at any time. Any broken rule is an error of
//! the whole chain.

#[cfg(test)]
mod tests;

use smallvec::SmallVec;
use swiotlb::Range;
use thiserror::Error;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, VolatileSlice};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Head;

/// The longest indirect table that is followed, in descriptors. A driver may
/// make it longer than its queue; the kernel takes no more in one call (IOV_MAX).
pub const MAX_TABLE: u32 = 1024;

/// The ranges of one side of a chain, in order.
pub type DescriptorRanges = SmallVec<[Range; 2]>;

/// One descriptor, as it stands in a table. virtio 1.3 §2.7.5
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Descriptor {
    /// Address, as the guest wrote it; little-endian as all of these.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// NEXT, WRITE, INDIRECT.
    pub flags: u16,
    /// The next descriptor, with NEXT.
    pub next: u16,
}

/// Bytes of a descriptor.
const SIZE: usize = size_of::<Descriptor>();

impl Descriptor {
    fn read(table: &VolatileSlice<'_>, index: u16) -> Result<Self, ChainError> {
        let mut bytes = [0; SIZE];
        let at = usize::from(index) * SIZE;
        // one copy; what the guest writes afterwards does not matter
        table
            .read_slice(&mut bytes, at)
            .map_err(|_| ChainError::OutOfTable(index))?;
        Ok(Self::of(&bytes))
    }

    fn of(bytes: &[u8; SIZE]) -> Self {
        let raw: Descriptor = zerocopy::transmute!(*bytes);
        Descriptor {
            addr: u64::from_le(raw.addr),
            len: u32::from_le(raw.len),
            flags: u16::from_le(raw.flags),
            next: u16::from_le(raw.next),
        }
    }

    fn has(&self, flag: u32) -> bool {
        u32::from(self.flags) & flag != 0
    }
}

/// Which rule of virtio 1.3 §2.7.5 a chain breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChainError {
    /// A descriptor number beyond the table.
    #[error("descriptor {0} is outside of its table")]
    OutOfTable(u16),
    /// More descriptors than the table has: a loop.
    #[error("more than {0} descriptors: a loop")]
    Loop(u32),
    /// A buffer without bytes, or one that wraps around.
    #[error("buffer at {addr:#x} of {len} bytes is empty or wraps around")]
    Buffer {
        /// Its address.
        addr: u64,
        /// Its length.
        len: u32,
    },
    /// A buffer for the device to read, behind one for it to write.
    #[error("a device-readable buffer follows a device-writable one")]
    ReadAfterWrite,
    /// INDIRECT where it was not negotiated.
    #[error("an indirect table, which was not negotiated")]
    IndirectRefused,
    /// INDIRECT inside of a table, or together with NEXT.
    #[error("an indirect descriptor inside of a table or with a successor")]
    IndirectNested,
    /// A table that is no whole number of descriptors, empty or too long.
    #[error("an indirect table of {0} bytes")]
    TableLen(u32),
}

/// A chain that a device serves.
#[derive(Debug)]
pub struct Chain {
    /// Proof of the chain's ownership.
    pub head: Head,
    /// What the device reads, in order.
    pub readable: DescriptorRanges,
    /// What the device writes, in order.
    pub writable: DescriptorRanges,
}

impl Chain {
    /// One of which no buffer is known yet.
    pub(super) fn of(head: Head) -> Self {
        Chain {
            head,
            readable: DescriptorRanges::new(),
            writable: DescriptorRanges::new(),
        }
    }

    #[inline]
    fn add(&mut self, descriptor: &Descriptor) -> Result<(), ChainError> {
        let Descriptor { addr, len, .. } = *descriptor;
        let range = Range::new(addr, len).map_err(|_| ChainError::Buffer { addr, len })?;
        if descriptor.has(VRING_DESC_F_WRITE) {
            self.writable.push(range);
        } else if self.writable.is_empty() {
            self.readable.push(range);
        } else {
            return Err(ChainError::ReadAfterWrite);
        }
        Ok(())
    }

    /// Adds the buffers that the ring's own descriptor table tells. Returns where
    /// the indirect table is that has the rest, if there is one.
    pub(super) fn walk_ring(
        &mut self,
        table: &VolatileSlice<'_>,
        size: u16,
        indirect: bool,
    ) -> Result<Option<Range>, ChainError> {
        let mut index = self.head.index();
        for _ in 0..size {
            if index >= size {
                return Err(ChainError::OutOfTable(index));
            }
            let descriptor = Descriptor::read(table, index)?;
            if descriptor.has(VRING_DESC_F_INDIRECT) {
                if !indirect {
                    return Err(ChainError::IndirectRefused);
                }
                if descriptor.has(VRING_DESC_F_NEXT) {
                    return Err(ChainError::IndirectNested);
                }
                return indirect_table(&descriptor).map(Some);
            }
            self.add(&descriptor)?;
            if !descriptor.has(VRING_DESC_F_NEXT) {
                return Ok(None);
            }
            index = descriptor.next;
        }
        Err(ChainError::Loop(u32::from(size)))
    }

    /// Adds the buffers of its indirect table, which has been fetched.
    pub(super) fn walk_table(&mut self, table: &[u8]) -> Result<(), ChainError> {
        let (entries, _) = table.as_chunks::<SIZE>();
        let mut index = 0;
        for _ in 0..entries.len() {
            let bytes = entries
                .get(usize::from(index))
                .ok_or(ChainError::OutOfTable(index))?;
            let descriptor = Descriptor::of(bytes);
            if descriptor.has(VRING_DESC_F_INDIRECT) {
                return Err(ChainError::IndirectNested);
            }
            self.add(&descriptor)?;
            if !descriptor.has(VRING_DESC_F_NEXT) {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(ChainError::Loop(
            u32::try_from(entries.len()).unwrap_or(u32::MAX),
        ))
    }
}

fn indirect_table(descriptor: &Descriptor) -> Result<Range, ChainError> {
    let Descriptor { addr, len, .. } = *descriptor;
    let entries = len / 16;
    if len % 16 != 0 || entries == 0 || entries > MAX_TABLE {
        return Err(ChainError::TableLen(len));
    }
    Range::new(addr, len).map_err(|_| ChainError::Buffer { addr, len })
}
