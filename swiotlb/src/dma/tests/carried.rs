//! Copies from and to a pool whose slots somebody else keeps.

use super::*;
use crate::memory::{Base, PoolMemory};

fn carry<'a>(
    owner: usize,
    range: Range,
    access: Access,
    pool: &'a PoolMemory,
    at: u64,
) -> Carry<'a> {
    Carry {
        owner,
        range,
        access,
        place: pool.slice(at, range.len().into()).unwrap(),
    }
}

fn bytes(slice: VolatileSlice<'_>) -> Vec<u8> {
    let mut bytes = vec![0; slice.len()];
    slice.copy_to(&mut bytes);
    bytes
}

#[test]
fn pieces_go_over_chunks_and_grants_both_ways_and_the_grants_are_one_call() {
    let (mut dma, ram, log) = paths();
    let pool = PoolMemory::anonymous(4 * PAGE_SIZE, Base::Host).unwrap();
    let pattern: Vec<u8> = (0..6000u32).map(|i| i as u8).collect();
    ram.slice(0x1800, 6000).copy_from(&pattern);
    ram.slice(0x5010, 8).copy_from(b"granted!");
    pool.slice(0x3000, 16)
        .unwrap()
        .copy_from(b"to whom it comes");
    // over the end of a chunk; two grants
    let batch = [
        carry(0, range(0x1800, 6000), Access::Read, &pool, 0),
        carry(0, granted(5, 0x10, 8), Access::Read, &pool, 0x2000),
        carry(1, range(0x8ffc, 16), Access::Write, &pool, 0x3000),
        carry(1, granted(7, 0, 16), Access::Write, &pool, 0x3000),
    ];

    let faults = dma.carry(batch);

    assert!(faults.is_empty(), "{faults:?}");
    assert!(bytes(pool.slice(0, 6000).unwrap()) == pattern);
    assert_eq!(bytes(pool.slice(0x2000, 8).unwrap()), b"granted!");
    assert_eq!(bytes(ram.slice(0x8ffc, 16)), b"to whom it comes");
    assert_eq!(bytes(ram.slice(0x7000, 16)), b"to whom it comes");
    assert_eq!(log.copies.load(Ordering::SeqCst), 1);
    let counted = dma.counters().snapshot();
    assert_eq!((counted.bounced_forced, counted.grant_copies), (4, 2));
    assert_eq!(
        (counted.bounced_bytes_in, counted.bounced_bytes_out),
        (6008, 32)
    );
}

#[test]
fn no_more_is_copied_than_both_sides_have() {
    let (mut dma, ram, _) = paths();
    let pool = PoolMemory::anonymous(PAGE_SIZE, Base::Host).unwrap();
    ram.slice(0x1000, 64).copy_from(&[7_u8; 64]);
    let short = |range, access, at| Carry {
        owner: 0,
        range,
        access,
        place: pool.slice(at, 8).unwrap(),
    };

    let faults = dma.carry([
        short(range(0x1000, 64), Access::Read, 0),
        short(granted(1, 0, 64), Access::Read, 64),
        short(range(0x2000, 4), Access::Write, 0),
    ]);

    assert!(faults.is_empty(), "{faults:?}");
    let expected = [[7_u8; 8].as_slice(), &[0; 56]].concat();
    assert_eq!(bytes(pool.slice(0, 64).unwrap()), expected);
    assert_eq!(bytes(pool.slice(64, 64).unwrap()), expected);
    assert_eq!(bytes(ram.slice(0x2000, 8)), [7, 7, 7, 7, 0, 0, 0, 0]);
}

#[test]
fn each_owner_is_told_its_first_fault_and_the_others_pieces_arrive() {
    let (mut dma, ram, _) = paths();
    let pool = PoolMemory::anonymous(PAGE_SIZE, Base::Host).unwrap();
    ram.slice(0, 8).copy_from(&[3_u8; 8]);
    let hole = HOLE * PAGE_SIZE;
    let batch = [
        carry(4, range(hole, 8), Access::Read, &pool, 0),
        carry(4, range(hole, 16), Access::Read, &pool, 0),
        carry(2, granted(BAD_REF, 0, 8), Access::Read, &pool, 8),
        carry(3, range(0, 8), Access::Read, &pool, 16),
    ];

    let faults = dma.carry(batch);

    let owners: Vec<usize> = faults.iter().map(|(owner, _)| *owner).collect();
    assert_eq!(owners, [2, 4]);
    assert_eq!(bytes(pool.slice(16, 8).unwrap()), [3; 8]);
}
