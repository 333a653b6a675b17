//! Which bytes reach whom.

use proptest::prelude::*;
use swiotlb::allocator::Isolation;
use swiotlb::*;

use crate::stand::*;

const S: u8 = b'S';
const A: u8 = b'A';
const D: u8 = b'D';

/// Leaves `len` bytes of S in the pool's first slots.
fn dirty(worker: &Worker, len: u64) {
    let ram = Ram::new(len);
    ram.fill(0, len, S);
    let mapping = worker.map(&ram, 0, len, Direction::ToDevice, &Attrs::default());
    drop(mapping.unwrap());
}

#[test]
fn v37_a_short_write_leaves_the_rest_of_the_original() {
    let (_allocator, worker) = masked(0);
    dirty(&worker, 4096);
    let ram = Ram::new(0x2000);
    ram.fill(0, 4096, A);
    let mapping = worker
        .map(&ram, 0, 4096, Direction::FromDevice, &Attrs::default())
        .unwrap();
    fill(&bytes(&mapping).subslice(0, 100).unwrap(), D);
    mapping.unmap(&ram).unwrap();
    assert_eq!(ram.read(0, 100), vec![D; 100]);
    assert_eq!(ram.read(100, 3996), vec![A; 3996]);
}

#[test]
fn v38_the_device_sees_the_original_and_nothing_stale() {
    let (_allocator, worker) = masked(0);
    dirty(&worker, 4096);
    let ram = Ram::new(0x2000);
    ram.fill(0, 4096, A);
    let mapping = worker
        .map(&ram, 0, 4096, Direction::FromDevice, &Attrs::default())
        .unwrap();
    assert_eq!(read(&bytes(&mapping)), vec![A; 4096]);
}

#[test]
fn v40_the_rest_of_a_slot_is_zero() {
    let (allocator, worker) = masked(0);
    dirty(&worker, 8192);
    let ram = Ram::new(0x2000);
    ram.fill(0, 0x2000, A);
    let mapping = worker
        .map(&ram, 0, 100, Direction::ToDevice, &Attrs::default())
        .unwrap();
    assert_eq!(placed(&mapping).0, 0);
    assert_eq!(pool_bytes(&allocator, 0, 100), vec![A; 100]);
    assert_eq!(pool_bytes(&allocator, 100, 1948), vec![0; 1948]);
    assert_eq!(
        pool_bytes(&allocator, 2048, 2048),
        vec![S; 2048],
        "not its slot"
    );
}

#[test]
fn v40_padding_before_and_behind_is_zero() {
    let (allocator, worker) = masked(4095);
    dirty(&worker, 16_384);
    let ram = Ram::new(0x8_0000);
    ram.fill(0x7_7900, 4096, A);
    let mapping = worker
        .map(&ram, 0x7_7900, 4096, Direction::ToDevice, &aligned(4096))
        .unwrap();
    assert_eq!(placed(&mapping), (0, 4, 0x4000_0900));
    assert_eq!(pool_bytes(&allocator, 0, 0x900), vec![0; 0x900]);
    assert_eq!(pool_bytes(&allocator, 0x900, 0x1000), vec![A; 0x1000]);
    assert_eq!(pool_bytes(&allocator, 0x1900, 0x700), vec![0; 0x700]);
}

#[test]
fn v61_devices_do_not_share_pages() {
    let settings = Settings {
        isolation: Isolation::Page,
        ..settings("2048,1")
    };
    let allocator = allocator(settings);
    let first = worker(&allocator, forced(), 0);
    let second = worker(&allocator, forced(), 0);
    dirty(&first, 16_384);
    let ram = Ram::new(0x1000);
    ram.fill(0, 0x1000, A);
    let a = first
        .map(&ram, 0, 100, Direction::ToDevice, &Attrs::default())
        .unwrap();
    let b = second
        .map(&ram, 0, 100, Direction::ToDevice, &Attrs::default())
        .unwrap();
    assert_ne!(a.dma_address() / 4096, b.dma_address() / 4096);
    for mapping in [&a, &b] {
        let page = mapping.dma_address() - BASE;
        assert_eq!(page % 4096, 0);
        assert_eq!(pool_bytes(&allocator, page + 100, 3996), vec![0; 3996]);
    }
}

#[test]
fn v62_slots_that_change_hands_hold_nothing_of_before() {
    let allocator = default_pool();
    let first = worker(&allocator, forced(), 0);
    let second = worker(&allocator, forced(), 0);
    dirty(&first, 2048);
    let ram = Ram::new(0x1000);
    ram.fill(0, 0x1000, A);
    let mapping = second
        .map(&ram, 0, 64, Direction::ToDevice, &Attrs::default())
        .unwrap();
    assert_eq!(placed(&mapping).0, 0);
    assert!(!pool_bytes(&allocator, 0, 2048).contains(&S));
}

/// Guest memory that counts how often each byte was fetched.
struct Counting {
    ram: Ram,
    fetched: std::cell::RefCell<Vec<u32>>,
}

impl Originals for Counting {
    fn copy_in(
        &self,
        address: u64,
        bounce: &vm_memory::VolatileSlice<'_>,
    ) -> Result<(), OrigFault> {
        let mut fetched = self.fetched.borrow_mut();
        for count in &mut fetched[address as usize..address as usize + bounce.len()] {
            *count += 1;
        }
        self.ram.copy_in(address, bounce)
    }

    fn copy_back(
        &self,
        address: u64,
        bounce: &vm_memory::VolatileSlice<'_>,
    ) -> Result<(), OrigFault> {
        self.ram.copy_back(address, bounce)
    }
}

#[test]
fn v63_each_byte_is_fetched_once_and_stays_as_it_was() {
    let (_allocator, worker) = masked(0);
    let guest = Counting {
        ram: Ram::new(0x1000),
        fetched: vec![0; 0x1000].into(),
    };
    guest.ram.write(0x100, b"a request's header");
    let len = 18;
    let mapping = worker
        .map(&guest, 0x100, len, Direction::ToDevice, &Attrs::default())
        .unwrap();
    guest.ram.write(0x100, b"flipped by a guest");
    assert_eq!(read(&bytes(&mapping)), b"a request's header");
    mapping.unmap(&guest).unwrap();
    let fetched = guest.fetched.borrow();
    assert!(
        fetched[0x100..0x100 + len as usize]
            .iter()
            .all(|&count| count == 1)
    );
    assert_eq!(fetched.iter().sum::<u32>(), len as u32);
    assert_eq!(guest.ram.read(0x100, len), b"flipped by a guest");
}

/// Guest memory that notes which copies it was told of.
struct Told(std::cell::RefCell<Vec<(u64, u64)>>);

impl Originals for Told {
    fn copy_in(&self, _: u64, _: &vm_memory::VolatileSlice<'_>) -> Result<(), OrigFault> {
        Ok(())
    }

    fn copy_back(&self, _: u64, _: &vm_memory::VolatileSlice<'_>) -> Result<(), OrigFault> {
        Ok(())
    }

    fn expect_copy_in(&self, address: u64, len: u64) {
        self.0.borrow_mut().push((address, len));
    }
}

#[test]
fn memory_is_told_of_what_will_be_copied_in_and_of_nothing_else() {
    let allocator = default_pool();
    let constraints = DeviceConstraints {
        consumer: Consumer::Declaring,
        ..forced()
    };
    let worker = worker(&allocator, constraints, 0);
    let told = Told(Vec::new().into());
    for (address, direction) in [(0x100, Direction::ToDevice), (0x200, Direction::FromDevice)] {
        let mapping = worker.map(&told, address, 64, direction, &Attrs::default());
        mapping.unwrap().unmap(&told).unwrap();
    }
    assert_eq!(told.0.into_inner(), [(0x100, 64)]);
}

#[test]
fn a_consumer_that_states_what_it_wrote_is_shown_no_original_and_changes_nothing_else() {
    let allocator = default_pool();
    let constraints = DeviceConstraints {
        consumer: Consumer::Declaring,
        ..forced()
    };
    let worker = worker(&allocator, constraints, 0);
    let ram = Ram::new(0x1000);
    ram.fill(0, 1000, A);
    let map = || {
        worker
            .map(&ram, 0, 1000, Direction::FromDevice, &Attrs::default())
            .unwrap()
    };
    let mapping = map();
    assert_ne!(read(&bytes(&mapping)), vec![A; 1000]);
    fill(&bytes(&mapping), D);
    mapping.unmap_written(&ram, &[0..10, 500..501]).unwrap();
    let mut expected = vec![A; 1000];
    expected[..10].fill(D);
    expected[500] = D;
    assert_eq!(ram.read(0, 1000), expected);
    // stating nothing changes nothing
    let mapping = map();
    fill(&bytes(&mapping), b'E');
    mapping.unmap(&ram).unwrap();
    assert_eq!(ram.read(0, 1000), expected);
    assert_eq!(allocator.stats().bytes_in, 0);
    assert_eq!(allocator.stats().bytes_out, 11);
}

#[test]
fn an_untrusted_consumer_is_shown_zeroes_where_it_is_to_write() {
    let source = |bytes: u64, _: u64| PoolMemory::memfd("pool", bytes, Base::At(BASE));
    let allocator = Allocator::new(settings("2048,1"), AddressSpace::one_to_one());
    let ensured = allocator.ensure_default_pool(allocator::BringUp {
        source: &mut { source },
        limit: None,
        remap: None,
        probe: &mut || false,
        pv_pci: false,
    });
    assert!(ensured.is_ok() && allocator.is_shared());
    let ram = Ram::new(0x1000);
    ram.fill(0, 0x1000, A);
    let untrusted = |copy_back_whole| DeviceConstraints {
        consumer: Consumer::Untrusted { copy_back_whole },
        ..forced()
    };
    let careful = worker(&allocator, untrusted(false), 0);
    dirty(&careful, 2048);
    let mapping = careful
        .map(&ram, 0, 100, Direction::FromDevice, &Attrs::default())
        .unwrap();
    assert_eq!(pool_bytes(&allocator, 0, 2048), vec![0; 2048]);
    fill(&bytes(&mapping), D);
    mapping.unmap_written(&ram, &[0..20, 20..50]).unwrap();
    assert_eq!(ram.read(0, 100), [vec![D; 50], vec![A; 50]].concat());
    // what it is to read it sees
    let mapping = careful
        .map(&ram, 0, 50, Direction::Bidirectional, &Attrs::default())
        .unwrap();
    assert_eq!(read(&bytes(&mapping)), vec![D; 50]);
    drop(mapping);
    // one that under-reports has its zeroes copied back, too
    let whole = worker(&allocator, untrusted(true), 0);
    let mapping = whole
        .map(&ram, 0, 100, Direction::FromDevice, &Attrs::default())
        .unwrap();
    mapping.unmap(&ram).unwrap();
    assert_eq!(ram.read(0, 101), [vec![0; 100], vec![A]].concat());
    // and a consumer that would be shown stale bytes is refused
    let declaring = DeviceConstraints {
        consumer: Consumer::Declaring,
        ..forced()
    };
    assert!(matches!(
        Device::attach(&allocator, declaring),
        Err(Error::Invalid { .. })
    ));
}

#[test]
fn unzeroed_padding_is_refused_where_others_see_the_pool() {
    let settings = Settings {
        pad: allocator::PadPolicy::Trusted,
        ..settings("2048,1")
    };
    let allocator = Allocator::new(settings, AddressSpace::one_to_one());
    let ensured = allocator.ensure_default_pool(allocator::BringUp {
        source: &mut Memfd {
            name: "pool".into(),
        },
        limit: None,
        remap: None,
        probe: &mut || false,
        pv_pci: false,
    });
    assert!(matches!(ensured, Err(Error::Invalid { .. })));
    assert!(!allocator.is_active());
}

#[test]
fn scrubbed_slots_are_zero_before_they_are_free() {
    let settings = Settings {
        scrub_on_free: true,
        ..settings("2048,1")
    };
    let allocator = allocator(settings);
    let worker = worker(&allocator, forced(), 0);
    dirty(&worker, 3000);
    assert_eq!(pool_bytes(&allocator, 0, 4096), vec![0; 4096]);
}

#[test]
fn a_lease_is_padded_and_freed() {
    let (allocator, worker) = masked(0);
    dirty(&worker, 2048);
    let lease = worker
        .lease(0x1000, 100, Direction::FromDevice, &Attrs::default())
        .unwrap();
    assert_eq!(pool_bytes(&allocator, 100, 1948), vec![0; 1948]);
    assert_eq!(lease.segment().unwrap().len(), 100);
    // it outlives its worker, on any thread
    drop(worker);
    std::thread::spawn(move || drop(lease)).join().unwrap();
    assert_eq!(allocator.used(), 0);
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![
        Just(Direction::ToDevice),
        Just(Direction::FromDevice),
        Just(Direction::Bidirectional)
    ]
}

fn any_mask() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0u64), Just(511), Just(4095), Just(65_535)]
}

proptest! {
    #[test]
    fn inv06_a_device_that_writes_nothing_changes_nothing(
        seed in any::<u8>(),
        address in 0u64..0x8000,
        len in 1u64..0x8000,
        direction in direction(),
        mask in any_mask(),
        align in prop_oneof![Just(1u64), Just(4096)],
        skip in any::<bool>(),
    ) {
        let (allocator, worker) = masked(mask);
        dirty(&worker, 0x1_0000);
        let ram = Ram::new(0x1_0000);
        let before: Vec<u8> = (0..0x1_0000u32).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect();
        ram.write(0, &before);
        let attrs = Attrs { skip_cpu_sync: skip, ..aligned(align) };
        let mapping = worker.map(&ram, address, len, direction, &attrs).unwrap();
        prop_assert_eq!(read(&bytes(&mapping)), &before[address as usize..(address + len) as usize]);
        let dma = mapping.into_dma_address();
        prop_assert_eq!(worker.device().unmap(&ram, dma, len, direction, &attrs), Ok(()));
        prop_assert_eq!(ram.read(0, 0x1_0000), before);
        prop_assert_eq!(allocator.used(), 0);
    }

    #[test]
    fn inv07_an_original_differs_exactly_where_the_device_wrote(
        address in 0u64..0x4000,
        len in 1u64..0x4000,
        from in 0u64..0x4000,
        count in 0u64..0x4000,
        direction in direction(),
        mask in any_mask(),
    ) {
        let (_allocator, worker) = masked(mask);
        let ram = Ram::new(0x8000);
        ram.fill(0, 0x8000, A);
        let mapping = worker.map(&ram, address, len, direction, &Attrs::default()).unwrap();
        let from = from.min(len);
        let count = count.min(len - from);
        fill(&bytes(&mapping).subslice(from as usize, count as usize).unwrap(), D);
        mapping.unmap(&ram).unwrap();
        let mut expected = vec![A; 0x8000];
        if direction != Direction::ToDevice {
            expected[(address + from) as usize..][..count as usize].fill(D);
        }
        prop_assert_eq!(ram.read(0, 0x8000), expected);
    }

    #[test]
    fn inv11_everything_around_a_mapping_is_zero(
        address in 0u64..0x4000,
        len in 1u64..0x4000,
        mask in any_mask(),
        align in prop_oneof![Just(1u64), Just(2048), Just(8192), Just(65_536)],
    ) {
        let (allocator, worker) = masked(mask);
        dirty(&worker, 0x4_0000 - 0x1_0000);
        let ram = Ram::new(0x8000);
        ram.fill(0, 0x8000, A);
        let mapping = worker.map(&ram, address, len, Direction::ToDevice, &aligned(align)).unwrap();
        let (slot, slots, dma) = placed(&mapping);
        let start = u64::from(slot) * 2048;
        let held = pool_bytes(&allocator, start, u64::from(slots) * 2048);
        let before = (dma - BASE - start) as usize;
        prop_assert!(held[..before].iter().all(|&byte| byte == 0));
        prop_assert!(held[before..before + len as usize].iter().all(|&byte| byte == A));
        prop_assert!(held[before + len as usize..].iter().all(|&byte| byte == 0));
    }
}
