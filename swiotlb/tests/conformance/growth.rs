//! Pools that are added, and pools for one mapping.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use proptest::prelude::*;
use swiotlb::allocator::Growth;
use swiotlb::*;

use crate::stand::*;

/// Where pools that are added start.
const ADDED: u64 = 0x6000_0000;

/// What growth has asked for.
#[derive(Default)]
struct Watch {
    woken: AtomicUsize,
    /// Bytes of the pools that were made.
    made: std::sync::Mutex<Vec<u64>>,
    next: AtomicU64,
    /// Whether pools are made far below the others.
    below: std::sync::atomic::AtomicBool,
    /// Offset of the pools' starts from a segment's.
    residue: AtomicU64,
}

fn growing(options: &str, change: impl FnOnce(&mut Growth)) -> (Arc<Allocator>, Arc<Watch>) {
    let watch = Arc::new(Watch::default());
    let seen = Arc::clone(&watch);
    let source = move |bytes: u64, limit: u64| {
        let size = (bytes + 0x4_0000).next_multiple_of(0x4_0000);
        let lowest = match seen.below.load(Ordering::Relaxed) {
            true => ADDED - 0x5000_0000,
            false => ADDED,
        };
        let base = lowest + seen.next.fetch_add(size, Ordering::Relaxed);
        let base = base + seen.residue.load(Ordering::Relaxed);
        if base + bytes > limit {
            return Err(Error::NoMemory { bytes, os_error: 0 });
        }
        seen.made.lock().unwrap().push(bytes);
        PoolMemory::anonymous(bytes, Base::At(base))
    };
    let woken = Arc::clone(&watch);
    let wake = move || {
        woken.woken.fetch_add(1, Ordering::Relaxed);
    };
    let mut growth = Growth::new(Box::new(source), Box::new(wake));
    change(&mut growth);
    let allocator = Allocator::growing(settings(options), AddressSpace::one_to_one(), growth);
    ensure(&allocator, BASE).unwrap();
    (allocator, watch)
}

fn map(worker: &Worker, orig: u64, len: u64) -> Result<Mapping<&Device>, Error> {
    worker.map(&NoRam, orig, len, Direction::FromDevice, &Attrs::default())
}

#[test]
fn a_full_pool_is_relieved_by_a_transient_one_until_another_is_added() {
    let (allocator, watch) = growing("128,1,track_hiwater", |_| {});
    let worker = worker(&allocator, forced(), 0);
    let all = map(&worker, 0, 0x4_0000).unwrap();
    let first = map(&worker, 0, 3000).unwrap();
    let second = map(&worker, 0, 8192).unwrap();
    assert_eq!((first.dma_address(), placed(&first).1), (ADDED, 2));
    let stats = allocator.stats();
    assert_eq!((stats.nslots, stats.transient_nslots), (128, 6));
    assert_eq!((stats.used, stats.used_hiwater), (134, 134));
    assert_eq!(stats.maps_bounced, 3);
    // however many asked: one call, and one pool
    assert_eq!(watch.woken.load(Ordering::Relaxed), 1);
    assert_eq!(allocator.grow(), Ok(true));
    assert_eq!(allocator.grow(), Ok(false));
    let third = map(&worker, 0, 3000).unwrap();
    assert_eq!(
        allocator.stats().transient_nslots,
        6,
        "served by the pool that was added"
    );
    assert_eq!(allocator.nslots(), 128 + 32_768);
    assert_eq!(allocator.stats().grow_ok, 1);
    drop((first, second, third, all));
    let stats = allocator.stats();
    assert_eq!(
        (stats.used, stats.transient_nslots, stats.maps_bounced),
        (0, 0, 4)
    );
}

#[test]
fn a_transient_mapping_is_known_by_its_address_too() {
    let (allocator, _watch) = growing("128,1", |_| {});
    let worker_ = worker(&allocator, forced(), 0);
    let stranger = worker(&allocator, forced(), 0);
    let all = map(&worker_, 0, 0x4_0000).unwrap();
    let ram = Ram::new(0x2000);
    let mapping = worker_.map(&ram, 0x100, 3000, Direction::FromDevice, &Attrs::default());
    let mapping = mapping.unwrap();
    fill(&bytes(&mapping), b'D');
    let head = mapping.into_dma_address();
    let sync = |worker: &Worker| {
        let device = worker.device();
        device.sync(&ram, head + 2990, 10, Direction::FromDevice, SyncFor::Cpu)
    };
    assert_eq!(
        sync(&stranger),
        Ok(()),
        "for another device it is no address of a pool"
    );
    assert_eq!(ram.read(0x100, 3000), vec![0; 3000]);
    assert_eq!(sync(&worker_), Ok(()));
    assert_eq!(
        ram.read(0x100 + 2989, 11),
        [vec![0], vec![b'D'; 10]].concat()
    );
    let device = worker_.device();
    let unmap = |len| device.unmap(&ram, head, len, Direction::FromDevice, &Attrs::default());
    assert!(matches!(unmap(2999), Err(Error::LengthMismatch { .. })));
    assert_eq!(unmap(3000), Ok(()));
    assert_eq!(ram.read(0x100, 3000), vec![b'D'; 3000]);
    assert_eq!(allocator.stats().transient_nslots, 0);
    assert_eq!(allocator.stats().bytes_out, 3010);
    drop(all);
}

#[test]
fn v66_a_transient_pool_has_room_for_the_originals_residue() {
    let (allocator, watch) = growing("128,1", |_| {});
    let constraints = DeviceConstraints {
        min_align_mask: 4095,
        ..forced()
    };
    let worker = worker(&allocator, constraints, 0);
    let all = map(&worker, 0, 0x3_f000).unwrap();
    let rest = map(&worker, 0, 0x1000).unwrap();
    // bit 11 of the original is set: a page's second slot
    let mapping = map(&worker, 0x800, 4096).unwrap();
    assert_eq!(mapping.dma_address() % 4096, 0x800);
    assert_eq!(placed(&mapping).1, 2);
    // no slack where none is needed
    watch.made.lock().unwrap().clear();
    let aligned = map(&worker, 0x1000, 4096).unwrap();
    assert_eq!(*watch.made.lock().unwrap(), [4096]);
    drop((all, rest, mapping, aligned));
}

#[test]
fn growth_stops_where_somebody_relies_on_the_pool_there_is() {
    let (allocator, watch) = growing("128,1", |_| {});
    assert!(allocator.can_grow());
    allocator.each_memory(|memory| assert_eq!(memory.base(), BASE));
    assert!(!allocator.can_grow());
    let worker = worker(&allocator, forced(), 0);
    let all = map(&worker, 0, 0x4_0000).unwrap();
    assert!(matches!(map(&worker, 0, 1), Err(Error::Full { .. })));
    assert_eq!(watch.woken.load(Ordering::Relaxed), 0);
    drop(all);
}

#[test]
fn a_device_that_does_not_reach_the_pool_is_given_another() {
    let (allocator, watch) = growing("2048,1", |_| {});
    let limited = |limit| DeviceConstraints {
        dma_mask: std::num::NonZeroU64::new(limit),
        ..forced()
    };
    // the default pool ends at 0x403fffff; those that are added start higher
    let refused = Device::attach(&allocator, limited(0x4000_ffff));
    assert!(matches!(refused, Err(Error::PoolUnreachable { .. })));
    watch.below.store(true, Ordering::Relaxed);
    let worker = worker(&allocator, limited(0x3fff_ffff), 0);
    let mapping = map(&worker, 0, 64).unwrap();
    assert!(mapping.dma_address() < 0x4000_0000);
    assert_eq!(
        (allocator.stats().grow_ok, allocator.stats().grow_fail),
        (1, 1)
    );
}

#[test]
fn a_pool_that_cannot_be_added_is_no_disaster() {
    let (allocator, watch) = growing("128,1", |growth| growth.phys_limit = ADDED + 0x2000);
    let worker = worker(&allocator, forced(), 0);
    let all = map(&worker, 0, 0x4_0000).unwrap();
    let small = map(&worker, 0, 64).unwrap();
    assert!(matches!(allocator.grow(), Err(Error::NoMemory { .. })));
    assert_eq!(allocator.stats().grow_fail, 1);
    // the next one that finds no room asks again
    assert!(matches!(map(&worker, 0, 0x1_0000), Err(Error::Full { .. })));
    assert_eq!(watch.woken.load(Ordering::Relaxed), 2);
    drop((all, small));
    assert_eq!(allocator.used(), 0);
}

#[test]
fn v60_teardown_waits_for_a_mapping_in_a_transient_pool_too() {
    let (allocator, _watch) = growing("128,1", |_| {});
    let worker = worker(&allocator, forced(), 0);
    let all = map(&worker, 0, 0x4_0000).unwrap();
    let transient = map(&worker, 0, 3000).unwrap();
    drop(all);
    assert_eq!(allocator.tear_down(), Err(Error::Busy { used: 2 }));
    drop(map(&worker, 0, 64).expect("a refused teardown changes nothing"));
    drop(transient);
    assert_eq!(allocator.tear_down(), Ok(()));
}

proptest! {
    #[test]
    fn inv34_transient_memory_keeps_to_its_budgets(
        steps in proptest::collection::vec((0usize..3, 0u64..0x2000, 1u64..0x4_0000, 0usize..20), 1..60),
        residue in prop_oneof![Just(0u64), Just(0x1000), Just(0x3_e000)],
    ) {
        let (own, all) = (0x2_0000, 0x4_0000);
        let (allocator, watch) = growing("128,1", |growth| {
            growth.max_transient_device = own;
            growth.max_transient_total = all;
        });
        watch.residue.store(residue, Ordering::Relaxed);
        let constraints = DeviceConstraints { min_align_mask: 4095, ..forced() };
        let workers: Vec<Worker> = (0..3).map(|_| worker(&allocator, constraints.clone(), 0)).collect();
        let mut live: Vec<(usize, Mapping<&Device>)> = Vec::new();
        for (who, orig, len, end) in steps {
            if let Ok(mapping) = map(&workers[who], orig, len) {
                prop_assert_eq!((mapping.dma_address() ^ orig) % 4096, 0);
                live.push((who, mapping));
            }
            let mut sums = [0; 3];
            for (who, mapping) in &live {
                if mapping.dma_address() >= ADDED {
                    sums[*who] += u64::from(placed(mapping).1) * 2048;
                }
            }
            prop_assert!(sums.iter().all(|&sum| sum <= own) && sums.iter().sum::<u64>() <= all);
            prop_assert!(allocator.stats().transient_nslots * 2048 <= all);
            if end < live.len() {
                drop(live.swap_remove(end));
            }
        }
        live.clear();
        prop_assert_eq!((allocator.used(), allocator.stats().transient_nslots), (0, 0));
    }
}
