//! An area of a pool: slots under one lock.
//!
//! Any thread takes and releases slots; each worker starts at its own area, so
//! that locks are rarely met. Under the lock nothing is allocated, copied or
//! asked of the system.

use crate::direction::Direction;
use crate::error::Error;
use crate::pool::bits::{self, Bits};
use crate::pool::placement::Placement;
use crate::reason::Reason;
use crate::sizing::SEGMENT_SLOTS;
use crate::sync::{Mutex, MutexGuard};

/// Which of the eligible slots is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The lowest one: the same memory is used again while it is in the
    /// processor's caches.
    #[default]
    LowestFirst,
    /// The next one after the last that was taken: memory is used again as late
    /// as possible, which makes a use after unmap easier to notice.
    NextFit,
}

/// What is recorded of a mapping, at its first slot. It is freed by this
/// record, never by what its device's constraints have become.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    /// Address of the original; meaningless for coherent memory.
    pub orig: u64,
    /// Bytes mapped, at most a segment.
    pub len: u32,
    /// Bytes between the first slot's start and the data.
    pub before: u32,
    /// Slots held, padding included.
    pub slots: u8,
    /// The mapping's direction.
    pub direction: Direction,
    /// Who may release it.
    pub owner: Owner,
    /// Why it was bounced.
    pub reason: Reason,
    /// Whether its worker starts at another area.
    pub fallback: bool,
    /// Whether its original is copied in when it is mapped.
    pub filled: bool,
}

/// Who may release a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A value in somebody's hands, by being dropped.
    Value,
    /// Whoever names the address.
    Address,
    /// Somebody who is at it.
    Leaving,
}

/// 128 slots and the records of what is in them.
///
/// On cache lines of its own, or its area's threads and whoever has the memory
/// beside it take them from each other. The first record is in the line of the
/// maps: where a thread has one mapping at a time, that is all it touches.
#[derive(Debug)]
#[repr(C, align(128))]
struct Segment {
    /// A one for each free slot. Those behind the pool's end are never free.
    free: Bits,
    /// A one for each slot that is the first of a mapping.
    heads: Bits,
    /// Of the mappings, by their first slots.
    records: [Option<Head>; SEGMENT_SLOTS as usize],
}

impl Default for Segment {
    /// One without slots.
    fn default() -> Self {
        Segment {
            free: Bits::default(),
            heads: Bits::default(),
            records: [None; SEGMENT_SLOTS as usize],
        }
    }
}

/// What one area has seen, under its lock.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct AreaStats {
    /// Bytes copied from originals.
    pub bytes_in: u64,
    /// Bytes copied back.
    pub bytes_out: u64,
    /// Mappings whose worker starts at another area.
    pub fallbacks: u64,
    /// Mappings, by [`Reason`].
    pub maps: [u64; Reason::COUNT],
}

/// The slots of an area and what they have seen.
///
/// In this order: with the lock before it, what a search reads is one cache
/// line, and what is counted for most mappings the next one. Threads that share
/// an area hand no more than these, a segment and a record to each other.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct AreaState {
    segments: Box<[Segment]>,
    /// Slots there are.
    slots: u32,
    used: u32,
    /// No segment below this one has a free slot.
    lowest: u32,
    /// Where NextFit goes on.
    cursor: u32,
    /// Closed for ever (or until a teardown finds that it must not be).
    closed: bool,
    pub stats: AreaStats,
}

/// A lock and what it guards, apart from its neighbours: two cache lines,
/// because processors fetch them in pairs.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Area {
    state: Mutex<AreaState>,
}

/// The area takes no more mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed;

impl Area {
    /// An area of free slots.
    pub(crate) fn new(slots: u32) -> Result<Self, Error> {
        let state = AreaState {
            segments: segments(slots)?,
            slots,
            used: 0,
            lowest: 0,
            cursor: 0,
            closed: false,
            stats: AreaStats::default(),
        };
        Ok(Area {
            state: Mutex::new(state),
        })
    }

    /// Access to its state.
    #[inline(always)]
    pub(crate) fn lock(&self) -> MutexGuard<'_, AreaState> {
        self.state.lock()
    }
}

impl AreaState {
    /// Slots in use, padding included.
    pub(crate) fn used(&self) -> u32 {
        self.used
    }

    /// Takes slots for `head`, whose number of slots is set here. `eligible`
    /// tells for a segment, by its first slot in the area, which slots may be
    /// the first. Returns the first slot, or `None` after every segment was
    /// looked through.
    pub(crate) fn take(
        &mut self,
        placement: Placement,
        policy: Policy,
        mut head: Head,
        eligible: impl Fn(u32) -> u128,
    ) -> Result<Option<u32>, Closed> {
        if self.closed {
            return Err(Closed);
        }
        let slots = placement.slots;
        // as many slots as the area has, the ones behind a short end included
        if slots > self.slots - self.used {
            return Ok(None);
        }
        let found = match policy {
            Policy::LowestFirst => self.lowest_first(slots, eligible),
            Policy::NextFit => self.next_fit(slots, eligible),
        };
        let Some((index, bit)) = found else {
            return Ok(None);
        };
        let Some(segment) = self.segments.get_mut(index as usize) else {
            return Ok(None);
        };
        let Some(record) = segment.records.get_mut(bit as usize) else {
            return Ok(None);
        };
        segment.free.clear(bit, slots);
        segment.heads.set(bit, 1);
        head.slots = u8::try_from(slots).unwrap_or(u8::MAX); // at most 128
        self.stats.count(&head);
        *record = Some(head);
        self.used += slots;
        Ok(Some(first_slot(index) + bit))
    }

    /// As [`AreaState::take`] with [`Policy::LowestFirst`], where the slots that
    /// may be the first are the same ones in all segments. `None` also where the
    /// area is closed. What nearly all mappings take, and so no more than they
    /// need: a choice of policies and a function for the eligible slots would
    /// cost half as much again.
    #[inline(always)]
    pub(crate) fn take_lowest(
        &mut self,
        slots: u32,
        eligible: u128,
        mut head: Head,
    ) -> Option<u32> {
        if self.closed {
            return None;
        }
        let mut index = self.lowest;
        loop {
            let segment = self.segments.get_mut(index as usize)?;
            let free = segment.free.all();
            let candidates = bits::starts(free, slots) & eligible;
            if candidates != 0 {
                let bit = candidates.trailing_zeros();
                let record = segment.records.get_mut(bit as usize)?;
                segment.free.clear(bit, slots);
                segment.heads.set(bit, 1);
                head.slots = u8::try_from(slots).unwrap_or(u8::MAX); // at most 128
                *record = Some(head);
                self.stats.count(&head);
                self.used += slots;
                return Some(first_slot(index) + bit);
            }
            if free == 0 && self.lowest == index {
                self.lowest += 1;
            }
            index += 1;
        }
    }

    fn lowest_first(&mut self, slots: u32, eligible: impl Fn(u32) -> u128) -> Option<(u32, u32)> {
        let mut index = self.lowest;
        while let Some(segment) = self.segments.get(index as usize) {
            let free = segment.free.all();
            let runs = bits::starts(free, slots);
            let candidates = match runs {
                0 => 0,
                runs => runs & eligible(first_slot(index)),
            };
            if candidates != 0 {
                return Some((index, candidates.trailing_zeros()));
            }
            if free == 0 && self.lowest == index {
                self.lowest += 1;
            }
            index += 1;
        }
        None
    }

    /// From the cursor on to the area's end, and from its start to the cursor.
    fn next_fit(&mut self, slots: u32, eligible: impl Fn(u32) -> u128) -> Option<(u32, u32)> {
        let at = self.cursor / SEGMENT_SLOTS;
        let before = bits::run(self.cursor % SEGMENT_SLOTS);
        let count = u32::try_from(self.segments.len()).unwrap_or(u32::MAX);
        let (found, bit) = (at..count)
            .chain(0..=at)
            .enumerate()
            .find_map(|(step, index)| {
                let free = self.segments.get(index as usize)?.free.all();
                let mut candidates = bits::starts(free, slots) & eligible(first_slot(index));
                if step == 0 {
                    candidates &= !before;
                }
                (candidates != 0).then(|| (index, candidates.trailing_zeros()))
            })?;
        let next = first_slot(found) + bit + slots;
        self.cursor = if next < self.slots { next } else { 0 };
        Some((found, bit))
    }

    /// The mapping that `slot` belongs to: its first slot and its record.
    pub(crate) fn find(&self, slot: u32) -> Option<(u32, Head)> {
        let segment = self.segments.get((slot / SEGMENT_SLOTS) as usize)?;
        let bit = slot % SEGMENT_SLOTS;
        if segment.free.all() & (1 << bit) != 0 {
            return None;
        }
        // the last first slot at or below this one
        let below = segment.heads.all() & bits::run(bit + 1);
        let first = below.checked_ilog2()?;
        let head = (*segment.records.get(first as usize)?)?;
        let first = slot - bit + first;
        (slot < first + u32::from(head.slots)).then_some((first, head))
    }

    /// The record of the mapping that starts with slot `first`, to be changed.
    pub(crate) fn head_mut(&mut self, first: u32) -> Option<&mut Head> {
        let segment = self.segments.get_mut((first / SEGMENT_SLOTS) as usize)?;
        let record = segment.records.get_mut((first % SEGMENT_SLOTS) as usize)?;
        record.as_mut()
    }

    /// Frees the mapping that starts with slot `first`. Returns its record, or
    /// `None` if there is no such mapping.
    #[inline(always)]
    pub(crate) fn release(&mut self, first: u32) -> Option<Head> {
        let index = first / SEGMENT_SLOTS;
        let segment = self.segments.get_mut(index as usize)?;
        let bit = first % SEGMENT_SLOTS;
        let head = segment.records.get_mut(bit as usize)?.take()?;
        segment.free.set(bit, u32::from(head.slots));
        segment.heads.clear(bit, 1);
        self.used -= u32::from(head.slots);
        self.lowest = self.lowest.min(index);
        Some(head)
    }

    /// As [`AreaState::release`], for a mapping that nobody has ever seen: it
    /// is not counted either.
    pub(crate) fn cancel(&mut self, first: u32) {
        if let Some(head) = self.release(first) {
            self.stats.uncount(&head);
        }
    }

    /// Takes no more mappings, if it has none. Returns whether it has none.
    pub(crate) fn close(&mut self) -> bool {
        self.closed = self.used == 0;
        self.closed
    }

    /// Takes mappings again after a teardown was refused.
    pub(crate) fn reopen(&mut self) {
        self.closed = false;
    }

    /// The longest run of free slots.
    pub(crate) fn longest_free_run(&self) -> u32 {
        if self.used == self.slots {
            return 0;
        }
        let runs = self
            .segments
            .iter()
            .map(|segment| bits::longest(segment.free.all()));
        runs.max().unwrap_or(0)
    }
}

impl AreaStats {
    /// Adds what another area has seen.
    pub(crate) fn add(&mut self, other: &AreaStats) {
        for (sum, count) in self.maps.iter_mut().zip(other.maps) {
            *sum += count;
        }
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.fallbacks += other.fallbacks;
    }

    #[inline(always)]
    fn count(&mut self, head: &Head) {
        if let Some(maps) = self.maps.get_mut(head.reason as usize) {
            *maps += 1;
        }
        self.fallbacks += u64::from(head.fallback);
        self.bytes_in += head.bytes_in();
    }

    fn uncount(&mut self, head: &Head) {
        if let Some(maps) = self.maps.get_mut(head.reason as usize) {
            *maps -= 1;
        }
        self.fallbacks -= u64::from(head.fallback);
        self.bytes_in -= head.bytes_in();
    }
}

impl Head {
    /// Whether it is a mapping; else coherent memory.
    pub(crate) fn is_mapping(&self) -> bool {
        self.reason != Reason::Coherent
    }

    /// Bytes copied when it was mapped.
    #[inline(always)]
    fn bytes_in(&self) -> u64 {
        u64::from(self.len) * u64::from(self.filled)
    }
}

/// The first slot of a segment; an area has fewer than 2³² slots.
#[inline(always)]
fn first_slot(segment: u32) -> u32 {
    segment * SEGMENT_SLOTS
}

/// The segments of `slots` free slots, with an error where memory is short:
/// sizes come from options.
fn segments(slots: u32) -> Result<Box<[Segment]>, Error> {
    let count = slots.div_ceil(SEGMENT_SLOTS);
    let mut segments = Vec::new();
    let bytes = u64::from(count) * size_of::<Segment>() as u64;
    segments
        .try_reserve_exact(count as usize)
        .map_err(|_| Error::NoMemory { bytes, os_error: 0 })?;
    // where they will be: each is some kilobytes, which stacks need not have
    segments.resize_with(count as usize, Segment::default);
    for (first, segment) in (0..).step_by(SEGMENT_SLOTS as usize).zip(&mut segments) {
        segment.free = Bits::run((slots - first).min(SEGMENT_SLOTS));
    }
    Ok(segments.into())
}
