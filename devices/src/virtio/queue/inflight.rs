//! Which requests of a queue are in flight, in memory that may outlive the
//! process.
//!
//! A queue's worker notes each head it takes and each it gives back. Whoever
//! takes the queue up again (the same process, or the next one) reads there
//! what was taken and never given back, and serves it before anything new. So
//! no request is lost, and the driver sees each completed once.
//!
//! The layout is the one that vhost-user's "Inflight I/O tracking" states for
//! split rings, so that another back end may go on where this one died. The
//! memory is shared with the front end: nothing read from it is trusted.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use vm_memory::{AtomicInteger, MmapRegion, VolatileMemory};

/// Bytes before the descriptors' states: features, version, number of
/// descriptors, head of the last batch, used index.
const HEADER: usize = 16;
/// Bytes of a descriptor's state.
const STATE: usize = 16;
/// A queue's part starts at a multiple of this, bytes.
const ALIGN: usize = 64;
/// The only version there is.
const VERSION: u16 = 1;

// offsets into the header
const AT_VERSION: usize = 8;
const AT_DESC_NUM: usize = 10;
const AT_LAST_BATCH_HEAD: usize = 12;
const AT_USED_IDX: usize = 14;

// offsets into a descriptor's state
const AT_INFLIGHT: usize = 0;
const AT_NEXT: usize = 6;
const AT_COUNTER: usize = 8;

/// The part of one queue.
#[derive(Clone, Debug)]
pub struct Inflight {
    memory: Arc<MmapRegion>,
    start: usize,
    /// Number of descriptors that it has room for.
    size: u16,
    /// Order in which heads were taken.
    counter: u64,
}

/// What an earlier worker left behind.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Heads taken and never given back, in the order of their taking.
    pub heads: Vec<u16>,
    /// Next entry of the available ring to take; `None` if nobody has used
    /// this part yet and the front end's word counts.
    pub next_avail: Option<u16>,
}

impl Inflight {
    /// Bytes of the part of a queue of `size` descriptors.
    #[must_use]
    pub const fn bytes(size: u16) -> usize {
        (HEADER + STATE * size as usize).next_multiple_of(ALIGN)
    }

    /// The part of a queue of `size` descriptors that starts `start` bytes into
    /// `memory`; `None` if it does not lie inside, or not aligned.
    #[must_use]
    pub fn new(memory: Arc<MmapRegion>, start: usize, size: u16) -> Option<Self> {
        let end = start.checked_add(Self::bytes(size))?;
        if end > memory.size() || !start.is_multiple_of(8) {
            return None;
        }
        Some(Inflight {
            memory,
            start,
            size,
            counter: 0,
        })
    }

    /// Number of descriptors that it has room for.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Takes the queue up, whose used ring is at `used_idx`: finishes what an
    /// earlier worker was about to note, and tells what it left.
    pub(super) fn recover(&mut self, used_idx: u16) -> Recovered {
        let version = self.load::<AtomicU16>(AT_VERSION);
        self.store::<AtomicU16>(AT_DESC_NUM, self.size);
        if version != VERSION {
            for head in 0..self.size {
                self.store_state::<AtomicU8>(head, AT_INFLIGHT, 0);
            }
            self.store::<AtomicU16>(AT_USED_IDX, used_idx);
            self.store::<AtomicU16>(AT_VERSION, VERSION);
            return Recovered::default();
        }
        self.finish_batch(used_idx);
        let mut taken: Vec<(u64, u16)> = (0..self.size)
            .filter(|&head| self.load_state::<AtomicU8>(head, AT_INFLIGHT) != 0)
            .map(|head| (self.load_state::<AtomicU64>(head, AT_COUNTER), head))
            .collect();
        taken.sort_unstable();
        self.counter = taken
            .last()
            .map_or(0, |(counter, _)| counter.wrapping_add(1));
        let heads: Vec<u16> = taken.into_iter().map(|(_, head)| head).collect();
        let count = u16::try_from(heads.len()).unwrap_or(u16::MAX);
        Recovered {
            heads,
            next_avail: Some(used_idx.wrapping_add(count)),
        }
    }

    /// The used index may have been written without the heads before it having
    /// been noted as given back.
    fn finish_batch(&self, used_idx: u16) {
        let noted = self.load::<AtomicU16>(AT_USED_IDX);
        let batch = (Wrapping(used_idx) - Wrapping(noted)).0.min(self.size);
        let mut head = self.load::<AtomicU16>(AT_LAST_BATCH_HEAD);
        for _ in 0..batch {
            self.store_state::<AtomicU8>(head, AT_INFLIGHT, 0);
            head = self.load_state::<AtomicU16>(head, AT_NEXT);
        }
        self.store::<AtomicU16>(AT_USED_IDX, used_idx);
    }

    /// Nothing is in flight: the driver has forgotten its requests.
    pub fn forget(&self) {
        self.store::<AtomicU16>(AT_VERSION, 0);
    }

    /// `head` was taken from the available ring.
    pub(super) fn taken(&mut self, head: u16) {
        self.store_state::<AtomicU64>(head, AT_COUNTER, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.store_state::<AtomicU8>(head, AT_INFLIGHT, 1);
    }

    /// `head` is about to be shown in the used ring: a batch of one.
    pub(super) fn completing(&self, head: u16) {
        let last = self.load::<AtomicU16>(AT_LAST_BATCH_HEAD);
        self.store_state::<AtomicU16>(head, AT_NEXT, last);
        self.store::<AtomicU16>(AT_LAST_BATCH_HEAD, head);
    }

    /// It is shown, and the used index is `used_idx` now.
    pub(super) fn completed(&self, head: u16, used_idx: u16) {
        self.store_state::<AtomicU8>(head, AT_INFLIGHT, 0);
        self.store::<AtomicU16>(AT_USED_IDX, used_idx);
    }

    /// Takes `head` back into the available ring; false if it was not in
    /// flight.
    pub(super) fn untake(&self, head: u16) -> bool {
        let was = self.load_state::<AtomicU8>(head, AT_INFLIGHT) != 0;
        if was {
            self.store_state::<AtomicU8>(head, AT_INFLIGHT, 0);
        }
        was
    }

    /// Whether anything is in flight.
    pub(super) fn in_flight(&self) -> usize {
        (0..self.size)
            .filter(|&head| self.load_state::<AtomicU8>(head, AT_INFLIGHT) != 0)
            .count()
    }

    fn state(&self, head: u16, field: usize) -> usize {
        // a head that the front end wrote may be any: one that is not there
        // stands for the first
        let head = if head < self.size { head } else { 0 };
        HEADER + STATE * usize::from(head) + field
    }

    fn load_state<T: AtomicInteger<V: Default>>(&self, head: u16, field: usize) -> T::V {
        self.load::<T>(self.state(head, field))
    }

    fn store_state<T: AtomicInteger>(&self, head: u16, field: usize, value: T::V) {
        self.store::<T>(self.state(head, field), value);
    }

    fn load<T: AtomicInteger<V: Default>>(&self, at: usize) -> T::V {
        match self.memory.get_atomic_ref::<T>(self.start + at) {
            Ok(field) => field.load(Ordering::Acquire),
            // `new` has seen that the part is inside and aligned
            Err(_) => T::V::default(),
        }
    }

    fn store<T: AtomicInteger>(&self, at: usize, value: T::V) {
        if let Ok(field) = self.memory.get_atomic_ref::<T>(self.start + at) {
            // in their order with each other and with the used index: who takes
            // the queue up reads after the last of them. More would be a locked
            // bus, six times a request.
            field.store(value, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inflight() -> Inflight {
        let memory = Arc::new(MmapRegion::new(4096).unwrap());
        Inflight::new(memory, 0, 8).unwrap()
    }

    #[test]
    fn a_part_that_nobody_has_used_leaves_the_word_to_the_front_end() {
        assert_eq!(inflight().recover(7), Recovered::default());
    }

    #[test]
    fn what_was_taken_and_not_given_back_comes_back_in_its_order() {
        let mut first = inflight();
        first.recover(0);
        for head in [5, 2, 7, 0] {
            first.taken(head);
        }
        first.completing(2);
        first.completed(2, 1);

        let recovered = first.clone().recover(1);

        assert_eq!(recovered.heads, [5, 7, 0]);
        assert_eq!(recovered.next_avail, Some(4));
    }

    #[test]
    fn a_head_that_was_shown_but_not_noted_is_not_served_again() {
        let mut first = inflight();
        first.recover(0xffff);
        first.taken(3);
        first.taken(4);
        first.completing(4);
        // here the used index went from 0xffff to 0, and the process died

        let recovered = first.clone().recover(0);

        assert_eq!(recovered.heads, [3]);
        assert_eq!(recovered.next_avail, Some(1));
    }

    #[test]
    fn a_head_that_was_not_shown_yet_is_served_again() {
        let mut first = inflight();
        first.recover(0);
        first.taken(4);
        first.completing(4);

        assert_eq!(first.clone().recover(0).heads, [4]);
    }

    #[test]
    fn nonsense_of_the_front_end_reaches_nothing_outside() {
        let mut part = inflight();
        part.recover(0);
        part.store::<AtomicU16>(AT_LAST_BATCH_HEAD, 0xfff0);
        part.store_state::<AtomicU16>(0, AT_NEXT, 0xffff);

        let recovered = part.clone().recover(0x8000);

        assert!(recovered.heads.is_empty());
        assert!(Inflight::new(Arc::clone(&part.memory), 4096 - 64, 8).is_none());
        assert!(Inflight::new(Arc::clone(&part.memory), 4, 8).is_none());
    }

    #[test]
    fn parts_start_where_the_specification_aligns_them() {
        assert_eq!(Inflight::bytes(1), 64);
        assert_eq!(Inflight::bytes(128), 2112);
    }
}
