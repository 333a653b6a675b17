//! Coherent memory from a pool: zeroed whole pages, without an original.

use std::ops::Deref;

use vm_memory::VolatileSlice;

use crate::device::slots::PoolRef;
use crate::device::worker::Asking;
use crate::device::{Device, Lease, Worker};
use crate::direction::Direction;
use crate::error::Error;
use crate::pool::area::Owner;
use crate::range::PAGE_SIZE;
use crate::reason::Reason;
use crate::segment;
use crate::sizing::{SEGMENT_SIZE, SLOT_SIZE};
use crate::sync::Arc;

/// Coherent memory, freed when it is dropped.
#[must_use = "coherent memory is freed when it is dropped"]
#[derive(Debug)]
pub struct Coherent<H: Deref<Target = Device>> {
    lease: Lease<H>,
}

impl<H: Deref<Target = Device>> Coherent<H> {
    /// The address for the device, aligned to the size rounded up to a power
    /// of two of pages.
    pub fn dma_address(&self) -> u64 {
        self.lease.dma_address()
    }

    /// Its bytes: whole pages.
    pub fn bytes(&self) -> Option<VolatileSlice<'_>> {
        self.lease.bytes()
    }

    /// The slots that it is made of.
    pub fn lease(&self) -> &Lease<H> {
        &self.lease
    }

    /// Leaves the memory to its address: it stays until
    /// [`Device::free_coherent`] is called with it.
    #[must_use = "memory whose address is lost is never freed"]
    pub fn into_dma_address(self) -> u64 {
        self.lease.into_address()
    }
}

impl Worker {
    /// Zeroed pages of the pool, `size` bytes rounded up.
    ///
    /// # Errors
    /// [`Error::ZeroLength`], [`Error::TooLarge`], [`Error::Full`],
    /// [`Error::Unsatisfiable`], [`Error::NoPool`], [`Error::BounceUnreachable`].
    pub fn alloc_coherent(&self, size: u64) -> Result<Coherent<Arc<Device>>, Error> {
        if size == 0 {
            return Err(Error::ZeroLength { address: 0 });
        }
        let too_large = Error::TooLarge {
            len: size,
            max: SEGMENT_SIZE,
        };
        let len = size.checked_next_multiple_of(PAGE_SIZE);
        let Some(len) = len.filter(|&len| len <= SEGMENT_SIZE) else {
            return Err(too_large);
        };
        let asking = Asking {
            orig: None,
            len,
            direction: Direction::Bidirectional,
            align: len.next_power_of_two(),
            warn: true,
        };
        let (pool, slots) = self.take(&asking, Reason::Coherent)?;
        let lease = Lease::new(Arc::clone(self.device()), pool, slots);
        if let Some(bytes) = lease.bytes() {
            segment::zero(&bytes);
        }
        lease.pad();
        Ok(Coherent { lease })
    }
}

impl Device {
    /// Frees coherent memory that was left to its address.
    ///
    /// # Errors
    /// [`Error::NotMapped`] for any other address, also of a mapping;
    /// [`Error::LengthMismatch`] for another number of pages. Nothing has
    /// changed then.
    pub fn free_coherent(&self, address: u64, size: u64) -> Result<(), Error> {
        let not_mapped = || {
            self.allocator().refusals().not_mapped.add(1);
            Error::NotMapped { address }
        };
        let (reference, offset) = self.locate(address).ok_or_else(not_mapped)?;
        let pool = self.pool_of(&reference).ok_or(Error::NoPool)?;
        let slot = u32::try_from(offset / SLOT_SIZE).map_err(|_| not_mapped())?;
        let freed = pool.with(pool.place_of(slot), |area, slot| {
            let (first, head) = area.find(slot)?;
            let exact = first == slot && offset.is_multiple_of(SLOT_SIZE);
            if !exact || head.owner != Owner::Address || head.reason != Reason::Coherent {
                return None;
            }
            let mapped = u64::from(head.len);
            if size.checked_next_multiple_of(PAGE_SIZE) != Some(mapped) {
                return Some(Err(Error::LengthMismatch {
                    address,
                    mapped,
                    given: size,
                }));
            }
            self.allocator().hiwater().sub(u32::from(head.slots));
            area.release(slot);
            Some(Ok(()))
        });
        freed.flatten().ok_or_else(not_mapped)??;
        if let PoolRef::Transient(kept) = &reference {
            self.allocator().end_transient(&kept.0);
        }
        Ok(())
    }
}
