//! Whether to bounce, and how large a mapping can be.

use std::num::NonZeroU64;
use std::sync::Arc;

use proptest::prelude::*;
use swiotlb::constraints::capable;
use swiotlb::contiguity::FrameTranslation;
use swiotlb::foreign::ForeignFrames;
use swiotlb::space::FrameTable;
use swiotlb::*;

use crate::stand::*;

/// The frames of vectors V-18 to V-22, and the pool's own.
fn translated() -> (Arc<Allocator>, Worker) {
    let mut frames = vec![Some(0x8000), Some(0x8001), Some(0x9000), Some(0x8fff)];
    frames.resize(0x3_0000, None);
    frames.extend((0x4_0000..0x4_0400).map(Some)); // 0x30100..0x30500: 4 MiB
    let space = AddressSpace::Translated(Arc::new(FrameTable::new(0x100, frames)));
    let allocator = Allocator::new(settings("2048,1"), space);
    ensure(&allocator, 0x3_0100 << 12).unwrap();
    let worker = worker(&allocator, DeviceConstraints::default(), 0);
    (allocator, worker)
}

fn map(worker: &Worker, address: u64, len: u64) -> Result<Mapping<&Device>, Error> {
    worker.map(&NoRam, address, len, Direction::ToDevice, &Attrs::default())
}

fn direct(worker: &Worker, address: u64, len: u64) -> Option<u64> {
    let mapping = map(worker, address, len).unwrap();
    mapping.bounced().is_none().then(|| mapping.dma_address())
}

#[test]
fn v18_contiguous_pages_pass_through() {
    let (allocator, worker) = translated();
    assert_eq!(direct(&worker, 0x10_0ff0, 0x20), Some(0x800_0ff0));
    assert_eq!(worker.device().maps_direct(), 1);
    assert_eq!(allocator.stats().maps_bounced, 0);
}

#[test]
fn v19_discontiguous_pages_bounce() {
    let (allocator, worker) = translated();
    let mapping = map(&worker, 0x10_1ff0, 0x20).unwrap();
    assert_eq!(placed(&mapping), (0, 1, BASE));
    assert_eq!(allocator.stats().bounced_for(Reason::Straddles), 1);
}

#[test]
fn v20_one_page_never_straddles() {
    let (_allocator, worker) = translated();
    assert_eq!(direct(&worker, 0x10_2000, 0x1000), Some(0x900_0000));
    assert_eq!(direct(&worker, 0x10_2ff0, 0x10), Some(0x900_0ff0));
}

#[test]
fn a_hole_is_an_error_whatever_else_would_be_decided() {
    let (allocator, worker) = translated();
    let hole = map(&worker, 0x10_3ff0, 0x20).unwrap_err();
    assert_eq!(hole, Error::NoTranslation(NoTranslation(0x104)));
    let forced = crate::stand::worker(&allocator, forced(), 0);
    assert_eq!(map(&forced, 0x10_3ff0, 0x20).unwrap_err(), hole);
}

#[test]
fn an_iommu_that_knows_the_domain_needs_no_look_up_and_is_still_translated() {
    let allocator = Allocator::new(settings("2048,1"), AddressSpace::IommuIdentity);
    ensure(&allocator, BASE).unwrap();
    let worker = worker(&allocator, DeviceConstraints::default(), 0);
    assert_eq!(direct(&worker, 0x1234_5678, 0x10_0000), Some(0x1234_5678));
    assert_eq!(allocator.space().kind(), Kind::Translated);
}

#[test]
fn v25_capability_has_edges() {
    let mask = 0xFFFF_FFFF;
    assert!(capable(0xFFFF_F000, 4096, mask));
    assert!(!capable(0xFFFF_F000, 4097, mask));
    assert!(!capable(0x1_0000_0000, 1, mask));
    assert!(capable(0, 1, mask));
    assert!(!capable(0, 0, mask));
}

#[test]
fn v26_an_end_that_wraps_is_out_of_reach() {
    assert!(capable(u64::MAX, 1, u64::MAX));
    assert!(!capable(u64::MAX, 2, u64::MAX));
    assert!(!capable(1 << 63, u64::MAX, u64::MAX));
}

#[test]
fn v31_nothing_cannot_be_mapped() {
    let (allocator, worker) = masked(0);
    let nothing = map(&worker, 0x77, 0).unwrap_err();
    assert_eq!(nothing, Error::ZeroLength { address: 0x77 });
    let list = [(0, 100), (0x1000, 0)].map(|(address, len)| SgElement { address, len });
    let listed = worker.map_sg(&NoRam, &list, Direction::ToDevice, &Attrs::default());
    assert_eq!(listed.unwrap_err(), Error::ZeroLength { address: 0x1000 });
    assert_eq!(allocator.used(), 0, "the first element was unwound");
}

#[test]
fn v31_synchronising_nothing_copies_nothing() {
    let (_allocator, worker) = masked(0);
    let ram = Ram::new(0x1000);
    ram.fill(0, 64, b'A');
    let mapping = worker
        .map(&ram, 0, 64, Direction::Bidirectional, &Attrs::default())
        .unwrap();
    fill(&bytes(&mapping), b'D');
    assert_eq!(
        mapping.sync(&ram, mapping.dma_address(), 0, SyncFor::Cpu),
        Ok(())
    );
    assert_eq!(ram.read(0, 64), vec![b'A'; 64]);
}

#[test]
fn v32_oversize_and_overflow_are_errors() {
    let (allocator, worker) = masked(0);
    assert_eq!(placed(&map(&worker, 0, 262_144).unwrap()), (0, 128, BASE));
    let too_large = |len| Error::TooLarge { len, max: 262_144 };
    assert_eq!(map(&worker, 0, 262_145).unwrap_err(), too_large(262_145));
    let huge = 0xFFFF_FFFF_FFFF_FFFB;
    let mapped = worker.map(&NoRam, 0, huge, Direction::ToDevice, &aligned(4096));
    assert_eq!(mapped.unwrap_err(), too_large(huge));
    let wrapping = 0xFFFF_FFFF_FFFF_F000;
    assert_eq!(
        map(&worker, wrapping, 8192).unwrap_err(),
        Error::AddressOverflow {
            address: wrapping,
            len: 8192
        }
    );
    assert_eq!(allocator.used(), 0);
}

#[test]
fn v33_the_largest_mapping_depends_on_the_alignment() {
    let sizes = [0, 511, 4095, 65_535].map(|mask| masked(mask).1.device().max_mapping_size());
    assert_eq!(sizes, [262_144, 260_096, 258_048, 196_608]);
}

#[test]
fn v34_inv16_the_largest_mapping_fits_at_every_offset() {
    for mask in [0, 511, 4095, 65_535] {
        let allocator = allocator(settings("256,1"));
        let constraints = DeviceConstraints {
            min_align_mask: mask,
            ..forced()
        };
        let worker = worker(&allocator, constraints, 0);
        let max = worker.device().max_mapping_size();
        for offset in (0..=mask).step_by(8) {
            let mapping = map(&worker, 0x10_0000 + offset, max);
            assert!(
                mapping.is_ok(),
                "mask {mask:#x}, offset {offset:#x}: {mapping:?}"
            );
        }
    }
}

#[test]
fn v35_inv16_more_than_the_largest_mapping_does_not_fit_everywhere() {
    let (_allocator, worker) = masked(4095);
    let mapped = map(&worker, 0x1010, 262_144).unwrap_err();
    assert!(
        matches!(mapped, Error::TooLarge { len: 262_144, .. }),
        "{mapped:?}"
    );
    // The advertised size is rounded down to whole slots. What fits at every
    // offset is a segment less the mask, up to a slot more; one byte above
    // that, and the last offset has no room.
    for mask in [0, 511, 4095, 65_535] {
        let (_allocator, worker) = masked(mask);
        let fits = 262_144 - mask;
        assert!(fits >= worker.device().max_mapping_size());
        assert!(
            map(&worker, 0x10_0000 + mask, fits).is_ok(),
            "mask {mask:#x}"
        );
        let over = map(&worker, 0x10_0000 + mask, fits + 1).unwrap_err();
        let refused = matches!(over, Error::TooLarge { .. } | Error::Full { used: 0, .. });
        assert!(refused, "mask {mask:#x}: {over:?}");
    }
}

/// The specification says that one byte more than the largest mapping fails at
/// some offset. So it does without a mask; with one, rounding to slots has left
/// room at every offset.
#[test]
fn inv16_a_byte_above_the_largest_mapping_fits_wherever_there_is_a_mask() {
    for mask in [511, 4095, 65_535] {
        let (_allocator, worker) = masked(mask);
        let above = worker.device().max_mapping_size() + 1;
        let refused = (0..=mask).find(|offset| map(&worker, 0x10_0000 + offset, above).is_err());
        assert_eq!(refused, None, "mask {mask:#x}");
    }
    let (_allocator, worker) = masked(0);
    let above = worker.device().max_mapping_size() + 1;
    assert!(matches!(
        map(&worker, 0, above),
        Err(Error::TooLarge { .. })
    ));
}

#[test]
fn v36_the_largest_mapping_is_the_devices_own() {
    let (allocator, worker) = masked(4095);
    let template = DeviceConstraints::default();
    assert_eq!(allocator.max_mapping_size(&template), 262_144);
    assert_eq!(worker.device().max_mapping_size(), 258_048);
    // the builder of lists asks the real one
    let range = SgElement {
        address: 0x1010,
        len: 294_912,
    };
    let split = worker.map_split(&NoRam, range, Direction::ToDevice, &Attrs::default());
    let lengths: Vec<u64> = split.unwrap().mappings().iter().map(Mapping::len).collect();
    assert_eq!(lengths, [258_048, 36_864]);
}

#[test]
fn without_a_pool_mappings_have_no_limit() {
    let allocator = Allocator::new(settings("noforce"), AddressSpace::one_to_one());
    ensure(&allocator, BASE).unwrap();
    let worker = worker(&allocator, DeviceConstraints::default(), 0);
    assert_eq!(worker.device().max_mapping_size(), u64::MAX);
    assert_eq!(direct(&worker, 0, 1 << 40), Some(0));
}

/// The reason for which a range is bounced, if it is.
fn reason(constraints: DeviceConstraints, address: u64, len: u64, attrs: Attrs) -> Option<Reason> {
    let allocator = default_pool();
    let worker = worker(&allocator, constraints, 0);
    let mapping = worker
        .map(&NoRam, address, len, Direction::FromDevice, &attrs)
        .unwrap();
    drop(mapping);
    let stats = allocator.stats();
    Reason::ALL
        .into_iter()
        .find(|&reason| stats.bounced_for(reason) > 0)
}

#[test]
fn each_reason_to_bounce_is_told() {
    let device = DeviceConstraints::default;
    let attrs = Attrs::default();
    assert_eq!(reason(device(), 0x1001, 100, attrs), None);
    assert_eq!(reason(forced(), 0x1000, 4096, attrs), Some(Reason::Forced));
    let low = DeviceConstraints {
        dma_mask: NonZeroU64::new(0x4FFF_FFFF),
        ..device()
    };
    assert_eq!(
        reason(low.clone(), 0x5000_0000, 1, attrs),
        Some(Reason::OutOfReach)
    );
    assert_eq!(reason(low, 0x4FFF_FFFF, 1, attrs), None);
    let untrusted = DeviceConstraints {
        untrusted: true,
        granule: 4096,
        ..device()
    };
    assert_eq!(
        reason(untrusted.clone(), 0x1001, 4096, attrs),
        Some(Reason::Granule)
    );
    assert_eq!(reason(untrusted, 0x1000, 4096, attrs), None);
    let lines = DeviceConstraints {
        coherent: false,
        cache_line: 64,
        ..device()
    };
    assert_eq!(
        reason(lines.clone(), 0x1040, 65, attrs),
        Some(Reason::CacheLine)
    );
    assert_eq!(reason(lines, 0x1040, 128, attrs), None);
    let confidential = DeviceConstraints {
        shared_only: true,
        ..device()
    };
    let shared = Attrs {
        shared: true,
        ..attrs
    };
    assert_eq!(
        reason(confidential.clone(), 0, 1, attrs),
        Some(Reason::Sharing)
    );
    assert_eq!(reason(confidential, 0, 1, shared), None);
}

#[test]
fn v69_skipping_the_processor_copies_in_but_not_back() {
    let (allocator, worker) = masked(0);
    let ram = Ram::new(0x1000);
    ram.fill(0, 64, b'A');
    let skip = Attrs {
        skip_cpu_sync: true,
        ..Attrs::default()
    };
    let mapping = worker
        .map(&ram, 0, 64, Direction::FromDevice, &skip)
        .unwrap();
    assert_eq!(
        read(&bytes(&mapping)),
        vec![b'A'; 64],
        "map copies in even so"
    );
    fill(&bytes(&mapping), b'D');
    let address = mapping.into_dma_address();
    let device = worker.device();
    assert_eq!(
        device.unmap(&ram, address, 64, Direction::FromDevice, &skip),
        Ok(())
    );
    assert_eq!(ram.read(0, 64), vec![b'A'; 64]);
    assert_eq!(allocator.used(), 0);
}

#[test]
fn v69_registers_are_never_bounced() {
    let allocator = default_pool();
    let mmio = Attrs {
        mmio: true,
        ..Attrs::default()
    };
    let map = |constraints: DeviceConstraints| {
        let worker = worker(&allocator, constraints, 0);
        let mapped = worker.map(&NoRam, 0x5000_0001, 3, Direction::ToDevice, &mmio);
        mapped.map(|mapping| (mapping.dma_address(), mapping.bounced().is_some()))
    };
    assert!(matches!(map(forced()), Err(Error::BounceForbidden(_))));
    let low = DeviceConstraints {
        bus_limit: NonZeroU64::new(0x4FFF_FFFF),
        ..DeviceConstraints::default()
    };
    assert!(matches!(
        map(low),
        Err(Error::NotCapable {
            limit: 0x4FFF_FFFF,
            ..
        })
    ));
    assert_eq!(map(DeviceConstraints::default()), Ok((0x5000_0001, false)));
}

#[test]
fn v69_a_caller_who_needs_coherence_is_not_bounced() {
    let (allocator, worker) = masked(0);
    let coherent = Attrs {
        require_coherent: true,
        ..Attrs::default()
    };
    let mapped = worker.map(&NoRam, 0, 64, Direction::ToDevice, &coherent);
    assert!(matches!(mapped, Err(Error::BounceForbidden(_))));
    assert_eq!(allocator.used(), 0);
}

#[test]
fn a_mapping_without_direction_is_refused() {
    let (_allocator, worker) = masked(0);
    let mapped = worker.map(&NoRam, 0, 64, Direction::None, &Attrs::default());
    assert_eq!(mapped.unwrap_err(), Error::BadDirection);
}

#[test]
fn v24_a_foreign_frame_with_a_local_number_is_in_no_pool() {
    let foreign = Arc::new(ForeignFrames::new());
    // guest frame 0x90000 is somebody's frame 0x40000: the pool's number
    foreign.insert(0x9_0000, BASE / 4096, 1).unwrap();
    let space = AddressSpace::OneToOne(Arc::clone(&foreign));
    let allocator = Allocator::new(settings("2048,1"), space);
    // the pool's local frame is elsewhere on the bus
    foreign.insert(BASE / 4096, 0x2_0000, 1024).unwrap();
    ensure(&allocator, BASE).unwrap();
    let worker = worker(&allocator, forced(), 0);
    let live = map(&worker, 0x1000, 64).unwrap();
    assert_eq!(live.dma_address(), 0x2000_0000);
    let device = worker.device();
    let unmapped = device.unmap(&NoRam, BASE, 64, Direction::ToDevice, &Attrs::default());
    assert_eq!((unmapped, allocator.used()), (Ok(()), 1));
}

#[test]
fn foreign_runs_are_disjoint_and_go_back_to_the_identity() {
    let foreign = ForeignFrames::new();
    foreign.insert(100, 5000, 10).unwrap();
    for (gfn, count) in [(100, 1), (95, 6), (109, 5), (90, 100), (104, 2)] {
        let overlap = foreign.insert(gfn, 1, count);
        assert!(
            matches!(overlap, Err(Error::Invalid { .. })),
            "{gfn}+{count}"
        );
    }
    assert!(foreign.insert(1, 1, 0).is_err());
    assert!(foreign.insert(u64::MAX, 1, 2).is_err());
    foreign.insert(110, 1, 5).unwrap();
    assert_eq!(foreign.gfn_to_bfn(109), Ok(5009));
    assert_eq!(foreign.gfn_to_bfn(99), Ok(99));
    assert!(foreign.remove(100));
    assert!(!foreign.remove(101));
    assert_eq!(foreign.gfn_to_bfn(100), Ok(100));
}

proptest! {
    #[test]
    fn inv18_local_frames_come_back_and_foreign_ones_do_not(
        frames in proptest::collection::hash_set(0u64..1000, 1..50),
        runs in proptest::collection::vec((0u64..1000, 2000u64..3000, 1u64..20), 0..8),
        probe in 0u64..4000,
    ) {
        let frames: Vec<u64> = frames.into_iter().collect();
        let table = FrameTable::new(500, frames.iter().copied().map(Some));
        for (gfn, bfn) in (500..).zip(&frames) {
            prop_assert_eq!(table.gfn_to_bfn(gfn), Ok(*bfn));
            prop_assert_eq!(table.bfn_to_local_gfn(*bfn), Some(gfn));
        }
        if !frames.contains(&probe) {
            prop_assert_eq!(table.bfn_to_local_gfn(probe), None);
        }
        let foreign = ForeignFrames::new();
        for (gfn, mfn, count) in runs {
            let _ = foreign.insert(gfn, mfn, count);
        }
        let local = foreign.gfn_to_bfn(probe) == Ok(probe);
        prop_assert_eq!(foreign.bfn_to_local_gfn(probe), local.then_some(probe));
    }

    /// Random frames, limits, granules and lengths: a range passes through
    /// exactly if no reason to bounce it holds, and is one piece then.
    #[test]
    fn inv12_inv13_what_passes_through_is_in_reach_and_in_one_piece(
        frames in proptest::collection::vec(proptest::option::weighted(0.9, 0u64..24), 24),
        address in 0u64..24 * 4096,
        len in 1u64..5 * 4096,
        mask in proptest::option::of(0x4000_0000u64 + 4_194_303..0x5000_0000),
        low in any::<bool>(),
        untrusted in any::<bool>(),
        granule in prop_oneof![Just(0u32), Just(512), Just(4096)],
        force in proptest::bool::weighted(0.1),
    ) {
        // guest frames 0..24 somewhere in the lowest or beyond the highest
        // frames, the pool at its own place
        let above = if low { 0 } else { 0x5_0000 };
        let mut table: Vec<Option<u64>> = frames.iter().map(|f| f.map(|f| f + above)).collect();
        table.resize(0x4_0000, None);
        table.extend((0x4_0000..0x4_0400).map(Some));
        let frames = FrameTable::new(0, table.iter().copied());
        let space = AddressSpace::Translated(Arc::new(frames));
        let allocator = Allocator::new(settings("2048,1"), space);
        ensure(&allocator, BASE).unwrap();
        let constraints = DeviceConstraints {
            dma_mask: mask.and_then(NonZeroU64::new),
            untrusted,
            granule,
            force,
            ..DeviceConstraints::default()
        };
        let limit = constraints.limit();
        let worker = worker(&allocator, constraints, 0);
        let mapped = map(&worker, address, len);
        let touched: Option<Vec<u64>> =
            (address / 4096..=(address + len - 1) / 4096).map(|gfn| table[gfn as usize]).collect();
        let Some(touched) = touched.filter(|_| address + len <= 24 * 4096) else {
            prop_assert!(matches!(mapped, Err(Error::NoTranslation(_))));
            return Ok(());
        };
        let contiguous = touched.windows(2).all(|pair| pair[1] == pair[0] + 1);
        let bus = touched[0] * 4096 + address % 4096;
        let whole = granule == 0 || (address | len) % u64::from(granule) == 0;
        let need = force || !capable(bus, len, limit) || !contiguous || (untrusted && !whole);
        let mapping = mapped.unwrap();
        prop_assert_eq!(mapping.bounced().is_some(), need);
        prop_assert!(capable(mapping.dma_address(), len, limit));
        if !need {
            prop_assert_eq!(mapping.dma_address(), bus);
        }
    }
}
