//! Data that goes through the pool.

use super::*;
use crate::allocator::PadPolicy;
use crate::options::Options;

const PINNED: Need = Need {
    scatter: true,
    pinned: true,
    limit: None,
    align: 512,
};

/// Both ways to the same RAM, with a pool of one segment.
fn pooled(options: &str, mode: GrantMode) -> (Dma, Arc<Ram>, Arc<Log>) {
    let (dma, ram, log) = paths();
    let settings = Settings {
        options: options.parse::<Options>().unwrap(),
        pad: PadPolicy::Trusted,
        ..Settings::default()
    };
    let policy = Arc::new(GrantPolicy::new(mode));
    (dma.with_pool(settings, policy), ram, log)
}

fn one_segment() -> (Dma, Arc<Ram>, Arc<Log>) {
    pooled("128", GrantMode::Map)
}

fn bytes(ram: &Ram, at: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.slice(at, len).read_slice(&mut bytes, 0).unwrap();
    bytes
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ seed).collect()
}

fn map_one(dma: &mut Dma, job: Job<u32>, need: Need) -> InFlight<u32> {
    dma.map([job], need).remove(0).ok().unwrap().submit()
}

/// The rejected request of a batch of one.
fn refused(dma: &mut Dma, job: Job<u32>, need: Need) -> Rejected<u32> {
    dma.map([job], need).remove(0).err().unwrap()
}

#[test]
fn a_consumer_that_pins_pages_reads_plain_and_granted_data_in_one_aligned_piece() {
    let (mut dma, ram, log) = one_segment();
    let data = pattern(3 * 4096, 0);
    ram.slice(0x1000, data.len()).write_slice(&data, 0).unwrap();
    let ranges = [
        (range(0x1001, 0xfff), Access::Read),
        (granted(2, 0, 0x1000), Access::Read),
        (granted(3, 0, 0x801), Access::Read),
    ];

    let flight = map_one(&mut dma, job(0, &ranges), PINNED);
    let mut read = vec![0; 0x2800];
    let count = flight.read(&mut read);
    let segments = flight.segments().to_vec();
    let done = dma.finish(&mut vec![flight]);

    assert_eq!((count, &read[..]), (0x2800, &data[1..0x2801]));
    assert_eq!(segments.len(), 1);
    assert!(segments[0].is_aligned(512));
    assert_eq!(tokens(done), [0]);
    let counted = dma.counters().snapshot();
    assert_eq!((counted.bounced, counted.bounced_pinned), (3, 3));
    assert_eq!((counted.direct, counted.granted, counted.loans), (0, 0, 0));
    assert_eq!(counted.bounced_bytes_in, 0x2800);
    // both granted ranges, whatever pages they touch
    assert_eq!(log.copies.load(Ordering::SeqCst), 1);
}

#[test]
fn what_is_stated_as_written_comes_back_and_nothing_behind_it() {
    let (mut dma, ram, log) = one_segment();
    ram.slice(0x4000, 0x3000)
        .write_slice(&[7; 0x3000], 0)
        .unwrap();
    let ranges = [
        (range(0x4000, 0x600), Access::Write),
        (granted(5, 0x10, 0x400), Access::Write),
        (granted(6, 0, 0x400), Access::Write),
    ];
    let data = pattern(0x600 + 0x400 + 0x100, 0);

    let mut flight = map_one(&mut dma, job(0, &ranges), PINNED);
    flight.write(&[9; 0xe00]);
    flight.write(&data);
    flight.set_written(data.len() as u64);
    let before = bytes(&ram, 0x4000, 0x3000);
    let done = dma.finish(&mut vec![flight]);

    assert_eq!(tokens(done), [0]);
    assert_eq!(
        before,
        vec![7; 0x3000],
        "the guest sees it when it is finished"
    );
    assert_eq!(bytes(&ram, 0x4000, 0x600), data[..0x600]);
    assert_eq!(bytes(&ram, 0x5010, 0x400), data[0x600..0xa00]);
    assert_eq!(bytes(&ram, 0x6000, 0x100), data[0xa00..]);
    assert_eq!(bytes(&ram, 0x6100, 0x300), vec![7; 0x300]);
    assert_eq!(bytes(&ram, 0x5000, 0x10), [7; 0x10]);
    assert_eq!(dma.counters().snapshot().bounced_bytes_out, 0xb00);
    assert_eq!(log.copies.load(Ordering::SeqCst), 1);
}

#[test]
fn nothing_stated_is_nothing_written() {
    let (mut dma, ram, _) = one_segment();
    ram.slice(0x4000, 512).write_slice(&[7; 512], 0).unwrap();

    let flight = map_one(
        &mut dma,
        job(0, &[(granted(4, 0, 512), Access::Write)]),
        PINNED,
    );
    let done = dma.finish(&mut vec![flight]);

    assert_eq!(tokens(done), [0]);
    assert_eq!(bytes(&ram, 0x4000, 512), [7; 512]);
}

#[test]
fn a_request_without_room_waits_and_so_do_those_behind_it() {
    let (mut dma, _, _) = one_segment();
    let read = |token, len| job(token, &[(range(0, len), Access::Read)]);
    // 40 KiB of 256 are left
    let mut flights: Vec<_> = (10..19)
        .map(|token| map_one(&mut dma, read(token, 0x6000), PINNED))
        .collect();

    let jobs = [read(0, 0x8000), read(1, 0x8000), read(2, 512)];
    let (mapped, waiting): (Vec<_>, Vec<_>) =
        dma.map(jobs, PINNED).into_iter().partition(Result::is_ok);
    let waiting: Vec<_> = waiting
        .into_iter()
        .filter_map(Result::err)
        .map(|rejected| rejected.retry().ok().unwrap())
        .collect();
    let full = dma.counters().snapshot().pool_full;
    flights.extend(mapped.into_iter().map(|m| m.ok().unwrap().submit()));
    let done = dma.finish(&mut flights).len();
    let again = dma.map(waiting, PINNED);

    assert_eq!((full, done), (2, 10));
    assert_eq!(dma.counters().snapshot().rejected, 0);
    let mut again: Vec<_> = again
        .into_iter()
        .map(|m| m.ok().unwrap().submit())
        .collect();
    assert_eq!(tokens(dma.finish(&mut again)), [1, 2]);
}

#[test]
fn what_no_pool_of_this_size_holds_is_refused_with_the_size() {
    let (mut dma, _, _) = one_segment();
    let ranges: Vec<_> = (0..6).map(|_| (range(0, 0xc000), Access::Read)).collect();

    let rejected = refused(&mut dma, job(0, &ranges), PINNED);

    assert_eq!(dma.most(PINNED), 256 << 10);
    assert_eq!(dma.most(Need::COPY), JOB_BYTES);
    assert!(matches!(
        rejected.fault(),
        Fault::TooLarge {
            len: 0x48000,
            most: 0x40000,
            reason: BounceReason::Pinned,
            ..
        }
    ));
    assert!(rejected.retry().is_err(), "it would wait for ever");
}

#[test]
fn a_pool_in_pieces_gives_several_buffers_to_who_scatters() {
    let (mut dma, ram, _) = one_segment();
    let data = pattern(0xc000, 0x55);
    ram.slice(0, data.len()).write_slice(&data, 0).unwrap();
    let small = |token| job(token, &[(range(0, 2048), Access::Read)]);
    let mut held: Vec<_> = (0..128)
        .map(|token| map_one(&mut dma, small(token), PINNED))
        .collect();
    // every other slot becomes free
    let (mut freed, kept): (Vec<_>, Vec<_>) = held.drain(..).partition(|f| f.token() % 2 == 0);
    let free = dma.finish(&mut freed).len();

    let flight = map_one(
        &mut dma,
        job(0, &[(range(0, 0xc000), Access::Read)]),
        PINNED,
    );
    let mut read = vec![0; 0xc000];
    flight.read(&mut read);

    assert_eq!(free, 64);
    assert_eq!(flight.segments().len(), 24);
    assert_eq!(read, data);
    let mut all = kept;
    all.push(flight);
    assert_eq!(dma.finish(&mut all).len(), 65);
}

#[test]
fn a_consumer_of_one_piece_gets_one_piece_for_each_range() {
    let (mut dma, ram, _) = one_segment();
    let data = pattern(0x40, 1);
    ram.slice(0x1fe0, 0x40).write_slice(&data, 0).unwrap();
    let need = Need {
        scatter: false,
        ..Need::COPY
    };
    let ranges = [
        (range(0x1fe0, 0x40), Access::Read),
        (range(0x1fe0, 0x20), Access::Read),
    ];

    let flight = map_one(&mut dma, job(0, &ranges), need);
    let lengths: Vec<_> = flight.segments().iter().map(Segment::len).collect();
    let mut read = vec![0; 0x60];
    flight.read(&mut read);
    let done = dma.finish(&mut vec![flight]);

    assert_eq!(lengths, [0x40, 0x20]);
    assert_eq!((&read[..0x40], &read[0x40..]), (&data[..], &data[..0x20]));
    assert_eq!(tokens(done), [0]);
    let counted = dma.counters().snapshot();
    assert_eq!((counted.bounced_straddles, counted.direct), (1, 1));
}

#[test]
fn granted_data_is_copied_where_that_is_wanted_and_a_bad_reference_fails_alone() {
    let (mut dma, ram, log) = pooled("128", GrantMode::Copy);
    ram.slice(0x3000, 64)
        .write_slice(&pattern(64, 3), 0)
        .unwrap();
    let jobs = [
        job(0, &[(granted(3, 0, 64), Access::Read)]),
        job(1, &[(granted(BAD_REF, 0, 64), Access::Read)]),
        job(2, &[(range(0x3000, 64), Access::Read)]),
    ];

    let mut results = dma.map(jobs, Need::COPY);
    let third = results.pop().unwrap().ok().unwrap().submit();
    let second = results.pop().unwrap().err().unwrap();
    let first = results.pop().unwrap().ok().unwrap().submit();
    let mut read = [0; 64];
    first.read(&mut read);
    let done = dma.finish(&mut vec![first, third]);

    assert_eq!(read[..], pattern(64, 3));
    assert!(matches!(
        second.fault(),
        Fault::GrantRefusedByXen {
            reference: BAD_REF,
            ..
        }
    ));
    assert_eq!(tokens(done), [0, 2]);
    assert!(log.maps.lock().unwrap().is_empty());
    assert_eq!(log.copies.load(Ordering::SeqCst), 1);
    let counted = dma.counters().snapshot();
    assert_eq!((counted.bounced_cheaper, counted.direct), (2, 1));
    assert_eq!(counted.rejected, 1);
}

#[test]
fn a_guest_that_takes_its_page_back_is_told_by_the_requests_fault() {
    let (mut dma, _, _) = pooled("128", GrantMode::Copy);
    let jobs = [
        job(0, &[(granted(3, 0, 64), Access::Write)]),
        job(1, &[(granted(BAD_REF, 0, 64), Access::Write)]),
    ];

    let mut flights: Vec<_> = dma
        .map(jobs, Need::COPY)
        .into_iter()
        .map(|m| m.ok().unwrap().submit())
        .collect();
    flights.iter_mut().for_each(|flight| {
        flight.write(&[1; 64]);
    });
    let mut done = dma.finish(&mut flights);

    let faults: Vec<_> = done
        .iter_mut()
        .map(|done| (*done.token(), done.take_fault().is_some()))
        .collect();
    assert_eq!(faults, [(0, false), (1, true)]);
}

#[test]
fn granted_data_is_mapped_where_a_copy_has_no_room() {
    let (mut dma, _, log) = pooled("128", GrantMode::Copy);
    let filler = job(0, &[(granted(0, 0, 0x1000), Access::Read)]);
    let held: Vec<_> = (0..64)
        .map(|_| map_one(&mut dma, job(0, &filler.ranges), Need::COPY))
        .collect();

    let flight = map_one(
        &mut dma,
        job(1, &[(granted(1, 0, 0x1000), Access::Read)]),
        Need::COPY,
    );

    assert_eq!(*log.maps.lock().unwrap(), [(1, Access::Read)]);
    assert_eq!(dma.counters().snapshot().pool_full, 0);
    let mut all = held;
    all.push(flight);
    assert_eq!(dma.finish(&mut all).len(), 65);
}

#[test]
fn an_adaptive_path_tries_both_ways_and_knows_what_they_cost() {
    let (mut dma, _, log) = pooled("128", GrantMode::Adaptive);
    for _ in 0..20 {
        let flight = map_one(
            &mut dma,
            job(0, &[(granted(1, 0, 0x1000), Access::Read)]),
            Need::COPY,
        );
        assert_eq!(dma.finish(&mut vec![flight]).len(), 1);
    }

    let known = dma.policy.snapshot();
    let class = known.classes.iter().find(|class| class.bytes == 4096);
    let class = class.unwrap();
    assert!(class.is_known(), "{class:?}");
    assert_eq!(class.copies + class.maps, 20);
    assert_eq!(log.maps.lock().unwrap().len() as u64, class.maps);
    assert_eq!(log.copies.load(Ordering::SeqCst) as u64, class.copies);
}

#[test]
fn everything_is_bounced_where_that_is_forced_and_nothing_without_a_pool() {
    let (mut forced, _, _) = pooled("128,force", GrantMode::Map);
    let (mut none, _, _) = pooled("noforce", GrantMode::Copy);
    let plain = || job(0, &[(range(0, 64), Access::Read)]);

    let flight = map_one(&mut forced, plain(), Need::COPY);
    let refused = refused(&mut none, plain(), PINNED);
    let mapped = map_one(
        &mut none,
        job(1, &[(granted(1, 0, 64), Access::Read)]),
        Need::COPY,
    );

    assert_eq!(forced.counters().snapshot().bounced_forced, 1);
    assert!(matches!(
        refused.fault(),
        Fault::NoPool {
            reason: BounceReason::Pinned,
            ..
        }
    ));
    assert_eq!(none.counters().snapshot().granted, 1);
    assert!(none.pool_memory().is_empty());
    assert_eq!(forced.pool_memory()[0].len(), 256 << 10);
    assert_eq!(forced.finish(&mut vec![flight]).len(), 1);
    assert_eq!(none.finish(&mut vec![mapped]).len(), 1);
}

/// A range of a request: granted or not, its page, offset and length.
fn any_range() -> impl Strategy<Value = (bool, u32, u64, u32)> {
    (any::<bool>(), 16u32..28, 0u64..4096, 1u32..9000)
}

proptest! {
    /// However a request is cut and whichever way each part goes, its consumer
    /// reads what the guest wrote, and the guest what the consumer did.
    #[test]
    fn bytes_are_the_same_by_every_way(
        ranges in prop::collection::vec(any_range(), 1..6),
        mode in prop::sample::select(vec![
            GrantMode::Map, GrantMode::Copy, GrantMode::CopyUpTo(4096), GrantMode::Adaptive,
        ]),
        needs in (any::<bool>(), any::<bool>(), prop::sample::select(vec![1u32, 8, 512])),
        write in any::<bool>(),
    ) {
        let (mut dma, ram, log) = pooled("512", mode);
        let (scatter, pinned, align) = needs;
        let need = Need { scatter, pinned, limit: None, align };
        // ranges that do not overlap, so that the last writer is no question
        let mut at = 16u64 * 4096;
        let mut places = Vec::new();
        for &(grant, _, offset, len) in &ranges {
            let start = at + offset;
            if start + u64::from(len) > 32 * 4096 {
                break;
            }
            let range = match grant {
                true => granted((start / 4096) as u32, start % 4096, len),
                false => range(start, len),
            };
            places.push((start as usize, len as usize, range));
            at = (start + u64::from(len)).next_multiple_of(4096);
        }
        let total: usize = places.iter().map(|(_, len, _)| len).sum();
        let data = pattern(total, 0x3c);
        let access = if write { Access::Write } else { Access::Read };
        let mut done = 0;
        if !write {
            for &(start, len, _) in &places {
                ram.slice(start, len).write_slice(&data[done..done + len], 0).unwrap();
                done += len;
            }
        }
        let job_ranges: Vec<_> = places.iter().map(|&(_, _, range)| (range, access)).collect();

        let mut flight = map_one(&mut dma, job(0, &job_ranges), need);
        let mut read = vec![0; total];
        if write {
            prop_assert_eq!(flight.write(&data), total);
        } else {
            prop_assert_eq!(flight.read(&mut read), total);
        }
        prop_assert_eq!(dma.finish(&mut vec![flight]).len(), 1);

        if write {
            let found: Vec<u8> = places
                .iter()
                .flat_map(|&(start, len, _)| bytes(&ram, start, len))
                .collect();
            prop_assert_eq!(found, data);
        } else {
            prop_assert_eq!(read, data);
        }
        prop_assert_eq!(log.held.load(Ordering::SeqCst), 0);
        prop_assert_eq!(dma.pool_in_use(), 0);
    }
}
