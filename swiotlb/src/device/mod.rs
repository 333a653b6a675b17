//! A device: its constraints and the allocator that serves it.
//!
//! Attached once and shared by the threads that serve the device; each maps
//! through a [`Worker`] of its own.

mod address;
mod coherent;
mod decision;
mod lease;
mod mapping;
mod sg;
mod slots;
mod worker;

use std::num::NonZeroU64;

pub use coherent::Coherent;
pub use decision::Attrs;
pub use lease::{Keeper, Lease};
pub use mapping::{Bounced, Direct, Mapping};
pub use sg::{SgElement, SgMapping};
pub use worker::Worker;

use crate::allocator::Allocator;
use crate::constraints::{Consumer, DeviceConstraints};
use crate::error::Error;
use crate::pool::area::Policy;
use crate::sync::{Arc, AtomicBool, AtomicU64, Ordering, SlowMutex};

/// A device that is attached to an allocator. On cache lines of its own, as is
/// all that every mapping reads.
#[derive(Debug)]
#[repr(align(128))]
pub struct Device {
    constraints: DeviceConstraints,
    allocator: Arc<Allocator>,
    /// The highest address that it reaches.
    limit: AtomicU64,
    /// Whether everything is bounced, by its own wish or the allocator's.
    force: bool,
    /// Of every allocation, less one: granule and isolation.
    align_mask: u64,
    /// Whether it takes the lowest slots wherever they are and has their
    /// addresses of the bus, as nearly all devices do.
    unconstrained: bool,
    /// Whether all of a mapping is copied back where nothing is stated.
    copies_back_whole: bool,
    /// Its number, by which its transient pools are told from others'.
    number: u64,
    /// Whether it ever had a transient pool. Set before an address of one is
    /// known to anybody.
    had_transient: AtomicBool,
    /// What each worker mapped without bouncing.
    direct: SlowMutex<Vec<Arc<DirectMaps>>>,
}

/// Mappings of a worker that were not bounced, on a cache line that no other
/// worker writes.
#[derive(Debug)]
#[repr(align(128))]
struct DirectMaps(AtomicU64);

impl Device {
    /// Attaches a device.
    ///
    /// # Errors
    /// [`Error::Invalid`] for constraints without form or a consumer that the
    /// pool's memory does not allow; [`Error::PoolUnreachable`] where the device
    /// does not reach all of the pool: now, rather than at the first mapping.
    pub fn attach(
        allocator: &Arc<Allocator>,
        constraints: DeviceConstraints,
    ) -> Result<Arc<Self>, Error> {
        constraints.validate()?;
        if constraints.consumer == Consumer::Declaring && allocator.is_shared() {
            return Err(Error::Invalid {
                what: "a consumer that is shown unzeroed memory, in a pool that others see up to",
                value: allocator.max_bus().unwrap_or(0),
            });
        }
        let limit = constraints.limit();
        allocator.check_reach(limit, |bus, len| constraints.dma(bus, len))?;
        let granule = match constraints.untrusted {
            true => u64::from(constraints.granule.max(1)) - 1,
            false => 0,
        };
        let align_mask = granule | allocator.isolation_mask();
        Ok(Arc::new(Device {
            limit: AtomicU64::new(limit),
            force: constraints.force || allocator.forces(),
            unconstrained: constraints.ranges.is_empty()
                && align_mask == 0
                && allocator.settings().policy == Policy::LowestFirst
                && constraints.min_align_mask == 0
                && constraints.seg_boundary == u64::MAX,
            align_mask,
            copies_back_whole: match constraints.consumer {
                Consumer::Trusted => true,
                Consumer::Declaring => false,
                Consumer::Untrusted { copy_back_whole } => copy_back_whole,
            },
            direct: SlowMutex::default(),
            number: allocator.number_device(),
            had_transient: AtomicBool::new(false),
            allocator: Arc::clone(allocator),
            constraints,
        }))
    }

    /// Its constraints, as they were when it was attached.
    pub fn constraints(&self) -> &DeviceConstraints {
        &self.constraints
    }

    /// The allocator that serves it.
    pub fn allocator(&self) -> &Arc<Allocator> {
        &self.allocator
    }

    /// The highest address that it reaches.
    #[inline]
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Lowers the highest address that it reaches, as a bridge on its way can.
    /// Mappings from now on keep to it; a limit above the present one changes
    /// nothing.
    pub fn lower_limit(&self, limit: NonZeroU64) {
        self.limit.fetch_min(limit.get(), Ordering::Relaxed);
    }

    /// The largest mapping that it can be given, bytes: without limit where
    /// nothing can be bounced.
    pub fn max_mapping_size(&self) -> u64 {
        self.allocator.max_mapping_size(&self.constraints)
    }

    /// Mappings of it that were not bounced.
    pub fn maps_direct(&self) -> u64 {
        let counts = self.direct.lock();
        counts.iter().map(|n| n.0.load(Ordering::Relaxed)).sum()
    }

    /// A worker, which maps from one thread at a time and starts looking at
    /// the area that `hint` names. Workers with different hints do not wait
    /// for each other.
    pub fn worker(self: &Arc<Self>, hint: usize) -> Worker {
        let direct = Arc::new(DirectMaps(AtomicU64::new(0)));
        self.direct.lock().push(Arc::clone(&direct));
        Worker::new(Arc::clone(self), hint, direct)
    }
}
