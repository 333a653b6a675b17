//! The window of a guest that is mapped 1:1.

use std::sync::Arc;

use super::*;

/// The only bank of a direct-mapped guest's RAM, at its machine address.
const BANK: u64 = 0x8000_0000;

/// A guest whose RAM is where Xen's static allocation put it.
fn direct_mapped(mib: u64) -> Fixture {
    guest_with(banks(&[(BANK, mib)]))
}

fn banks(banks: &[(u64, u64)]) -> DomainConfig {
    DomainConfig {
        banks: banks
            .iter()
            .map(|&(address, mib)| crate::fake::Bank {
                first_gfn: address >> 12,
                frames: mib << 8,
            })
            .collect(),
        ..DomainConfig::default()
    }
}

impl Fixture {
    fn reached(&self, address: u64, len: usize) -> (Arc<Window>, usize) {
        let window = self.ram.reach(address, len).unwrap();
        let slice = window.slice(address, len).unwrap();
        assert_eq!(slice.len(), len);
        let at = slice.ptr_guard_mut().as_ptr().addr();
        (window, at)
    }

    fn seen(&self, address: u64, len: usize) -> Vec<u8> {
        let window = self.ram.reach(address, len).unwrap();
        let mut bytes = vec![0; len];
        let slice = window.slice(address, len).unwrap();
        slice.read_slice(&mut bytes, 0).unwrap();
        bytes
    }
}

#[test]
fn an_address_is_the_guests_plus_a_constant() {
    let fixture = direct_mapped(256);
    let addresses = [
        BANK + 5,
        BANK + CHUNK - 1,
        BANK + 200 * CHUNK / 2,
        BANK + (256 << 20) - 1,
    ];

    let constants = addresses.map(|address| {
        let (_, at) = fixture.reached(address, 1);
        at - usize::try_from(address).unwrap()
    });

    assert_eq!(constants, [constants[0]; 4]);
}

#[test]
fn a_range_across_chunks_is_one_piece_and_the_guests_own() {
    let fixture = direct_mapped(16);
    let address = BANK + CHUNK - 3;
    fixture.written(address, b"guest!");

    let seen = fixture.seen(address, 6);
    let (window, _) = fixture.reached(address, 6);
    let slice = window.slice(address, 6).unwrap();
    slice.write_slice(b"device", 0).unwrap();

    let mut back = [0; 6];
    fixture.domain.read_memory(address, &mut back).unwrap();
    assert_eq!(seen, b"guest!");
    assert_eq!(&back, b"device");
    assert_eq!(fixture.foreign_pages(), 1024);
}

#[test]
fn nothing_is_mapped_before_it_is_touched_and_then_a_chunk() {
    let fixture = direct_mapped(256);
    let before = fixture.foreign_pages();

    fixture.reached(BANK + (100 << 20), 4096);

    assert_eq!((before, fixture.foreign_pages()), (0, 512));
}

#[test]
fn what_lies_between_two_chunks_is_mapped_along_if_they_are_near() {
    let near = direct_mapped(256);
    let far = direct_mapped(256);

    for (fixture, distance) in [(&near, 64_u64 << 20), (&far, 66 << 20)] {
        fixture.reached(BANK, 1);
        fixture.reached(BANK + distance, 1);
    }

    assert_eq!(near.foreign_pages(), 33 * 512);
    assert_eq!(far.foreign_pages(), 2 * 512);
    near.reached(BANK, 66 << 20);
    assert_eq!(near.foreign_pages(), 33 * 512);
}

#[test]
fn a_range_over_all_of_the_ram_is_one_piece() {
    let fixture = direct_mapped(16);

    fixture.reached(BANK + 4096, (16 << 20) - 4096);

    let beyond = fixture.ram.reach(BANK + 4096, 16 << 20).unwrap_err();
    assert!(
        matches!(beyond, Error::TooHigh { gfn, .. } if gfn == (BANK >> 12) + 4096),
        "{beyond}"
    );
}

#[test]
fn a_hole_is_named_and_its_neighbours_are_there() {
    let gfn = (BANK >> 12) + 3;
    let fixture = guest_with(banks(&[(BANK, 16)]).hole(gfn, 2));

    let error = fixture.ram.reach(BANK + 8192, 3 * 4096).unwrap_err();

    assert!(matches!(error, Error::NotThere { gfn: named, .. } if named == gfn));
    assert!(error.is_guests_fault());
    fixture.reached(BANK, 3 * 4096);
    fixture.reached(BANK + 5 * 4096, 4096);
    let last = fixture.ram.reach(BANK, 3 * 4096 + 1).unwrap_err();
    assert!(matches!(last, Error::NotThere { gfn: named, .. } if named == gfn));
}

#[test]
fn memory_that_is_not_there_leaves_no_mapping() {
    let fixture = direct_mapped(16);

    let low = fixture.ram.reach(0x4000_0000, 8).unwrap_err();
    let high = fixture.ram.reach(BANK + (1 << 30), 8).unwrap_err();
    let wild = fixture.ram.reach(u64::MAX - 2, 8).unwrap_err();
    let nothing = fixture.ram.reach(BANK, 0).unwrap_err();

    assert!(matches!(low, Error::NotThere { gfn: 0x40000, .. }));
    assert!(matches!(high, Error::TooHigh { .. }));
    assert!(matches!(wild, Error::NoRange { .. }));
    assert!(matches!(nothing, Error::NoRange { len: 0, .. }));
    assert_eq!(fixture.foreign_pages(), 0);
}

#[test]
fn banks_that_are_apart_share_the_constant() {
    let fixture = guest_with(banks(&[(0x4000_0000, 4), (0x2_0000_0000, 8)]));
    fixture.written(0x4000_0000, b"low");
    fixture.written(0x2_0000_0000, b"high");

    let (_, low) = fixture.reached(0x4000_0000, 4 << 20);
    let (_, high) = fixture.reached(0x2_0000_0000, 8 << 20);

    assert_eq!(high - low, 0x1_c000_0000);
    assert_eq!(fixture.seen(0x4000_0000, 3), b"low");
    assert_eq!(fixture.seen(0x2_0000_0000, 4), b"high");
}

#[test]
fn an_old_window_is_readable_until_dropped() {
    let fixture = direct_mapped(16);
    fixture.written(BANK, b"before");
    let (old, _) = fixture.reached(BANK, 6);

    fixture.ram.invalidate();

    let held = fixture.foreign_pages();
    let slice = old.slice(BANK, 6).unwrap();
    let mut bytes = [0; 6];
    slice.read_slice(&mut bytes, 0).unwrap();
    drop(old);
    assert_eq!(&bytes, b"before");
    assert_eq!((held, fixture.foreign_pages()), (512, 0));
    let (new, _) = fixture.reached(BANK, 6);
    assert_eq!((new.number(), fixture.ram.number()), (1, 1));
}

#[test]
fn a_new_window_does_not_see_what_left_the_guest() {
    let fixture = direct_mapped(16);
    let (old, _) = fixture.reached(BANK, 1);
    fixture.domain.balloon_out(BANK >> 12, 1).unwrap();

    fixture.ram.invalidate();

    let gone = fixture.ram.reach(BANK, 1).unwrap_err();
    assert!(matches!(gone, Error::NotThere { gfn, .. } if gfn == BANK >> 12));
    assert!(old.slice(BANK, 1).is_ok());
}

#[test]
fn memory_that_comes_later_is_found_in_a_new_window() {
    let gfn = (BANK >> 12) + 3;
    let fixture = guest_with(banks(&[(BANK, 16)]).hole(gfn, 1));
    let address = gfn << 12;
    let (old, _) = fixture.reached(BANK, 4096);
    let before = fixture.ram.reach(address, 1).unwrap_err();
    fixture.domain.balloon_in(gfn, 1).unwrap();
    fixture.written(address, b"here");

    let seen = fixture.seen(address, 4);

    assert!(matches!(before, Error::NotThere { .. }));
    assert_eq!(seen, b"here");
    assert_eq!(fixture.ram.number(), 1);
    let stale = old.slice(address, 1).unwrap_err();
    assert!(matches!(stale, Error::NotThere { gfn: named, .. } if named == gfn));
    fixture.reached(BANK, 16 << 20);
}

#[test]
fn threads_that_touch_a_chunk_at_once_share_it() {
    let fixture = direct_mapped(16);
    fixture.written(BANK, &[42]);

    let seen = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| fixture.seen(BANK, 1)[0]))
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
fn a_restricted_file_still_reaches_memory() {
    let fixture = direct_mapped(16);
    fixture.privcmd.restrict(fixture.domain.id()).unwrap();

    let ram = ForeignRam::new(&fixture.privcmd, fixture.domain.id()).unwrap();

    assert!(ram.reach(BANK, 4096).is_ok());
    assert!(ram.reach(BANK + (1 << 30), 8).is_err());
}

proptest! {
    /// Whatever is asked for in whatever order: what is there is given, and a
    /// hole never is.
    #[test]
    fn exactly_what_is_there_is_given(
        holes in proptest::collection::btree_set(0..2048_u64, 0..20),
        asked in proptest::collection::vec((0..2048_u64, 1..600_u64), 1..30),
    ) {
        let gfn = BANK >> 12;
        let config = holes
            .iter()
            .fold(banks(&[(BANK, 8)]), |config, hole| config.hole(gfn + hole, 1));
        let fixture = guest_with(config);

        for (first, pages) in asked {
            let pages = pages.min(2048 - first);
            let hole = holes.range(first..first + pages).next();

            let got = fixture.ram.reach((gfn + first) << 12, usize::try_from(pages << 12).unwrap());

            match (hole, got) {
                (None, got) => prop_assert!(got.is_ok(), "{first}+{pages}: {got:?}"),
                (Some(hole), Err(Error::NotThere { gfn: named, .. })) => {
                    prop_assert_eq!(named, gfn + hole);
                }
                (Some(hole), got) => prop_assert!(false, "hole {hole}: {got:?}"),
            }
        }
    }
}
