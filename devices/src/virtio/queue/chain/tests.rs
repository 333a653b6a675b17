use proptest::prelude::*;
use vm_memory::VolatileSlice;
use zerocopy::IntoBytes;

use super::*;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        addr,
        len,
        flags,
        next,
    }
}

/// The chain at `head`, and where its indirect table is.
fn walk(descriptors: &[Descriptor], head: u16) -> Result<(Chain, Option<Range>), ChainError> {
    let mut bytes = descriptors.as_bytes().to_vec();
    let table = VolatileSlice::from(bytes.as_mut_slice());
    let mut chain = Chain::of(Head {
        index: head,
        generation: 0,
    });
    let table = chain.walk_ring(&table, descriptors.len() as u16, true)?;
    Ok((chain, table))
}

fn ranges(descriptors: &[Descriptor], head: u16) -> Result<Chain, ChainError> {
    walk(descriptors, head).map(|(chain, _)| chain)
}

fn indirect(table: &[Descriptor]) -> Result<Chain, ChainError> {
    let len = (table.len() * SIZE) as u32;
    let (mut chain, found) = walk(&[desc(0x8000, len, INDIRECT, 0)], 0)?;
    assert_eq!(found, Range::new(0x8000, len).ok());
    chain.walk_table(table.as_bytes())?;
    Ok(chain)
}

fn lens(ranges: &DescriptorRanges) -> Vec<u32> {
    ranges.iter().map(Range::len).collect()
}

#[test]
fn a_chain_keeps_the_order_of_its_sides() {
    let table = [
        desc(0x1000, 16, NEXT, 2),
        desc(0x4000, 1, WRITE, 0),
        desc(0x2000, 512, NEXT, 3),
        desc(0x3000, 100, NEXT | WRITE, 1),
    ];

    let ranges = ranges(&table, 0).unwrap();

    assert_eq!(lens(&ranges.readable), [16, 512]);
    assert_eq!(lens(&ranges.writable), [100, 1]);
    assert_eq!(ranges.writable[1].address(), 0x4000);
}

#[test]
fn a_loop_ends_at_the_size_of_the_table() {
    let table = [desc(0x1000, 1, NEXT, 1), desc(0x2000, 1, NEXT, 0)];
    assert_eq!(ranges(&table, 0).unwrap_err(), ChainError::Loop(2));
    let itself = [desc(0x1000, 1, NEXT, 0)];
    assert_eq!(ranges(&itself, 0).unwrap_err(), ChainError::Loop(1));
}

#[test]
fn a_chain_as_long_as_its_table_is_no_loop() {
    let table = [
        desc(0x1000, 1, NEXT, 1),
        desc(0x2000, 1, NEXT, 2),
        desc(0x3000, 1, WRITE, 0),
    ];
    assert!(ranges(&table, 0).is_ok());
}

#[test]
fn descriptors_outside_of_the_table_are_refused() {
    let table = [desc(0x1000, 1, NEXT, 7), desc(0x1000, 1, 0, 0)];
    assert_eq!(ranges(&table, 0).unwrap_err(), ChainError::OutOfTable(7));
    assert_eq!(ranges(&table, 2).unwrap_err(), ChainError::OutOfTable(2));
    assert_eq!(
        ranges(&table, u16::MAX).unwrap_err(),
        ChainError::OutOfTable(u16::MAX)
    );
}

#[test]
fn empty_and_wrapping_buffers_are_refused() {
    let buffer = |addr, len| ChainError::Buffer { addr, len };
    assert_eq!(
        ranges(&[desc(0x1000, 0, 0, 0)], 0).unwrap_err(),
        buffer(0x1000, 0)
    );
    assert_eq!(
        ranges(&[desc(u64::MAX, 2, 0, 0)], 0).unwrap_err(),
        buffer(u64::MAX, 2)
    );
}

#[test]
fn a_readable_buffer_behind_a_writable_one_is_refused() {
    let table = [desc(0x1000, 1, NEXT | WRITE, 1), desc(0x2000, 1, 0, 0)];
    assert_eq!(ranges(&table, 0).unwrap_err(), ChainError::ReadAfterWrite);
}

#[test]
fn an_indirect_table_is_walked_from_its_first_descriptor() {
    let ranges = indirect(&[
        desc(0x1000, 16, NEXT, 2),
        desc(0x3000, 1, WRITE, 0),
        desc(0x2000, 8, NEXT | WRITE, 1),
    ])
    .unwrap();

    assert_eq!(lens(&ranges.readable), [16]);
    assert_eq!(lens(&ranges.writable), [8, 1]);
}

#[test]
fn buffers_before_an_indirect_table_count() {
    // virtio 1.3 §2.7.5.3.2: direct descriptors may come before it
    let table = [desc(0x1000, 16, NEXT, 1), desc(0x8000, 16, INDIRECT, 0)];

    let (mut chain, _) = walk(&table, 0).unwrap();
    let rest = desc(0x2000, 5, WRITE, 0);
    chain.walk_table(rest.as_bytes()).unwrap();

    assert_eq!(lens(&chain.readable), [16]);
    assert_eq!(lens(&chain.writable), [5]);
}

#[test]
fn broken_indirect_tables_are_refused() {
    let one = |len, flags| walk(&[desc(0x8000, len, flags, 0)], 0).err();
    assert_eq!(one(0, INDIRECT), Some(ChainError::TableLen(0)));
    assert_eq!(one(17, INDIRECT), Some(ChainError::TableLen(17)));
    let long = (MAX_TABLE + 1) * 16;
    assert_eq!(one(long, INDIRECT), Some(ChainError::TableLen(long)));
    assert_eq!(one(16, INDIRECT | NEXT), Some(ChainError::IndirectNested));
    assert_eq!(
        indirect(&[desc(0x9000, 16, INDIRECT, 0)]).unwrap_err(),
        ChainError::IndirectNested
    );
    assert_eq!(
        indirect(&[desc(0x9000, 16, NEXT, 0)]).unwrap_err(),
        ChainError::Loop(1)
    );
    assert_eq!(
        indirect(&[desc(0x9000, 16, NEXT, 1)]).unwrap_err(),
        ChainError::Loop(1)
    );
    assert_eq!(
        indirect(&[desc(0x9000, 16, NEXT, 5), desc(1, 1, 0, 0)]).unwrap_err(),
        ChainError::OutOfTable(5)
    );
}

#[test]
fn an_indirect_table_that_was_not_negotiated_is_refused() {
    let mut bytes = desc(0x8000, 16, INDIRECT, 0).as_bytes().to_vec();
    let table = VolatileSlice::from(bytes.as_mut_slice());
    let mut chain = Chain::of(Head {
        index: 0,
        generation: 0,
    });
    assert_eq!(
        chain.walk_ring(&table, 1, false).err(),
        Some(ChainError::IndirectRefused)
    );
}

fn any_descriptor() -> impl Strategy<Value = Descriptor> {
    (any::<u64>(), 0u32..2000, 0u16..8, 0u16..10)
        .prop_map(|(addr, len, flags, next)| desc(addr, len, flags, next))
}

proptest! {
    /// Whatever stands in the tables: an answer, and never more buffers than
    /// descriptors.
    #[test]
    fn any_tables_end_in_a_chain_or_an_error(
        ring in prop::collection::vec(any_descriptor(), 1..9),
        table in prop::collection::vec(any_descriptor(), 0..130),
        head in 0u16..10,
    ) {
        let Ok((mut chain, found)) = walk(&ring, head) else { return Ok(()) };
        let mut fetched = vec![0; found.map_or(0, |range| range.len() as usize)];
        for (to, from) in fetched.iter_mut().zip(table.as_bytes()) {
            *to = *from;
        }
        if found.is_none() || chain.walk_table(&fetched).is_ok() {
            let count = chain.readable.len() + chain.writable.len();
            prop_assert!(count <= ring.len() + MAX_TABLE as usize);
            prop_assert!(count > 0);
        }
    }
}
