//! Plain addresses, of both kinds of guest.

use vm_memory::VolatileSlice;
use xen::memory::{Generation, Window};

use super::super::plain::{PlainMemory, View};
use super::*;

#[test]
fn plain_ranges_are_cut_at_chunks_and_keep_their_memory() {
    let bench = Bench::new();
    let (ram, mut memory) = bench.plain();
    let at = RAM + CHUNK - 16;
    bench.domain.write_memory(at, &[7; 32]).unwrap();
    let mut segments = Segments::new();

    let keep = memory
        .translate(range(at, 32), Access::Write, &mut segments)
        .unwrap();
    let mapped = bench.mapped().0;
    ram.invalidate();
    let kept = bench.mapped().0;
    drop(keep);

    let lengths: Vec<usize> = segments.iter().map(swiotlb::Segment::len).collect();
    assert_eq!(lengths, [16, 16]);
    assert_eq!((mapped, kept), (1024, 1024));
    assert_eq!(bench.mapped().0, 0, "the last request has let go of it");
    assert!(!memory.pinnable());
}

#[test]
fn ranges_of_a_direct_mapped_guest_are_one_segment_and_keep_their_memory() {
    let bench = Bench::new();
    let ram = bench.ram();
    let mut memory = OneToOneMemory::new(ram.clone());
    let at = RAM + CHUNK - 16;
    let mut segments = Segments::new();

    let keep = memory
        .translate(range(at, 32), Access::Write, &mut segments)
        .unwrap();
    memory
        .translate(range(RAM, 1), Access::Read, &mut segments)
        .unwrap();
    ram.invalidate();
    let kept = bench.mapped().0;
    drop(keep);

    let [both, first] = segments.as_slice() else {
        panic!("{segments:?}")
    };
    assert_eq!(both.len(), 32);
    assert_eq!((both.address() - first.address()) as u64, at - RAM);
    assert_eq!((kept, bench.mapped().0), (1024, 0));
    assert!(!memory.pinnable());
}

/// Pages mapped during a batch whose guest has lost memory, and after it.
fn mapped_by_a_batch<V: View>(bench: &Bench) -> (u64, u64) {
    let ram = bench.ram();
    let mut memory = PlainMemory::<V>::new(ram.clone());
    let mut bytes = [0; 8];
    memory.hold();
    let mut copy = || memory.copy(range(RAM, 8), TransferBytes::FromGuest(&mut bytes));
    copy().unwrap();
    ram.invalidate();
    copy().unwrap();
    let held = bench.mapped().0;
    memory.release();
    (held, bench.mapped().0)
}

#[test]
fn a_batch_keeps_what_it_has_looked_up_and_nothing_afterwards() {
    let bench = Bench::new();

    let chunks = mapped_by_a_batch::<Generation>(&bench);
    let window = mapped_by_a_batch::<Window>(&bench);

    assert_eq!((chunks, window), ((512, 0), (512, 0)));
}

/// Carries eight bytes over the end of a chunk, into a place and back elsewhere;
/// what stands there then.
fn carried<V: View>(bench: &Bench) -> [u8; 8] {
    let mut memory = PlainMemory::<V>::new(bench.ram());
    let (from, to) = (RAM + CHUNK - 3, RAM + 2 * CHUNK - 5);
    bench.domain.write_memory(from, b"straddle").unwrap();
    bench.domain.write_memory(to, &[0; 8]).unwrap();
    let mut bytes = [0; 8];
    let place = VolatileSlice::from(bytes.as_mut_slice());
    memory
        .exchange(range(from, 8), Access::Read, &place)
        .unwrap();
    memory
        .exchange(range(to, 8), Access::Write, &place)
        .unwrap();
    let mut seen = [0; 8];
    bench.domain.read_memory(to, &mut seen).unwrap();
    seen
}

#[test]
fn bytes_are_carried_over_the_ends_of_chunks_both_ways() {
    let bench = Bench::new();

    assert_eq!(carried::<Generation>(&bench), *b"straddle");
    assert_eq!(carried::<Window>(&bench), *b"straddle");
}

#[test]
fn memory_that_came_during_a_batch_is_found() {
    let bench = Bench::with(DomainConfig::with_memory(8 << 20).hole(0x40003, 1));
    let mut memory = OneToOneMemory::new(bench.ram());
    let mut bytes = [0; 4];
    memory.hold();
    memory
        .copy(range(RAM, 4), TransferBytes::FromGuest(&mut bytes))
        .unwrap();
    let mut copy = || {
        memory.copy(
            range(RAM + 3 * PAGE, 4),
            TransferBytes::FromGuest(&mut bytes),
        )
    };

    let before = copy();
    bench.domain.balloon_in(0x40003, 1).unwrap();
    let after = copy();

    assert!(matches!(
        before,
        Err(Fault::NoTranslation { frame: 0x40003, .. })
    ));
    assert!(after.is_ok(), "{after:?}");
}

#[test]
fn ranges_of_a_direct_mapped_guest_that_are_not_there_name_the_frame() {
    let bench = Bench::with(DomainConfig::with_memory(8 << 20).hole(0x40003, 1));
    let mut memory = OneToOneMemory::new(bench.ram());
    let mut fault = |address, len| {
        let mut segments = Segments::new();
        memory
            .translate(range(address, len), Access::Read, &mut segments)
            .err()
            .unwrap()
    };

    let hole = fault(RAM + 2 * PAGE, 8192);
    let above = fault(1 << 40, 4);

    assert!(matches!(hole, Fault::NoTranslation { frame: 0x40003, .. }));
    assert!(matches!(above, Fault::NoTranslation { frame, .. } if frame == 1 << 28));
}

#[test]
fn plain_ranges_that_are_not_there_name_the_frame() {
    let bench = Bench::with(DomainConfig::with_memory(8 << 20).hole(0x40003, 1));
    let (_ram, mut memory) = bench.plain();
    let mut frame = |address, len| {
        let mut segments = Segments::new();
        match memory.translate(range(address, len), Access::Read, &mut segments) {
            Err(Fault::NoTranslation { frame, .. }) => Some(frame),
            _ => None,
        }
    };

    assert_eq!(frame(RAM + 2 * PAGE, 2 * PAGE as u32), Some(0x40003));
    assert_eq!(frame(RAM + (8 << 20), 1), Some(0x40800));
    assert_eq!(frame(0x1000, 1), Some(1));
    assert_eq!(frame(RAM + 4 * PAGE, 4096), None);
}

#[test]
fn a_host_that_cannot_map_is_not_the_guests_fault() {
    let bench = Bench::new();
    let (_ram, mut memory) = bench.plain();
    bench
        .machine
        .fail(Target::Call(Call::MmapBatch), 1, libc::ENOMEM);

    let fault = memory
        .translate(range(RAM, 16), Access::Read, &mut Segments::new())
        .err()
        .unwrap();

    assert!(fault.is_host(), "{fault}");
}

#[test]
fn a_ring_on_plain_addresses_outlives_the_chunks() {
    let bench = Bench::new();
    let (ram, mut memory) = bench.plain();
    bench.domain.write_memory(RAM + 0xff0, &[3; 64]).unwrap();

    let ring = memory
        .map_ring(range(RAM + 0xff0, 64), Access::Write)
        .unwrap();
    ram.invalidate();
    let mut bytes = [0u8; 64];
    ring.volatile().copy_to(&mut bytes[..]);
    ring.volatile().copy_from(&[9u8; 64]);
    let mapped = bench.mapped().0;
    drop(ring);
    let mut written = [0; 64];
    bench.domain.read_memory(RAM + 0xff0, &mut written).unwrap();

    assert_eq!((bytes, written), ([3; 64], [9; 64]));
    assert_eq!((mapped, bench.mapped().0), (2, 0));
}
