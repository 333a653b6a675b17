//! The guest's rings that are to be served, as the device and its session share
//! them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::inflight::Record;
use crate::virtio::{DmaProvider, Ring, Sharing};

/// The guest's memory, and what it takes to have it.
pub(in super::super) struct GuestMemory(pub Arc<dyn DmaProvider>, pub Sharing);

impl fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GuestMemory").field(&self.1).finish()
    }
}

/// A ring that is to be served.
#[derive(Clone, Debug)]
pub(super) struct GuestRing {
    /// Tells one activation of the queue from another.
    pub number: u64,
    pub ring: Arc<Ring>,
    /// A back end has been told of it.
    pub held: bool,
    /// One had been, in this activation.
    pub served: bool,
    /// That one keeps, or kept, the record of what is in flight.
    pub tracked: bool,
    /// Where it has stopped, if nothing of it was in flight then.
    pub base: Option<u16>,
    /// Its driver wants it back.
    leaves: bool,
    /// It cannot be served until the device is reset.
    refused: bool,
}

/// By queue. A ring that is taken out is given back where it is dropped: not
/// under the lock.
#[derive(Debug, Default)]
pub(in super::super) struct GuestRings {
    rings: BTreeMap<u16, GuestRing>,
    made: u64,
    /// How often memory has left the guest.
    pub(in super::super) memory: u64,
    /// What of them is in flight, kept for the next back end.
    pub(super) record: Option<Arc<Record>>,
}

impl GuestRings {
    /// Wants a ring served.
    pub(super) fn add(&mut self, ring: Ring) {
        self.made += 1;
        let ring = GuestRing {
            number: self.made,
            ring: Arc::new(ring),
            held: false,
            served: false,
            tracked: false,
            base: None,
            leaves: false,
            refused: false,
        };
        self.rings.insert(ring.ring.index(), ring);
    }

    pub(in super::super) fn is_empty(&self) -> bool {
        self.rings.is_empty()
    }

    /// What their driver uses.
    pub(in super::super) fn features(&self) -> impl Iterator<Item = u64> {
        self.rings.values().map(|ring| ring.ring.features())
    }

    /// The driver wants a ring back. It is that one, if nobody has it.
    #[must_use]
    pub(in super::super) fn leave(&mut self, queue: u16) -> Option<impl Sized + use<>> {
        let ring = self.rings.get_mut(&queue)?;
        ring.leaves = true;
        match ring.held {
            true => None,
            false => self.rings.remove(&queue),
        }
    }

    /// Those that a back end is to have.
    pub(super) fn wanted(&self) -> Vec<GuestRing> {
        let is_wanted = |ring: &&GuestRing| !ring.held && !ring.leaves && !ring.refused;
        self.rings.values().filter(is_wanted).cloned().collect()
    }

    /// Whether a ring is to be stopped.
    pub(super) fn is_leaving(&self, queue: u16, number: u64) -> bool {
        let ring = self.rings.get(&queue);
        ring.is_none_or(|ring| ring.number != number || ring.leaves)
    }

    /// A back end is about to hear of a ring; false if its driver wants it back.
    pub(super) fn hold(&mut self, queue: u16, number: u64) -> bool {
        let tracked = self.record.is_some();
        let ring = self.rings.get_mut(&queue);
        let ring = ring.filter(|ring| ring.number == number && !ring.leaves);
        let Some(ring) = ring else { return false };
        ring.held = true;
        ring.served = true;
        ring.tracked = tracked;
        ring.base = None;
        true
    }

    /// The driver was told of a loss in a ring that nobody has, which goes on at
    /// `base`.
    pub(super) fn told(&mut self, queue: u16, number: u64, base: u16) {
        let ring = self.rings.get_mut(&queue);
        if let Some(ring) = ring.filter(|ring| ring.number == number) {
            ring.base = Some(base);
        }
    }

    /// A ring that no back end can be given.
    pub(super) fn refuse(&mut self, queue: u16, number: u64) {
        let ring = self.rings.get_mut(&queue);
        if let Some(ring) = ring.filter(|ring| ring.number == number) {
            ring.refused = true;
        }
    }

    /// A back end has stopped a ring, at `base` if it says so: gives it if it is to
    /// be given back.
    #[must_use]
    pub(super) fn stopped(
        &mut self,
        queue: u16,
        number: u64,
        base: Option<u16>,
    ) -> Option<GuestRing> {
        let ring = self.rings.get_mut(&queue)?;
        if ring.number != number {
            return None;
        }
        ring.held = false;
        ring.base = base;
        match ring.leaves {
            true => self.rings.remove(&queue),
            false => None,
        }
    }

    /// There is no back end any more: those that leave.
    #[must_use]
    pub(in super::super) fn lost(&mut self) -> Vec<impl Sized + use<>> {
        let held: Vec<(u16, u64)> = self
            .rings
            .iter()
            .filter(|(_, ring)| ring.held)
            .map(|(queue, ring)| (*queue, ring.number))
            .collect();
        held.into_iter()
            .filter_map(|(queue, number)| self.stopped(queue, number, None))
            .collect()
    }

    /// The device was reset: nothing is in flight.
    pub(in super::super) fn reset(&mut self) {
        self.record = None;
    }
}
