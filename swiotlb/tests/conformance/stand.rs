//! What the tests stand on: a guest's memory, a pool at an address of the
//! test's choice, and devices.

use std::sync::Arc;

use swiotlb::allocator::{BringUp, Ensured};
use swiotlb::device::{Attrs, Mapping};
use swiotlb::*;
use vm_memory::{GuestAddress, GuestMemoryMmap, MmapRegion, VolatileMemory, VolatileSlice};

/// Where the default pool of the vectors is.
pub const BASE: u64 = 0x4000_0000;

/// Guest memory from 0 on, one piece.
pub struct Ram(MmapRegion);

impl Ram {
    pub fn new(len: u64) -> Self {
        Ram(MmapRegion::new(len as usize).unwrap())
    }

    pub fn all(&self) -> VolatileSlice<'_> {
        self.0.get_slice(0, self.0.size()).unwrap()
    }

    pub fn at(&self, address: u64, len: u64) -> VolatileSlice<'_> {
        self.all().subslice(address as usize, len as usize).unwrap()
    }

    pub fn fill(&self, address: u64, len: u64, byte: u8) {
        fill(&self.at(address, len), byte);
    }

    pub fn read(&self, address: u64, len: u64) -> Vec<u8> {
        read(&self.at(address, len))
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.at(address, bytes.len() as u64).copy_from(bytes);
    }
}

impl Originals for Ram {
    fn copy_in(&self, address: u64, bounce: &VolatileSlice<'_>) -> Result<(), OrigFault> {
        Window::new(0, self.all()).copy_in(address, bounce)
    }

    fn copy_back(&self, address: u64, bounce: &VolatileSlice<'_>) -> Result<(), OrigFault> {
        Window::new(0, self.all()).copy_back(address, bounce)
    }
}

/// Originals of which no byte can be reached, or matters.
pub struct NoRam;

impl Originals for NoRam {
    fn copy_in(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), OrigFault> {
        Ok(())
    }

    fn copy_back(&self, _: u64, _: &VolatileSlice<'_>) -> Result<(), OrigFault> {
        Ok(())
    }
}

pub fn fill(slice: &VolatileSlice<'_>, byte: u8) {
    slice.copy_from(&vec![byte; slice.len()]);
}

pub fn read(slice: &VolatileSlice<'_>) -> Vec<u8> {
    let mut bytes = vec![0; slice.len()];
    slice.copy_to(&mut bytes);
    bytes
}

/// A source of pools at one address.
pub fn at(base: u64) -> impl FnMut(u64, u64) -> Result<PoolMemory, Error> + Send {
    move |bytes, _limit| PoolMemory::anonymous(bytes, Base::At(base))
}

/// Brings the default pool up, without limit, remap or cache flushes.
pub fn ensure(allocator: &Allocator, base: u64) -> Result<Ensured, Error> {
    allocator.ensure_default_pool(BringUp {
        source: &mut at(base),
        limit: None,
        remap: None,
        probe: &mut || false,
        pv_pci: false,
    })
}

/// The settings of the vectors: as many slots and areas as the options say.
pub fn settings(options: &str) -> Settings {
    Settings {
        options: options.parse().unwrap(),
        ..Settings::default()
    }
}

/// An allocator with a pool at [`BASE`] in a domain mapped 1:1.
pub fn allocator(settings: Settings) -> Arc<Allocator> {
    let allocator = Allocator::new(settings, AddressSpace::one_to_one());
    ensure(&allocator, BASE).unwrap();
    allocator
}

/// The vectors' pool: 2048 slots, one area.
pub fn default_pool() -> Arc<Allocator> {
    allocator(settings("2048,1"))
}

/// A device that bounces everything, so that a vector's mapping is bounced.
pub fn forced() -> DeviceConstraints {
    DeviceConstraints {
        force: true,
        ..DeviceConstraints::default()
    }
}

/// A forced device with this `min_align_mask`, on the vectors' pool.
pub fn masked(mask: u64) -> (Arc<Allocator>, Worker) {
    let allocator = default_pool();
    let constraints = DeviceConstraints {
        min_align_mask: mask,
        ..forced()
    };
    let worker = worker(&allocator, constraints, 0);
    (allocator, worker)
}

pub fn worker(allocator: &Arc<Allocator>, constraints: DeviceConstraints, hint: usize) -> Worker {
    Device::attach(allocator, constraints).unwrap().worker(hint)
}

pub fn aligned(align: u64) -> Attrs {
    Attrs {
        align,
        ..Attrs::default()
    }
}

/// First slot, slots and address of a mapping that was bounced.
pub fn placed<H: std::ops::Deref<Target = Device>>(mapping: &Mapping<H>) -> (u32, u32, u64) {
    let lease = mapping.bounced().expect("bounced").lease();
    (lease.first_slot(), lease.slots(), lease.dma_address())
}

/// The device's view of a mapping.
pub fn bytes<H: std::ops::Deref<Target = Device>>(mapping: &Mapping<H>) -> VolatileSlice<'_> {
    let lease = mapping.bounced().expect("bounced").lease();
    lease.bytes().expect("inside the pool")
}

/// `len` bytes of the only pool from `offset` on.
pub fn pool_bytes(allocator: &Allocator, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    allocator.each_memory(|memory| bytes = read(&memory.slice(offset, len).unwrap()));
    bytes
}

/// Guest memory of vm-memory's, with a hole between 0x2000 and 0x4000.
pub fn holed() -> GuestMemoryMmap<()> {
    let regions = [(GuestAddress(0), 0x2000), (GuestAddress(0x4000), 0x4000)];
    GuestMemoryMmap::from_ranges(&regions).unwrap()
}
