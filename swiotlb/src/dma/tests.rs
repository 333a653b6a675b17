use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vm_memory::{Bytes, VolatileSlice};

use super::*;
use crate::range::{GrantAddress, PAGE_SIZE};
use crate::source::{GrantLoan, HostRange, Keep};

/// Guest RAM on the heap, shared by the sources below.
struct Ram {
    bytes: Box<[u64]>,
}

impl Ram {
    fn new(pages: usize) -> Arc<Self> {
        Arc::new(Ram {
            bytes: vec![0; pages * PAGE_SIZE as usize / 8].into_boxed_slice(),
        })
    }

    #[expect(unsafe_code, reason = "a test's RAM")]
    fn slice(&self, offset: usize, len: usize) -> VolatileSlice<'_> {
        assert!(offset + len <= self.bytes.len() * 8, "outside of the RAM");
        // SAFETY: in bounds, and `self` outlives the slice
        unsafe { VolatileSlice::new((self.bytes.as_ptr() as *mut u8).add(offset), len) }
    }
}

/// Plain addresses; frame 13 is a hole, and each 2-page chunk is a piece.
struct Chunks(Arc<Ram>);

const HOLE: u64 = 13;

impl Translation for Chunks {
    fn translate(
        &mut self,
        range: Range,
        _access: Access,
        out: &mut Segments,
    ) -> Result<Keep, Fault> {
        let mut at = range.address();
        let end = at + u64::from(range.len());
        let frames = self.0.bytes.len() as u64 * 8 / PAGE_SIZE;
        while at < end {
            let frame = at / PAGE_SIZE;
            if frame == HOLE || frame >= frames {
                return Err(Fault::NoTranslation {
                    address: range.address(),
                    frame,
                });
            }
            let piece = end.min((frame / 2 + 1) * 2 * PAGE_SIZE);
            let piece = if frame == HOLE - 1 {
                end.min(HOLE * PAGE_SIZE)
            } else {
                piece
            };
            out.push(Segment::of(
                &self.0.slice(at as usize, (piece - at) as usize),
            ));
            at = piece;
        }
        Ok(self.0.clone())
    }

    fn map_ring(&mut self, range: Range, _access: Access) -> Result<RingMapping, Fault> {
        struct Part(Arc<Ram>, usize, usize);
        impl HostRange for Part {
            fn volatile(&self) -> VolatileSlice<'_> {
                self.0.slice(self.1, self.2)
            }
        }
        Ok(RingMapping::new(Box::new(Part(
            self.0.clone(),
            range.address() as usize,
            range.len() as usize,
        ))))
    }

    fn pinnable(&self) -> bool {
        false
    }
}

/// Grants: reference = page of the RAM. Reference 99 does not exist.
struct Pages {
    ram: Arc<Ram>,
    log: Arc<Log>,
}

#[derive(Default)]
struct Log {
    maps: Mutex<Vec<(usize, Access)>>,
    copies: AtomicUsize,
    held: AtomicUsize,
}

const BAD_REF: u32 = 99;

struct Lent(Vec<Segment>, Arc<Log>);

impl Drop for Lent {
    fn drop(&mut self) {
        self.1.held.fetch_sub(self.0.len(), Ordering::SeqCst);
    }
}

impl GrantLoan for Lent {
    fn segment(&self, index: usize) -> Option<Segment> {
        self.0.get(index).copied()
    }
    fn give_back(self: Box<Self>) -> Result<(), Fault> {
        Ok(())
    }
}

impl Grants for Pages {
    fn copy(&mut self, batch: &mut [GrantCopy<'_>]) {
        self.log.copies.fetch_add(1, Ordering::SeqCst);
        for copy in batch {
            if copy.grant.first == BAD_REF {
                copy.result = Err(Fault::GrantRefusedByXen {
                    reference: BAD_REF,
                    reason: "no such reference".into(),
                });
                continue;
            }
            let at = copy.grant.first as usize * PAGE_SIZE as usize + copy.grant.offset as usize;
            let slice = self.ram.slice(at, copy.bytes.len());
            match &mut copy.bytes {
                TransferBytes::FromGuest(bytes) => slice.read_slice(bytes, 0).unwrap(),
                TransferBytes::ToGuest(bytes) => slice.write_slice(bytes, 0).unwrap(),
            }
        }
    }

    fn map(
        &mut self,
        ranges: &[(GrantAddress, u32)],
        access: Access,
    ) -> Result<Box<dyn GrantLoan>, Fault> {
        self.log.maps.lock().unwrap().push((ranges.len(), access));
        if let Some((bad, _)) = ranges.iter().find(|(grant, _)| grant.first == BAD_REF) {
            return Err(Fault::GrantRefusedByXen {
                reference: bad.first,
                reason: "no such reference".into(),
            });
        }
        let segments: Vec<_> = ranges
            .iter()
            .map(|(grant, len)| {
                let at = grant.first as usize * PAGE_SIZE as usize + grant.offset as usize;
                Segment::of(&self.ram.slice(at, *len as usize))
            })
            .collect();
        self.log.held.fetch_add(segments.len(), Ordering::SeqCst);
        Ok(Box::new(Lent(segments, self.log.clone())))
    }

    fn map_ring(
        &mut self,
        _grant: GrantAddress,
        _len: u32,
        _access: Access,
    ) -> Result<RingMapping, Fault> {
        Err(Fault::GrantRefused { address: 0 })
    }
}

fn paths() -> (Dma, Arc<Ram>, Arc<Log>) {
    let ram = Ram::new(32);
    let log = Arc::new(Log::default());
    let dma = Dma::new(
        Kind::Translated,
        Some(Box::new(Chunks(ram.clone()))),
        Some(Box::new(Pages {
            ram: ram.clone(),
            log: log.clone(),
        })),
        Arc::default(),
    );
    (dma, ram, log)
}

fn range(address: u64, len: u32) -> Range {
    Range::new(address, len).unwrap()
}

fn granted(reference: u32, offset: u64, len: u32) -> Range {
    range(GRANT_BIT | u64::from(reference) << 12 | offset, len)
}

fn job(token: u32, ranges: &[(Range, Access)]) -> Job<u32> {
    Job {
        token,
        ranges: ranges.iter().copied().collect(),
    }
}

fn tokens(done: Vec<Done<u32>>) -> Vec<u32> {
    let mut tokens: Vec<_> = done.into_iter().map(Done::into_token).collect();
    tokens.sort_unstable();
    tokens
}

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
fn plain_addresses_are_refused_to_a_guest_on_grants_and_the_other_way_round() {
    let ram = Ram::new(4);
    let log = Arc::new(Log::default());
    let pages = Pages {
        ram: ram.clone(),
        log,
    };
    let mut grants_only = Dma::new(
        Kind::Translated,
        None,
        Some(Box::new(pages)),
        Arc::default(),
    );
    let mut plain_only = Dma::new(
        Kind::Translated,
        Some(Box::new(Chunks(ram))),
        None,
        Arc::default(),
    );

    let plain = grants_only
        .map([job(0, &[(range(0, 8), Access::Read)])], Need::COPY)
        .remove(0);
    let grant = plain_only
        .map([job(0, &[(granted(0, 0, 8), Access::Read)])], Need::COPY)
        .remove(0);
    let mut byte = [0];
    let mut copies = [Transfer::from_guest([granted(0, 0, 1)], &mut byte)];
    plain_only.transfer(&mut copies);

    assert!(matches!(
        plain.err().unwrap().fault(),
        Fault::PlainRefused { address: 0 }
    ));
    assert!(matches!(
        grant.err().unwrap().fault(),
        Fault::GrantRefused { .. }
    ));
    assert!(matches!(copies[0].result, Err(Fault::GrantRefused { .. })));
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

#[test]
fn a_batch_of_copies_is_one_call_and_each_has_its_own_result() {
    let (mut dma, ram, log) = paths();
    ram.slice(0x3000, 4).write_slice(&[1, 2, 3, 4], 0).unwrap();
    let (mut a, mut b, mut c) = ([0; 2], [0; 2], [0; 6]);
    let out = [9, 9];
    let mut batch = [
        Transfer::from_guest([granted(3, 0, 2)], &mut a),
        Transfer::from_guest([granted(BAD_REF, 0, 2)], &mut b),
        // gathered over a plain and a granted range
        Transfer::from_guest([range(0x3000, 4), granted(3, 2, 2)], &mut c),
        Transfer::to_guest([granted(4, 8, 2)], &out),
    ];

    dma.transfer(&mut batch);

    let results: Vec<_> = batch.iter().map(|t| t.result.is_ok()).collect();
    assert_eq!(results, [true, false, true, true]);
    assert_eq!(a, [1, 2]);
    assert_eq!(c, [1, 2, 3, 4, 3, 4]);
    assert_eq!(log.copies.load(Ordering::SeqCst), 1);
    let mut seen = [0; 2];
    ram.slice(0x4008, 2).read_slice(&mut seen, 0).unwrap();
    assert_eq!(seen, out);
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
