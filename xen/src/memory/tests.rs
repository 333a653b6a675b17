//! Address codec, and foreign memory over the fake.

use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::*;
use crate::Host;
use crate::fake::{Domain, DomainConfig, Machine};
use crate::privcmd::Privcmd;
use crate::sys::abi::PAGE_SIZE;

mod window;

const GFN: u64 = 0x40000;
const RAM: u64 = GFN << 12;
const CHUNK: u64 = 2 << 20;

struct Fixture {
    machine: Machine,
    domain: Domain,
    privcmd: Privcmd,
    ram: ForeignRam,
}

fn guest_with(config: DomainConfig) -> Fixture {
    let machine = Machine::new().unwrap();
    let domain = machine.create_domain(config).unwrap();
    let privcmd = Host::Fake(machine.clone()).open_privcmd().unwrap();
    let ram = ForeignRam::new(&privcmd, domain.id()).unwrap();
    Fixture {
        machine,
        domain,
        privcmd,
        ram,
    }
}

fn guest() -> Fixture {
    guest_with(DomainConfig::with_memory(16 << 20))
}

impl Fixture {
    fn foreign_pages(&self) -> u64 {
        self.machine.census()[&self.domain.id()].foreign_pages
    }

    fn written(&self, address: u64, bytes: &[u8]) {
        self.domain.write_memory(address, bytes).unwrap();
    }
}

fn read(memory: &Generation, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

fn lens(memory: &Generation, address: u64, len: usize) -> Vec<usize> {
    memory
        .slices(address, len)
        .map(|slice| slice.unwrap().len())
        .collect()
}

#[test]
fn nothing_is_mapped_before_it_is_touched() {
    let fixture = guest();
    let memory = fixture.ram.current();
    let before = fixture.foreign_pages();

    read(&memory, RAM + 5, 1);

    assert_eq!(before, 0);
    assert_eq!(fixture.foreign_pages(), 512);
}

#[test]
fn ranges_across_chunks_are_read_and_written() {
    let fixture = guest();
    let memory = fixture.ram.current();
    let address = RAM + CHUNK - 3;
    fixture.written(address, b"guest!");

    let seen = read(&memory, address, 6);
    memory
        .write_slice(b"device", GuestAddress(address))
        .unwrap();

    let mut back = [0; 6];
    fixture.domain.read_memory(address, &mut back).unwrap();
    assert_eq!(seen, b"guest!");
    assert_eq!(&back, b"device");
    assert_eq!(lens(&memory, address, 6), [3, 3]);
}

#[test]
fn a_range_within_a_chunk_is_one_slice() {
    let fixture = guest();
    let memory = fixture.ram.current();

    let slices = lens(&memory, RAM + 100, 1 << 20);

    assert_eq!(slices, [1 << 20]);
    assert!(memory.slices(RAM, 0).next().is_none());
}

#[test]
fn a_hole_is_named_and_its_neighbours_are_there() {
    let fixture = guest_with(DomainConfig::with_memory(16 << 20).hole(GFN + 3, 2));
    let memory = fixture.ram.current();

    let error = memory
        .slices(RAM + 2 * 4096, 3 * 4096)
        .find_map(Result::err)
        .unwrap();

    assert!(matches!(error, Error::NotThere { gfn, .. } if gfn == GFN + 3));
    assert!(error.is_guests_fault());
    assert!(error.to_string().contains("0x40003"));
    assert_eq!(lens(&memory, RAM, 3 * 4096), [3 * 4096]);
    assert_eq!(lens(&memory, RAM + 5 * 4096, 4096), [4096]);
    let through_trait = memory.read_obj::<u8>(GuestAddress(RAM + 3 * 4096));
    assert!(matches!(
        through_trait,
        Err(vm_memory::GuestMemoryError::InvalidGuestAddress(address))
            if address.0 == RAM + 3 * 4096
    ));
}

#[test]
fn a_page_that_comes_later_is_found() {
    let fixture = guest_with(DomainConfig::with_memory(16 << 20).hole(GFN + 3, 1));
    let memory = fixture.ram.current();
    let before = memory.slices(RAM + 3 * 4096, 1).next().unwrap().is_err();
    fixture.domain.balloon_in(GFN + 3, 1).unwrap();
    fixture.written(RAM + 3 * 4096, b"here");

    let seen = read(&memory, RAM + 3 * 4096, 4);
    let slices = lens(&memory, RAM + 2 * 4096, 3 * 4096);

    assert!(before);
    assert_eq!(seen, b"here");
    assert_eq!(slices, [4096, 4096, 4096]);
}

/// A guest of 16 MiB, of whose chunks the first page alone is there.
fn ballooned() -> Fixture {
    let all = DomainConfig::with_memory(16 << 20);
    let holes = (0..8).map(|chunk| GFN + 512 * chunk + 1);
    guest_with(holes.fold(all, |config, first| config.hole(first, 511)))
}

impl Fixture {
    fn mappings(&self) -> u64 {
        self.ram.guest().mappings()
    }

    /// Gives each frame a page and looks at it at once. Tells what was looked
    /// at, and the most mappings that there were.
    fn come_one_by_one(&self, mut look: impl FnMut(Arc<Generation>, u64) -> bool) -> (u64, u64) {
        let (mut seen, mut most) = (0, 0);
        for gfn in GFN..GFN + 4096 {
            if gfn % 512 != 0 {
                self.domain.balloon_in(gfn, 1).unwrap();
            }
            seen += u64::from(look(self.ram.current(), gfn << 12));
            most = most.max(self.mappings());
        }
        (seen, most)
    }
}

#[test]
fn pages_that_come_one_by_one_do_not_use_up_the_mappings() {
    let fixture = ballooned();

    let (seen, most) = fixture
        .come_one_by_one(|memory, address| memory.slices(address, 1).all(|slice| slice.is_ok()));

    // 8 chunks and the slack
    assert_eq!((seen, most), (4096, 264));
    let after = fixture.ram.current();
    assert!(after.number() > 0);
    assert_eq!(read(&after, RAM, 16 << 20).len(), 16 << 20);
    fixture.ram.invalidate();
    drop(after);
    assert_eq!(fixture.mappings(), 0);
}

#[test]
fn generations_that_requests_hold_are_bounded_and_come_free_with_them() {
    let fixture = ballooned();
    let mut held = Vec::new();
    let mut refused = 0;

    let (seen, most) = fixture.come_one_by_one(|memory, address| {
        let slice = memory.slices(address, 1).next().unwrap();
        let seen = slice.is_ok();
        refused += u64::from(matches!(slice, Err(Error::TooMany { .. })));
        held.push(memory);
        seen
    });
    held.clear();
    let memory = fixture.ram.current();

    assert_eq!(most, most_mappings(16 << 20));
    assert!(refused > 0);
    assert_eq!(seen + refused, 4096);
    assert_eq!(read(&memory, RAM, 16 << 20).len(), 16 << 20);
}

#[test]
fn memory_that_is_not_there_leaves_no_mapping() {
    let fixture = guest();
    let memory = fixture.ram.current();

    let low = memory.slices(0x1000, 8).next().unwrap();
    let high = memory.slices(RAM + (1 << 30), 8).next().unwrap();
    let wild = memory.slices(u64::MAX - 2, 8).next().unwrap();

    assert!(matches!(low, Err(Error::NotThere { gfn: 1, .. })));
    assert!(matches!(high, Err(Error::TooHigh { .. })));
    assert!(matches!(wild, Err(Error::TooHigh { .. })));
    assert_eq!(fixture.foreign_pages(), 0);
}

#[test]
fn an_old_generation_is_readable_until_dropped() {
    let fixture = guest();
    let old = fixture.ram.current();
    fixture.written(RAM, b"before");
    read(&old, RAM, 6);

    fixture.ram.invalidate();

    let new = fixture.ram.current();
    assert_eq!((old.number(), new.number()), (0, 1));
    assert_eq!(fixture.ram.number(), 1);
    assert_eq!(read(&old, RAM, 6), b"before");
    assert_eq!(fixture.foreign_pages(), 512);
    drop(old);
    assert_eq!(fixture.foreign_pages(), 0);
    assert_eq!(read(&new, RAM, 6), b"before");
}

#[test]
fn a_new_generation_does_not_see_what_left_the_guest() {
    let fixture = guest();
    let old = fixture.ram.current();
    read(&old, RAM, 1);
    fixture.domain.balloon_out(GFN, 1).unwrap();

    fixture.ram.invalidate();

    let gone = fixture
        .ram
        .current()
        .slices(RAM, 1)
        .next()
        .unwrap()
        .is_err();
    assert!(gone);
    read(&old, RAM, 1);
}

#[test]
fn threads_that_touch_a_chunk_at_once_share_it() {
    let fixture = guest();
    let memory = fixture.ram.current();
    fixture.written(RAM, &[42]);

    let seen = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| read(&memory, RAM, 1)[0]))
            .collect();
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .collect::<Vec<_>>()
    });

    assert_eq!(seen, [42; 4]);
    assert_eq!(fixture.foreign_pages(), 512);
}

#[test]
fn check_range_tells_memory_from_holes() {
    let fixture = guest_with(DomainConfig::with_memory(16 << 20).hole(GFN + 3, 1));
    let memory = fixture.ram.current();
    let check =
        |address, len| memory.check_range(GuestAddress(address), len, Permissions::ReadWrite);

    let checks = [
        check(RAM, 3 * 4096),
        check(RAM, 3 * 4096 + 1),
        check(RAM - 1, 2),
    ];

    assert_eq!(checks, [true, false, false]);
}

#[test]
fn atomics_work_on_aligned_addresses_only() {
    let fixture = guest();
    let memory = fixture.ram.current();
    let order = std::sync::atomic::Ordering::SeqCst;

    let aligned = memory.store(7u16, GuestAddress(RAM + 2), order);
    let odd = memory.store(7u16, GuestAddress(RAM + 3), order);

    aligned.unwrap();
    assert!(odd.is_err());
    let back: u16 = memory.load(GuestAddress(RAM + 2), order).unwrap();
    assert_eq!(back, 7);
}

#[test]
fn a_dedicated_range_outlives_generations() {
    let fixture = guest();
    let address = RAM + CHUNK - 10;
    let range = fixture.ram.map_range(address, 20, true).unwrap();

    fixture.ram.invalidate();
    range.volatile().write_slice(&[9; 20], 0).unwrap();

    let mut seen = [0; 20];
    fixture.domain.read_memory(address, &mut seen).unwrap();
    assert_eq!(seen, [9; 20]);
    assert_eq!(fixture.foreign_pages(), 2);
    assert_eq!((range.len(), range.is_granted()), (20, false));
    range.unmap().unwrap();
    assert_eq!(fixture.foreign_pages(), 0);
}

#[test]
fn a_dedicated_range_with_a_hole_names_the_frame() {
    let fixture = guest_with(DomainConfig::with_memory(16 << 20).hole(GFN + 3, 1));

    let holed = fixture.ram.map_range(RAM, 5 * 4096, false);
    let empty = fixture.ram.map_range(RAM, 0, false);
    let wrapped = fixture.ram.map_range(u64::MAX, 2, false);

    assert!(matches!(holed, Err(Error::NotThere { gfn, .. }) if gfn == GFN + 3));
    assert!(matches!(empty, Err(Error::NoRange { .. })));
    assert!(matches!(wrapped, Err(Error::NoRange { .. })));
    assert_eq!(fixture.foreign_pages(), 0);
}

#[test]
fn a_restricted_file_still_reaches_memory() {
    let fixture = guest();
    fixture.privcmd.restrict(fixture.domain.id()).unwrap();

    let ram = ForeignRam::new(&fixture.privcmd, fixture.domain.id()).unwrap();

    assert_eq!(read(&ram.current(), RAM, 4).len(), 4);
    let beyond = ram
        .current()
        .slices(RAM + (1 << 30), 8)
        .next()
        .unwrap()
        .is_err();
    assert!(beyond);
}

#[test]
fn a_granted_range_shows_just_its_bytes() {
    let fixture = guest();
    let gntdev = Host::Fake(fixture.machine.clone()).open_gntdev().unwrap();
    let first = fixture.domain.grant_range(GFN + 1, 2, true).unwrap();
    fixture.written(RAM + 4096 + 4090, b"across the pages");
    let address = GrantAddress::new(first, 4090).unwrap();
    let range = address.range(16).unwrap();

    let mapped = range.map(&gntdev, fixture.domain.id(), false).unwrap();
    let refused = range.map(&gntdev, fixture.domain.id(), true);

    let mut bytes = [0; 16];
    mapped.volatile().read_slice(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"across the pages");
    assert!(mapped.is_granted() && !mapped.is_writable());
    assert!(matches!(refused, Err(GrantError::Map { .. })));
    mapped.unmap().unwrap();
    fixture.domain.end_access_range(first, 2).unwrap();
}

#[test]
fn addresses_seen_in_a_ring_are_decoded() {
    let address = GrantAddress::from_raw(0x8000_0000_0001_2abc).unwrap();

    assert_eq!((address.gref(), address.offset()), (0x12, 0xabc));
    assert_eq!(address.to_string(), "0x8000000000012abc");
}

#[test]
fn addresses_without_the_bit_are_none() {
    let result = GrantAddress::from_raw(0x4000_0000);

    assert!(matches!(result, Err(GrantError::NotAGrant(0x4000_0000))));
}

#[test]
fn a_reference_beyond_32_bits_is_refused() {
    let first_too_large = GrantAddress::from_raw(1 << 63 | 1 << 44);
    let last = GrantAddress::new(u32::MAX, 1).unwrap();

    assert!(matches!(first_too_large, Err(GrantError::Overflow { .. })));
    assert_eq!(last.range(PAGE_SIZE - 1).unwrap().count(), 1);
    assert!(matches!(
        last.range(PAGE_SIZE),
        Err(GrantError::Overflow { .. })
    ));
    assert!(matches!(
        last.range(usize::MAX),
        Err(GrantError::Overflow { .. })
    ));
    assert!(matches!(last.range(0), Err(GrantError::Empty(_))));
}

#[test]
fn an_offset_beyond_the_page_is_no_address() {
    assert_eq!(GrantAddress::new(1, 4096), None);
}

proptest! {
    #[test]
    fn grant_addresses_survive_the_ring(gref: u32, offset in 0..4096u16) {
        let address = GrantAddress::new(gref, offset).unwrap();

        let back = GrantAddress::from_raw(address.raw()).unwrap();

        prop_assert_eq!(back, address);
        prop_assert!(GrantAddress::is_grant(address.raw()));
    }

    #[test]
    fn every_address_is_decoded_or_refused(raw: u64) {
        match GrantAddress::from_raw(raw) {
            Ok(address) => prop_assert_eq!(address.raw(), raw),
            Err(GrantError::NotAGrant(_)) => prop_assert_eq!(raw >> 63, 0),
            Err(error) => {
                let overflow = matches!(error, GrantError::Overflow { .. });
                prop_assert!(overflow);
                prop_assert!(raw & !(1 << 63) >= 1 << 44);
            }
        }
    }

    #[test]
    fn a_range_covers_its_bytes_and_no_page_more(
        gref in 0..1u32 << 20,
        offset in 0..4096u16,
        len in 1..1usize << 20,
    ) {
        let address = GrantAddress::new(gref, offset).unwrap();

        let range = address.range(len).unwrap();

        let bytes = range.count() as usize * PAGE_SIZE;
        let end = usize::from(offset) + len;
        prop_assert!(end <= bytes && bytes - end < PAGE_SIZE);
        let refs: Vec<u32> = range.refs().collect();
        prop_assert_eq!(refs.len(), range.count() as usize);
        prop_assert_eq!(refs[0], gref);
        prop_assert!(refs.windows(2).all(|pair| pair[1] == pair[0] + 1));
    }
}
