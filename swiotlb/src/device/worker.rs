//! The way in: one thread's handle of a device.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Deref;

use crate::constraints::capable;
use crate::device::decision::Decision;
use crate::device::lease::{Fresh, PoolRef};
use crate::device::{Attrs, Bounced, Device, Direct, Lease, Mapping};
use crate::direction::Direction;
use crate::error::Error;
use crate::originals::Originals;
use crate::pool::Place;
use crate::pool::area::{Head, Owner, Policy};
use crate::pool::placement::{Asked, Placement};
use crate::reason::Reason;
use crate::sync::{Arc, AtomicU64, Ordering};

/// Maps for a device, from one thread at a time.
///
/// What it maps may be unmapped by any thread.
#[derive(Debug)]
pub struct Worker {
    device: Arc<Device>,
    hint: usize,
    /// Mappings that were not bounced. Written here alone: a plain store.
    direct: Arc<AtomicU64>,
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

impl Asking {
    #[inline]
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
    pub(super) fn new(device: Arc<Device>, hint: usize, direct: Arc<AtomicU64>) -> Self {
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
    #[inline]
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
        let device = Arc::clone(&self.device);
        self.trace(len, address);
        let asking = Asking::of(address, len, direction, attrs);
        let lease = self.take(device, &asking, Reason::Forced)?;
        lease.pad();
        Ok(lease)
    }

    #[inline]
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
                let count = self.direct.load(Ordering::Relaxed);
                self.direct.store(count + 1, Ordering::Relaxed);
                return Ok(Mapping::Direct(Direct {
                    dma,
                    len,
                    direction,
                }));
            }
            Decision::Bounce { reason, dma } => (reason, dma),
        };
        self.trace(len, dma);
        let asking = Asking::of(address, len, direction, attrs);
        let lease = self.take(device, &asking, reason)?;
        match lease.fill(originals) {
            Ok(()) => Ok(Mapping::Bounced(Bounced { lease })),
            Err(fault) => {
                lease.cancel();
                Err(fault)
            }
        }
    }

    /// Takes slots and checks that the device reaches them.
    #[inline]
    pub(super) fn take<H: Deref<Target = Device>>(
        &self,
        device: H,
        asking: &Asking,
        reason: Reason,
    ) -> Result<Lease<H>, Error> {
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
        let (reference, place) = match allocator.take(self.hint, &placement, head, limit) {
            Ok(taken) => (PoolRef::Listed(taken.pool), taken.place),
            Err(full @ Error::Full { .. }) => {
                let transient = self.take_transient(&placement, head);
                transient.ok_or_else(|| {
                    allocator.refused_full(&full, asking.warn);
                    full
                })?
            }
            Err(error) => return Err(error),
        };
        let pool = self.device.pool_of(&reference).ok_or(Error::NoPool)?;
        let bus = pool.bus_of(place.slot) + u64::from(placement.before);
        let dma = constraints.dma(bus, asking.len);
        let lease = Lease::new(
            device,
            Fresh {
                pool: reference,
                place,
                slots: placement.slots,
                before: placement.before,
                len: head.len,
                orig,
                dma: dma.unwrap_or(bus),
                direction: asking.direction,
            },
        );
        if dma.is_ok_and(|dma| capable(dma, asking.len, limit)) {
            return Ok(lease);
        }
        lease.cancel();
        allocator.refusals().unreachable.add(1);
        Err(Error::BounceUnreachable {
            address: bus,
            limit,
        })
    }

    /// Takes the slots of a pool that is made for them.
    #[cold]
    fn take_transient(&self, placement: &Placement, head: Head) -> Option<(PoolRef, Place)> {
        let device = &self.device;
        let allocator = device.allocator();
        device.had_transient.store(true, Ordering::Release);
        let pool = allocator.transient(device.number, placement, device.limit())?;
        match pool.take(0, placement, Policy::LowestFirst, head) {
            Ok(Some(place)) => {
                allocator.hiwater().add(placement.slots);
                Some((PoolRef::Transient(pool), place))
            }
            _ => {
                allocator.end_transient(&pool);
                None
            }
        }
    }

    /// The record of an attempt to bounce, with the address that the device
    /// would have been given.
    #[inline]
    fn trace(&self, size: u64, dma_addr: u64) {
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
    #[inline]
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
