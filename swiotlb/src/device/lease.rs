//! Slots in somebody's hands.

use std::ops::Deref;

use vm_memory::VolatileSlice;

use crate::device::Device;
use crate::device::slots::{PoolRef, Slots};
use crate::direction::Direction;
use crate::pool::Pool;
use crate::pool::area::{AreaState, Owner};
use crate::segment::{self, Segment};
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
    /// None of them once they are somebody else's. That and no flag: a flag's
    /// byte would be copied with the bytes beside it, for which a processor
    /// waits.
    pub(super) slots: Slots,
}

impl<H: Deref<Target = Device>> Lease<H> {
    #[inline(always)]
    pub(super) fn new(device: H, pool: PoolRef, slots: Slots) -> Self {
        Lease {
            device,
            pool,
            slots,
        }
    }

    /// The device that it was made for.
    #[inline(always)]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The address for the device.
    #[inline(always)]
    pub fn dma_address(&self) -> u64 {
        self.slots.dma
    }

    /// The address of the original.
    pub fn original(&self) -> u64 {
        self.slots.orig
    }

    /// Bytes mapped.
    #[inline(always)]
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> u64 {
        u64::from(self.slots.len)
    }

    /// Its direction.
    #[inline]
    pub fn direction(&self) -> Direction {
        self.slots.direction
    }

    /// Slots held, padding included.
    pub fn slots(&self) -> u32 {
        self.slots.count
    }

    /// The first slot held, padding included: its number in its pool.
    pub fn first_slot(&self) -> u32 {
        self.slots.place.slot
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

    /// Zeroes the mapping's bytes from `offset` on, for a consumer that must not
    /// see what they were.
    pub fn zero_from(&self, offset: u64) {
        let rest = self.len().saturating_sub(offset);
        if let Some(bytes) = self.part(offset, rest) {
            segment::zero(&bytes);
        }
    }

    /// `len` bytes of the mapping, from `offset` on.
    #[inline(always)]
    pub(super) fn part(&self, offset: u64, len: u64) -> Option<VolatileSlice<'_>> {
        self.slots.part(self.pool()?, offset, len)
    }

    #[inline(always)]
    pub(super) fn pool(&self) -> Option<&Pool> {
        self.device.pool_of(&self.pool)
    }

    /// Zeroes what belongs to the slots and not to the mapping.
    pub(super) fn pad(&self) {
        if let Some(pool) = self.pool() {
            self.slots.pad(&self.device, pool);
        }
    }

    /// Calls `f` with the area's state and the first slot's number there.
    #[inline]
    pub(super) fn with_area<R>(&self, f: impl FnOnce(&mut AreaState, u32) -> R) -> Option<R> {
        self.pool()?.with(self.slots.place, f)
    }

    /// Leaves the slots to whoever names their address.
    pub(super) fn into_address(mut self) -> u64 {
        self.with_area(|area, slot| {
            if let Some(head) = area.head_mut(slot) {
                head.owner = Owner::Address;
            }
        });
        self.slots.count = 0;
        self.slots.dma
    }

    /// Lets go of slots that somebody else owns.
    pub(super) fn forget(mut self) {
        self.slots.count = 0;
    }

    /// Frees the slots, if it has them, of which `written` bytes were copied
    /// back. The lease holds nothing from then on.
    #[inline(always)]
    fn free(&mut self, written: u64) {
        let (slots, pool) = self.give_up();
        self.device.free_in(pool, slots, written);
    }

    /// What it holds, which it does no longer.
    #[inline(always)]
    fn give_up(&mut self) -> (Slots, PoolRef) {
        let slots = self.slots;
        self.slots.count = 0;
        (slots, std::mem::take(&mut self.pool))
    }
}

/// What keeps a mapping's device: a reference, for mappings that live on a
/// stack, or an [`Arc`], for those that live in a table of requests in flight.
pub trait Keeper: Deref<Target = Device> + Sized {
    /// Ends a lease, of which `written` bytes were copied back.
    #[doc(hidden)]
    fn end(lease: Lease<Self>, written: u64);
}

impl Keeper for &Device {
    #[inline(always)]
    fn end(mut lease: Lease<Self>, written: u64) {
        let device = lease.device;
        let (slots, pool) = lease.give_up();
        // nothing is left of it, and what is not dropped need not be in memory
        std::mem::forget(lease);
        device.free_in(pool, slots, written);
    }
}

impl Keeper for Arc<Device> {
    #[inline(always)]
    fn end(mut lease: Lease<Self>, written: u64) {
        lease.free(written);
    }
}

impl<H: Deref<Target = Device>> Drop for Lease<H> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.slots.count > 0 {
            self.free(0);
        }
    }
}
