//! Synchronising, unmapping and lists.

use proptest::prelude::*;
use swiotlb::constraints::SyncPolicy;
use swiotlb::*;

use crate::stand::*;

const A: u8 = b'A';
const C: u8 = b'C';
const D: u8 = b'D';

#[test]
fn v41_synchronising_for_the_device_keeps_what_it_has_written() {
    let (_allocator, worker) = masked(0);
    let ram = Ram::new(0x1000);
    ram.fill(0, 2048, A);
    let mapping = worker
        .map(&ram, 0, 2048, Direction::FromDevice, &Attrs::default())
        .unwrap();
    let head = mapping.dma_address();
    fill(&bytes(&mapping), D);
    mapping.sync(&ram, head, 64, SyncFor::Cpu).unwrap();
    assert_eq!(ram.read(0, 65), [vec![D; 64], vec![A]].concat());
    ram.fill(0, 64, C);
    mapping.sync(&ram, head, 2048, SyncFor::Device).unwrap();
    assert_eq!(read(&bytes(&mapping)), vec![D; 2048]);
    mapping.unmap(&ram).unwrap();
    assert_eq!(ram.read(0, 2048), vec![D; 2048]);
}

#[test]
fn v42_a_part_is_found_by_its_distance_from_the_head() {
    let (_allocator, worker) = masked(4095);
    let ram = Ram::new(0x12_5000);
    ram.fill(0x12_3a10, 3000, A);
    let mapping = worker
        .map(
            &ram,
            0x12_3a10,
            3000,
            Direction::FromDevice,
            &Attrs::default(),
        )
        .unwrap();
    assert_eq!(placed(&mapping), (1, 2, 0x4000_0a10));
    fill(&bytes(&mapping), b'Q');
    let head = mapping.dma_address();
    mapping.sync(&ram, head + 2100, 10, SyncFor::Cpu).unwrap();
    let mut expected = vec![A; 3000];
    expected[2100..2110].fill(b'Q');
    assert_eq!(ram.read(0x12_3a10, 3000), expected);
}

#[test]
fn v43_v44_parts_of_later_slots_are_found_by_address_too() {
    let (_allocator, worker) = masked(4095);
    let ram = Ram::new(0x12_5000);
    ram.fill(0x12_3a10, 3000, A);
    let mapping = worker
        .map(
            &ram,
            0x12_3a10,
            3000,
            Direction::FromDevice,
            &Attrs::default(),
        )
        .unwrap();
    fill(&bytes(&mapping), b'Q');
    let head = mapping.into_dma_address();
    let device = worker.device();
    let sync = |address, len| device.sync(&ram, address, len, Direction::FromDevice, SyncFor::Cpu);
    // the first bytes of the second slot, and a part that crosses into it
    let second = 2048 - 0x210;
    assert_eq!(sync(head + second, 4), Ok(()));
    let mut expected = vec![A; 3000];
    expected[second as usize..][..4].fill(b'Q');
    assert_eq!(ram.read(0x12_3a10, 3000), expected);
    assert_eq!(sync(head + second - 8, 16), Ok(()));
    expected[second as usize - 8..][..16].fill(b'Q');
    assert_eq!(ram.read(0x12_3a10, 3000), expected);
}

#[test]
fn v45_nothing_beyond_the_mapping_is_synchronised() {
    let (allocator, worker) = masked(0);
    let ram = Ram::new(0x4000);
    ram.fill(0, 0x4000, A);
    let attrs = aligned(4096);
    let low = worker
        .map(&ram, 0x2000, 4096, Direction::FromDevice, &attrs)
        .unwrap();
    let mapping = worker
        .map(&ram, 0x1000, 1000, Direction::FromDevice, &attrs)
        .unwrap();
    fill(&bytes(&mapping), D);
    fill(&bytes(&low), D);
    let head = mapping.dma_address();
    let outside = [
        (head, 4096),
        (head + 999, 2),
        (head + 1000, 1),
        (head - 1, 1),
    ];
    for (address, len) in outside {
        let refused = mapping.sync(&ram, address, len, SyncFor::Cpu);
        assert_eq!(refused, Err(Error::OutOfRange { address, len }));
    }
    // by address: the byte before is another mapping's, the rest is padding
    let head = mapping.into_dma_address();
    let device = worker.device();
    for (address, len) in [
        (head, 4096),
        (head + 999, 2),
        (head + 1000, 1),
        (head - 1, 2),
    ] {
        let refused = device.sync(&ram, address, len, Direction::FromDevice, SyncFor::Cpu);
        assert_eq!(refused, Err(Error::OutOfRange { address, len }));
    }
    assert_eq!(ram.read(0, 0x4000), vec![A; 0x4000]);
    assert_eq!(allocator.stats().sync_out_of_range, 8);
}

#[test]
fn a_clamping_device_is_given_the_part_inside() {
    let allocator = default_pool();
    let constraints = DeviceConstraints {
        sync_policy: SyncPolicy::Clamp,
        ..forced()
    };
    let worker = worker(&allocator, constraints, 0);
    let ram = Ram::new(0x4000);
    ram.fill(0, 0x4000, A);
    let mapping = worker
        .map(&ram, 0, 1000, Direction::FromDevice, &aligned(4096))
        .unwrap();
    fill(&bytes(&mapping), D);
    let head = mapping.dma_address();
    mapping.sync(&ram, head + 990, 4096, SyncFor::Cpu).unwrap();
    assert_eq!(ram.read(990, 20), [vec![D; 10], vec![A; 10]].concat());
    let head = mapping.into_dma_address();
    let device = worker.device();
    let sync = |address, len| device.sync(&ram, address, len, Direction::FromDevice, SyncFor::Cpu);
    assert_eq!(sync(head, u64::MAX), Ok(()));
    assert_eq!(ram.read(0, 1001), [vec![D; 1000], vec![A]].concat());
    assert_eq!(
        sync(head + 1000, 1),
        Err(Error::OutOfRange {
            address: head + 1000,
            len: 1
        })
    );
}

#[test]
fn v46_unmapping_is_exact() {
    let (allocator, worker) = masked(0);
    let ram = Ram::new(0x4000);
    let device = worker.device();
    let map = |len, direction| {
        let mapping = worker
            .map(&ram, 0, len, direction, &Attrs::default())
            .unwrap();
        mapping.into_dma_address()
    };
    let unmap =
        |address, len, direction| device.unmap(&ram, address, len, direction, &Attrs::default());
    // twice
    let head = map(2048, Direction::FromDevice);
    assert_eq!(unmap(head, 2048, Direction::FromDevice), Ok(()));
    let again = unmap(head, 2048, Direction::FromDevice);
    assert_eq!(again, Err(Error::NotMapped { address: head }));
    assert_eq!(allocator.used(), 0);
    // the middle
    let head = map(8192, Direction::FromDevice);
    let middle = unmap(head + 4096, 4096, Direction::FromDevice);
    assert_eq!(
        middle,
        Err(Error::NotMapped {
            address: head + 4096
        })
    );
    assert_eq!(allocator.used(), 4);
    assert_eq!(unmap(head, 8192, Direction::FromDevice), Ok(()));
    // another length
    let head = map(3000, Direction::FromDevice);
    let short = unmap(head, 2999, Direction::FromDevice);
    let mismatch = Error::LengthMismatch {
        address: head,
        mapped: 3000,
        given: 2999,
    };
    assert_eq!((short, allocator.used()), (Err(mismatch), 2));
    assert_eq!(unmap(head, 3000, Direction::FromDevice), Ok(()));
    // another direction
    ram.fill(0, 64, A);
    let head = map(64, Direction::ToDevice);
    let mismatch = Error::DirectionMismatch {
        mapped: Direction::ToDevice,
        given: Direction::FromDevice,
    };
    assert_eq!(unmap(head, 64, Direction::FromDevice), Err(mismatch));
    assert_eq!(unmap(head, 64, Direction::None), Err(Error::BadDirection));
    assert_eq!(allocator.used(), 1);
    assert_eq!(allocator.stats().not_mapped, 2);
    assert_eq!(unmap(head, 64, Direction::ToDevice), Ok(()));
}

#[test]
fn a_mapping_for_both_may_be_ended_for_either() {
    let (allocator, worker) = masked(0);
    let ram = Ram::new(0x1000);
    ram.fill(0, 64, A);
    for (direction, expected) in [(Direction::ToDevice, A), (Direction::FromDevice, D)] {
        let mapping = worker
            .map(&ram, 0, 64, Direction::Bidirectional, &Attrs::default())
            .unwrap();
        fill(&bytes(&mapping), D);
        let head = mapping.into_dma_address();
        let unmapped = worker
            .device()
            .unmap(&ram, head, 64, direction, &Attrs::default());
        assert_eq!(unmapped, Ok(()));
        assert_eq!(ram.read(0, 64), vec![expected; 64]);
    }
    assert_eq!(allocator.used(), 0);
}

#[test]
fn a_mapping_in_somebodys_hands_is_not_unmapped_by_its_address() {
    let (allocator, worker) = masked(0);
    let ram = Ram::new(0x1000);
    let mapping = worker
        .map(&ram, 0, 64, Direction::ToDevice, &Attrs::default())
        .unwrap();
    let head = mapping.dma_address();
    let unmapped = worker
        .device()
        .unmap(&ram, head, 64, Direction::ToDevice, &Attrs::default());
    assert_eq!(unmapped, Err(Error::NotMapped { address: head }));
    assert_eq!(allocator.used(), 1);
    drop(mapping);
    assert_eq!(allocator.used(), 0);
}

#[test]
fn v49_a_list_that_does_not_fit_is_unwound() {
    let allocator = allocator(settings("256,1"));
    let worker = worker(&allocator, forced(), 0);
    let ram = Ram::new(0xC_0000);
    ram.fill(0, 0xC_0000, A);
    let list = [0, 1, 2].map(|index| SgElement {
        address: index * 0x4_0000,
        len: 0x4_0000,
    });
    let mapped = worker.map_sg(&ram, &list, Direction::FromDevice, &Attrs::default());
    assert!(matches!(
        mapped,
        Err(Error::Full {
            wanted_slots: 128,
            total: 256,
            used: 256,
            ..
        })
    ));
    assert_eq!(allocator.used(), 0);
    assert_eq!(ram.read(0, 0xC_0000), vec![A; 0xC_0000]);
    // a caller who fails after mapping drops the guard
    let mapped = worker.map_sg(&ram, &list[..2], Direction::FromDevice, &Attrs::default());
    let mapped = mapped.unwrap();
    assert_eq!(allocator.used(), 256);
    drop(mapped);
    assert_eq!(allocator.used(), 0);
}

#[test]
fn v50_elements_are_mapped_one_by_one() {
    let (allocator, worker) = masked(0);
    let ram = Ram::new(0x4000);
    let list = [(0, 100), (0x1000, 5000), (0x3000, 2048)];
    let list = list.map(|(address, len)| SgElement { address, len });
    let mapped = worker
        .map_sg(&ram, &list, Direction::ToDevice, &Attrs::default())
        .unwrap();
    let slots: Vec<u32> = mapped
        .mappings()
        .iter()
        .map(|mapping| placed(mapping).1)
        .collect();
    assert_eq!(slots, [1, 3, 1]);
    mapped.unmap(&ram).unwrap();
    assert_eq!(allocator.used(), 0);
    let empty = worker.map_sg_owned(&ram, &[], Direction::ToDevice, &Attrs::default());
    assert_eq!(empty.unwrap().mappings().len(), 0);
}

/// Originals that cannot be written.
struct ReadOnly(Ram);

impl Originals for ReadOnly {
    fn copy_in(
        &self,
        address: u64,
        bounce: &vm_memory::VolatileSlice<'_>,
    ) -> Result<(), OrigFault> {
        self.0.copy_in(address, bounce)
    }

    fn copy_back(&self, _: u64, _: &vm_memory::VolatileSlice<'_>) -> Result<(), OrigFault> {
        Err(OrigFault { offset: 3 })
    }
}

#[test]
fn inv10_slots_are_freed_once_even_if_the_original_is_gone() {
    let (allocator, worker) = masked(0);
    let guest = ReadOnly(Ram::new(0x1000));
    let map = || {
        worker
            .map(&guest, 0, 64, Direction::FromDevice, &Attrs::default())
            .unwrap()
    };
    assert_eq!(map().unmap(&guest), Err(Error::OrigFault { offset: 3 }));
    assert_eq!(allocator.used(), 0);
    let head = map().into_dma_address();
    let device = worker.device();
    let unmap = || device.unmap(&guest, head, 64, Direction::FromDevice, &Attrs::default());
    assert_eq!(unmap(), Err(Error::OrigFault { offset: 3 }));
    assert_eq!(allocator.used(), 0);
    assert_eq!(unmap(), Err(Error::NotMapped { address: head }));
    // a list frees all of it, and tells the first fault
    let list = [SgElement {
        address: 0,
        len: 64,
    }; 3];
    let mapped = worker.map_sg(&guest, &list, Direction::FromDevice, &Attrs::default());
    assert_eq!(
        mapped.unwrap().unmap(&guest),
        Err(Error::OrigFault { offset: 3 })
    );
    assert_eq!((allocator.used(), allocator.stats().bytes_out), (0, 0));
}

#[test]
fn inv33_what_happens_to_frames_after_a_mapping_does_not_matter() {
    use std::sync::Arc;
    use swiotlb::foreign::ForeignFrames;
    let foreign = Arc::new(ForeignFrames::new());
    let space = AddressSpace::OneToOne(Arc::clone(&foreign));
    let allocator = Allocator::new(settings("2048,1"), space);
    ensure(&allocator, BASE).unwrap();
    let worker = worker(&allocator, forced(), 0);
    let ram = Ram::new(0x4000);
    ram.fill(0, 0x4000, A);
    let mapping = worker
        .map(&ram, 0x1000, 4096, Direction::FromDevice, &Attrs::default())
        .unwrap();
    fill(&bytes(&mapping), D);
    let head = mapping.into_dma_address();
    // the original's frame becomes the next one, the pool's become others
    foreign.insert(1, 2, 1).unwrap();
    foreign.insert(BASE / 4096, 7, 1024).unwrap();
    let device = worker.device();
    let unmapped = device.unmap(&ram, head, 4096, Direction::FromDevice, &Attrs::default());
    assert_eq!((unmapped, allocator.used()), (Ok(()), 0));
    let expected = [vec![A; 4096], vec![D; 4096], vec![A; 8192]].concat();
    assert_eq!(ram.read(0, 0x4000), expected);
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![
        Just(Direction::ToDevice),
        Just(Direction::FromDevice),
        Just(Direction::Bidirectional)
    ]
}

proptest! {
    #[test]
    fn inv08_a_synchronisation_copies_its_range_in_its_direction(
        len in 1u64..6000,
        start in 0u64..6000,
        count in 0u64..6000,
        direction in direction(),
        for_cpu in any::<bool>(),
        mask in prop_oneof![Just(0u64), Just(4095)],
        orig in 0u64..4096,
    ) {
        let (_allocator, worker) = masked(mask);
        let ram = Ram::new(0x4000);
        ram.fill(0, 0x4000, A);
        let mapping = worker.map(&ram, orig, len, direction, &Attrs::default()).unwrap();
        fill(&bytes(&mapping), D);
        ram.fill(orig, len, C);
        let sync_for = if for_cpu { SyncFor::Cpu } else { SyncFor::Device };
        let synced = mapping.sync(&ram, mapping.dma_address() + start, count, sync_for);
        let inside = start + count <= len;
        prop_assert_eq!(synced.is_ok(), inside);
        let range = start as usize..(start + count) as usize;
        let (mut original, mut bounce) = (vec![C; len as usize], vec![D; len as usize]);
        if inside && for_cpu && direction != Direction::ToDevice {
            original[range].fill(D);
        } else if inside && !for_cpu && direction != Direction::FromDevice {
            bounce[range].fill(C);
        }
        prop_assert_eq!(ram.read(orig, len), original);
        prop_assert_eq!(read(&bytes(&mapping)), bounce);
        prop_assert_eq!(ram.read(orig + len, 100), vec![A; 100]);
    }

    #[test]
    fn inv32_hostile_ranges_touch_nothing_outside_the_mapping(
        offset in any::<u64>(),
        count in any::<u64>(),
        parts in proptest::collection::vec((0u64..2000, 0u64..2000), 0..4),
    ) {
        let (allocator, worker) = masked(0);
        let ram = Ram::new(0x4000);
        ram.fill(0, 0x4000, A);
        let attrs = aligned(4096);
        let mapping = worker.map(&ram, 0x1000, 1000, Direction::FromDevice, &attrs).unwrap();
        fill(&bytes(&mapping), D);
        let address = mapping.dma_address().wrapping_add(offset);
        let _ = mapping.sync(&ram, address, count, SyncFor::Cpu);
        let _ = worker.device().sync(&ram, address, count, Direction::FromDevice, SyncFor::Cpu);
        let parts: Vec<_> = parts.into_iter().map(|(start, end)| start..end).collect();
        let good = parts.iter().all(|part| part.start <= part.end && part.end <= 1000);
        prop_assert_eq!(mapping.unmap_written(&ram, &parts).is_ok(), good);
        prop_assert_eq!(ram.read(0, 0x1000), vec![A; 0x1000]);
        prop_assert_eq!(ram.read(0x1000 + 1000, 0x1000), vec![A; 0x1000]);
        prop_assert_eq!(allocator.used(), 0);
    }
}
