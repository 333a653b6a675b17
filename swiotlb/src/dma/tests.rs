mod batches;
mod bounced;
mod carried;
mod reached;
mod small;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vm_memory::{Bytes, VolatileSlice};

use super::*;
use crate::fault::BounceReason;
use crate::range::{GRANT_BIT, GrantAddress, PAGE_SIZE};
use crate::segment::Segment;
use crate::source::{CopyBytes, GrantCopy, GrantLoan, HostRange, Keep, Transfer};

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
                CopyBytes::FromGuest(bytes) => slice.read_slice(bytes, 0).unwrap(),
                CopyBytes::ToGuest(bytes) => slice.write_slice(bytes, 0).unwrap(),
                CopyBytes::FromGuestToPool(pool) => slice.copy_to_volatile_slice(*pool),
                CopyBytes::ToGuestFromPool(pool) => pool.copy_to_volatile_slice(slice),
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
    paths_of(32)
}

fn paths_of(pages: usize) -> (Dma, Arc<Ram>, Arc<Log>) {
    let ram = Ram::new(pages);
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
