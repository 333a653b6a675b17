//! Slots in somebody's hands.

use std::ops::Deref;

use vm_memory::VolatileSlice;

use crate::allocator::PadPolicy;
use crate::constraints::Consumer;
use crate::device::Device;
use crate::direction::Direction;
use crate::error::Error;
use crate::originals::Originals;
use crate::pool::area::{AreaState, Owner};
use crate::pool::{Place, Pool};
use crate::segment::{self, Segment};
use crate::sizing::SLOT_SIZE;
use crate::sync::Arc;

/// A bounce buffer: slots of a pool that are freed when this is dropped, once
/// and by whichever thread.
///
/// `H` keeps the device: a reference to it for mappings that live on a stack,
/// an `Arc` for those that live in a table of requests in flight.
#[must_use = "a dropped lease is a bounce buffer that was never used"]
#[derive(Debug)]
pub struct Lease<H: Deref<Target = Device>> {
    device: H,
    pool: PoolRef,
    place: Place,
    /// Slots held.
    slots: u32,
    /// Bytes between the first slot's start and the data.
    before: u32,
    pub(super) len: u32,
    pub(super) orig: u64,
    pub(super) dma: u64,
    pub(super) direction: Direction,
    /// Bytes copied back for good, to be counted when the slots are freed.
    pub(super) written: u64,
    /// Whether dropping it frees the slots.
    owned: bool,
}

/// How a lease finds its pool.
#[derive(Clone, Debug)]
pub(super) enum PoolRef {
    /// By its number in the allocator, which outlives the lease.
    Listed(usize),
    /// By keeping it: a pool that serves one mapping.
    Transient(Arc<Pool>),
}

/// Everything about freshly taken slots.
pub(super) struct Fresh {
    pub pool: PoolRef,
    pub place: Place,
    pub slots: u32,
    pub before: u32,
    pub len: u32,
    pub orig: u64,
    pub dma: u64,
    pub direction: Direction,
}

impl<H: Deref<Target = Device>> Lease<H> {
    #[inline]
    pub(super) fn new(device: H, fresh: Fresh) -> Self {
        Lease {
            device,
            pool: fresh.pool,
            place: fresh.place,
            slots: fresh.slots,
            before: fresh.before,
            len: fresh.len,
            orig: fresh.orig,
            dma: fresh.dma,
            direction: fresh.direction,
            written: 0,
            owned: true,
        }
    }

    /// The device that it was made for.
    #[inline]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The address for the device.
    #[inline]
    pub fn dma_address(&self) -> u64 {
        self.dma
    }

    /// The address of the original.
    pub fn original(&self) -> u64 {
        self.orig
    }

    /// Bytes mapped.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> u64 {
        u64::from(self.len)
    }

    /// Its direction.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Slots held, padding included.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// The first slot held, padding included: its number in its pool.
    pub fn first_slot(&self) -> u32 {
        self.place.slot
    }

    /// The mapping's bytes in this process: what an engine is given. Whoever
    /// keeps the segment keeps the lease.
    #[inline]
    pub fn segment(&self) -> Option<Segment> {
        Some(Segment::of(&self.bytes()?))
    }

    /// The mapping's bytes, which a consumer may write at any time.
    #[inline]
    pub fn bytes(&self) -> Option<VolatileSlice<'_>> {
        self.part(0, self.len())
    }

    /// `len` bytes of the mapping, from `offset` on.
    #[inline]
    pub(super) fn part(&self, offset: u64, len: u64) -> Option<VolatileSlice<'_>> {
        let skip = u64::from(self.before) + offset;
        self.pool()?.bytes(self.place.slot, skip, len)
    }

    /// All bytes held, padding included.
    #[inline]
    fn held(&self) -> Option<VolatileSlice<'_>> {
        let len = u64::from(self.slots) * SLOT_SIZE;
        self.pool()?.bytes(self.place.slot, 0, len)
    }

    #[inline]
    pub(super) fn pool(&self) -> Option<&Pool> {
        self.device.pool_of(&self.pool)
    }

    /// Ends the pool if it was made for this alone.
    #[inline]
    fn end_pool(&self) {
        if let PoolRef::Transient(pool) = &self.pool {
            self.device.allocator().end_transient(pool);
        }
    }

    /// Calls `f` with the area's state and the first slot's number there.
    #[inline]
    pub(super) fn with_area<R>(&self, f: impl FnOnce(&mut AreaState, u32) -> R) -> Option<R> {
        self.pool()?.with(self.place, f)
    }

    /// Makes the buffer ready for the device: the bytes around the mapping
    /// zeroed, the mapping filled as its consumer may see it.
    #[inline]
    pub(super) fn fill(&self, originals: &(impl Originals + ?Sized)) -> Result<(), Error> {
        self.pad();
        let Some(bytes) = self.bytes() else {
            return Err(Error::OrigFault { offset: 0 });
        };
        let constraints = self.device.constraints();
        if !constraints.fills(self.direction) {
            // who states what it has written leaves the rest to nobody
            if constraints.consumer != Consumer::Declaring {
                segment::zero(&bytes);
            }
            return Ok(());
        }
        originals
            .copy_in(self.orig, &bytes)
            .map_err(|fault| Error::OrigFault {
                offset: fault.offset,
            })
    }

    /// Zeroes what belongs to the slots and not to the mapping.
    #[inline]
    pub(super) fn pad(&self) {
        if self.device.allocator().settings().pad == PadPolicy::Trusted {
            return;
        }
        let (Some(pool), slot) = (self.pool(), self.place.slot) else {
            return;
        };
        let before = u64::from(self.before);
        let end = before + self.len();
        let after = u64::from(self.slots) * SLOT_SIZE - end;
        for (skip, len) in [(0, before), (end, after)] {
            if len > 0
                && let Some(bytes) = pool.bytes(slot, skip, len)
            {
                segment::zero(&bytes);
            }
        }
    }

    /// Frees slots that no device has been told of; nothing is counted.
    pub(super) fn cancel(mut self) {
        self.owned = false;
        self.device.allocator().hiwater().sub(self.slots);
        self.with_area(|area, slot| area.cancel(slot));
        self.end_pool();
    }

    /// Leaves the slots to whoever names their address.
    pub(super) fn into_address(mut self) -> u64 {
        self.with_area(|area, slot| {
            if let Some(head) = area.head_mut(slot) {
                head.owner = Owner::Address;
            }
        });
        self.owned = false;
        self.dma
    }

    /// Lets go of slots that somebody else owns.
    pub(super) fn forget(mut self) {
        self.owned = false;
    }
}

impl<H: Deref<Target = Device>> Drop for Lease<H> {
    #[inline]
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let allocator = self.device.allocator();
        if allocator.settings().scrub_on_free
            && let Some(held) = self.held()
        {
            segment::zero(&held);
        }
        // before the slots are free, or they might count twice
        allocator.hiwater().sub(self.slots);
        self.with_area(|area, slot| {
            area.release(slot);
            area.stats.bytes_out += self.written;
        });
        self.end_pool();
    }
}
