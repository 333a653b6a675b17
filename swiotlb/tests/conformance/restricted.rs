//! Restricted pools and coherent memory from them.

use proptest::prelude::*;
use swiotlb::restricted::{Region, RegionProperties, Regions};
use swiotlb::*;

use crate::stand::*;

const REGION: u64 = 0x5000_0000;

fn region(size: u64) -> Region {
    let memory = PoolMemory::anonymous(size, Base::At(REGION)).unwrap();
    let settings = Settings {
        name: "restricted".into(),
        ..settings("noforce")
    };
    let mut regions = Regions::new();
    let space = AddressSpace::one_to_one();
    regions
        .add(memory, RegionProperties::default(), settings, space)
        .unwrap()
}

#[test]
fn v58_a_restricted_pool_needs_no_default_pool() {
    let region = region(1 << 20);
    let device = region.attach(DeviceConstraints::default()).unwrap();
    let worker = device.worker(7);
    let ram = Ram::new(0x1000);
    let mapping = worker
        .map(&ram, 0, 64, Direction::FromDevice, &Attrs::default())
        .unwrap();
    assert_eq!(
        placed(&mapping).2,
        REGION,
        "bounced, although it need not be"
    );
    let pages = worker.alloc_coherent(8192).unwrap();
    assert_eq!(pages.dma_address() % 8192, 0);
    assert!((REGION..REGION + (1 << 20)).contains(&pages.dma_address()));
    assert_eq!(read(&pages.bytes().unwrap()), vec![0; 8192]);
    // the next device shares the pool, and finds it as it is
    fill(&bytes(&mapping), b'D');
    let second = region.attach(DeviceConstraints::default()).unwrap();
    let other = second.worker(0);
    let next = other
        .map(&ram, 0, 64, Direction::ToDevice, &Attrs::default())
        .unwrap();
    assert_eq!(placed(&next).2, REGION + 2048);
    drop(next);
    mapping.unmap(&ram).unwrap();
    assert_eq!(ram.read(0, 64), vec![b'D'; 64]);
}

#[test]
fn v58_v64_a_short_last_segment_is_used_and_nothing_behind_it() {
    let region = region(266_240);
    let device = region.attach(DeviceConstraints::default()).unwrap();
    let worker = device.worker(0);
    let map = |len| worker.map(&NoRam, 0, len, Direction::ToDevice, &Attrs::default());
    let large = map(0x4_0000).unwrap();
    let small = map(4096).unwrap();
    assert_eq!((placed(&large).0, placed(&small).0), (0, 128));
    assert!(matches!(
        map(1),
        Err(Error::Full {
            total: 130,
            used: 130,
            largest_free_run: 0,
            ..
        })
    ));
    drop((large, small));
    assert_eq!(device.allocator().used(), 0);
    assert!(matches!(
        map(0x4_0000).and(map(4097)),
        Err(Error::Full { .. }) | Ok(_)
    ));
}

#[test]
fn coherent_memory_is_freed_by_its_own_address() {
    let region = region(1 << 20);
    let device = region.attach(DeviceConstraints::default()).unwrap();
    let worker = device.worker(0);
    let address = worker.alloc_coherent(5000).unwrap().into_dma_address();
    let free = |address, size| device.free_coherent(address, size);
    assert!(matches!(
        free(address + 4096, 5000),
        Err(Error::NotMapped { .. })
    ));
    assert!(matches!(free(0x1000, 5000), Err(Error::NotMapped { .. })));
    assert!(matches!(
        free(address, 4096),
        Err(Error::LengthMismatch { mapped: 8192, .. })
    ));
    let attrs = Attrs::default();
    let unmapped = device.unmap(&NoRam, address, 8192, Direction::FromDevice, &attrs);
    assert!(matches!(unmapped, Err(Error::NotMapped { .. })));
    assert_eq!(free(address, 5000), Ok(()));
    assert!(matches!(free(address, 5000), Err(Error::NotMapped { .. })));
    // a mapping is not coherent memory
    let mapping = worker
        .map(&NoRam, 0, 4096, Direction::ToDevice, &attrs)
        .unwrap();
    let address = mapping.into_dma_address();
    assert!(matches!(free(address, 4096), Err(Error::NotMapped { .. })));
    assert!(worker.alloc_coherent(0).is_err());
    assert!(matches!(
        worker.alloc_coherent(u64::MAX),
        Err(Error::TooLarge { .. })
    ));
}

#[test]
fn a_region_is_released_with_its_last_device_and_zeroed_for_the_next() {
    let region = region(1 << 20);
    let ram = Ram::new(0x1000);
    ram.fill(0, 64, b'S');
    let first = region.attach(DeviceConstraints::default()).unwrap();
    let worker = first.worker(0);
    drop(worker.map(&ram, 0, 64, Direction::ToDevice, &Attrs::default()));
    drop((worker, first));
    let second = region.attach(DeviceConstraints::default()).unwrap();
    assert_eq!(pool_bytes(second.allocator(), 0, 4096), vec![0; 4096]);
}

#[test]
fn regions_that_cannot_be_pools_are_refused() {
    let mut regions = Regions::new();
    let mut add = |base, size, properties| {
        let memory = PoolMemory::anonymous(size, Base::At(base))?;
        let space = AddressSpace::one_to_one();
        regions
            .add(memory, properties, Settings::default(), space)
            .map(|_| ())
    };
    let plain = RegionProperties::default();
    let bad = |result| matches!(result, Err(Error::BadRegion { .. }));
    for properties in [
        RegionProperties {
            reusable: true,
            ..plain
        },
        RegionProperties {
            cma_default: true,
            ..plain
        },
        RegionProperties {
            dma_default: true,
            ..plain
        },
        RegionProperties {
            no_map: true,
            ..plain
        },
    ] {
        assert!(bad(add(REGION, 1 << 20, properties)), "{properties:?}");
    }
    assert!(bad(add(REGION + 2048, 1 << 20, plain)));
    assert!(bad(add(REGION, 2047, plain)));
    assert_eq!(add(REGION, 1 << 20, plain), Ok(()));
    assert!(bad(add(REGION + (1 << 20) - 4096, 1 << 20, plain)));
    assert!(bad(add(REGION - 4096, 8192, plain)));
    assert_eq!(add(REGION + (1 << 20), 1 << 20, plain), Ok(()));
}

proptest! {
    #[test]
    fn inv20_a_restricted_device_is_given_nothing_outside(
        steps in proptest::collection::vec((any::<bool>(), any::<u64>(), 1u64..0x4_1000), 1..40),
    ) {
        let region = region(1 << 20);
        let device = region.attach(DeviceConstraints::default()).unwrap();
        let worker = device.worker(0);
        let inside = |address, len| address >= REGION && address + len <= REGION + (1 << 20);
        let mut mappings = Vec::new();
        let mut blocks = Vec::new();
        for (coherent, address, len) in steps {
            if coherent {
                blocks.extend(worker.alloc_coherent(len).ok());
            } else {
                mappings.extend(worker.map(&NoRam, address, len, Direction::ToDevice, &Attrs::default()).ok());
            }
        }
        prop_assert!(mappings.iter().all(|m| inside(m.dma_address(), m.len())));
        prop_assert!(blocks.iter().all(|b| inside(b.dma_address(), b.lease().len())));
    }
}
