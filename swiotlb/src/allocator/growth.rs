//! Pools that are added when there is no room, and pools that serve one
//! mapping until then.
//!
//! A mapping that finds no room asks, once for all who ask meanwhile, for
//! another pool, and is served by a transient pool of its own. Adding the pool
//! is left to a thread of the embedder's that may sleep.

use crate::allocator::Allocator;
use crate::error::Error;
use crate::memory::{PoolMemory, PoolSource};
use crate::options::DEFAULT_SLOTS;
use crate::pool::Pool;
use crate::pool::area::AreaStats;
use crate::pool::bus::Bus;
use crate::pool::placement::Placement;
use crate::range::PAGE_SIZE;
use crate::sizing::{SEGMENT_SLOTS, SLOT_SIZE, Sizing};
use crate::space::AddressSpace;
use crate::sync::{Arc, AtomicBool, Ordering, SlowMutex};

/// How an allocator grows.
pub struct Growth {
    /// Where further pools come from.
    pub source: Box<dyn PoolSource>,
    /// The highest bus address that an added pool may have.
    pub phys_limit: u64,
    /// Bytes of transient pools that one device may have at a time.
    pub max_transient_device: u64,
    /// Bytes of transient pools that all devices may have at a time.
    pub max_transient_total: u64,
    /// Called when a pool is wanted, by the thread that maps: it wakes the one
    /// that calls [`Allocator::grow`].
    pub wake: Box<dyn Fn() + Send + Sync>,
}

impl Growth {
    /// 1 MiB of transient pools for a device and 16 MiB for all, without a
    /// limit to addresses.
    pub fn new(source: Box<dyn PoolSource>, wake: Box<dyn Fn() + Send + Sync>) -> Self {
        Growth {
            source,
            phys_limit: u64::MAX,
            max_transient_device: 1 << 20,
            max_transient_total: 16 << 20,
            wake,
        }
    }
}

/// The state of growth.
pub(super) struct Growing {
    source: SlowMutex<Box<dyn PoolSource>>,
    phys_limit: u64,
    max_transient_device: u64,
    max_transient_total: u64,
    wake: Box<dyn Fn() + Send + Sync>,
    /// Cleared for ever when somebody has come to rely on the pool there is.
    allowed: AtomicBool,
    /// A pool has been asked for and is not there yet.
    wanted: AtomicBool,
}

/// The transient pools there are, and what those of before have seen.
#[derive(Debug, Default)]
pub(super) struct Transients {
    live: Vec<Transient>,
    past: AreaStats,
}

#[derive(Debug)]
struct Transient {
    /// Number of the device that it serves; no other device finds it.
    device: u64,
    /// Bytes that count against the budgets.
    bytes: u64,
    pool: Arc<Pool>,
}

impl std::fmt::Debug for Growing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Growing")
            .field("phys_limit", &self.phys_limit)
            .field("allowed", &self.allowed)
            .field("wanted", &self.wanted)
            .finish_non_exhaustive()
    }
}

impl From<Growth> for Growing {
    fn from(growth: Growth) -> Self {
        Growing {
            source: SlowMutex::new(growth.source),
            phys_limit: growth.phys_limit,
            max_transient_device: growth.max_transient_device,
            max_transient_total: growth.max_transient_total,
            wake: growth.wake,
            allowed: AtomicBool::new(true),
            wanted: AtomicBool::new(false),
        }
    }
}

impl Transients {
    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    pub(super) fn slots(&self) -> u64 {
        let slots = self.live.iter().map(|one| u64::from(one.pool.nslots()));
        slots.sum()
    }

    pub(super) fn used(&self) -> u64 {
        self.live.iter().map(|one| one.pool.used()).sum()
    }

    pub(super) fn seen(&self) -> AreaStats {
        let mut seen = self.past;
        for area in self.live.iter().flat_map(|one| one.pool.areas()) {
            seen.add(&area.lock().stats);
        }
        seen
    }

    fn bytes(&self, of: impl Fn(&Transient) -> bool) -> u64 {
        let ours = self.live.iter().filter(|&one| of(one));
        ours.map(|one| one.bytes).sum()
    }
}

impl Allocator {
    /// Whether further pools may be added.
    pub fn can_grow(&self) -> bool {
        let allowed = |growing: &Growing| growing.allowed.load(Ordering::Relaxed);
        self.growing.as_ref().is_some_and(allowed)
    }

    /// Adds no pools from now on. Called with the bring-up lock held, or a pool
    /// that is being made might still be added.
    pub(super) fn stop_growing(&self) {
        if let Some(growing) = &self.growing {
            // nor is a transient one, which is made under this lock
            let _transients = self.transients.lock();
            growing.allowed.store(false, Ordering::Relaxed);
        }
    }

    /// Whether a pool is wanted.
    pub fn wants_to_grow(&self) -> bool {
        let wanted = |growing: &Growing| growing.wanted.load(Ordering::Acquire);
        self.growing.as_ref().is_some_and(wanted)
    }

    /// Adds a pool if one is wanted; returns whether it did. Called by a thread
    /// that may sleep. However many mappings asked meanwhile, they get one.
    ///
    /// # Errors
    /// [`Error::NoMemory`], [`Error::PoolUnreachable`], [`Error::NoTranslation`]:
    /// all goes on as it was, and the next mapping that finds no room asks
    /// again.
    pub fn grow(&self) -> Result<bool, Error> {
        let _making = self.bring_up.lock();
        let Some(growing) = self.growing.as_ref().filter(|_| self.wants_to_grow()) else {
            return Ok(false);
        };
        let grown = match self.can_grow() && self.is_active() {
            true => self.add_pool(growing, growing.phys_limit).map(|()| true),
            false => Ok(false),
        };
        growing.wanted.store(false, Ordering::Release);
        grown
    }

    /// Adds a pool below `limit` for a device that reaches none there is.
    pub(super) fn grow_below(&self, limit: u64) -> Result<(), Error> {
        let _making = self.bring_up.lock();
        let growing = self.growing.as_ref().filter(|_| self.can_grow());
        let growing = growing.ok_or(Error::NoPool)?;
        self.add_pool(growing, limit.min(growing.phys_limit))
    }

    fn add_pool(&self, growing: &Growing, limit: u64) -> Result<(), Error> {
        let areas = self.settings().options.sizing(self.settings().workers);
        let wanted = Sizing::raised(DEFAULT_SLOTS, areas.nareas());
        let mut source = growing.source.lock();
        let made = self.make(wanted, limit, &mut **source, None);
        match made.and_then(|(pool, _)| self.pools.push(pool)) {
            Ok(()) => {
                self.refusals().grow_ok.add(1);
                Ok(())
            }
            Err(error) => {
                self.refusals().grow_fail.add(1);
                tracing::warn!(target: "swiotlb", %error, "no pool could be added");
                Err(error)
            }
        }
    }

    /// Asks for another pool, and makes one for this request alone. `None`
    /// where the allocator does not grow or the budgets are used up.
    pub(crate) fn transient(
        &self,
        device: u64,
        placement: &Placement,
        limit: u64,
    ) -> Option<Arc<Pool>> {
        let growing = self.growing.as_ref().filter(|_| self.can_grow())?;
        if !growing.wanted.swap(true, Ordering::AcqRel) {
            (growing.wake)();
        }
        // held all the way: what is checked against the budgets is what is made
        let mut transients = self.transients.lock();
        if !self.can_grow() || !self.is_active() {
            return None;
        }
        let own = transients.bytes(|one| one.device == device);
        let all = transients.bytes(|_| true);
        let budget = growing.max_transient_device.saturating_sub(own);
        let budget = budget.min(growing.max_transient_total.saturating_sub(all));
        let mut source = growing.source.lock();
        let (pool, bytes) = self
            .make_transient(
                &mut **source,
                placement,
                limit.min(growing.phys_limit),
                budget,
            )
            .inspect_err(|error| tracing::debug!(target: "swiotlb", %error, "no transient pool"))
            .ok()?;
        let pool = Arc::new(pool);
        transients.live.push(Transient {
            device,
            bytes,
            pool: Arc::clone(&pool),
        });
        Some(pool)
    }

    /// A pool with a place for the request, and the bytes that it takes.
    fn make_transient(
        &self,
        source: &mut dyn PoolSource,
        placement: &Placement,
        limit: u64,
        budget: u64,
    ) -> Result<(Pool, u64), Error> {
        let slots = u64::from(placement.slots);
        let exact = (slots * SLOT_SIZE).next_multiple_of(PAGE_SIZE);
        // what lies where it has to needs no slack
        let slack = exact.saturating_add(placement.slack());
        for bytes in [exact, slack] {
            if bytes > budget {
                return Err(Error::NoMemory { bytes, os_error: 0 });
            }
            let memory = source.allocate(bytes, limit)?;
            self.check_rules(&memory)?;
            if let Some(pool) = fit(&memory, placement, self.space())? {
                return match pool.max_bus() {
                    max_bus if max_bus > limit => Err(Error::PoolUnreachable { limit, max_bus }),
                    _ => Ok((pool, bytes)),
                };
            }
        }
        Err(Error::NoMemory {
            bytes: slack,
            os_error: 0,
        })
    }

    /// The transient pool of a device that has a bus address, and the
    /// address's offset in it.
    pub(crate) fn find_transient(&self, device: u64, bus: u64) -> Option<(Arc<Pool>, u64)> {
        let transients = self.transients.lock();
        let own = transients.live.iter().filter(|one| one.device == device);
        let mut found = own.filter_map(|one| Some((&one.pool, one.pool.bus().offset(bus)?)));
        let (pool, offset) = found.next()?;
        Some((Arc::clone(pool), offset))
    }

    /// Takes a transient pool out of the list. Its memory goes with the last
    /// one who found it there.
    pub(crate) fn end_transient(&self, pool: &Arc<Pool>) {
        let mut transients = self.transients.lock();
        let Some(index) = transients
            .live
            .iter()
            .position(|one| Arc::ptr_eq(&one.pool, pool))
        else {
            return;
        };
        let ended = transients.live.swap_remove(index);
        for area in ended.pool.areas() {
            let seen = area.lock().stats;
            transients.past.add(&seen);
        }
    }
}

/// A pool made of the first pages of `memory` in which the request has a place.
fn fit(
    memory: &PoolMemory,
    placement: &Placement,
    space: &AddressSpace,
) -> Result<Option<Pool>, Error> {
    for start in (0..memory.len()).step_by(4096) {
        // the first slot of a page or the second one
        for skipped in 0..2 {
            let slots = placement.slots + skipped;
            let len = u64::from(slots) * SLOT_SIZE;
            if slots > SEGMENT_SLOTS || start + len > memory.len() {
                continue;
            }
            let bus = Bus::of_pool(memory.base() + start, len, space)?;
            if bus.eligible(0, *placement) & (1 << skipped) != 0 {
                let part = memory.part(start, len)?;
                return Ok(Some(Pool::new(part, bus, Sizing::exact(slots, 1)?)?));
            }
        }
    }
    Ok(None)
}
