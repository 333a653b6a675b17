//! The memory of a queue's three ring parts.
//!
//! A ring is three mapped ranges, whatever mapped them: foreign memory,
//! grants, plain memory or a pool. Nothing else of the guest can be reached
//! through it.

use std::iter::FusedIterator;

use swiotlb::{Access, Dma, Range, RingMapping};
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{
    Error as MemoryError, GuestMemorySliceIterator, Result as MemoryResult,
};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

use super::{QueueError, QueueLayout};

struct Part {
    range: Range,
    mapping: RingMapping,
}

/// The three parts, mapped. Dropping it unmaps them.
pub struct RingMemory {
    desc: Part,
    avail: Part,
    used: Part,
}

impl RingMemory {
    /// From the parts' ranges and mappings.
    pub fn new(
        desc: (Range, RingMapping),
        avail: (Range, RingMapping),
        used: (Range, RingMapping),
    ) -> Self {
        let part = |(range, mapping)| Part { range, mapping };
        RingMemory {
            desc: part(desc),
            avail: part(avail),
            used: part(used),
        }
    }

    /// Maps the parts of a ring.
    ///
    /// # Errors
    /// [`QueueError::Ring`] names the part that cannot be reached.
    pub fn map(layout: &QueueLayout, dma: &mut Dma) -> Result<Self, QueueError> {
        let mut part = |part, address, len, access| {
            Range::new(address, len)
                .and_then(|range| Ok((range, dma.map_ring(range, access)?)))
                .map_err(|source| QueueError::Ring { part, source })
        };
        let QueueLayout {
            desc, avail, used, ..
        } = *layout;
        // the device writes the used ring alone
        Ok(RingMemory::new(
            part("descriptor table", desc, layout.desc_len(), Access::Read)?,
            part("available ring", avail, layout.avail_len(), Access::Read)?,
            part("used ring", used, layout.used_len(), Access::Write)?,
        ))
    }

    /// The descriptor table.
    pub fn descriptors(&self) -> VolatileSlice<'_> {
        self.desc.mapping.volatile()
    }

    fn slice(
        &self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> MemoryResult<VolatileSlice<'_>> {
        // the used ring first: it is the one asked for most, and the only one
        // that is ever written
        for (part, writable) in [
            (&self.used, true),
            (&self.avail, false),
            (&self.desc, false),
        ] {
            let Some(offset) = address.0.checked_sub(part.range.address()) else {
                continue;
            };
            if offset >= u64::from(part.range.len()) || (access.has_write() && !writable) {
                continue;
            }
            let Ok(offset) = usize::try_from(offset) else {
                continue;
            };
            if let Ok(slice) = part.mapping.volatile().subslice(offset, count) {
                return Ok(slice);
            }
        }
        Err(MemoryError::InvalidGuestAddress(address))
    }
}

/// An access to a ring is one slice.
struct OneSlice<'a>(Option<VolatileSlice<'a>>);

impl<'a> Iterator for OneSlice<'a> {
    type Item = MemoryResult<VolatileSlice<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.take().map(Ok)
    }
}

impl FusedIterator for OneSlice<'_> {}
impl<'a> GuestMemorySliceIterator<'a, ()> for OneSlice<'a> {}

impl GuestMemory for RingMemory {
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.slice(addr, count, access).is_ok()
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> MemoryResult<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        let slice = match count {
            0 => None,
            _ => Some(self.slice(addr, count, access)?),
        };
        Ok(OneSlice(slice))
    }
}
