//! Mappings that are known by their address alone, as a driver's are.

use crate::constraints::SyncPolicy;
use crate::device::mapping::inside;
use crate::device::slots::{PoolRef, Slots};
use crate::device::{Attrs, Device, Lease};
use crate::direction::{Direction, SyncFor};
use crate::error::Error;
use crate::originals::Originals;
use crate::pool::area::{Head, Owner};
use crate::pool::{Place, Pool};
use crate::sizing::SLOT_SIZE;
use crate::sync::Ordering;

/// A mapping, found by an address.
struct Found {
    /// Its first slot.
    place: Place,
    head: Head,
    /// Offset of its first byte in the pool.
    start: u64,
    /// Offset of the address in the pool.
    at: u64,
}

impl Device {
    /// Ends the mapping that starts at the device's address `address`, has
    /// `len` bytes and was left to its address by
    /// [`Mapping::into_dma_address`](crate::Mapping::into_dma_address). What the
    /// device may have written is copied back unless `attrs.skip_cpu_sync`.
    ///
    /// An address outside all pools is a direct mapping's: there is nothing to
    /// do for it.
    ///
    /// # Errors
    /// [`Error::BadDirection`], [`Error::NotMapped`], [`Error::LengthMismatch`],
    /// [`Error::DirectionMismatch`]: then nothing has changed.
    /// [`Error::OrigFault`]: then the slots are free even so.
    pub fn unmap(
        &self,
        originals: &(impl Originals + ?Sized),
        address: u64,
        len: u64,
        direction: Direction,
        attrs: &Attrs,
    ) -> Result<(), Error> {
        if direction == Direction::None {
            return Err(Error::BadDirection);
        }
        let Some((reference, offset)) = self.locate(address) else {
            return Ok(());
        };
        let pool = self.pool_of(&reference).ok_or(Error::NoPool)?;
        let claimed = pool.with(pool.place_of(slot_of(offset)), |area, slot| {
            let (first, head) = area.find(slot)?;
            // the area's slots and the pool's are apart by the same number
            let skipped = u64::from(slot - first) * SLOT_SIZE;
            let start = offset - offset % SLOT_SIZE - skipped + u64::from(head.before);
            if start != offset || !head.is_mapping() || head.owner != Owner::Address {
                return None;
            }
            if u64::from(head.len) != len {
                return Some(Err(Error::LengthMismatch {
                    address,
                    mapped: u64::from(head.len),
                    given: len,
                }));
            }
            if !head.direction.covers(direction) {
                return Some(Err(Error::DirectionMismatch {
                    mapped: head.direction,
                    given: direction,
                }));
            }
            // from here on a second unmap finds nothing
            area.head_mut(first)?.owner = Owner::Leaving;
            Some(Ok((slot - first, head)))
        });
        let Some(Some(claimed)) = claimed else {
            self.allocator().refusals().not_mapped.add(1);
            return Err(Error::NotMapped { address });
        };
        let (skipped, head) = claimed?;
        let mut place = pool.place_of(slot_of(offset));
        place.slot -= skipped;
        let lease = self.lease_of(reference, place, &head, address, direction);
        match attrs.skip_cpu_sync {
            true => Ok(()),
            false => lease.end(originals),
        }
    }

    /// Brings `len` bytes at the device's address `address` up to date, all of
    /// them inside one mapping.
    ///
    /// # Errors
    /// [`Error::BadDirection`], [`Error::DirectionMismatch`] and
    /// [`Error::OutOfRange`]: then nothing was copied. [`Error::OrigFault`].
    pub fn sync(
        &self,
        originals: &(impl Originals + ?Sized),
        address: u64,
        len: u64,
        direction: Direction,
        sync_for: SyncFor,
    ) -> Result<(), Error> {
        if direction == Direction::None {
            return Err(Error::BadDirection);
        }
        let Some((reference, offset)) = self.locate(address) else {
            return Ok(());
        };
        let pool = self.pool_of(&reference).ok_or(Error::NoPool)?;
        let policy = self.constraints().sync_policy;
        let range = find(pool, offset).and_then(|found| {
            let mapping = found.start..found.start + u64::from(found.head.len);
            let range = inside(&mapping, found.at, len, policy)?;
            // an address in the padding is no part of the mapping
            let outside = policy == SyncPolicy::Clamp && range.is_empty() && len > 0;
            (!outside).then_some((found, range))
        });
        let Some((found, range)) = range else {
            self.out_of_range();
            return Err(Error::OutOfRange { address, len });
        };
        if !found.head.direction.covers(direction) {
            return Err(Error::DirectionMismatch {
                mapped: found.head.direction,
                given: direction,
            });
        }
        let start = address - range.start;
        let lease = self.lease_of(reference, found.place, &found.head, start, direction);
        let result = lease.sync_range(originals, range, direction, sync_for);
        // it is not ours
        lease.forget();
        result
    }

    /// The pool of one of the device's addresses, and the offset in it.
    pub(super) fn locate(&self, address: u64) -> Option<(PoolRef, u64)> {
        let bus = self.constraints().bus(address)?;
        if let Some((index, _, offset)) = self.allocator().find(bus) {
            return Some((PoolRef::Listed(index), offset));
        }
        if !self.had_transient.load(Ordering::Acquire) {
            return None;
        }
        let (pool, offset) = self.allocator().find_transient(self.number, bus)?;
        Some((pool.into(), offset))
    }

    /// Counts a synchronisation or a statement beyond its mapping.
    #[cold]
    pub(super) fn out_of_range(&self) {
        self.allocator().refusals().sync_out_of_range.add(1);
    }

    fn lease_of(
        &self,
        pool: PoolRef,
        place: Place,
        head: &Head,
        dma: u64,
        direction: Direction,
    ) -> Lease<&Device> {
        let slots = Slots {
            place,
            count: u32::from(head.slots),
            before: head.before,
            len: head.len,
            orig: head.orig,
            dma,
            direction,
        };
        Lease::new(self, pool, slots)
    }
}

/// The live mapping that the byte at an offset into a pool belongs to.
fn find(pool: &Pool, offset: u64) -> Option<Found> {
    let place = pool.place_of(slot_of(offset));
    let (skipped, head) = pool.with(place, |area, slot| {
        let (first, head) = area.find(slot)?;
        let live = head.is_mapping() && head.owner != Owner::Leaving;
        live.then_some((slot - first, head))
    })??;
    let place = Place {
        slot: place.slot - skipped,
        ..place
    };
    Some(Found {
        place,
        start: u64::from(place.slot) * SLOT_SIZE + u64::from(head.before),
        head,
        at: offset,
    })
}

/// The slot of an offset into a pool, which has fewer than 2³² slots.
fn slot_of(offset: u64) -> u32 {
    u32::try_from(offset / SLOT_SIZE).unwrap_or(u32::MAX)
}
