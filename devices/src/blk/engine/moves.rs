//! What is asked of whoever carries out moves beside the worker, and what comes
//! back: of the ring, or of threads where the host has none.

use std::io;
use std::os::fd::BorrowedFd;

use swiotlb::InFlight;

use super::ring::Ring;
use super::threads::Threads;
use crate::blk::op::Op;
use crate::blk::sys::Direction;

/// The image by way of the page cache, among the files of a [`Mover`].
pub(super) const CACHED: u32 = 0;
/// The image past the page cache.
pub(super) const DIRECT: u32 = 1;

/// A move of bytes between an image and a request's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub direction: Direction,
    /// Which of the files.
    pub file: u32,
    /// Where in the file.
    pub offset: u64,
    /// Bytes of the request's memory before the move's.
    pub skip: u64,
    /// Bytes to be moved.
    pub len: u64,
}

/// What has been completed.
pub(super) enum Completion {
    /// A move: its request, what was asked for, and how many bytes were moved.
    Moved(InFlight<Op>, Move, io::Result<u64>),
    /// A sync.
    Synced(io::Result<()>),
}

/// Whoever carries them out.
pub(super) enum Mover {
    /// The kernel.
    Ring(Box<Ring>),
    /// Threads of this process.
    Threads(Threads),
}

impl Mover {
    /// Takes a move, and its request with it.
    pub(super) fn start(&mut self, flight: InFlight<Op>, asked: Move) {
        match self {
            Mover::Ring(ring) => ring.start(flight, asked),
            Mover::Threads(threads) => threads.start(flight, asked),
        }
    }

    /// Takes a sync of the image. One at a time.
    pub(super) fn sync(&mut self) {
        match self {
            Mover::Ring(ring) => ring.sync(CACHED),
            Mover::Threads(threads) => threads.sync(),
        }
    }

    /// Begins what was taken.
    pub(super) fn submit(&mut self) {
        match self {
            Mover::Ring(ring) => ring.submit(),
            // they have begun
            Mover::Threads(_) => {}
        }
    }

    /// The same, and waits until something is complete.
    pub(super) fn wait(&mut self) {
        match self {
            Mover::Ring(ring) => ring.wait(),
            Mover::Threads(threads) => threads.wait(),
        }
    }

    /// Gives back what is complete.
    pub(super) fn reap(&mut self, completions: &mut Vec<Completion>) {
        match self {
            Mover::Ring(ring) => ring.reap(completions),
            Mover::Threads(threads) => threads.reap(completions),
        }
    }

    /// How many moves and syncs are not given back.
    pub(super) fn in_flight(&self) -> usize {
        match self {
            Mover::Ring(ring) => ring.in_flight(),
            Mover::Threads(threads) => threads.in_flight(),
        }
    }

    /// Readable while there is something to reap.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        match self {
            Mover::Ring(ring) => ring.event(),
            Mover::Threads(threads) => threads.event(),
        }
    }
}
