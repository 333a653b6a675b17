//! Making the default pool, and unmaking it.

use std::num::NonZeroU64;

use crate::allocator::{Allocator, Isolation, PadPolicy};
use crate::error::Error;
use crate::features::{Arch, Detection, FeatureInputs, Kind, detect, x86_bring_up};
use crate::memory::{PoolMemory, PoolSource};
use crate::options::Bouncing;
use crate::pool::Pool;
use crate::pool::bus::Bus;
use crate::range::PAGE_SIZE;
use crate::sizing::{PoolShrunk, SEGMENT_SIZE, Sizing};
use crate::sync::Ordering;

/// Makes a pool's segments contiguous and reachable on the bus, where the
/// domain's frames are not. May block.
pub trait Remap: Send {
    /// Exchanges the memory behind each segment of `pool` and appends the bus
    /// address that the segment has now. Called once for each candidate pool.
    ///
    /// # Errors
    /// Why, with what was done until then in `done`: it is restored.
    fn remap(&mut self, pool: &PoolMemory, limit: u64, done: &mut Vec<u64>) -> Result<(), String>;

    /// Undoes the exchange of the segment at an offset into `pool`.
    fn restore(&mut self, pool: &PoolMemory, offset: u64);
}

/// What bring-up works with.
pub struct BringUp<'a> {
    /// Where memory comes from.
    pub source: &'a mut dyn PoolSource,
    /// The highest bus address that the pool may have.
    pub limit: Option<NonZeroU64>,
    /// How its segments are made contiguous, if they have to be.
    pub remap: Option<&'a mut dyn Remap>,
    /// Whether the hypervisor flushes the caches of foreign frames; asked after
    /// every success.
    pub probe: &'a mut dyn FnMut() -> bool,
    /// Whether the domain may be given PCI devices by a back end: counts for
    /// paravirtualised domains on x86.
    pub pv_pci: bool,
}

/// What bring-up found or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// There was no pool and there is one now, smaller than wanted if memory
    /// was short.
    Created(Option<PoolShrunk>),
    /// There was a pool. It is as it was, with everything in it.
    AlreadyPresent,
    /// The options forbid a pool.
    Suppressed,
}

/// What [`bring_up`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brought {
    /// The domain's kind.
    pub detection: Detection,
    /// The pool; `None` where Xen's rules are off or need none.
    pub pool: Option<Ensured>,
}

/// Detects a domain's kind and makes sure of a pool for it.
///
/// Detection is the only gate: on Arm nothing after it asks whether this is the
/// initial domain. On x86 that is part of the condition by right.
///
/// # Errors
/// Those of [`detect`] and of [`Allocator::ensure_default_pool`].
pub fn bring_up(
    inputs: &FeatureInputs,
    strict: bool,
    allocator: &Allocator,
    with: BringUp<'_>,
) -> Result<Brought, Error> {
    let detection = detect(inputs, strict)?;
    if detection.contradictory {
        tracing::warn!(
            target: "swiotlb",
            features = inputs.features,
            "the domain is both direct-mapped and not; taken for direct-mapped"
        );
    }
    let wanted = match (detection.kind, inputs.arch) {
        (Kind::Disabled, _) => false,
        (_, Arch::Arm) => true,
        (_, Arch::X86 { .. }) => {
            x86_bring_up(inputs.initial_domain, allocator.forces(), with.pv_pci)
        }
    };
    let pool = match wanted {
        true => Some(allocator.ensure_default_pool(with)?),
        false => None,
    };
    Ok(Brought { detection, pool })
}

impl Allocator {
    /// Makes sure of a default pool: one call makes it, any number of calls
    /// leaves it alone.
    ///
    /// # Errors
    /// [`Error::PoolUnreachable`] if the pool there is, or any that can be had,
    /// goes above the limit; [`Error::NoMemory`] and [`Error::Remap`] after every size
    /// down to 1 MiB was tried; [`Error::Invalid`] for rules that the memory does
    /// not allow; [`Error::NoPool`] after a teardown. After an error there is no new pool and nothing is kept of it.
    pub fn ensure_default_pool(&self, with: BringUp<'_>) -> Result<Ensured, Error> {
        let making = self.bring_up.lock();
        let limit = with.limit.map_or(u64::MAX, NonZeroU64::get);
        let ensured = if self.closed.load(Ordering::Acquire) {
            return Err(Error::NoPool);
        } else if self.is_active() {
            // what exists was made by somebody else's promise: look at it.
            // Whoever adds a pool on the way takes the lock, too
            drop(making);
            self.check_reach(limit, |bus, _| Ok(bus))?;
            Ensured::AlreadyPresent
        } else if self.settings().options.bouncing == Bouncing::Suppressed {
            Ensured::Suppressed
        } else {
            let settings = self.settings();
            let wanted = settings.options.sizing(settings.workers);
            if with.remap.is_some() {
                // an exchange may block, and an unmap could not undo it
                self.stop_growing();
            }
            let (pool, shrunk) = self.make(wanted, limit, with.source, with.remap)?;
            self.pools.push(pool)?;
            if let Some(PoolShrunk { wanted, got }) = shrunk {
                tracing::warn!(target: "swiotlb", wanted, got, "the pool is smaller than wanted");
            }
            Ensured::Created(shrunk)
        };
        self.cache_flush.store((with.probe)(), Ordering::Relaxed);
        Ok(ensured)
    }

    /// Makes the largest pool that can be had.
    pub(super) fn make(
        &self,
        wanted: Sizing,
        limit: u64,
        source: &mut dyn PoolSource,
        mut remap: Option<&mut dyn Remap>,
    ) -> Result<(Pool, Option<PoolShrunk>), Error> {
        let mut sizing = wanted;
        loop {
            let made = match &mut remap {
                Some(remap) => self.make_one(sizing, limit, source, Some(&mut **remap)),
                None => self.make_one(sizing, limit, source, None),
            };
            let error = match made {
                Ok(pool) => {
                    let got = sizing.nslots();
                    let wanted = wanted.nslots();
                    let shrunk = (got < wanted).then_some(PoolShrunk { wanted, got });
                    return Ok((pool, shrunk));
                }
                Err(error @ (Error::NoMemory { .. } | Error::Remap(_))) => error,
                Err(other) => return Err(other),
            };
            sizing = sizing.halved().ok_or(error)?;
        }
    }

    fn make_one(
        &self,
        sizing: Sizing,
        limit: u64,
        source: &mut dyn PoolSource,
        remap: Option<&mut dyn Remap>,
    ) -> Result<Pool, Error> {
        let memory = source.allocate(sizing.bytes(), limit)?;
        self.check_rules(&memory)?;
        let Some(remap) = remap else {
            let bus = Bus::of_pool(memory.base(), sizing.bytes(), self.space())?;
            return check_limit(Pool::new(memory, bus, sizing)?, limit);
        };
        let mut done = Vec::new();
        let made = remap
            .remap(&memory, limit, &mut done)
            .map_err(Error::Remap)
            .and_then(|()| {
                let bus = Bus::of_pages(pages_of(&done, sizing.bytes())?, sizing.bytes());
                check_limit(Pool::new(memory.clone(), bus, sizing)?, limit)
            });
        if made.is_err() {
            for segment in 0..done.len() as u64 {
                remap.restore(&memory, segment * SEGMENT_SIZE);
            }
        }
        made
    }

    /// Whether these settings are safe with this memory.
    pub(crate) fn check_rules(&self, memory: &PoolMemory) -> Result<(), Error> {
        if memory.is_shared() && self.settings().pad == PadPolicy::Trusted {
            return Err(Error::Invalid {
                what: "unzeroed padding, in a pool that others see at",
                value: memory.base(),
            });
        }
        Ok(())
    }

    /// Ends the allocator: from here on its devices have no pool.
    ///
    /// Its memory lives as long as somebody holds the allocator or a device of
    /// it. A mapping that is tried while a teardown is being refused may fail
    /// with [`Error::Full`].
    ///
    /// # Errors
    /// [`Error::Busy`] while something is mapped, or where bouncing is forced;
    /// then everything is as before.
    pub fn tear_down(&self) -> Result<(), Error> {
        let _making = self.bring_up.lock();
        if self.forces() {
            return Err(Error::Busy { used: self.used() });
        }
        for (index, pool) in self.pools() {
            if let Err(busy) = pool.close() {
                // newest first: those with higher numbers are closed already
                let closed = self.pools().filter(|&(i, _)| i > index);
                closed.for_each(|(_, pool)| pool.reopen());
                return Err(busy);
            }
        }
        // no transient pool is made while this is held, nor afterwards
        let transients = self.transients.lock();
        if !transients.is_empty() {
            self.pools().for_each(|(_, pool)| pool.reopen());
            let used = transients.used();
            return Err(Error::Busy { used });
        }
        self.closed.store(true, Ordering::Release);
        Ok(())
    }

    /// How far apart mappings start and end, less one.
    pub(crate) fn isolation_mask(&self) -> u64 {
        match self.settings().isolation {
            Isolation::Slot => 0,
            Isolation::Page => PAGE_SIZE - 1,
        }
    }
}

fn check_limit(pool: Pool, limit: u64) -> Result<Pool, Error> {
    let max_bus = pool.max_bus();
    if max_bus > limit {
        return Err(Error::PoolUnreachable { limit, max_bus });
    }
    Ok(pool)
}

/// The bus address of each page, from those of the segments.
fn pages_of(segments: &[u64], bytes: u64) -> Result<Vec<u64>, Error> {
    let pages = (0..bytes).step_by(4096).map(|offset| {
        let segment = usize::try_from(offset / SEGMENT_SIZE).ok()?;
        segments.get(segment)?.checked_add(offset % SEGMENT_SIZE)
    });
    let pages: Option<Vec<u64>> = pages.collect();
    pages.ok_or_else(|| Error::Remap("not every segment has an address".into()))
}
