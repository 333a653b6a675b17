//! Restricted pools: fixed regions that are all a device may see.
//!
//! Everything of such a device is bounced, and its coherent memory comes from
//! the region, too.

use std::sync::Weak;

use crate::allocator::{Allocator, Settings};
use crate::constraints::DeviceConstraints;
use crate::device::Device;
use crate::error::Error;
use crate::memory::PoolMemory;
use crate::options::Bouncing;
use crate::pool::Pool;
use crate::pool::bus::Bus;
use crate::range::PAGE_SIZE;
use crate::segment;
use crate::sizing::{SLOT_SIZE, Sizing};
use crate::space::AddressSpace;
use crate::sync::{Arc, SlowMutex};

/// Properties of a region's device-tree node, `restricted-dma-pool`, that cannot
/// go together with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionProperties {
    /// `reusable`.
    pub reusable: bool,
    /// `linux,cma-default`.
    pub cma_default: bool,
    /// `linux,dma-default`.
    pub dma_default: bool,
    /// `no-map`.
    pub no_map: bool,
}

/// The regions of a machine: none overlaps another.
#[derive(Debug, Default)]
pub struct Regions {
    known: Vec<(u64, u64)>,
}

/// A region and, while a device uses it, its pool.
#[derive(Debug)]
pub struct Region {
    memory: PoolMemory,
    settings: Settings,
    space: AddressSpace,
    sizing: Sizing,
    allocator: SlowMutex<Weak<Allocator>>,
}

impl Regions {
    /// No regions.
    pub fn new() -> Self {
        Regions::default()
    }

    /// Takes a region over. `settings` give its name, policy and isolation; its
    /// options are those of every restricted pool.
    ///
    /// # Errors
    /// [`Error::BadRegion`] for properties that exclude it, a base that is not
    /// page-aligned, less than a slot, or an overlap; [`Error::Invalid`] for more
    /// slots than a pool can have.
    pub fn add(
        &mut self,
        memory: PoolMemory,
        properties: RegionProperties,
        settings: Settings,
        space: AddressSpace,
    ) -> Result<Region, Error> {
        let (base, size) = (memory.base(), memory.len());
        let bad = |reason| Err(Error::BadRegion { base, size, reason });
        let RegionProperties {
            reusable,
            cma_default,
            dma_default,
            no_map,
        } = properties;
        match () {
            () if reusable => return bad("is reusable"),
            () if cma_default => return bad("is the default for contiguous memory"),
            () if dma_default => return bad("is the default for coherent memory"),
            () if no_map => return bad("must not be mapped"),
            () if !base.is_multiple_of(PAGE_SIZE) => return bad("does not start at a page"),
            () if size < SLOT_SIZE => return bad("has no room for a slot"),
            () => {}
        }
        let end = base.saturating_add(size);
        let overlaps = |&(start, len): &(u64, u64)| base < start.saturating_add(len) && start < end;
        if self.known.iter().any(overlaps) {
            return bad("overlaps another region");
        }
        let slots = size / SLOT_SIZE;
        let sizing = Sizing::exact(u32::try_from(slots).unwrap_or(u32::MAX), 1)?;
        self.known.push((base, size));
        Ok(Region {
            memory,
            settings: Settings {
                options: settings.options.with_bouncing(Bouncing::Forced),
                ..settings
            },
            space,
            sizing,
            allocator: SlowMutex::default(),
        })
    }
}

impl Region {
    /// Attaches a device. The first one makes the pool, zeroing the region; the
    /// next ones share it as it is; when the last one is gone the pool is, too.
    /// A device that is detached attaches to the default allocator anew.
    ///
    /// # Errors
    /// Those of [`Device::attach`], [`Error::NoTranslation`] and
    /// [`Error::NoMemory`].
    pub fn attach(&self, constraints: DeviceConstraints) -> Result<Arc<Device>, Error> {
        let mut known = self.allocator.lock();
        let allocator = match known.upgrade() {
            Some(allocator) => allocator,
            None => {
                let allocator = self.make()?;
                *known = Arc::downgrade(&allocator);
                allocator
            }
        };
        Device::attach(&allocator, constraints)
    }

    fn make(&self) -> Result<Arc<Allocator>, Error> {
        let allocator = Allocator::new(self.settings.clone(), self.space.clone());
        allocator.check_rules(&self.memory)?;
        if let Some(bytes) = self.memory.slice(0, self.memory.len()) {
            segment::zero(&bytes);
        }
        let bus = Bus::of_pool(self.memory.base(), self.sizing.bytes(), &self.space)?;
        allocator.add(Pool::new(self.memory.clone(), bus, self.sizing)?)?;
        Ok(allocator)
    }
}
