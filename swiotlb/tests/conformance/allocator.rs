//! Which slots a mapping is given.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng};
use swiotlb::allocator::PadPolicy;
use swiotlb::space::FrameTable;
use swiotlb::*;

use crate::model::{Model, Placed, Request};
use crate::stand::*;

fn map(worker: &Worker, orig: u64, len: u64, align: u64) -> Mapping<&Device> {
    let mapped = worker.map(&NoRam, orig, len, Direction::ToDevice, &aligned(align));
    mapped.unwrap()
}

#[test]
fn v39_four_kibibytes_are_page_aligned() {
    let (_allocator, worker) = masked(0);
    let live = [2048, 4096, 2049, 2048].map(|len| map(&worker, 0, len, 1));
    let slots = [0, 1, 2, 3].map(|index| (placed(&live[index]).0, placed(&live[index]).1));
    assert_eq!(slots, [(0, 1), (2, 2), (4, 2), (1, 1)]);
}

#[test]
fn v52_coherent_pages_are_aligned_wherever_the_cursor_is() {
    for policy in [Policy::LowestFirst, Policy::NextFit] {
        let settings = Settings {
            policy,
            ..settings("2048,1")
        };
        let allocator = allocator(settings);
        let worker = worker(&allocator, forced(), 0);
        let first = map(&worker, 0, 2048, 1);
        let pages = worker.alloc_coherent(8192).unwrap();
        assert_eq!(pages.lease().first_slot(), 4, "{policy:?}");
        assert_eq!(pages.dma_address(), 0x4000_2000);
        drop((first, pages));
        assert_eq!(allocator.used(), 0);
    }
}

#[test]
fn v52_coherent_pages_between_many_mappings_overlap_nothing() {
    for policy in [Policy::LowestFirst, Policy::NextFit] {
        let settings = Settings {
            policy,
            ..settings("2048,1")
        };
        let allocator = allocator(settings);
        let worker = worker(&allocator, forced(), 0);
        let mut random = Random::new(0x52);
        let mut live = Vec::new();
        let mut pages = Vec::new();
        for step in 0..500 {
            if live.len() < 200 || random.below(2) == 0 {
                live.push(map(&worker, 0, 2048, 1));
            } else {
                drop(live.swap_remove(random.below(live.len() as u64) as usize));
            }
            if step % 10 == 0 {
                let block = worker.alloc_coherent(8192).unwrap();
                assert_eq!(block.dma_address() % 8192, 0);
                pages.push(block);
            }
        }
        let mut ranges: Vec<(u64, u64)> = live.iter().map(|m| (m.dma_address(), m.len())).collect();
        ranges.extend(pages.iter().map(|block| (block.dma_address(), 8192)));
        ranges.sort_unstable();
        assert!(
            ranges
                .windows(2)
                .all(|pair| pair[0].0 + pair[0].1 <= pair[1].0)
        );
    }
}

#[test]
fn v54_both_alignments_hold_at_once() {
    let (allocator, worker) = masked(65_535);
    let mapping = map(&worker, 0x5_fe10, 3000, 65_536);
    assert_eq!(placed(&mapping), (0, 64, 0x4000_fe10));
    assert_eq!(allocator.used(), 64);
    drop(mapping);
    assert_eq!(allocator.used(), 0);
    let mapping = map(&worker, 0x7_b900, 4096, 4096);
    assert_eq!(placed(&mapping), (22, 4, 0x4000_b900));
    let (_allocator, worker) = masked(4095);
    let mapping = map(&worker, 0x800, 2048, 1);
    assert_eq!(placed(&mapping), (1, 1, 0x4000_0800));
}

#[test]
fn v55_the_own_area_comes_first_and_then_the_others() {
    let allocator = allocator(settings("2048,4"));
    let device = Device::attach(&allocator, forced()).unwrap();
    let workers: Vec<Worker> = (0..6).map(|hint| device.worker(hint)).collect();
    let first: Vec<_> = workers
        .iter()
        .map(|worker| map(worker, 0, 2048, 1))
        .collect();
    let slots: Vec<u32> = first.iter().map(|mapping| placed(mapping).0).collect();
    assert_eq!(slots, [0, 512, 1024, 1536, 1, 513]);
    let attrs = Attrs::default();
    let large = || workers[3].map(&NoRam, 0, 0x4_0000, Direction::ToDevice, &attrs);
    let mut live = Vec::new();
    let full = loop {
        match large() {
            Ok(mapping) => live.push(mapping),
            Err(error) => break error,
        }
    };
    let slots: Vec<u32> = live.iter().map(|mapping| placed(mapping).0).collect();
    let expected = [
        1664, 1792, 1920, 128, 256, 384, 640, 768, 896, 1152, 1280, 1408,
    ];
    assert_eq!(slots, expected);
    assert!(
        matches!(
            full,
            Error::Full {
                wanted_slots: 128,
                used: 1542,
                ..
            }
        ),
        "{full:?}"
    );
    assert_eq!(allocator.stats().area_fallback, 9);
}

#[test]
fn a_window_between_boundaries_is_never_left() {
    let allocator = default_pool();
    let constraints = DeviceConstraints {
        seg_boundary: 4095,
        ..forced()
    };
    let worker = worker(&allocator, constraints, 0);
    let first = map(&worker, 0, 2048, 1);
    let second = map(&worker, 0, 3000, 1);
    assert_eq!((placed(&first).0, placed(&second).0), (0, 2));
    let over = worker.map(&NoRam, 0, 4097, Direction::ToDevice, &Attrs::default());
    assert!(matches!(over, Err(Error::Unsatisfiable(_))));
}

#[test]
fn v56_slots_beyond_four_gibibytes_are_found() {
    // 8 GiB of addresses of which little is ever touched
    let allocator = allocator(settings("4194304,4"));
    let device = Device::attach(&allocator, forced()).unwrap();
    let last = device.worker(3);
    let mapping = map(&last, 0, 0x4_0000, 1);
    assert_eq!(placed(&mapping), (3 << 20, 128, BASE + (6 << 30)));
    let address = mapping.into_dma_address();
    let unmapped = device.unmap(
        &NoRam,
        address,
        0x4_0000,
        Direction::ToDevice,
        &Attrs::default(),
    );
    assert_eq!((unmapped, allocator.used()), (Ok(()), 0));
}

/// A small, fast generator: the model's runs are many.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Random(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// A pool and its model.
struct Pair {
    allocator: Arc<Allocator>,
    model: Model,
    /// One worker for each `min_align_mask`, boundary and hint.
    workers: BTreeMap<(u64, u64, usize), Worker>,
}

const MASKS: [u64; 4] = [0, 511, 4095, 65_535];
const BOUNDARIES: [u64; 4] = [u64::MAX, 4095, 65_535, 0x3_ffff];
const ALIGNS: [u64; 5] = [1, 2048, 4096, 8192, 65_536];

impl Pair {
    fn new(options: &str, areas: usize, base: u64, policy: Policy, scattered: bool) -> Self {
        let settings = Settings {
            policy,
            pad: PadPolicy::Trusted,
            ..settings(options)
        };
        let slots = u64::from(settings.options.sizing(1).nslots());
        let pages = slots / 2;
        // a domain whose frames are in runs of up to 40, the rest in between
        let frame = |page: u64| match scattered {
            true => base / 4096 + page + page / 40 * 7,
            false => base / 4096 + page,
        };
        // the originals are below the pool
        let originals = (0..base / 4096).map(Some);
        let frames = originals.chain((0..pages).map(|page| Some(frame(page))));
        let space = match scattered {
            true => AddressSpace::Translated(Arc::new(FrameTable::new(0, frames))),
            false => AddressSpace::one_to_one(),
        };
        let allocator = Allocator::new(settings, space);
        ensure(&allocator, base).unwrap();
        let bus = (0..slots).map(|slot| frame(slot / 2) * 4096 + slot % 2 * 2048);
        let mut workers = BTreeMap::new();
        for mask in MASKS {
            for boundary in BOUNDARIES {
                let constraints = DeviceConstraints {
                    min_align_mask: mask,
                    seg_boundary: boundary,
                    ..forced()
                };
                let device = Device::attach(&allocator, constraints).unwrap();
                for hint in 0..4 {
                    workers.insert((mask, boundary, hint), device.worker(hint));
                }
            }
        }
        Pair {
            allocator,
            model: Model::new(bus.collect(), areas, policy),
            workers,
        }
    }

    fn request(random: &mut Random) -> Request {
        let most = random.of(&[2048, 2048, 8192, 65_536, 262_144]);
        Request {
            hint: random.below(4) as usize,
            orig: 0x2000_0000 + random.below(0x10_0000),
            len: 1 + random.below(most),
            align: random.of(&ALIGNS),
            mask: random.of(&MASKS),
            boundary: random.of(&BOUNDARIES),
        }
    }

    /// As many random operations; each is judged by the model. Returns how many
    /// requests found a place, and how many did not.
    fn run(mut self, operations: usize, seed: u64) -> (u64, u64) {
        let mut random = Random::new(seed);
        let mut live: Vec<(Mapping<&Device>, Placed)> = Vec::new();
        let (mut found, mut refused) = (0, 0);
        let mut target = 0;
        for step in 0..operations {
            if step % 512 == 0 {
                // now crowded, now nearly empty
                target = random.below(120) as usize;
            }
            if !live.is_empty() && random.below(100) < if live.len() > target { 70 } else { 30 } {
                let (mapping, placed) = live.swap_remove(random.below(live.len() as u64) as usize);
                drop(mapping);
                self.model.unmap(&placed);
            } else {
                let request = Pair::request(&mut random);
                let key = (request.mask, request.boundary, request.hint);
                let mapped = self.workers[&key].map(
                    &NoRam,
                    request.orig,
                    request.len,
                    Direction::ToDevice,
                    &Attrs {
                        no_warn: true,
                        ..aligned(request.align)
                    },
                );
                let expected = self.model.map(&request);
                let got = mapped.as_ref().ok().map(|mapping| {
                    let (slot, slots, address) = placed(mapping);
                    Placed {
                        slot: slot as usize,
                        slots: slots as usize,
                        address,
                    }
                });
                assert_eq!(got, expected, "step {step}: {request:?}: {mapped:?}");
                match (mapped, expected) {
                    (Ok(mapping), Some(placed)) => {
                        let same = !request.mask & (placed.address ^ request.orig);
                        assert_eq!(same, placed.address ^ request.orig, "{request:?}");
                        live.push((mapping, placed));
                        found += 1;
                    }
                    _ => refused += 1,
                }
            }
            if step % 16 == 0 {
                assert_eq!(self.allocator.used(), self.model.used());
            }
        }
        live.clear();
        assert_eq!(self.allocator.used(), 0);
        (found, refused)
    }
}

/// Operations of all runs of the model together.
const OPERATIONS: usize = 1_050_000;

#[test]
fn v53_inv01_inv02_inv03_inv04_inv35_a_million_operations_do_what_the_model_does() {
    let runs = [
        // options, areas, base, scattered
        ("256,1", 1, BASE, false),
        ("512,4", 4, BASE, false),
        ("1024,2", 2, BASE + 0x1000, false),
        ("512,1", 1, BASE + 0x3_f000, false),
        ("256,2", 2, BASE + 0x1_3000, false),
        ("512,2", 2, BASE, true),
        ("256,1", 1, BASE + 0x7000, true),
    ];
    let each = OPERATIONS / (2 * runs.len());
    for policy in [Policy::LowestFirst, Policy::NextFit] {
        for (index, (options, areas, base, scattered)) in runs.into_iter().enumerate() {
            let pair = Pair::new(options, areas, base, policy, scattered);
            let (found, refused) = pair.run(each, 0x1234_5678 + index as u64);
            // the run met both sides
            assert!(
                found > each as u64 / 10 && refused > each as u64 / 100,
                "{found} {refused}"
            );
        }
    }
}

proptest! {
    #[test]
    fn inv05_order_of_freeing_does_not_matter(
        requests in proptest::collection::vec((1u64..0x4_0000, 0usize..5, any::<prop::sample::Index>()), 1..40),
    ) {
        let allocator = default_pool();
        let worker = worker(&allocator, forced(), 0);
        let mut live = Vec::new();
        let mut order = Vec::new();
        for (len, align, index) in requests {
            let mapped = worker.map(&NoRam, 0, len, Direction::ToDevice, &aligned(ALIGNS[align]));
            live.extend(mapped.ok());
            order.push(index);
        }
        for index in order {
            if !live.is_empty() {
                drop(live.swap_remove(index.index(live.len())));
            }
        }
        prop_assert_eq!(allocator.used(), 0);
        // every segment is whole again
        let all: Vec<_> = (0..16).map(|_| map(&worker, 0, 0x4_0000, 1)).collect();
        prop_assert_eq!(allocator.used(), 2048);
        prop_assert_eq!(all.iter().map(|m| placed(m).0).max(), Some(15 * 128));
    }

    #[test]
    fn inv09_an_error_changes_nothing(
        address in any::<u64>(),
        len in any::<u64>(),
        align in any::<u64>(),
        mmio in any::<bool>(),
        require_coherent in any::<bool>(),
        for_cpu in any::<bool>(),
    ) {
        let (allocator, worker) = masked(4095);
        let ram = Ram::new(0x1_0000);
        ram.fill(0, 0x1_0000, b'A');
        let live = worker.map(&ram, 0x100, 5000, Direction::FromDevice, &Attrs::default()).unwrap();
        fill(&bytes(&live), b'D');
        let head = live.into_dma_address();
        let state = || {
            let stats = allocator.stats();
            (stats.used, stats.maps_bounced, stats.bytes_in, stats.bytes_out)
        };
        let before = state();
        let attrs = Attrs { align, mmio, require_coherent, ..Attrs::default() };
        let mapped = worker.map(&ram, address, len, Direction::Bidirectional, &attrs);
        let failed = mapped.is_err();
        drop(mapped);
        prop_assert!(!failed || state() == before);
        let before = state();
        let device = worker.device();
        let sync_for = if for_cpu { SyncFor::Cpu } else { SyncFor::Device };
        let address = if address % 3 == 0 { head.wrapping_add(address % 9000) } else { address };
        if device.sync(&ram, address, len, Direction::FromDevice, sync_for).is_err() {
            prop_assert_eq!(state(), before);
        }
        let unmapped = device.unmap(&ram, address, len, Direction::ToDevice, &attrs);
        prop_assert!(unmapped.is_err() || device.unmap(&ram, address, len, Direction::ToDevice, &attrs).is_ok());
        prop_assert_eq!(state(), before);
        prop_assert_eq!(ram.read(0, 0x1_0000), vec![b'A'; 0x1_0000]);
    }
}

/// INV-31 for those who have no fuzzer: streams of operations with every value
/// that a caller or guest can give.
#[test]
fn inv31_no_value_makes_anything_panic() {
    let mut runner = proptest::test_runner::TestRunner::new_with_rng(
        Config::with_cases(400),
        TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]),
    );
    let edge = prop_oneof![
        any::<u64>(),
        (0u32..64).prop_map(|bit| (1 << bit) - 1),
        (0u32..64).prop_map(|bit| 1 << bit),
        BASE..BASE + 0x40_0000,
        0u64..0x1_0000,
    ];
    let step = (edge.clone(), edge.clone(), edge.clone(), 0u8..8);
    let stream = (
        edge.clone(),
        edge.clone(),
        edge,
        proptest::collection::vec(step, 1..20),
    );
    let result = runner.run(&stream, |(mask, boundary, limit, steps)| {
        let allocator = default_pool();
        let constraints = DeviceConstraints {
            min_align_mask: mask,
            seg_boundary: boundary,
            dma_mask: std::num::NonZeroU64::new(limit),
            ..forced()
        };
        let Ok(device) = Device::attach(&allocator, constraints) else {
            return Ok(());
        };
        let worker = device.worker(mask as usize);
        let mut live = Vec::new();
        for (a, b, c, operation) in steps {
            let attrs = aligned(c);
            match operation {
                0 | 1 => live.extend(
                    worker
                        .map_owned(&NoRam, a, b, Direction::FromDevice, &attrs)
                        .ok(),
                ),
                2 => live.extend(
                    worker
                        .map_owned(&NoRam, a, b % 9000, Direction::Bidirectional, &aligned(1))
                        .ok(),
                ),
                3 => drop(device.unmap(&NoRam, a, b, Direction::FromDevice, &attrs)),
                4 => drop(device.sync(&NoRam, a, b, Direction::FromDevice, SyncFor::Cpu)),
                5 => drop(live.pop().map(|mapping| mapping.into_dma_address())),
                6 => drop(
                    live.pop()
                        .map(|mapping| mapping.unmap_written(&NoRam, &[a..b, 0..1])),
                ),
                _ => drop(
                    worker
                        .alloc_coherent(a)
                        .map(|block| device.free_coherent(block.dma_address(), b)),
                ),
            }
        }
        Ok(())
    });
    assert_eq!(result, Ok(()));
}
