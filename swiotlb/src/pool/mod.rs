//! A pool: memory, its slots, and where they are on the bus.

pub(crate) mod area;
pub(crate) mod bits;
pub(crate) mod bus;
pub(crate) mod placement;

use vm_memory::VolatileSlice;

use crate::error::Error;
use crate::memory::PoolMemory;
use crate::sizing::{SEGMENT_SLOTS, SLOT_SHIFT, SLOT_SIZE, Sizing};
use area::{Area, AreaState, Closed, Head, Policy};
use bus::Bus;
use placement::Placement;

/// A bus-addressable range of memory with its slots and areas. Whole from the
/// start: there is no state in which one of its parts is missing.
///
/// Every mapping reads it: on cache lines of its own, as what is beside it in
/// memory may be written by another thread all the time.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Pool {
    memory: PoolMemory,
    bus: Bus,
    max_bus: u64,
    nslots: u32,
    /// Slots of each area but the last one.
    area_slots: u32,
    areas: Box<[Area]>,
}

/// Slots that were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index of the area.
    pub area: u32,
    /// First slot, in the pool.
    pub slot: u32,
}

impl Pool {
    /// A pool of free slots in zeroed memory.
    pub(crate) fn new(memory: PoolMemory, bus: Bus, sizing: Sizing) -> Result<Self, Error> {
        if sizing.bytes() > memory.len() {
            return Err(Error::BadRegion {
                base: memory.base(),
                size: memory.len(),
                reason: "is smaller than its slots",
            });
        }
        let area_slots = sizing.area_slots();
        let last = sizing.nareas() - 1;
        let areas: Result<Vec<Area>, Error> = (0..sizing.nareas())
            .map(|index| {
                Area::new(if index == last {
                    sizing.nslots() - last * area_slots
                } else {
                    area_slots
                })
            })
            .collect();
        Ok(Pool {
            max_bus: bus.max(),
            memory,
            bus,
            nslots: sizing.nslots(),
            area_slots,
            areas: areas?.into(),
        })
    }

    /// Its memory.
    pub(crate) fn memory(&self) -> &PoolMemory {
        &self.memory
    }

    /// Where it is on the bus.
    pub(crate) fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The highest bus address of its pages.
    pub(crate) fn max_bus(&self) -> u64 {
        self.max_bus
    }

    /// Its slots.
    pub(crate) fn nslots(&self) -> u32 {
        self.nslots
    }

    /// Its areas.
    pub(crate) fn areas(&self) -> &[Area] {
        &self.areas
    }

    /// Takes the lowest slots of one area, chosen by `turn`, of which the low bits
    /// count, for a request without constraints: them and their bus address.
    /// `None` where that is not to be had at once, as where the pool is not one
    /// piece on the bus.
    #[inline(always)]
    pub(crate) fn take_lowest(
        &self,
        turn: usize,
        placement: Placement,
        head: Head,
    ) -> Option<(Place, u64)> {
        let base = self.bus.linear()?;
        let index = turn & (self.areas.len() - 1); // a power of two of them
        let (area, number) = (self.areas.get(index)?, u32::try_from(index).ok()?);
        let first = number * self.area_slots;
        // segments have an even number of slots, and the request looks no further
        let eligible = placement.eligible(u64::from(first) + (base >> SLOT_SHIFT));
        let slot = area.lock().take_lowest(placement.slots, eligible, head)?;
        let place = Place {
            area: number,
            slot: first + slot,
        };
        Some((place, base + u64::from(place.slot) * SLOT_SIZE))
    }

    /// Looks for slots in one area, chosen by `turn`, of which the low bits
    /// count.
    pub(crate) fn take(
        &self,
        turn: usize,
        placement: Placement,
        policy: Policy,
        head: Head,
    ) -> Result<Option<Place>, Closed> {
        let index = turn & (self.areas.len() - 1); // a power of two of them
        let (Some(area), Ok(number)) = (self.areas.get(index), u32::try_from(index)) else {
            return Ok(None);
        };
        let first = number * self.area_slots;
        let mut state = area.lock();
        let eligible = move |slot| self.bus.eligible(first + slot, placement);
        let taken = state.take(placement, policy, head, eligible)?;
        Ok(taken.map(|slot| Place {
            area: number,
            slot: first + slot,
        }))
    }

    /// The area of a slot.
    pub(crate) fn place_of(&self, slot: u32) -> Place {
        let last = u32::try_from(self.areas.len()).unwrap_or(1) - 1;
        Place {
            area: (slot / self.area_slots).min(last),
            slot,
        }
    }

    /// Calls `f` with the state of the area of `place` and the slot's number in
    /// it. The one lock of an area that is held at a time.
    #[inline(always)]
    pub(crate) fn with<R>(
        &self,
        place: Place,
        f: impl FnOnce(&mut AreaState, u32) -> R,
    ) -> Option<R> {
        let area = self.areas.get(place.area as usize)?;
        let slot = place.slot.checked_sub(place.area * self.area_slots)?;
        Some(f(&mut area.lock(), slot))
    }

    /// The bytes of a pool's slots, from `skip` bytes into slot `slot` on.
    #[inline(always)]
    pub(crate) fn bytes(&self, slot: u32, skip: u64, len: u64) -> Option<VolatileSlice<'_>> {
        let offset = u64::from(slot) * SLOT_SIZE + skip;
        self.memory.slice(offset, len)
    }

    /// The bus address of a slot.
    #[inline(always)]
    pub(crate) fn bus_of(&self, slot: u32) -> u64 {
        self.bus.at(u64::from(slot) * SLOT_SIZE)
    }

    /// Slots in use: exact when nothing else happens at the time.
    pub(crate) fn used(&self) -> u64 {
        let used = self.areas.iter().map(|area| u64::from(area.lock().used()));
        used.sum()
    }

    /// The longest run of free slots.
    pub(crate) fn longest_free_run(&self) -> u32 {
        let runs = self.areas.iter().map(|area| area.lock().longest_free_run());
        runs.max().unwrap_or(0).min(SEGMENT_SLOTS)
    }

    /// Takes no more mappings, if there are none.
    ///
    /// # Errors
    /// [`Error::Busy`]; then the pool is as it was.
    pub(crate) fn close(&self) -> Result<(), Error> {
        for (index, area) in self.areas.iter().enumerate() {
            if !area.lock().close() {
                let closed = self.areas.iter().take(index);
                closed.for_each(|area| area.lock().reopen());
                return Err(Error::Busy { used: self.used() });
            }
        }
        Ok(())
    }

    /// Takes mappings again.
    pub(crate) fn reopen(&self) {
        self.areas.iter().for_each(|area| area.lock().reopen());
    }
}
