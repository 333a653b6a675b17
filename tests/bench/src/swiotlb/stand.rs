//! A pool, a device and guests' memory to measure on.

use std::sync::Arc;

use anyhow::Context;
use swiotlb::allocator::{BringUp, PadPolicy};
use swiotlb::options::{Bouncing, DEFAULT_SLOTS, Options};
use swiotlb::{
    AddressSpace, Allocator, Anonymous, Base, Consumer, Device, DeviceConstraints, OrigFault,
    Originals, PoolMemory, PoolSource, Settings,
};
use vm_memory::VolatileSlice;

/// Bytes of originals that stay in the processor's caches.
const HOT: u64 = 1 << 20;
/// Bytes of originals that do not.
const COLD: u64 = 240 << 20;

/// What a pool and its device are to be.
pub struct Setup {
    /// Areas of the pool.
    pub areas: u32,
    /// What happens to bytes around a mapping.
    pub pad: PadPolicy,
    /// Who consumes.
    pub consumer: Consumer,
    /// Whether everything is bounced.
    pub force: bool,
    /// Whether the high-water mark is recorded.
    pub hiwater: bool,
    /// Where the pool lies.
    pub space: AddressSpace,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            areas: 1,
            pad: PadPolicy::Zero,
            consumer: Consumer::Trusted,
            force: true,
            hiwater: false,
            space: AddressSpace::one_to_one(),
        }
    }
}

/// A pool of 64 MiB and a device.
pub struct Stand {
    /// The device.
    pub device: Arc<Device>,
    /// The pool's memory, for peers that copy to the same bytes.
    pub pool: PoolMemory,
}

impl Stand {
    /// Brings a pool up and attaches a device.
    ///
    /// # Errors
    /// The crate's own.
    pub fn new(setup: Setup) -> anyhow::Result<Self> {
        Stand::in_memory(setup, &mut Anonymous)
    }

    /// The same, in memory of one's own.
    ///
    /// # Errors
    /// The crate's own.
    pub fn in_memory(setup: Setup, source: &mut dyn PoolSource) -> anyhow::Result<Self> {
        let mut options: Options = format!("{DEFAULT_SLOTS},{}", setup.areas).parse()?;
        options.bouncing = Bouncing::Needed;
        options.track_hiwater = setup.hiwater;
        let settings = Settings {
            options,
            pad: setup.pad,
            ..Settings::default()
        };
        let allocator = Allocator::new(settings, setup.space);
        allocator.ensure_default_pool(BringUp {
            source,
            limit: None,
            remap: None,
            probe: &mut || false,
            pv_pci: false,
        })?;
        let device = Device::attach(
            &allocator,
            DeviceConstraints {
                name: "bench".into(),
                force: setup.force,
                consumer: setup.consumer,
                ..DeviceConstraints::default()
            },
        )?;
        let mut pool = None;
        allocator.each_memory(|memory| pool = Some(memory.clone()));
        let pool = pool.context("the allocator has no pool")?;
        Ok(Stand { device, pool })
    }
}

/// The memory of one guest, at its addresses from 0 on. All contenders use all
/// of it.
#[derive(Clone)]
pub struct Guest {
    memory: PoolMemory,
}

impl Guest {
    /// Memory that fits into the caches.
    ///
    /// # Errors
    /// Where memory is short.
    pub fn hot() -> anyhow::Result<Self> {
        Guest::new(HOT)
    }

    /// Memory that does not.
    ///
    /// # Errors
    /// Where memory is short.
    pub fn cold() -> anyhow::Result<Self> {
        Guest::new(COLD)
    }

    fn new(bytes: u64) -> anyhow::Result<Self> {
        let memory = PoolMemory::anonymous(bytes, Base::At(0))?;
        // pages that were never written are all the same one
        let pattern = vec![0xA5u8; 1 << 20];
        for offset in (0..bytes).step_by(pattern.len()) {
            let part = memory.slice(offset, pattern.len() as u64);
            part.context("a part of the guest's memory")?
                .copy_from(&pattern);
        }
        Ok(Guest { memory })
    }

    /// All of it.
    ///
    /// # Errors
    /// Never; it has a size.
    pub fn all(&self) -> anyhow::Result<VolatileSlice<'_>> {
        let all = self.memory.slice(0, self.memory.len());
        all.context("the guest's memory")
    }

    /// Originals of `size` bytes each, over and over.
    pub fn walk(&self, size: u64) -> Walk {
        Walk::of(0, size, self.memory.len() / size)
    }

    /// What a burst of originals out of the caches is made of: all of them. Each
    /// contender then finds any of them as long after its last use as another
    /// contender does. Of parts, some would be more recent than others, and
    /// some are faster to reach.
    pub fn pass(&self, size: u64) -> u64 {
        match self.memory.len() {
            HOT => 1,
            len => len / size,
        }
    }
}

/// Addresses one after the other, over and over. On cache lines of its own: it
/// moves with every operation, and its neighbour in memory may be another
/// thread's.
#[derive(Clone)]
#[repr(align(128))]
pub struct Walk {
    start: u64,
    end: u64,
    step: u64,
    at: u64,
}

impl Walk {
    /// `count` places of `step` bytes from `start` on.
    pub fn of(start: u64, step: u64, count: u64) -> Self {
        Walk {
            start,
            end: start + step * count,
            step,
            at: start,
        }
    }

    /// The next one.
    #[inline]
    pub fn next(&mut self) -> u64 {
        let at = self.at;
        self.at += self.step;
        if self.at >= self.end {
            self.at = self.start;
        }
        at
    }
}

/// Originals of which nothing is copied: what is left of a mapping is the
/// allocator.
pub struct Nothing;

impl Originals for Nothing {
    #[inline]
    fn copy_in(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), OrigFault> {
        Ok(())
    }

    #[inline]
    fn copy_back(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), OrigFault> {
        Ok(())
    }
}
