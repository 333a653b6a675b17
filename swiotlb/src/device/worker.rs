//! The way in: one thread's handle of a device.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Deref;

use crate::allocator::Taken;
use crate::constraints::{Consumer, capable};
use crate::device::decision::Decision;
use crate::device::slots::{PoolRef, Slots};
use crate::device::{Attrs, Bounced, Device, Direct, DirectMaps, Lease, Mapping};
use crate::direction::Direction;
use crate::error::Error;
use crate::originals::Originals;
use crate::pool::area::{Head, Owner, Policy};
use crate::pool::placement::{Asked, Placement};
use crate::pool::{Place, Pool};
use crate::reason::Reason;
use crate::sizing::SEGMENT_SIZE;
use crate::sync::{Arc, Ordering};

/// Maps for a device, from one thread at a time.
///
/// What it maps may be unmapped by any thread.
#[derive(Debug)]
pub struct Worker {
    device: Arc<Device>,
    hint: usize,
    /// Mappings that were not bounced. Written here alone: a plain store.
    direct: Arc<DirectMaps>,
    _one_thread_at_a_time: PhantomData<Cell<()>>,
}

/// What slots are wanted for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking {
    /// The original's address; `None` for coherent memory.
    pub orig: Option<u64>,
    /// Bytes.
    pub len: u64,
    /// The mapping's direction.
    pub direction: Direction,
    /// Alignment of the slots, bytes.
    pub align: u64,
    /// Whether a full pool is worth a line in the log.
    pub warn: bool,
}

/// Slots that were found.
struct Found {
    reference: PoolRef,
    place: Place,
    /// Bus address of the first one.
    start: u64,
}

/// Slots on their way to a mapping.
struct Unfilled<'a> {
    device: &'a Device,
    pool: PoolRef,
    slots: Slots,
}

impl Unfilled<'_> {
    #[inline(always)]
    fn fill(
        &self,
        found: Option<&Pool>,
        originals: &(impl Originals + ?Sized),
    ) -> Result<(), Error> {
        let pool = found.or_else(|| self.device.pool_of(&self.pool));
        let pool = pool.ok_or(Error::NoPool)?;
        self.slots.fill(self.device, pool, originals)
    }

    /// Leaves the slots to the mapping.
    #[inline(always)]
    fn filled(mut self) -> PoolRef {
        let pool = std::mem::take(&mut self.pool);
        std::mem::forget(self);
        pool
    }
}

impl Drop for Unfilled<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        let pool = std::mem::take(&mut self.pool);
        self.device.cancel(pool, self.slots.place, self.slots.count);
    }
}

impl Asking {
    #[inline(always)]
    fn of(address: u64, len: u64, direction: Direction, attrs: &Attrs) -> Self {
        Asking {
            orig: Some(address),
            len,
            direction,
            align: attrs.align,
            warn: !attrs.no_warn,
        }
    }
}

impl Worker {
    pub(super) fn new(device: Arc<Device>, hint: usize, direct: Arc<DirectMaps>) -> Self {
        Worker {
            device,
            hint,
            direct,
            _one_thread_at_a_time: PhantomData,
        }
    }

    /// Its device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Makes `len` bytes at the domain's address `address` reachable for the
    /// device: where they are if it can reach them there, else through a
    /// bounce buffer into which they are copied.
    ///
    /// # Errors
    /// [`Error::BadDirection`], [`Error::ZeroLength`], [`Error::AddressOverflow`]
    /// for the range; [`Error::NoTranslation`], [`Error::NotCapable`],
    /// [`Error::BounceForbidden`], [`Error::NoPool`] from the decision;
    /// [`Error::TooLarge`], [`Error::Unsatisfiable`], [`Error::Full`],
    /// [`Error::BounceUnreachable`] for the buffer; [`Error::OrigFault`] from
    /// the copy. Nothing is held after an error.
    #[inline(always)]
    pub fn map(
        &self,
        originals: &(impl Originals + ?Sized),
        address: u64,
        len: u64,
        direction: Direction,
        attrs: &Attrs,
    ) -> Result<Mapping<&Device>, Error> {
        self.map_with(&*self.device, originals, address, len, direction, attrs)
    }

    /// As [`Worker::map`], for a mapping that outlives the worker: one that an
    /// engine keeps. Costs one reference to the device.
    ///
    /// # Errors
    /// As [`Worker::map`].
    pub fn map_owned(
        &self,
        originals: &(impl Originals + ?Sized),
        address: u64,
        len: u64,
        direction: Direction,
        attrs: &Attrs,
    ) -> Result<Mapping<Arc<Device>>, Error> {
        let device = Arc::clone(&self.device);
        self.map_with(device, originals, address, len, direction, attrs)
    }

    /// A bounce buffer for a range, whatever the decision would be, with the
    /// bytes around the mapping zeroed and nothing copied in: for callers who
    /// move the bytes themselves, in batches. What they do not fill before they
    /// hand the buffer out is what its last user left there.
    ///
    /// # Errors
    /// Those of [`Worker::map`] for the range and for the buffer, and
    /// [`Error::NoPool`].
    pub fn lease(
        &self,
        address: u64,
        len: u64,
        direction: Direction,
        attrs: &Attrs,
    ) -> Result<Lease<Arc<Device>>, Error> {
        if direction == Direction::None {
            return Err(Error::BadDirection);
        }
        if len == 0 {
            return Err(Error::ZeroLength { address });
        }
        if address.checked_add(len - 1).is_none() {
            return Err(Error::AddressOverflow { address, len });
        }
        self.trace(len, address);
        let asking = Asking::of(address, len, direction, attrs);
        let (pool, slots) = self.take(&asking, Reason::Forced)?;
        let lease = Lease::new(Arc::clone(&self.device), pool, slots);
        lease.pad();
        Ok(lease)
    }

    #[inline(always)]
    pub(super) fn map_with<H: Deref<Target = Device>>(
        &self,
        device: H,
        originals: &(impl Originals + ?Sized),
        address: u64,
        len: u64,
        direction: Direction,
        attrs: &Attrs,
    ) -> Result<Mapping<H>, Error> {
        let (reason, dma) = match self.device.decide(address, len, direction, attrs)? {
            Decision::Direct(dma) => {
                let count = self.direct.0.load(Ordering::Relaxed);
                self.direct.0.store(count + 1, Ordering::Relaxed);
                return Ok(Mapping::Direct(Direct {
                    dma,
                    len,
                    direction,
                }));
            }
            Decision::Bounce { reason, dma } => (reason, dma),
        };
        self.trace(len, dma);
        // where bytes are copied both ways it costs more than it saves
        match direction {
            Direction::ToDevice => originals.expect_copy_in(address, len),
            Direction::FromDevice if self.device.constraints().consumer == Consumer::Declaring => {
                originals.expect_copy_back(address, len);
            }
            _ => {}
        }
        let near = self.take_near(address, len, direction, attrs, reason);
        let (found, pool, slots) = match near {
            Some((taken, slots)) => (Some(taken.pool), PoolRef::Listed(taken.index), slots),
            None => {
                let (pool, slots) = self.take_anywhere(address, len, direction, attrs, reason)?;
                (None, pool, slots)
            }
        };
        // freed again where the copy fails, or where it panics
        let unfilled = Unfilled {
            device: &self.device,
            pool,
            slots,
        };
        unfilled.fill(found, originals)?;
        let lease = Lease::new(device, unfilled.filled(), slots);
        Ok(Mapping::Bounced(Bounced { lease }))
    }

    /// Takes slots for whatever device, wherever there is room. Apart from the
    /// way that nearly all mappings take, and told what it needs one by one: what
    /// has to have an address for a call is kept in memory before it, too.
    #[inline(never)]
    fn take_anywhere(
        &self,
        address: u64,
        len: u64,
        direction: Direction,
        attrs: &Attrs,
        reason: Reason,
    ) -> Result<(PoolRef, Slots), Error> {
        self.take(&Asking::of(address, len, direction, attrs), reason)
    }

    /// Takes slots of the worker's own area, in the newest pool, for a device
    /// without constraints: their pool and they. `None` where that is not
    /// what is wanted or not what there is; then nothing has changed.
    #[inline(always)]
    fn take_near(
        &self,
        address: u64,
        len: u64,
        direction: Direction,
        attrs: &Attrs,
        reason: Reason,
    ) -> Option<(Taken<'_>, Slots)> {
        let device = &*self.device;
        if !device.unconstrained || attrs.align != 1 || len > SEGMENT_SIZE {
            return None;
        }
        let placement = Placement::of_len(len);
        let head = Head {
            orig: address,
            len: u32::try_from(len).unwrap_or(u32::MAX), // at most a segment
            before: placement.before,
            slots: 0,
            direction,
            owner: Owner::Value,
            reason,
            fallback: false,
            filled: device.constraints().fills(direction),
        };
        let limit = device.limit();
        let (taken, dma) = device
            .allocator()
            .take_near(self.hint, placement, head, limit)?;
        if !capable(dma, len, limit) {
            // whoever looks everywhere finds out, too, and says so
            device.cancel(PoolRef::Listed(taken.index), taken.place, placement.slots);
            return None;
        }
        let slots = Slots {
            place: taken.place,
            count: placement.slots,
            before: placement.before,
            len: head.len,
            orig: address,
            dma,
            direction,
        };
        Some((taken, slots))
    }

    /// Takes slots and checks that the device reaches them.
    pub(super) fn take(&self, asking: &Asking, reason: Reason) -> Result<(PoolRef, Slots), Error> {
        let constraints = self.device.constraints();
        let placement = self.device.placement(asking)?;
        let orig = asking.orig.unwrap_or(0);
        let head = Head {
            orig,
            len: u32::try_from(asking.len).unwrap_or(u32::MAX), // at most a segment
            before: placement.before,
            slots: 0,
            direction: asking.direction,
            owner: Owner::Value,
            reason,
            fallback: false,
            filled: asking.orig.is_some() && constraints.fills(asking.direction),
        };
        let allocator = self.device.allocator();
        let limit = self.device.limit();
        let found = match allocator.take(self.hint, &placement, head, limit) {
            Some(taken) => Found {
                reference: PoolRef::Listed(taken.index),
                place: taken.place,
                start: taken.pool.bus_of(taken.place.slot),
            },
            None => self.take_transient(&placement, head, asking.warn)?,
        };
        let bus = found.start + u64::from(placement.before);
        let dma = constraints.dma(bus, asking.len);
        let reached = dma.is_ok_and(|dma| capable(dma, asking.len, limit));
        if !reached {
            let device = &self.device;
            device.cancel(found.reference, found.place, placement.slots);
            allocator.refusals().unreachable.add(1);
            let address = bus;
            return Err(Error::BounceUnreachable { address, limit });
        }
        let slots = Slots {
            place: found.place,
            count: placement.slots,
            before: placement.before,
            len: head.len,
            orig,
            dma: dma.unwrap_or(bus),
            direction: asking.direction,
        };
        Ok((found.reference, slots))
    }

    /// Takes the slots of a pool that is made for them, where the others have
    /// none.
    #[cold]
    fn take_transient(
        &self,
        placement: &Placement,
        head: Head,
        warn: bool,
    ) -> Result<Found, Error> {
        let device = &self.device;
        let allocator = device.allocator();
        let full = allocator.full(placement.slots);
        if !matches!(full, Error::Full { .. }) {
            return Err(full);
        }
        device.had_transient.store(true, Ordering::Release);
        let pool = allocator.transient(device.number, placement, device.limit());
        if let Some(pool) = pool {
            if let Ok(Some(place)) = pool.take(0, *placement, Policy::LowestFirst, head) {
                allocator.hiwater().add(placement.slots);
                return Ok(Found {
                    start: pool.bus_of(place.slot),
                    reference: pool.into(),
                    place,
                });
            }
            allocator.end_transient(&pool);
        }
        allocator.refused_full(&full, warn);
        Err(full)
    }

    /// The record of an attempt to bounce, with the address that the device
    /// would have been given. Where nobody listens it costs one comparison.
    #[inline(always)]
    fn trace(&self, size: u64, dma_addr: u64) {
        if tracing::level_enabled!(tracing::Level::TRACE) {
            self.trace_bounce(size, dma_addr);
        }
    }

    #[cold]
    fn trace_bounce(&self, size: u64, dma_addr: u64) {
        let constraints = self.device.constraints();
        tracing::trace!(
            target: "swiotlb",
            dev = &*constraints.name,
            dma_mask = constraints.dma_mask.map_or(u64::MAX, std::num::NonZeroU64::get),
            dma_addr,
            size,
            forced = self.device.force,
            "bounced"
        );
    }
}

impl Device {
    /// The slots that a range needs.
    fn placement(&self, asking: &Asking) -> Result<Placement, Error> {
        if !asking.align.is_power_of_two() {
            return Err(Error::Invalid {
                what: "the alignment of a mapping",
                value: asking.align,
            });
        }
        Placement::of(&Asked {
            orig: asking.orig,
            len: asking.len,
            align_mask: (asking.align - 1) | self.align_mask,
            min_align_mask: self.constraints.min_align_mask,
            seg_boundary: self.constraints.seg_boundary,
            max: self.constraints.max_bounced_size(),
        })
    }
}
