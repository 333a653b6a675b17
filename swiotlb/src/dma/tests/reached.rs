//! Data that is reached where the guest has it.

use super::*;

#[test]
fn a_plain_range_over_two_chunks_is_two_segments() {
    let (mut dma, ram, _) = paths();
    let jobs = [job(1, &[(range(0x1ff0, 0x20), Access::Write)])];

    let mapped = dma.map(jobs, Need::COPY).remove(0).ok().unwrap();
    let mut flight = mapped.submit();
    let written = flight.write(&[7; 0x20]);
    let done = dma.finish(&mut vec![flight]);

    assert_eq!(written, 0x20);
    assert_eq!(tokens(done), [1]);
    let mut seen = [0; 0x22];
    ram.slice(0x1fef, 0x22).read_slice(&mut seen, 0).unwrap();
    assert_eq!((seen[0], seen[0x21]), (0, 0));
    assert!(seen[1..0x21].iter().all(|byte| *byte == 7));
    assert_eq!(dma.counters().snapshot().segments, 2);
}

#[test]
fn a_part_of_a_request_is_written_wherever_its_segments_end() {
    let (mut dma, ram, _) = paths();
    let jobs = [job(1, &[(range(0x1ff0, 0x20), Access::Write)])];
    let mapped = dma.map(jobs, Need::COPY).remove(0).ok().unwrap();
    let flight = mapped.submit();

    let over = flight.write_at(0xe, &[7; 4]);
    let inside = flight.write_at(0x18, &[8; 2]);
    let cut = flight.write_at(0x1f, &[9; 4]);
    let beyond = flight.write_at(0x40, &[1]);

    assert_eq!((over, inside, cut, beyond), (4, 2, 1, 0));
    assert_eq!(flight.written(), 0);
    let mut seen = [0; 0x21];
    ram.slice(0x1ff0, 0x21).read_slice(&mut seen, 0).unwrap();
    let mut expected = [0; 0x21];
    expected[0xe..0x12].fill(7);
    expected[0x18..0x1a].fill(8);
    expected[0x1f] = 9;
    assert_eq!(seen, expected);
    dma.finish(&mut vec![flight]);
}

#[test]
fn a_batch_of_grants_is_one_call_per_protection_and_given_back_by_finish() {
    let (mut dma, _, log) = paths();
    let jobs = (0..5).map(|i| {
        job(
            i,
            &[
                (granted(i, 0, 4096), Access::Read),
                (granted(i + 8, 16, 100), Access::Write),
            ],
        )
    });

    let mapped = dma.map(jobs, Need::COPY);
    let held = log.held.load(Ordering::SeqCst);
    let mut flights: Vec<_> = mapped
        .into_iter()
        .map(|m| m.ok().unwrap().submit())
        .collect();
    let done = dma.finish(&mut flights);

    assert_eq!(
        *log.maps.lock().unwrap(),
        [(5, Access::Read), (5, Access::Write)]
    );
    assert_eq!(held, 10);
    assert_eq!(log.held.load(Ordering::SeqCst), 0);
    assert_eq!(tokens(done), [0, 1, 2, 3, 4]);
}

#[test]
fn a_request_that_shares_a_loan_waits_for_its_batch() {
    let (mut dma, _, log) = paths();
    let jobs = (0..2).map(|i| job(i, &[(granted(i, 0, 64), Access::Read)]));
    let mut flights: Vec<_> = dma
        .map(jobs, Need::COPY)
        .into_iter()
        .map(|m| m.ok().unwrap().submit())
        .collect();
    let slow = flights.pop().unwrap();

    let first = dma.finish(&mut flights);
    let held = log.held.load(Ordering::SeqCst);
    flights.push(slow);
    let second = dma.finish(&mut flights);

    assert!(first.is_empty());
    assert_eq!(held, 2);
    assert_eq!(tokens(second), [0, 1]);
    assert_eq!(log.held.load(Ordering::SeqCst), 0);
}

#[test]
fn a_batch_of_more_pages_than_a_loan_is_several_loans() {
    let (mut dma, _, log) = paths_of(3000);
    let long = 3000 * 4096;
    let jobs = [
        job(0, &[(granted(1, 0, 64), Access::Write)]),
        job(
            1,
            &[
                (granted(2, 0, 64), Access::Read),
                (granted(0, 0, long), Access::Write),
            ],
        ),
        job(2, &[(granted(0, 0, long), Access::Write)]),
        job(3, &[(granted(4, 0, 64), Access::Write)]),
    ];

    let mapped = dma.map(jobs, Need::COPY);
    let flights: Vec<_> = mapped
        .into_iter()
        .map(|mapped| mapped.ok().unwrap().submit())
        .collect();
    let addresses: Vec<_> = flights
        .iter()
        .map(|flight| flight.segments().last().unwrap().address())
        .collect();
    let (mut first, mut second): (Vec<_>, Vec<_>) =
        flights.into_iter().partition(|flight| *flight.token() < 2);

    assert_eq!(
        *log.maps.lock().unwrap(),
        [(1, Access::Read), (2, Access::Write), (2, Access::Write)]
    );
    let page = |reference: usize| addresses[1] + reference * 4096;
    assert_eq!(addresses, [page(1), page(0), page(0), page(4)]);
    // each is given back by itself
    assert_eq!(tokens(dma.finish(&mut second)), [2, 3]);
    assert_eq!(tokens(dma.finish(&mut first)), [0, 1]);
    assert_eq!(log.held.load(Ordering::SeqCst), 0);
}

#[test]
fn a_bad_reference_splits_its_own_loan_alone() {
    let (mut dma, _, log) = paths_of(3000);
    let long = |token| job(token, &[(granted(0, 0, 3000 * 4096), Access::Read)]);
    let small = |token, reference| job(token, &[(granted(reference, 0, 64), Access::Read)]);
    let jobs = [long(0), long(1), small(2, BAD_REF), small(3, 5)];

    let (mapped, refused): (Vec<_>, Vec<_>) = dma
        .map(jobs, Need::COPY)
        .into_iter()
        .partition(Result::is_ok);
    let mut flights: Vec<_> = mapped
        .into_iter()
        .map(|mapped| mapped.ok().unwrap().submit())
        .collect();
    let done = dma.finish(&mut flights);

    assert_eq!(refused.len(), 1);
    assert_eq!(tokens(done), [0, 1, 3]);
    // a loan of one, one of three that is refused, and each of these
    let maps: Vec<_> = log.maps.lock().unwrap().iter().map(|map| map.0).collect();
    assert_eq!(maps, [1, 3, 1, 1, 1]);
    assert_eq!(dma.counters().snapshot().loans_split, 1);
}

#[test]
fn a_request_of_more_pages_than_a_loan_is_refused_before_anything_is_mapped() {
    let (mut dma, _, log) = paths();
    // as many as a table has, each as long as a descriptor can say: 4 TiB
    let all = (granted(0, 0, u32::MAX), Access::Write);
    let jobs = [
        job(0, &[all; 1024]),
        job(1, &[(granted(1, 0, 64), Access::Write)]),
        job(2, &[(granted(0, 1, 16 << 20), Access::Write)]),
    ];

    let mut results = dma.map(jobs, Need::COPY);
    let third = results.pop().unwrap().err().unwrap();
    let second = results.pop().unwrap().ok().unwrap();
    let first = results.pop().unwrap().err().unwrap();
    let done = dma.finish(&mut vec![second.submit()]);

    assert!(matches!(
        first.fault(),
        Fault::LoanTooLarge {
            pages: 0x10_0000,
            most: 4096,
            ..
        }
    ));
    // a byte more than a loan
    assert!(matches!(
        third.fault(),
        Fault::LoanTooLarge { pages: 4097, .. }
    ));
    assert_eq!(tokens(done), [1]);
    assert_eq!(*log.maps.lock().unwrap(), [(1, Access::Write)]);
}

#[test]
fn a_bad_reference_fails_its_own_request_alone() {
    let (mut dma, _, log) = paths();
    let jobs = [
        job(0, &[(granted(1, 0, 64), Access::Write)]),
        job(1, &[(granted(BAD_REF, 0, 64), Access::Write)]),
        job(
            2,
            &[
                (granted(2, 0, 64), Access::Read),
                (granted(3, 0, 64), Access::Write),
            ],
        ),
    ];

    let mut results = dma.map(jobs, Need::COPY);
    let third = results.pop().unwrap().ok().unwrap();
    let second = results.pop().unwrap().err().unwrap();
    let first = results.pop().unwrap().ok().unwrap();
    let addresses: Vec<_> = third.segments().iter().map(Segment::len).collect();
    let done = dma.finish(&mut vec![first.submit(), third.submit()]);

    assert!(matches!(
        second.fault(),
        Fault::GrantRefusedByXen {
            reference: BAD_REF,
            ..
        }
    ));
    assert_eq!(addresses, [64, 64]);
    assert_eq!(tokens(done), [0, 2]);
    assert_eq!(log.held.load(Ordering::SeqCst), 0);
    assert_eq!(dma.counters().snapshot().loans_split, 1);
    assert_eq!(dma.counters().snapshot().rejected, 1);
}

#[test]
fn a_hole_rejects_the_request_with_its_frame() {
    let (mut dma, _, _) = paths();
    let jobs = [job(5, &[(range(12 * 4096, 8192), Access::Read)])];

    let rejected = dma.map(jobs, Need::COPY).remove(0).err().unwrap();
    let (done, fault) = dma.reject(rejected);

    assert_eq!(done.into_token(), 5);
    assert!(matches!(fault, Fault::NoTranslation { frame: HOLE, .. }));
}

#[test]
fn a_rejected_request_leaves_no_grant_of_its_own_in_the_batch() {
    let (mut dma, _, log) = paths();
    let jobs = [
        job(
            0,
            &[
                (granted(1, 0, 64), Access::Read),
                (range(HOLE * 4096, 1), Access::Read),
            ],
        ),
        job(1, &[(granted(2, 0, 64), Access::Read)]),
    ];

    let mut results = dma.map(jobs, Need::COPY);
    let mapped = results.pop().unwrap().ok().unwrap();
    let rejected = results.pop().unwrap().is_err();
    let done = dma.finish(&mut vec![mapped.submit()]);

    assert!(rejected);
    assert_eq!(*log.maps.lock().unwrap(), [(1, Access::Read)]);
    assert_eq!(tokens(done), [1]);
}

#[test]
fn a_consumer_that_pins_pages_is_refused_foreign_and_granted_memory() {
    let (mut dma, _, _) = paths();
    let need = Need {
        pinned: true,
        ..Need::COPY
    };
    for range in [range(0, 512), granted(0, 0, 512)] {
        let rejected = dma
            .map([job(0, &[(range, Access::Read)])], need)
            .remove(0)
            .err()
            .unwrap();
        assert!(matches!(
            rejected.fault(),
            Fault::NoPool {
                reason: BounceReason::Pinned,
                ..
            }
        ));
    }
    let counted = dma.counters().snapshot();
    assert_eq!((counted.bounced, counted.bounced_pinned), (2, 2));
}

#[test]
fn a_consumer_of_one_piece_is_refused_a_range_that_straddles() {
    let (mut dma, _, _) = paths();
    let need = Need {
        scatter: false,
        ..Need::COPY
    };
    let jobs = [
        job(0, &[(range(0x1ff0, 0x20), Access::Read)]),
        job(1, &[(range(0x0ff0, 0x20), Access::Read)]),
    ];

    let results = dma.map(jobs, need);

    assert!(matches!(
        results[0].as_ref().err().unwrap().fault(),
        Fault::NoPool {
            reason: BounceReason::Straddles,
            ..
        }
    ));
    assert!(results[1].is_ok());
    assert_eq!(dma.counters().snapshot().bounced_straddles, 1);
}

#[test]
fn alignment_is_checked_on_the_consumers_side() {
    let (mut dma, _, _) = paths();
    let need = Need {
        align: 8,
        ..Need::COPY
    };
    let jobs = [
        job(0, &[(range(8, 16), Access::Read)]),
        job(1, &[(range(9, 16), Access::Read)]),
    ];

    let results = dma.map(jobs, need);

    assert!(results[0].is_ok());
    assert!(matches!(
        results[1].as_ref().err().unwrap().fault(),
        Fault::NoPool {
            reason: BounceReason::Misaligned(8),
            ..
        }
    ));
    let counted = dma.counters().snapshot();
    assert_eq!((counted.bounced, counted.bounced_misaligned), (1, 1));
    assert_eq!((counted.bounced_pinned, counted.bounced_limit), (0, 0));
}

proptest! {
    /// Whatever the shape of a batch, every request comes back exactly once
    /// and nothing stays lent.
    #[test]
    fn every_request_comes_back_once_and_nothing_stays_lent(
        shapes in prop::collection::vec((0u32..4, 0u32..16, any::<bool>()), 1..40),
        split in 0usize..40,
    ) {
        let (mut dma, _, log) = paths();
        let jobs = shapes.iter().enumerate().map(|(i, (kind, page, write))| {
            let access = if *write { Access::Write } else { Access::Read };
            let range = match kind {
                0 => range(u64::from(*page) * 4096, 100),
                1 => granted(*page, 7, 100),
                2 => granted(BAD_REF, 0, 1),
                _ => range(1 << 40, 1),
            };
            job(i as u32, &[(range, access), (granted(*page, 0, 8), Access::Write)])
        });
        let mut seen = Vec::new();
        let mut flights = Vec::new();
        for result in dma.map(jobs, Need::COPY) {
            match result {
                Ok(mapped) => flights.push(mapped.submit()),
                Err(rejected) => seen.push(dma.reject(rejected).0.into_token()),
            }
        }
        let late = flights.split_off(split.min(flights.len()));
        seen.extend(tokens(dma.finish(&mut flights)));
        flights.extend(late);
        seen.extend(tokens(dma.finish(&mut flights)));
        seen.sort_unstable();
        prop_assert!(flights.is_empty());
        prop_assert_eq!(seen, (0..shapes.len() as u32).collect::<Vec<_>>());
        prop_assert_eq!(log.held.load(Ordering::SeqCst), 0);
    }
}
