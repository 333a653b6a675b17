//! How many slots and areas a pool has.

use crate::error::Error;

/// Bytes of a slot, the unit of allocation.
pub const SLOT_SIZE: u64 = 2048;
/// `log2` of [`SLOT_SIZE`].
pub const SLOT_SHIFT: u32 = 11;
/// Slots of a segment, which no allocation leaves.
pub const SEGMENT_SLOTS: u32 = 128;
/// Bytes of a segment: the largest allocation.
pub const SEGMENT_SIZE: u64 = SLOT_SIZE * SEGMENT_SLOTS as u64;
/// The largest pool: 2 TiB.
pub const MAX_SLOTS: u32 = 1 << 30;
/// A pool that cannot have this many slots is not made: 1 MiB.
pub const MIN_SLOTS: u32 = 512;

/// Slots and areas of a pool, agreeing with each other: at least one segment
/// for an area, and a power of two of areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizing {
    nslots: u32,
    nareas: u32,
}

/// A pool became smaller than wanted because memory was short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShrunk {
    /// Slots wanted.
    pub wanted: u32,
    /// Slots had.
    pub got: u32,
}

impl Sizing {
    /// Raises `nslots` to a segment for each of `nareas` areas and to a power
    /// of two. Values beyond the largest pool become it.
    pub fn raised(nslots: u32, nareas: u32) -> Self {
        let nareas = nareas
            .clamp(1, MAX_SLOTS / SEGMENT_SLOTS)
            .next_power_of_two();
        let nslots = nslots.max(nareas.saturating_mul(SEGMENT_SLOTS));
        Sizing {
            nslots: nslots.min(MAX_SLOTS).next_power_of_two(),
            nareas,
        }
    }

    /// Exactly `nslots` slots, with as many of the `nareas` areas as have a
    /// segment each. The last segment may be short.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no slots or more than the largest pool has.
    pub fn exact(nslots: u32, nareas: u32) -> Result<Self, Error> {
        if nslots == 0 || nslots > MAX_SLOTS {
            return Err(Error::Invalid {
                what: "a pool's number of slots",
                value: u64::from(nslots),
            });
        }
        let nareas = limit_areas(nslots, nareas.max(1));
        Ok(Sizing { nslots, nareas })
    }

    /// What to try after this size could not be had; `None` after 1 MiB.
    pub fn halved(self) -> Option<Self> {
        if self.nslots <= MIN_SLOTS {
            return None;
        }
        let nslots = (self.nslots / 2).next_multiple_of(SEGMENT_SLOTS);
        Some(Sizing {
            nslots,
            nareas: limit_areas(nslots, self.nareas),
        })
    }

    /// Slots of the pool.
    pub fn nslots(self) -> u32 {
        self.nslots
    }

    /// Areas of the pool, a power of two.
    pub fn nareas(self) -> u32 {
        self.nareas
    }

    /// Bytes of the pool.
    pub fn bytes(self) -> u64 {
        u64::from(self.nslots) * SLOT_SIZE
    }

    /// Slots of an area: whole segments. The last area has what is left.
    pub fn area_slots(self) -> u32 {
        let segments = self.nslots.div_ceil(SEGMENT_SLOTS);
        (segments / self.nareas).max(1) * SEGMENT_SLOTS
    }
}

/// At most an area for each segment, and a power of two of them.
fn limit_areas(nslots: u32, nareas: u32) -> u32 {
    let nareas = nareas.min(nslots.div_ceil(SEGMENT_SLOTS)).max(1);
    1 << nareas.ilog2()
}
