//! What both programs' tests stand on: pools whose bytes are watched, a guest's
//! memory, and a register of who holds which slots.

use std::collections::HashSet;
use std::num::NonZeroU64;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::VolatileSlice;

use crate::allocator::{Allocator, BringUp, Ensured, Growth, Settings};
use crate::constraints::DeviceConstraints;
use crate::device::{Attrs, Device, Lease, Mapping, Worker};
use crate::direction::Direction;
use crate::error::Error;
use crate::memory::{Base, PoolMemory};
use crate::originals::{OrigFault, Originals};
use crate::space::AddressSpace;
use crate::sync::Arc;
use crate::{shadow, sync};

/// Where the first pool is.
pub const BASE: u64 = 0x4000_0000;
/// Where pools that are added start.
pub const ADDED: u64 = 0x6000_0000;
/// What each of them has for itself.
const APART: u64 = 0x1000_0000;

/// The start of an execution: nothing is left of the one before.
pub fn fresh() {
    shadow::reset();
    sync::reset();
}

fn watched(bytes: u64, base: u64) -> Result<PoolMemory, Error> {
    let memory = PoolMemory::anonymous(bytes, Base::At(base))?;
    shadow::watch(&memory.slice(0, bytes).expect("all of it"));
    Ok(memory)
}

fn settings(options: &str) -> Settings {
    Settings {
        options: options.parse().expect("options"),
        ..Settings::default()
    }
}

/// Makes sure of a first pool below a limit.
pub fn ensure(allocator: &Allocator, limit: Option<u64>) -> Result<Ensured, Error> {
    allocator.ensure_default_pool(BringUp {
        source: &mut |bytes, _| watched(bytes, BASE),
        limit: limit.and_then(NonZeroU64::new),
        remap: None,
        probe: &mut || false,
        pv_pci: false,
    })
}

/// An allocator with a pool.
pub fn allocator(options: &str) -> Arc<Allocator> {
    let allocator = Allocator::new(settings(options), AddressSpace::one_to_one());
    ensure(&allocator, None).expect("a pool");
    allocator
}

/// What growth asked for.
#[derive(Default)]
pub struct Watch {
    pub woken: AtomicU64,
    pub made: AtomicU64,
}

/// One that grows; what it adds is in steps from [`ADDED`] on.
pub fn growing(options: &str) -> (Arc<Allocator>, Arc<Watch>) {
    let watch = Arc::new(Watch::default());
    let (made, woken) = (Arc::clone(&watch), Arc::clone(&watch));
    let source = move |bytes, _| {
        // system calls
        sync::assert_outside();
        watched(
            bytes,
            ADDED + APART * made.made.fetch_add(1, Ordering::SeqCst),
        )
    };
    let wake = move || {
        sync::assert_outside();
        woken.woken.fetch_add(1, Ordering::SeqCst);
    };
    let growth = Growth::new(Box::new(source), Box::new(wake));
    let allocator = Allocator::growing(settings(options), AddressSpace::one_to_one(), growth);
    ensure(&allocator, None).expect("a pool");
    (allocator, watch)
}

/// A device that bounces everything.
pub fn device(allocator: &Arc<Allocator>) -> Arc<Device> {
    let constraints = DeviceConstraints {
        force: true,
        ..DeviceConstraints::default()
    };
    Device::attach(allocator, constraints).expect("in reach")
}

/// Takes slots without touching the bytes that are asked for.
pub fn lease(device: &Arc<Device>, len: u64) -> Lease<Arc<Device>> {
    let lease = device
        .worker(0)
        .lease(0, len, Direction::FromDevice, &Attrs::default());
    lease.expect("room")
}

/// Takes a whole segment.
pub fn segment(device: &Arc<Device>) -> Lease<Arc<Device>> {
    lease(device, 0x4_0000)
}

/// Some guest memory.
pub struct Ram(Mutex<Vec<u8>>);

impl Ram {
    pub fn new(len: usize) -> Arc<Self> {
        Arc::new(Ram(Mutex::new(vec![0; len])))
    }

    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        self.0.lock().expect("ram")[address as usize..][..len].to_vec()
    }
}

impl Originals for Ram {
    fn copy_in(&self, address: u64, bounce: &VolatileSlice<'_>) -> Result<(), OrigFault> {
        sync::assert_outside();
        shadow::write(bounce);
        bounce.copy_from(&self.0.lock().expect("ram")[address as usize..][..bounce.len()]);
        Ok(())
    }

    fn copy_back(&self, address: u64, bounce: &VolatileSlice<'_>) -> Result<(), OrigFault> {
        sync::assert_outside();
        shadow::read(bounce);
        bounce.copy_to(&mut self.0.lock().expect("ram")[address as usize..][..bounce.len()]);
        Ok(())
    }
}

/// Maps for a device that writes.
pub fn map(
    worker: &Worker,
    ram: &Ram,
    address: u64,
    len: u64,
) -> Result<Mapping<Arc<Device>>, Error> {
    let attrs = Attrs {
        no_warn: true,
        ..Attrs::default()
    };
    worker.map_owned(ram, address, len, Direction::FromDevice, &attrs)
}

/// Ends what was left to its address.
pub fn unmap(device: &Device, ram: &Ram, address: u64, len: u64) -> Result<(), Error> {
    device.unmap(ram, address, len, Direction::FromDevice, &Attrs::default())
}

/// The device writes all of a mapping.
pub fn device_writes(mapping: &Mapping<Arc<Device>>, byte: u8) {
    let lease = mapping.bounced().expect("forced").lease();
    let bytes = lease.bytes().expect("inside its pool");
    shadow::write(&bytes);
    bytes.copy_from(&vec![byte; bytes.len()]);
}

/// Slots in use of each area of the first pool.
pub fn used_by_area(allocator: &Allocator) -> Vec<u32> {
    let pool = allocator.pool(0).expect("a pool");
    pool.areas().iter().map(|area| area.lock().used()).collect()
}

/// Asserts that the first pool is as new: nothing is used and each area's
/// segments are whole.
pub fn assert_as_new(allocator: &Allocator) {
    let pool = allocator.pool(0).expect("a pool");
    for area in pool.areas() {
        let area = area.lock();
        assert_eq!((area.used(), area.longest_free_run()), (0, 128));
    }
    let stats = allocator.stats();
    assert_eq!((stats.used, stats.transient_nslots), (0, 0));
}

/// Who holds which slots, by their addresses: filled after slots are taken,
/// emptied before they are given back.
#[derive(Default)]
pub struct Claims(Mutex<HashSet<u64>>);

impl Claims {
    pub fn take(&self, mapping: &Mapping<Arc<Device>>) {
        let mut held = self.0.lock().expect("claims");
        for slot in slots(mapping) {
            assert!(held.insert(slot), "slot {slot:#x} has two owners");
        }
    }

    pub fn give_back(&self, mapping: &Mapping<Arc<Device>>) {
        let mut held = self.0.lock().expect("claims");
        for slot in slots(mapping) {
            assert!(held.remove(&slot), "slot {slot:#x} has no owner");
        }
    }
}

fn slots(mapping: &Mapping<Arc<Device>>) -> impl Iterator<Item = u64> {
    let lease = mapping.bounced().expect("forced").lease();
    let first = lease.dma_address() / 2048;
    first..first + u64::from(lease.slots())
}
