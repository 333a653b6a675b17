//! Slots of a pool and what is done with them, whoever holds them: plain values
//! that a mapping on its way passes on in registers.

use vm_memory::VolatileSlice;

use crate::allocator::PadPolicy;
use crate::constraints::Consumer;
use crate::device::Device;
use crate::direction::Direction;
use crate::error::Error;
use crate::originals::Originals;
use crate::pool::{Place, Pool};
use crate::segment;
use crate::sizing::SLOT_SIZE;
use crate::sync::Arc;

/// Taken slots and the mapping that they are for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots {
    /// The first one.
    pub place: Place,
    /// How many.
    pub count: u32,
    /// Bytes between the first slot's start and the data.
    pub before: u32,
    /// Bytes mapped.
    pub len: u32,
    /// Address of the original.
    pub orig: u64,
    /// The device's address.
    pub dma: u64,
    /// The mapping's direction.
    pub direction: Direction,
}

/// How slots' pool is found.
#[derive(Clone, Debug)]
pub(super) enum PoolRef {
    /// By its number in the allocator, which outlives the slots.
    Listed(usize),
    /// By keeping it: a pool that serves one mapping.
    Transient(Box<Kept>),
}

/// A pool that serves one mapping. Behind a pointer of its own: nothing then
/// takes the address of the lease that it is part of, which can so live in
/// registers.
#[derive(Clone, Debug)]
pub(super) struct Kept(pub Arc<Pool>);

impl From<Arc<Pool>> for PoolRef {
    fn from(pool: Arc<Pool>) -> Self {
        PoolRef::Transient(Box::new(Kept(pool)))
    }
}

impl Default for PoolRef {
    fn default() -> Self {
        PoolRef::Listed(0)
    }
}

impl Slots {
    /// `len` bytes of the mapping, from `offset` on.
    #[inline(always)]
    pub(super) fn part<'a>(
        &self,
        pool: &'a Pool,
        offset: u64,
        len: u64,
    ) -> Option<VolatileSlice<'a>> {
        pool.bytes(self.place.slot, u64::from(self.before) + offset, len)
    }

    /// Makes the buffer ready for the device: the bytes around the mapping
    /// zeroed, the mapping filled as its consumer may see it.
    #[inline(always)]
    pub(super) fn fill(
        &self,
        device: &Device,
        pool: &Pool,
        originals: &(impl Originals + ?Sized),
    ) -> Result<(), Error> {
        self.pad(device, pool);
        let Some(bytes) = self.part(pool, 0, u64::from(self.len)) else {
            return Err(Error::OrigFault { offset: 0 });
        };
        let constraints = device.constraints();
        if !constraints.fills(self.direction) {
            // who states what it has written leaves the rest to nobody
            if constraints.consumer != Consumer::Declaring {
                segment::zero(&bytes);
            }
            return Ok(());
        }
        let copied = originals.copy_in(self.orig, &bytes);
        copied.map_err(|fault| Error::OrigFault {
            offset: fault.offset,
        })
    }

    /// Zeroes what belongs to the slots and not to the mapping.
    #[inline(always)]
    pub(super) fn pad(&self, device: &Device, pool: &Pool) {
        if device.allocator().settings().pad == PadPolicy::Trusted {
            return;
        }
        let before = u64::from(self.before);
        let end = before + u64::from(self.len);
        let after = u64::from(self.count) * SLOT_SIZE - end;
        if before + after == 0 {
            return;
        }
        for (skip, len) in [(0, before), (end, after)] {
            if len > 0
                && let Some(bytes) = pool.bytes(self.place.slot, skip, len)
            {
                segment::zero(&bytes);
            }
        }
    }
}

impl Device {
    /// The pool that is meant.
    #[inline(always)]
    pub(super) fn pool_of<'a>(&'a self, reference: &'a PoolRef) -> Option<&'a Pool> {
        Some(match reference {
            PoolRef::Listed(index) => self.allocator().pool(*index)?,
            PoolRef::Transient(kept) => &kept.0,
        })
    }

    /// Frees `count` slots, of which `written` bytes were copied back.
    #[inline(always)]
    fn free(&self, pool: &Pool, place: Place, count: u32, written: u64) {
        let allocator = self.allocator();
        if allocator.settings().scrub_on_free {
            scrub(pool, place, count);
        }
        // before the slots are free, or they might count twice
        allocator.hiwater().sub(count);
        pool.with(place, |area, slot| {
            area.release(slot);
            area.stats.bytes_out += written;
        });
    }

    /// Frees slots, of which `written` bytes were copied back.
    #[inline(always)]
    pub(super) fn free_in(&self, pool: PoolRef, slots: Slots, written: u64) {
        let Slots { place, count, .. } = slots;
        match pool {
            PoolRef::Listed(index) => {
                if let Some(pool) = self.allocator().pool(index) {
                    self.free(pool, place, count, written);
                }
            }
            PoolRef::Transient(kept) => self.free_kept(*kept, place, count, written),
        }
    }

    /// As [`Device::free`], with the pool that served these slots alone.
    #[cold]
    #[inline(never)]
    fn free_kept(&self, kept: Kept, place: Place, count: u32, written: u64) {
        self.free(&kept.0, place, count, written);
        self.allocator().end_transient(&kept.0);
    }

    /// Frees slots that no device has been told of; nothing is counted.
    #[cold]
    pub(super) fn cancel(&self, reference: PoolRef, place: Place, count: u32) {
        self.allocator().hiwater().sub(count);
        if let Some(pool) = self.pool_of(&reference) {
            pool.with(place, |area, slot| area.cancel(slot));
        }
        if let PoolRef::Transient(kept) = &reference {
            self.allocator().end_transient(&kept.0);
        }
    }
}

/// Zeroes slots that are about to be free.
#[cold]
fn scrub(pool: &Pool, place: Place, count: u32) {
    if let Some(held) = pool.bytes(place.slot, 0, u64::from(count) * SLOT_SIZE) {
        segment::zero(&held);
    }
}
