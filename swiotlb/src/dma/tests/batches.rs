//! A source is told where a batch begins and ends, and is asked for nothing
//! beyond.

use super::*;
use crate::memory::{Base, PoolMemory};

/// Notes what it is told.
struct Told {
    chunks: Chunks,
    words: Arc<Mutex<Vec<&'static str>>>,
}

impl Told {
    fn note(&self, word: &'static str) {
        self.words.lock().unwrap().push(word);
    }
}

impl Translation for Told {
    fn translate(
        &mut self,
        range: Range,
        access: Access,
        out: &mut Segments,
    ) -> Result<Keep, Fault> {
        self.note("look");
        self.chunks.translate(range, access, out)
    }

    fn hold(&mut self) {
        self.note("hold");
    }

    fn release(&mut self) {
        self.note("release");
    }

    fn map_ring(&mut self, range: Range, access: Access) -> Result<RingMapping, Fault> {
        self.chunks.map_ring(range, access)
    }

    fn pinnable(&self) -> bool {
        self.chunks.pinnable()
    }
}

/// A path to plain addresses alone, and what its source is told.
fn path() -> (Dma, Arc<Mutex<Vec<&'static str>>>) {
    let words = Arc::new(Mutex::new(Vec::new()));
    let told = Told {
        chunks: Chunks(Ram::new(32)),
        words: Arc::clone(&words),
    };
    let source: Box<dyn Translation> = Box::new(told);
    let dma = Dma::new(Kind::Translated, Some(source), None, Arc::default());
    (dma, words)
}

const BATCH_OF_TWO: [&str; 4] = ["hold", "look", "look", "release"];

#[test]
fn small_copies_are_a_batch() {
    let (mut dma, words) = path();
    let (mut first, mut second) = ([0; 4], [0; 4]);

    dma.transfer(&mut [
        Transfer::from_guest([range(0, 4)], &mut first),
        Transfer::from_guest([range(0x2000, 4)], &mut second),
    ]);

    assert_eq!(*words.lock().unwrap(), BATCH_OF_TWO);
}

#[test]
fn mapped_requests_are_a_batch() {
    let (mut dma, words) = path();
    let jobs = [0, 0x2000].map(|at| job(0, &[(range(at, 4), Access::Read)]));

    let mapped = dma.map(jobs, Need::COPY);

    assert_eq!(mapped.iter().flatten().count(), 2);
    assert_eq!(*words.lock().unwrap(), BATCH_OF_TWO);
    for mapped in mapped.into_iter().flatten() {
        dma.finish(&mut vec![mapped.submit()]);
    }
}

#[test]
fn carried_pieces_are_a_batch_even_if_one_has_a_fault() {
    let (mut dma, words) = path();
    let pool = PoolMemory::anonymous(PAGE_SIZE, Base::Host).unwrap();
    let carry = |at| Carry {
        owner: 0,
        range: range(at, 4),
        access: Access::Read,
        place: pool.slice(0, 4).unwrap(),
    };

    let faults = dma.carry([carry(HOLE * PAGE_SIZE), carry(0)]);

    assert_eq!(faults.len(), 1);
    assert_eq!(*words.lock().unwrap(), BATCH_OF_TWO);
}
