//! One device, one pool and its guest, played beside a model that knows every
//! byte of both.

use std::sync::{Arc, LazyLock, Mutex};

use arbitrary::Arbitrary;
use swiotlb::allocator::{BringUp, Growth, Isolation, PadPolicy};
use swiotlb::foreign::ForeignFrames;
use swiotlb::*;

use crate::heap::Heap;
use crate::values::{AnyAttrs, AnyDirection, Number, Shape, turn};

mod access;
mod mappings;

/// Bytes of guest memory, from address 0 on.
const RAM: usize = 0x1_8000;
/// Where the pool is.
const BASE: u64 = 0x4000_0000;
/// Where further pools are.
const ADDED: u64 = 0x6000_0000;
/// Bytes of transient pools that there may be.
const BUDGET: u64 = 0x3_0000;
/// Steps that are played of a story.
const STEPS: usize = 40;

/// What happens.
#[derive(Arbitrary, Debug)]
pub struct Story {
    pool: Pool,
    shape: Shape,
    steps: Vec<Step>,
}

/// What the pool is like.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Pool {
    areas: u8,
    next_fit: bool,
    trusted: bool,
    pages: bool,
    scrub: bool,
    grows: bool,
    hiwater: bool,
    page: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Map(Number, Number, AnyDirection, AnyAttrs),
    MapAndLeave(Number, Number, AnyDirection, AnyAttrs),
    Unmap(u8),
    UnmapWritten(u8, [Number; 4]),
    Drop(u8),
    UnmapAddress(u8, Number, Number, AnyDirection, AnyAttrs),
    SyncAddress(u8, Number, Number, AnyDirection, bool),
    Sync(u8, Number, Number, bool),
    DeviceWrites(u8, u16, u16, u8),
    GuestWrites(Number, u16, u8),
    Coherent(Number),
    FreeCoherent(u8, Number, Number),
    Foreign(u8, u16, u8),
    Local(u8),
    LowerLimit(Number),
    Grow,
    Look,
    TearDown,
}

/// A bounce buffer of the model.
struct Held {
    kind: HeldAs,
    orig: u64,
    len: u64,
    direction: Direction,
    /// Device address of the first byte, and of the first slot.
    dma: u64,
    slots_at: u64,
    slots: u64,
    /// What the device sees; not followed in coherent memory.
    bytes: Vec<u8>,
    /// Offset of the first byte in the pool, unless it is in another one.
    at: Option<usize>,
}

enum HeldAs {
    Value(Mapping<Arc<Device>>),
    Address,
    Coherent,
}

struct World {
    allocator: Arc<Allocator>,
    device: Arc<Device>,
    worker: Worker,
    foreign: Arc<ForeignFrames>,
    base: u64,
    settings: Settings,
    held: Vec<Held>,
    direct: Vec<Mapping<Arc<Device>>>,
    ram: Heap,
    ram_model: Vec<u8>,
    pool_model: Vec<u8>,
    /// Last: everything else may point here. The first one is the pool.
    heaps: Arc<Mutex<Vec<Heap>>>,
}

/// Plays a story.
pub fn play(story: Story) {
    let Some(mut world) = World::new(story.pool, story.shape) else {
        return;
    };
    for (index, step) in story.steps.iter().take(STEPS).enumerate() {
        world.step(*step);
        world.check_slots();
        // what is written where it must not be stays there for a while
        if index % 8 == 7 {
            world.check_bytes();
        }
    }
    world.probe();
    world.check_slots();
    world.check_bytes();
    world.end();
}

impl World {
    fn new(pool: Pool, shape: Shape) -> Option<Self> {
        let areas = 1 << (pool.areas % 2);
        let mut options = format!("128,{areas}");
        if pool.hiwater {
            options += ",track_hiwater";
        }
        let settings = Settings {
            options: options.parse().expect("options"),
            policy: [Policy::LowestFirst, Policy::NextFit][usize::from(pool.next_fit)],
            pad: [PadPolicy::Zero, PadPolicy::Trusted][usize::from(pool.trusted)],
            isolation: [Isolation::Slot, Isolation::Page][usize::from(pool.pages)],
            scrub_on_free: pool.scrub,
            ..Settings::default()
        };
        let foreign = Arc::new(ForeignFrames::new());
        let space = AddressSpace::OneToOne(Arc::clone(&foreign));
        let heaps = Arc::new(Mutex::new(Vec::new()));
        let allocator = match pool.grows {
            true => {
                let heaps = Arc::clone(&heaps);
                let source = move |bytes, _| memory(&heaps, bytes, ADDED);
                let mut growth = Growth::new(Box::new(source), Box::new(|| ()));
                growth.max_transient_total = BUDGET;
                growth.max_transient_device = BUDGET;
                Allocator::growing(settings.clone(), space, growth)
            }
            false => Allocator::new(settings.clone(), space),
        };
        let base = BASE + u64::from(pool.page) * 4096;
        let ensured = allocator.ensure_default_pool(BringUp {
            source: &mut |bytes, _| memory(&heaps, bytes, base),
            limit: None,
            remap: None,
            probe: &mut || false,
            pv_pci: false,
        });
        ensured.expect("a pool");
        let device = Device::attach(&allocator, shape.get()).ok()?;
        // nothing is zero by chance, and no two places look alike
        let ram = Heap::new(RAM);
        let ram_model = dirt(&ram, 0);
        let pool_model = dirt(&heaps.lock().expect("heaps")[0], 0x4_0001);
        Some(World {
            worker: device.worker(usize::from(pool.areas)),
            device,
            allocator,
            foreign,
            base,
            settings,
            held: Vec::new(),
            direct: Vec::new(),
            ram,
            ram_model,
            pool_model,
            heaps,
        })
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Map(orig, len, direction, attrs) => {
                self.map(orig.get(), len.get(), direction.get(), &attrs.get());
            }
            Step::MapAndLeave(orig, len, direction, attrs) => {
                if self.map(orig.get(), len.get(), direction.get(), &attrs.get()) {
                    self.leave();
                }
            }
            Step::Unmap(which) => self.unmap(which),
            Step::UnmapWritten(which, [a, b, c, d]) => {
                self.unmap_written(which, [a, b, c, d]);
            }
            Step::Drop(which) => {
                if let Some(index) = self.pick(which, |held| matches!(held.kind, HeldAs::Value(_)))
                {
                    let held = self.held.remove(index);
                    self.freed(&held);
                }
            }
            Step::UnmapAddress(near, by, len, direction, attrs) => {
                let (address, mapped) = self.near(near, by);
                let len = len.around(mapped);
                self.unmap_address(address, len, direction.get(), &attrs.get());
            }
            Step::SyncAddress(near, by, len, direction, cpu) => {
                let (address, mapped) = self.near(near, by);
                let len = len.around(mapped);
                self.sync_address(address, len, direction.get(), turn(cpu));
            }
            Step::Sync(which, by, len, cpu) => self.sync(which, by, len, turn(cpu)),
            Step::DeviceWrites(which, at, len, byte) => self.device_writes(which, at, len, byte),
            Step::GuestWrites(at, len, byte) => self.guest_writes(at.get(), len, byte),
            Step::Coherent(size) => self.coherent(size.get()),
            Step::FreeCoherent(near, by, size) => {
                let (address, mapped) = self.near(near, by);
                self.free_coherent(address, size.around(mapped));
            }
            Step::Foreign(gfn, mfn, count) => {
                let mfn = 0x8_0000 + u64::from(mfn);
                let _ = self.foreign.insert(gfn.into(), mfn, count.into());
            }
            Step::Local(gfn) => drop(self.foreign.remove(gfn.into())),
            Step::LowerLimit(limit) => {
                if let Some(limit) = std::num::NonZeroU64::new(limit.get()) {
                    self.device.lower_limit(limit);
                }
            }
            Step::Grow => drop(self.allocator.grow()),
            Step::Look => {
                let stats = self.allocator.stats();
                assert!(stats.transient_nslots * 2048 <= BUDGET, "INV-34");
            }
            Step::TearDown => {
                let ended = self.allocator.tear_down();
                assert_eq!(ended.is_ok(), self.held.is_empty());
            }
        }
    }

    /// Every byte is as the model has it.
    fn check_bytes(&self) {
        assert!(self.ram.bytes() == self.ram_model, "the guest's memory");
        let heaps = self.heaps.lock().expect("heaps");
        assert!(heaps[0].bytes() == self.pool_model, "the pool");
    }

    /// INV-02.
    fn check_slots(&self) {
        let used: u64 = self.held.iter().map(|held| held.slots).sum();
        assert_eq!(self.allocator.used(), used);
    }

    /// What is next to everything that is held, as an address, a length or a
    /// direction.
    fn probe(&mut self) {
        let held = self.held.iter();
        let held: Vec<_> = held.map(|h| (h.dma, h.len, h.direction)).collect();
        for (dma, len, direction) in held {
            for (dma, len) in [(dma, len + 1), (dma + len, 1), (dma - 1, 1), (dma - 1, len)] {
                self.sync_address(dma, len, direction, SyncFor::Cpu);
                self.sync_address(dma, len, direction, SyncFor::Device);
                self.unmap_address(dma, len, direction, &Attrs::default());
                self.free_coherent(dma, len);
            }
            let other = match direction {
                Direction::ToDevice => Direction::FromDevice,
                Direction::FromDevice => Direction::ToDevice,
                Direction::Bidirectional | Direction::None => Direction::None,
            };
            self.sync_address(dma, len, other, SyncFor::Cpu);
            self.unmap_address(dma, len, other, &Attrs::default());
        }
    }

    /// Ends what is left: all is as it was.
    fn end(mut self) {
        while let Some(held) = self.held.pop() {
            match held.kind {
                HeldAs::Value(mapping) => drop(mapping),
                HeldAs::Address => {
                    let attrs = Attrs {
                        skip_cpu_sync: true,
                        ..Attrs::default()
                    };
                    let ended = self.device.unmap(
                        &self.window(),
                        held.dma,
                        held.len,
                        held.direction,
                        &attrs,
                    );
                    assert_eq!(ended, Ok(()));
                }
                HeldAs::Coherent => {
                    assert_eq!(self.device.free_coherent(held.dma, held.len), Ok(()));
                }
            }
        }
        assert_eq!(self.allocator.used(), 0);
        assert_eq!(self.allocator.stats().transient_nslots, 0);
        assert_eq!(self.allocator.tear_down(), Ok(()));
    }

    fn window(&self) -> Window<'_> {
        Window::new(0, self.ram.slice())
    }

    fn bus(&self, dma: u64) -> Option<u64> {
        self.device.constraints().bus(dma)
    }

    /// One that is held, if there is one of the kind.
    fn pick(&self, which: u8, of: impl Fn(&Held) -> bool) -> Option<usize> {
        let fitting = self.held.iter().enumerate().filter(|(_, held)| of(held));
        let fitting: Vec<usize> = fitting.map(|(index, _)| index).collect();
        let index = usize::from(which).checked_rem(fitting.len())?;
        Some(fitting[index])
    }

    /// An address at or around something held, or anywhere; and its length.
    fn near(&self, which: u8, by: Number) -> (u64, u64) {
        let Some(index) = self.pick(which & 0x7f, |_| true) else {
            return (by.get(), 1);
        };
        let held = &self.held[index];
        match which & 0x80 {
            0 => (held.dma, held.len),
            _ => (held.slots_at.wrapping_add(by.around(held.len)), held.len),
        }
    }

    /// The one whose slots have this device address.
    fn owner(&self, dma: u64) -> Option<usize> {
        self.held
            .iter()
            .position(|held| dma.wrapping_sub(held.slots_at) < held.slots * 2048)
    }

    /// Whether an address is in the first pool.
    fn in_pool(&self, dma: u64) -> bool {
        let len = self.pool_model.len() as u64;
        self.bus(dma)
            .is_some_and(|bus| bus >= self.base && bus - self.base < len)
    }
}

/// Bytes that change all the time and are never 0.
static DIRT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let byte = |at: usize| (at as u8 ^ (at >> 8) as u8) | 1;
    (0..0x10_0000).map(byte).collect()
});

/// Fills memory with dirt; returns it.
fn dirt(heap: &Heap, from: usize) -> Vec<u8> {
    let bytes = &DIRT[from..][..heap.bytes().len()];
    heap.slice().copy_from(bytes);
    bytes.to_vec()
}

/// Memory for a pool, kept in `heaps`.
fn memory(heaps: &Mutex<Vec<Heap>>, bytes: u64, base: u64) -> Result<PoolMemory, Error> {
    let mut heaps = heaps.lock().expect("heaps");
    // never more than a story can use
    if bytes > 0x40_0000 || heaps.len() > STEPS * 2 {
        return Err(Error::NoMemory { bytes, os_error: 0 });
    }
    let heap = Heap::new(bytes as usize);
    let region = heap.region();
    let apart = 0x100_0000 * heaps.len() as u64;
    heaps.push(heap);
    PoolMemory::of_region(region, 0, bytes as usize, Base::At(base + apart), false)
}
