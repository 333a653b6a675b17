//! An allocator: its pools, where they came from, and what happened to them.
//!
//! One serves the devices of a domain by default; each restricted region is
//! another one. Shared by all workers: what a mapping touches on its way is an
//! area's lock and nothing that other areas' workers write.

mod bringup;
mod growth;
mod list;
mod stats;
mod warn;

pub use bringup::{BringUp, Brought, Ensured, Remap, bring_up};
pub use growth::Growth;
pub use stats::Stats;

use crate::contiguity::NoTranslation;
use crate::error::Error;
use crate::features::Arch;
use crate::options::{Bouncing, Options};
use crate::pool::area::{Head, Policy};
use crate::pool::placement::Placement;
use crate::pool::{Place, Pool};
use crate::sizing::{SEGMENT_SIZE, SLOT_SIZE};
use crate::space::AddressSpace;
use crate::sync::{Arc, AtomicBool, AtomicU64, Ordering, SlowMutex};
use growth::{Growing, Transients};
use list::PoolList;
use stats::{Hiwater, Refusals};
use warn::Warner;

/// What is done about the bytes of an allocation that belong to no mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PadPolicy {
    /// They are zeroed at hand-out.
    #[default]
    Zero,
    /// They are left as they are. For pools that no other trust domain sees.
    Trusted,
}

/// How far apart mappings of a pool are that others see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// By slots. For a pool that nobody else sees, or that one consumer sees
    /// alone: a pool for each consumer isolates devices from each other.
    #[default]
    Slot,
    /// By pages: what is shared or granted is whole pages.
    Page,
}

/// How an allocator behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Label in statistics and events.
    pub name: String,
    /// The options that the embedder was given.
    pub options: Options,
    /// Threads that map: the number of areas unless the options say.
    pub workers: u32,
    /// Which slot is taken.
    pub policy: Policy,
    /// What happens to the bytes around a mapping.
    pub pad: PadPolicy,
    /// How far apart mappings are.
    pub isolation: Isolation,
    /// Whether slots are zeroed before they can be taken again.
    pub scrub_on_free: bool,
    /// The machine's architecture.
    pub arch: Arch,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            name: "default".into(),
            options: Options::default(),
            workers: 1,
            policy: Policy::LowestFirst,
            pad: PadPolicy::Zero,
            isolation: Isolation::Slot,
            scrub_on_free: false,
            arch: Arch::Arm,
        }
    }
}

/// Pools and their counters. On cache lines of its own, as is all that every
/// mapping reads.
#[derive(Debug)]
#[repr(align(128))]
pub struct Allocator {
    settings: Settings,
    space: AddressSpace,
    pools: PoolList,
    /// Held while pools are made or unmade; never while mapping.
    bring_up: SlowMutex<()>,
    closed: AtomicBool,
    cache_flush: AtomicBool,
    hiwater: Hiwater,
    refusals: Refusals,
    warner: Warner,
    growing: Option<Growing>,
    transients: SlowMutex<Transients>,
    /// The number of the next device.
    devices: AtomicU64,
}

/// Slots, their pool and its number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken<'a> {
    pub index: usize,
    pub pool: &'a Pool,
    pub place: Place,
}

impl Allocator {
    /// An allocator without a pool, whose pools will lie in `space`.
    pub fn new(settings: Settings, space: AddressSpace) -> Arc<Self> {
        Allocator::make_new(settings, space, None)
    }

    /// As [`Allocator::new`], for one that adds pools as they are wanted.
    pub fn growing(settings: Settings, space: AddressSpace, growth: Growth) -> Arc<Self> {
        Allocator::make_new(settings, space, Some(growth))
    }

    fn make_new(settings: Settings, space: AddressSpace, growth: Option<Growth>) -> Arc<Self> {
        Arc::new(Allocator {
            hiwater: Hiwater::new(settings.options.track_hiwater),
            settings,
            space,
            pools: PoolList::default(),
            bring_up: SlowMutex::new(()),
            closed: AtomicBool::new(false),
            cache_flush: AtomicBool::new(false),
            refusals: Refusals::default(),
            warner: Warner::default(),
            growing: growth.map(Growing::from),
            transients: SlowMutex::default(),
            devices: AtomicU64::new(0),
        })
    }

    /// How it behaves.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The address space that its pools are in.
    pub fn space(&self) -> &AddressSpace {
        &self.space
    }

    /// Whether everything is bounced.
    pub fn forces(&self) -> bool {
        self.settings.options.bouncing == Bouncing::Forced
    }

    /// Whether there is a pool to bounce through.
    #[inline(always)]
    pub fn is_active(&self) -> bool {
        self.pools.len() > 0 && !self.closed.load(Ordering::Acquire)
    }

    /// Whether the hypervisor flushes caches of foreign frames; known after
    /// bring-up.
    pub fn flushes_caches(&self) -> bool {
        self.cache_flush.load(Ordering::Relaxed)
    }

    /// The highest bus address of its pools; `None` without a pool.
    pub fn max_bus(&self) -> Option<u64> {
        let pools = self.pools.newest_first();
        pools.map(|(_, pool)| pool.max_bus()).max()
    }

    /// Whether another trust domain may see one of its pools.
    pub fn is_shared(&self) -> bool {
        let mut pools = self.pools.newest_first();
        pools.any(|(_, pool)| pool.memory().is_shared())
    }

    /// Calls `f` with the memory of each pool, newest first: to register it
    /// with an engine, or to send its file to a back end. From then on no pool
    /// is added that they would not know of.
    pub fn each_memory(&self, mut f: impl FnMut(&crate::memory::PoolMemory)) {
        {
            let _making = self.bring_up.lock();
            self.stop_growing();
        }
        let pools = self.pools.newest_first();
        pools.for_each(|(_, pool)| f(pool.memory()));
    }

    /// Adds a pool that was made elsewhere.
    pub(crate) fn add(&self, pool: Pool) -> Result<(), Error> {
        let _making = self.bring_up.lock();
        self.pools.push(pool)
    }

    pub(crate) fn hiwater(&self) -> &Hiwater {
        &self.hiwater
    }

    pub(crate) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// The pool with a number.
    #[inline(always)]
    pub(crate) fn pool(&self, index: usize) -> Option<&Arc<Pool>> {
        self.pools.get(index)
    }

    /// All pools, newest first.
    pub(crate) fn pools(&self) -> impl Iterator<Item = (usize, &Arc<Pool>)> {
        self.pools.newest_first()
    }

    /// The pool that has a bus address, and the address's offset in it. By the
    /// pool's own pages: a foreign frame whose number is that of a local one is
    /// in no pool.
    #[inline]
    pub(crate) fn find(&self, bus: u64) -> Option<(usize, &Arc<Pool>, u64)> {
        let mut pools = self.pools.newest_first();
        pools.find_map(|(index, pool)| Some((index, pool, pool.bus().offset(bus)?)))
    }

    /// Takes slots of the worker's own area in the newest pool, where nearly all
    /// find them, for a request without constraints: them and their bus address.
    /// `None` where they are not there.
    #[inline(always)]
    pub(crate) fn take_near(
        &self,
        hint: usize,
        placement: Placement,
        head: Head,
        limit: u64,
    ) -> Option<(Taken<'_>, u64)> {
        let (index, pool) = self.pools.newest()?;
        if !self.may_serve(pool, limit) {
            return None;
        }
        let (place, bus) = pool.take_lowest(hint, placement, head)?;
        self.hiwater.add(placement.slots);
        Some((Taken { index, pool, place }, bus))
    }

    /// Whether a pool is for devices that reach up to `limit`.
    #[inline(always)]
    fn may_serve(&self, pool: &Pool, limit: u64) -> bool {
        self.growing.is_none() || pool.max_bus() <= limit
    }

    /// Takes slots: the worker's own area first, in every pool; then the next
    /// area. `None` only after every area of every pool. Where pools
    /// are added for devices that reach no other, those above `limit` are left
    /// alone.
    pub(crate) fn take(
        &self,
        hint: usize,
        placement: &Placement,
        mut head: Head,
        limit: u64,
    ) -> Option<Taken<'_>> {
        let mut step = 0;
        loop {
            let mut areas_left = false;
            for (index, pool) in self.pools.newest_first() {
                if step >= pool.areas().len() {
                    continue;
                }
                areas_left = true;
                if !self.may_serve(pool, limit) {
                    continue;
                }
                head.fallback = step > 0;
                let turn = hint.wrapping_add(step);
                // while a pool is being closed the others may serve
                if let Ok(Some(place)) = pool.take(turn, *placement, self.settings.policy, head) {
                    self.hiwater.add(placement.slots);
                    return Some(Taken { index, pool, place });
                }
            }
            if !areas_left {
                return None;
            }
            step += 1;
        }
    }

    /// Why there are no slots: [`Error::Full`], or [`Error::NoPool`] after a
    /// teardown.
    #[cold]
    pub(crate) fn full(&self, wanted_slots: u32) -> Error {
        let runs = self.pools().map(|(_, pool)| pool.longest_free_run());
        if !self.is_active() {
            return Error::NoPool;
        }
        Error::Full {
            wanted_slots,
            largest_free_run: runs.max().unwrap_or(0),
            total: self.nslots(),
            used: self.used(),
        }
    }

    /// Counts a refusal for want of room, and says so now and then.
    #[cold]
    pub(crate) fn refused_full(&self, error: &Error, warn: bool) {
        let &Error::Full {
            wanted_slots,
            total,
            used,
            ..
        } = error
        else {
            return;
        };
        self.refusals.full.add(1);
        if warn && self.warner.may_speak() {
            let size = u64::from(wanted_slots) * SLOT_SIZE;
            let pool = &*self.settings.name;
            tracing::warn!(target: "swiotlb", pool, size, total, used, "the pool is full");
        }
    }

    /// Makes sure of a pool within `limit` of a device whose addresses are made
    /// by `dma`: of all pools, or of one where they can be added.
    pub(crate) fn check_reach(
        &self,
        limit: u64,
        dma: impl Fn(u64, u64) -> Result<u64, NoTranslation>,
    ) -> Result<(), Error> {
        let reached = |pool: &Pool| {
            // the page that is highest on the bus need not be the device's
            pool.bus().pieces().all(|(bus, len)| {
                let last = dma(bus, len).ok().and_then(|dma| dma.checked_add(len - 1));
                last.is_some_and(|last| last <= limit)
            })
        };
        let unreached = self.pools().find(|(_, pool)| !reached(pool));
        let Some((_, pool)) = unreached else {
            return Ok(());
        };
        let max_bus = pool.max_bus();
        if self.can_grow() {
            if self.pools().any(|(_, pool)| reached(pool)) {
                return Ok(());
            }
            let grown = self.grow_below(limit);
            if grown.is_ok() && self.pools().next().is_some_and(|(_, pool)| reached(pool)) {
                return Ok(());
            }
        }
        Err(Error::PoolUnreachable { limit, max_bus })
    }

    /// A number for a device.
    pub(crate) fn number_device(&self) -> u64 {
        self.devices.fetch_add(1, Ordering::Relaxed)
    }

    /// The largest mapping that a device with these constraints can be given,
    /// bytes: without limit where nothing can be bounced.
    pub fn max_mapping_size(&self, device: &crate::DeviceConstraints) -> u64 {
        match self.is_active() {
            true => device.max_bounced_size().min(SEGMENT_SIZE),
            false => u64::MAX,
        }
    }
}
