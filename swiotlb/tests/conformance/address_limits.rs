//! Bring-up, address limits, translation, remap and teardown.

use std::num::NonZeroU64;
use std::sync::Arc;

use swiotlb::allocator::{BringUp, Ensured, Remap, bring_up};
use swiotlb::features::{DIRECT_MAPPED, FeatureInputs};
use swiotlb::space::FrameTable;
use swiotlb::*;

use crate::stand::*;

fn inputs(features: u32, initial_domain: bool) -> FeatureInputs {
    FeatureInputs {
        arch: Arch::Arm,
        xen_domain: true,
        initial_domain,
        features: Some(features),
    }
}

fn nonzero(value: u64) -> Option<NonZeroU64> {
    NonZeroU64::new(value)
}

#[test]
fn v09_bring_up_does_not_ask_for_the_initial_domain_again() {
    let allocator = Allocator::new(settings("2048,1"), AddressSpace::one_to_one());
    let brought = bring_up(
        &inputs(DIRECT_MAPPED, false),
        false,
        &allocator,
        BringUp {
            source: &mut at(BASE),
            limit: None,
            remap: None,
            probe: &mut || false,
            pv_pci: false,
        },
    )
    .unwrap();
    assert_eq!(brought.pool, Some(Ensured::Created(None)));
    assert_eq!(brought.detection.kind, Kind::OneToOne);
}

/// A remap hook that fails the test.
struct Never;

impl Remap for Never {
    fn remap(&mut self, _: &PoolMemory, _: u64, _: &mut Vec<u64>) -> Result<(), String> {
        panic!("an existing pool is not remapped")
    }

    fn restore(&mut self, _: &PoolMemory, _: u64) {
        panic!("an existing pool is not restored")
    }
}

#[test]
fn v10_inv15_a_pool_that_exists_is_used_and_nothing_is_redone() {
    let mut allocations = 0;
    let allocator = Allocator::new(settings(""), AddressSpace::one_to_one());
    let mut source = |bytes: u64, _: u64| {
        allocations += 1;
        PoolMemory::anonymous(bytes, Base::At(BASE))
    };
    let first = allocator.ensure_default_pool(BringUp {
        source: &mut source,
        limit: None,
        remap: None,
        probe: &mut || false,
        pv_pci: false,
    });
    assert_eq!(first, Ok(Ensured::Created(None)));
    let worker = worker(&allocator, forced(), 0);
    let ram = Ram::new(0x2000);
    ram.fill(0, 4096, 7);
    let mapping = worker
        .map(&ram, 0, 4096, Direction::FromDevice, &Attrs::default())
        .unwrap();
    let used = allocator.used();
    let mut probes = 0;
    for (features, initial) in [(DIRECT_MAPPED, false), (0, true)] {
        let brought = bring_up(
            &inputs(features, initial),
            false,
            &allocator,
            BringUp {
                source: &mut source,
                limit: None,
                remap: Some(&mut Never),
                probe: &mut || {
                    probes += 1;
                    true
                },
                pv_pci: false,
            },
        );
        assert_eq!(brought.unwrap().pool, Some(Ensured::AlreadyPresent));
    }
    assert_eq!((allocations, probes), (1, 2));
    assert!(allocator.flushes_caches());
    assert_eq!(allocator.used(), used);
    fill(&bytes(&mapping), 9);
    mapping.unmap(&ram).unwrap();
    assert_eq!(ram.read(0, 4096), vec![9; 4096], "the mapping survived");
}

#[test]
fn an_unreadable_feature_word_brings_nothing_up() {
    let allocator = Allocator::new(settings(""), AddressSpace::one_to_one());
    let unreadable = FeatureInputs {
        features: None,
        ..inputs(0, true)
    };
    let brought = bring_up(
        &unreadable,
        false,
        &allocator,
        BringUp {
            source: &mut at(BASE),
            limit: None,
            remap: None,
            probe: &mut || false,
            pv_pci: false,
        },
    );
    assert!(matches!(brought, Err(Error::Features(_))));
    assert!(!allocator.is_active());
}

#[test]
fn v11_a_pool_that_a_device_does_not_reach_is_refused_when_attaching() {
    let allocator = Allocator::new(settings("32768"), AddressSpace::one_to_one());
    ensure(&allocator, 0xF000_0000).unwrap();
    let attach = |dma_mask, bus_limit| {
        let constraints = DeviceConstraints {
            dma_mask,
            bus_limit,
            ..DeviceConstraints::default()
        };
        Device::attach(&allocator, constraints).map(|_| ())
    };
    assert_eq!(attach(nonzero(0xFFFF_FFFF), None), Ok(()));
    assert_eq!(attach(nonzero(0xF3FF_FFFF), None), Ok(()));
    let refused = |limit| {
        Err(Error::PoolUnreachable {
            limit,
            max_bus: 0xF3FF_FFFF,
        })
    };
    assert_eq!(attach(nonzero(0xF3FF_FFFE), None), refused(0xF3FF_FFFE));
    let low_bus = attach(nonzero(0xFFFF_FFFF), nonzero(0x3FFF_FFFF));
    assert_eq!(low_bus, refused(0x3FFF_FFFF));
    assert_eq!(attach(None, None), Ok(()));
}

#[test]
fn v12_the_highest_frame_counts_and_not_the_last() {
    // frames of a pool of 1 MiB, the highest one in the middle
    let mut frames: Vec<Option<u64>> = (0x1000..0x1100).map(Some).collect();
    frames[100] = Some(0xF_0000);
    let table = FrameTable::new(BASE / 4096, frames);
    let space = AddressSpace::Translated(Arc::new(table));
    let allocator = Allocator::new(settings("512,1"), space);
    ensure(&allocator, BASE).unwrap();
    assert_eq!(allocator.max_bus(), Some(0xF000_0FFF));
    let attach = |mask| {
        let constraints = DeviceConstraints {
            dma_mask: nonzero(mask),
            ..DeviceConstraints::default()
        };
        Device::attach(&allocator, constraints)
    };
    assert!(matches!(
        attach(0xF000_0FFE),
        Err(Error::PoolUnreachable { .. })
    ));
    assert!(attach(0xF000_0FFF).is_ok());
}

#[test]
fn v13_a_buffer_out_of_reach_is_released_without_copying_back() {
    let allocator = default_pool();
    let device = Device::attach(&allocator, DeviceConstraints::default()).unwrap();
    device.lower_limit(NonZeroU64::new(0x3FFF_FFFF).unwrap());
    let ram = Ram::new(0x2000);
    let window = Window::new(0x5000_0000, ram.all());
    ram.fill(0, 0x2000, b'A');
    let worker = device.worker(0);
    let mapped = worker.map(
        &window,
        0x5000_0000,
        4096,
        Direction::FromDevice,
        &Attrs::default(),
    );
    assert_eq!(
        mapped.unwrap_err(),
        Error::BounceUnreachable {
            address: BASE,
            limit: 0x3FFF_FFFF
        }
    );
    assert_eq!(allocator.used(), 0);
    assert_eq!(allocator.stats().unreachable, 1);
    assert_eq!(allocator.stats().maps_bounced, 0);
    assert_eq!(ram.read(0, 0x2000), vec![b'A'; 0x2000]);
}

#[test]
fn a_device_sees_the_pool_through_its_window() {
    let allocator = default_pool();
    let window = swiotlb::constraints::DmaRange {
        cpu_start: BASE,
        dma_start: 0x1000,
        size: 0x40_0000,
    };
    let constraints = DeviceConstraints {
        ranges: vec![window],
        dma_mask: nonzero(0x40_0FFF),
        ..DeviceConstraints::default()
    };
    let worker = worker(&allocator, constraints.clone(), 0);
    let ram = Ram::new(0x2000);
    // outside the window: bounced, and seen through it
    let mapping = worker.map(&ram, 0x10, 64, Direction::ToDevice, &Attrs::default());
    let mapping = mapping.unwrap();
    assert_eq!(placed(&mapping), (0, 1, 0x1000));
    assert_eq!(mapping.bounced().unwrap().lease().original(), 0x10);
    let address = mapping.into_dma_address();
    let device = worker.device();
    assert_eq!(
        device.unmap(&ram, address, 64, Direction::ToDevice, &Attrs::default()),
        Ok(())
    );
    assert_eq!(allocator.used(), 0);
    // a mask that cuts the window's end off, and a window that is too small
    let lower = DeviceConstraints {
        dma_mask: nonzero(0x40_0FFE),
        ..constraints.clone()
    };
    assert!(matches!(
        Device::attach(&allocator, lower),
        Err(Error::PoolUnreachable { .. })
    ));
    let mut smaller = constraints;
    smaller.ranges[0].size -= 4096;
    assert!(matches!(
        Device::attach(&allocator, smaller),
        Err(Error::PoolUnreachable { .. })
    ));
}

/// Exchanges pools of at most `most` slots; counts calls and balances.
struct Machine {
    most: u64,
    calls: u32,
    exchanged: i64,
    /// Candidates of which something was restored.
    undone: Vec<u64>,
}

impl Machine {
    fn new(most: u64) -> Self {
        Machine {
            most,
            calls: 0,
            exchanged: 0,
            undone: Vec::new(),
        }
    }
}

impl Remap for Machine {
    fn remap(&mut self, pool: &PoolMemory, _: u64, done: &mut Vec<u64>) -> Result<(), String> {
        self.calls += 1;
        let segments = pool.len() / 0x4_0000;
        for segment in 0..segments {
            if pool.len() / 2048 > self.most && segment == segments - 1 {
                return Err("no contiguous memory".into());
            }
            self.exchanged += 1;
            // segments in descending order on the bus
            done.push(0x2000_0000 - segment * 0x4_0000);
        }
        Ok(())
    }

    fn restore(&mut self, pool: &PoolMemory, offset: u64) {
        assert_eq!(offset % 0x4_0000, 0);
        self.exchanged -= 1;
        if self.undone.last() != Some(&pool.len()) {
            self.undone.push(pool.len());
        }
    }
}

fn remapped(allocator: &Allocator, machine: &mut Machine) -> (Result<Ensured, Error>, i64) {
    let live = std::sync::atomic::AtomicI64::new(0);
    let mut source = |bytes: u64, _: u64| {
        live.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        PoolMemory::anonymous(bytes, Base::At(BASE))
    };
    let ensured = allocator.ensure_default_pool(BringUp {
        source: &mut source,
        limit: None,
        remap: Some(machine),
        probe: &mut || false,
        pv_pci: false,
    });
    let tried = live.into_inner();
    (ensured, tried)
}

#[test]
fn v57_a_pool_is_remapped_once() {
    let allocator = Allocator::new(settings(""), AddressSpace::one_to_one());
    let mut machine = Machine::new(u64::MAX);
    let (ensured, _) = remapped(&allocator, &mut machine);
    assert_eq!(ensured, Ok(Ensured::Created(None)));
    assert_eq!((machine.calls, machine.undone.len()), (1, 0));
    assert!(!allocator.can_grow());
    // the pool is where the machine put it
    let worker = worker(&allocator, forced(), 0);
    let map = |len| worker.map(&NoRam, 0, len, Direction::ToDevice, &Attrs::default());
    let first = map(0x4_0000).unwrap();
    let second = map(0x4_0000).unwrap();
    assert_eq!(first.dma_address(), 0x2000_0000);
    assert_eq!(second.dma_address(), 0x1FFC_0000);
}

#[test]
fn v57_a_smaller_pool_is_tried_after_everything_is_undone() {
    let allocator = Allocator::new(settings(""), AddressSpace::one_to_one());
    let mut machine = Machine::new(8192);
    let (ensured, tried) = remapped(&allocator, &mut machine);
    assert!(matches!(ensured, Ok(Ensured::Created(Some(shrunk))) if shrunk.got == 8192));
    assert_eq!(allocator.nslots(), 8192);
    assert_eq!((machine.calls, tried), (3, 3));
    assert_eq!(machine.undone, [32_768 * 2048, 16_384 * 2048]);
    assert_eq!(machine.exchanged, 8192 / 128);
}

#[test]
fn v57_a_remap_that_always_fails_leaves_nothing() {
    let allocator = Allocator::new(settings(""), AddressSpace::one_to_one());
    let mut machine = Machine::new(0);
    let (ensured, tried) = remapped(&allocator, &mut machine);
    assert!(matches!(ensured, Err(Error::Remap(_))));
    assert_eq!(machine.exchanged, 0, "each exchange was undone once");
    assert_eq!(tried, 7);
    assert!(!allocator.is_active());
}

#[test]
fn v60_teardown_waits_for_mappings_and_for_force() {
    let allocator = default_pool();
    let worker_ = worker(&allocator, forced(), 0);
    let map = || worker_.map(&NoRam, 0, 3000, Direction::ToDevice, &Attrs::default());
    let mapping = map().unwrap();
    assert_eq!(allocator.tear_down(), Err(Error::Busy { used: 2 }));
    let second = map().expect("a refused teardown changes nothing");
    drop((mapping, second));
    assert_eq!(allocator.tear_down(), Ok(()));
    // the device handle that was kept finds no pool, and nothing dangles
    assert_eq!(map().unwrap_err(), Error::NoPool);
    assert!(!allocator.is_active());

    let forcing = crate::stand::allocator(settings("2048,1,force"));
    assert_eq!(forcing.tear_down(), Err(Error::Busy { used: 0 }));
    assert!(forcing.is_active());
}
