//! What an allocator has seen. Reading never changes anything.

use crate::allocator::Allocator;
use crate::counters::Counter;
use crate::error::Error;
use crate::reason::Reason;
use crate::sync::{AtomicU64, Ordering};

/// The state of an allocator at one moment. While others map, its figures may
/// be of slightly different moments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The allocator's name.
    pub pool: String,
    /// Slots there are.
    pub nslots: u64,
    /// Slots in use, padding included.
    pub used: u64,
    /// The most slots that were in use at once; 0 unless recorded.
    pub used_hiwater: u64,
    /// Slots of pools that serve one mapping.
    pub transient_nslots: u64,
    /// Mappings that were bounced.
    pub maps_bounced: u64,
    /// The same, by reason, in the order of [`Reason::ALL`].
    pub reasons: [u64; Reason::ALL.len()],
    /// Bytes copied from originals.
    pub bytes_in: u64,
    /// Bytes copied back.
    pub bytes_out: u64,
    /// Mappings that found slots outside their worker's own area.
    pub area_fallback: u64,
    /// Requests refused for want of room.
    pub full: u64,
    /// Addresses that no mapping had.
    pub not_mapped: u64,
    /// Synchronisations beyond their mapping.
    pub sync_out_of_range: u64,
    /// Slots that were out of the device's reach.
    pub unreachable: u64,
    /// Pools that were added.
    pub grow_ok: u64,
    /// Pools that could not be added.
    pub grow_fail: u64,
}

impl Stats {
    /// How many mappings were bounced for a reason.
    pub fn bounced_for(&self, reason: Reason) -> u64 {
        self.reasons.get(reason as usize).copied().unwrap_or(0)
    }
}

/// Counters of what was refused: none of them is on the way of a mapping that
/// succeeds.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    pub full: Counter,
    pub not_mapped: Counter,
    pub sync_out_of_range: Counter,
    pub unreachable: Counter,
    pub grow_ok: Counter,
    pub grow_fail: Counter,
}

/// The highest number of slots in use at once. One word for all areas, and so
/// a word that all workers write: recorded on request only, and on a cache line
/// that holds nothing else that they read.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Hiwater {
    enabled: bool,
    used: AtomicU64,
    highest: AtomicU64,
}

impl Hiwater {
    pub(super) fn new(enabled: bool) -> Self {
        Hiwater {
            enabled,
            used: AtomicU64::new(0),
            highest: AtomicU64::new(0),
        }
    }

    /// Slots have been taken.
    #[inline(always)]
    pub(crate) fn add(&self, slots: u32) {
        if self.enabled {
            self.record(slots);
        }
    }

    #[inline(never)]
    fn record(&self, slots: u32) {
        let slots = u64::from(slots);
        let used = self.used.fetch_add(slots, Ordering::Relaxed) + slots;
        if used > self.highest.load(Ordering::Relaxed) {
            self.highest.fetch_max(used, Ordering::Relaxed);
        }
    }

    /// Slots are about to be free: counted before somebody else can take them,
    /// or they would count twice.
    #[inline(always)]
    pub(crate) fn sub(&self, slots: u32) {
        if self.enabled {
            self.used.fetch_sub(u64::from(slots), Ordering::Relaxed);
        }
    }
}

impl Allocator {
    /// Slots of all pools.
    pub fn nslots(&self) -> u64 {
        self.pools().map(|(_, pool)| u64::from(pool.nslots())).sum()
    }

    /// Slots in use, padding included: exact when nothing is mapped or unmapped
    /// meanwhile.
    pub fn used(&self) -> u64 {
        let used: u64 = self.pools().map(|(_, pool)| pool.used()).sum();
        used + self.transients.lock().used()
    }

    /// Forgets the highest number of used slots: it is 0 until the next
    /// mapping.
    ///
    /// # Errors
    /// [`Error::Invalid`] for any `value` but 0.
    pub fn reset_hiwater(&self, value: u64) -> Result<(), Error> {
        if value != 0 {
            return Err(Error::Invalid {
                what: "the high-water mark",
                value,
            });
        }
        self.hiwater.highest.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Reads everything.
    pub fn stats(&self) -> Stats {
        let refusals = self.refusals();
        let mut stats = Stats {
            pool: self.settings().name.clone(),
            nslots: self.nslots(),
            used: self.used(),
            used_hiwater: self.hiwater.highest.load(Ordering::Relaxed),
            full: refusals.full.get(),
            not_mapped: refusals.not_mapped.get(),
            sync_out_of_range: refusals.sync_out_of_range.get(),
            unreachable: refusals.unreachable.get(),
            grow_ok: refusals.grow_ok.get(),
            grow_fail: refusals.grow_fail.get(),
            ..Stats::default()
        };
        let transients = self.transients.lock();
        stats.transient_nslots = transients.slots();
        let mut seen = transients.seen();
        drop(transients);
        for area in self.pools().flat_map(|(_, pool)| pool.areas()) {
            seen.add(&area.lock().stats);
        }
        stats.reasons = seen.maps;
        stats.bytes_in = seen.bytes_in;
        stats.bytes_out = seen.bytes_out;
        stats.area_fallback = seen.fallbacks;
        // coherent memory is no mapping
        let bounced = stats.reasons.iter().sum::<u64>();
        stats.maps_bounced = bounced - stats.bounced_for(Reason::Coherent);
        stats
    }
}
