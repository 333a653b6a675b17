//! Requests carried out many at a time, by io_uring or by threads: a batch
//! completes in any order.
//!
//! What the page cache has needs neither: it is moved in line, as a system call
//! does it. The ring and the threads are for what has to wait.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use swiotlb::{InFlight, Mapped, PoolMemory};

use super::BATCH;
use super::extents;
use super::moves::{CACHED, Completion, DIRECT, Move, Mover};
use super::outcome::{Outcomes, ended_early};
use super::ring::Ring;
use super::threads::Threads;
use crate::blk::cache::Durability;
use crate::blk::image::Image;
use crate::blk::op::Op;
use crate::blk::request::{Request, Status};
use crate::blk::stats::BlkStats;
use crate::blk::sys::{self, Direction, Span, Wait};

/// See the module.
pub(in crate::blk) struct Overlapped {
    mover: Mover,
    image: Arc<Image>,
    stats: Arc<BlkStats>,
    durability: Durability,
    completed: Vec<InFlight<Op>>,
    outcomes: Outcomes,
    /// Wait for a sync that begins after they came.
    unsynced: Vec<InFlight<Op>>,
    /// Wait for the sync that is on its way.
    syncing: Vec<InFlight<Op>>,
    /// The pool was registered, or cannot be.
    prepared: bool,
    /// Where the file system does not tell whether a move has to wait: reads on
    /// tmpfs, writes on ext4.
    blind: Vec<Direction>,
    /// The image is in memory: nothing of it ever has to wait for a disk.
    in_memory: bool,
    /// The request that is being started is the only one.
    alone: bool,
}

impl Overlapped {
    /// With io_uring.
    ///
    /// # Errors
    /// No ring, for want of it or of permission.
    pub(super) fn on_ring(
        image: Arc<Image>,
        stats: Arc<BlkStats>,
        durability: Durability,
    ) -> io::Result<Self> {
        // one entry for each request, one for a sync, and what is sent again
        let ring = Ring::new(u32::try_from(2 * BATCH).unwrap_or(128))?;
        let direct = image.direct_file().unwrap_or(image.file());
        ring.register_files(&[image.file(), direct])?;
        let mover = Mover::Ring(Box::new(ring));
        Ok(Overlapped::on(mover, image, stats, durability))
    }

    /// With threads.
    ///
    /// # Errors
    /// No thread.
    pub(super) fn on_threads(
        image: Arc<Image>,
        stats: Arc<BlkStats>,
        durability: Durability,
    ) -> io::Result<Self> {
        let mover = Mover::Threads(Threads::new(&image)?);
        Ok(Overlapped::on(mover, image, stats, durability))
    }

    fn on(mover: Mover, image: Arc<Image>, stats: Arc<BlkStats>, durability: Durability) -> Self {
        Overlapped {
            in_memory: sys::is_in_memory(image.file()),
            mover,
            outcomes: Outcomes::new(Arc::clone(&image), Arc::clone(&stats)),
            image,
            stats,
            durability,
            completed: Vec::new(),
            unsynced: Vec::new(),
            syncing: Vec::new(),
            prepared: false,
            blind: Vec::new(),
            alone: false,
        }
    }

    /// Registers the pool that requests' data lies in, once.
    pub(super) fn register(&mut self, pool: impl FnOnce() -> Vec<PoolMemory>) {
        if std::mem::replace(&mut self.prepared, true) {
            return;
        }
        let Mover::Ring(ring) = &mut self.mover else {
            return;
        };
        if let Err(error) = ring.register_memory(pool())
            && let Some(withheld) = self.stats.pool_log.due()
        {
            tracing::info!(%error, withheld, "the bounce pool cannot be registered; its pages are looked up each time");
        }
    }

    pub(super) fn submit(&mut self, batch: Vec<Mapped<Op>>) {
        self.alone = batch.len() == 1 && self.in_flight() == 0;
        for mapped in batch {
            self.start(mapped.submit());
        }
        self.go_on();
    }

    fn start(&mut self, mut flight: InFlight<Op>) {
        let result = match flight.token().for_engine() {
            Some(Request::Read { offset, len }) if *len > 0 => {
                let (offset, len) = (*offset, *len);
                return self.start_move(flight, Direction::Read, offset, len);
            }
            Some(Request::Write { offset, len }) if *len > 0 => {
                let (offset, len) = (*offset, *len);
                return self.start_move(flight, Direction::Write, offset, len);
            }
            Some(Request::Flush) => return self.unsynced.push(flight),
            Some(Request::Discard(list)) => extents::discard(&self.image, list),
            Some(Request::WriteZeroes(list)) => extents::zero(&self.image, list),
            Some(Request::Read { .. } | Request::Write { .. } | Request::GetId) => Ok(()),
            None => return self.completed.push(flight),
        };
        self.outcomes.note(&mut flight, 0, result);
        self.done(flight);
    }

    fn start_move(&mut self, flight: InFlight<Op>, direction: Direction, offset: u64, len: u64) {
        let asked = Move {
            direction,
            file: self.file_for(offset, len),
            span: Span {
                offset,
                skip: 0,
                len,
            },
        };
        match self.move_in_line(&flight, &asked) {
            Some(result) => self.moved(flight, asked, result),
            None => self.mover.start(flight, asked),
        }
    }

    /// Moves what the page cache has or takes. `None` where that would have to
    /// wait for the disk.
    fn move_in_line(&mut self, flight: &InFlight<Op>, asked: &Move) -> Option<io::Result<u64>> {
        let (image, direction) = (&self.image, asked.direction);
        let attempt = |wait| sys::transfer(image.file(), direction, flight, asked.span, wait);
        if asked.file != CACHED {
            return None;
        }
        if image.qcow2().is_some() {
            // nobody can tell whether its tables have to be waited for
            let in_line = || image.transfer(direction, flight, asked.span);
            return self.alone.then(in_line);
        }
        if !self.blind.contains(&direction) {
            match attempt(Wait::No) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    self.blind.push(direction);
                }
                result => return Some(result),
            }
        }
        // writes go into the cache, which seldom waits; a read alone gains
        // nothing by a hop to another thread
        let in_line = direction == Direction::Write || self.alone || self.in_memory;
        in_line.then(|| attempt(Wait::Yes))
    }

    fn file_for(&self, offset: u64, len: u64) -> u32 {
        let align = self.image.direct_align();
        match align.is_some_and(|align| (offset | len).is_multiple_of(align.into())) {
            true => DIRECT,
            false => CACHED,
        }
    }

    /// A request that has been carried out: complete, or to be made durable.
    fn done(&mut self, flight: InFlight<Op>) {
        let reads = matches!(flight.token().for_engine(), Some(Request::Read { .. }));
        let ok = flight.token().outcome().status == Status::Ok;
        match self.durability.write_through() && ok && !reads {
            true => self.unsynced.push(flight),
            false => self.completed.push(flight),
        }
    }

    /// Gives the kernel what is queued and takes what it has completed, until
    /// there is nothing to do.
    fn go_on(&mut self) {
        let mut completions = Vec::new();
        loop {
            if self.syncing.is_empty() && !self.unsynced.is_empty() {
                std::mem::swap(&mut self.syncing, &mut self.unsynced);
                self.stats.count_sync();
                self.mover.sync();
            }
            self.mover.submit();
            self.mover.reap(&mut completions);
            if completions.is_empty() {
                return;
            }
            for completion in completions.drain(..) {
                self.complete(completion);
            }
        }
    }

    fn complete(&mut self, completion: Completion) {
        match completion {
            Completion::Moved(flight, asked, result) => self.moved(flight, asked, result),
            Completion::Synced(result) => {
                if let Err(error) = result {
                    self.outcomes.note_all(&mut self.syncing, &error);
                } else {
                    let flushes = self.syncing.iter_mut();
                    for flush in flushes.filter(|flight| is_flush(flight)) {
                        self.outcomes.note(flush, 0, Ok(()));
                    }
                }
                self.completed.append(&mut self.syncing);
            }
        }
    }

    fn moved(&mut self, mut flight: InFlight<Op>, asked: Move, result: io::Result<u64>) {
        let (count, error) = match result {
            Ok(0) => (0, ended_early()),
            Ok(count) if count >= asked.span.len => {
                let moved = asked.span.skip + asked.span.len;
                self.outcomes.note(&mut flight, moved, Ok(()));
                return self.done(flight);
            }
            Ok(count) => (count, io::ErrorKind::Interrupted.into()),
            Err(error) => (0, error),
        };
        match error.kind() {
            // the rest, or all of it again
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {
                let span = asked.span.after(count);
                let rest = Move {
                    file: self.file_for(span.offset, span.len),
                    span,
                    ..asked
                };
                self.mover.start(flight, rest);
            }
            _ => {
                self.outcomes.note(&mut flight, asked.span.skip, Err(error));
                self.done(flight);
            }
        }
    }

    pub(super) fn reap(&mut self) -> Vec<InFlight<Op>> {
        self.go_on();
        std::mem::take(&mut self.completed)
    }

    /// Requests that are not complete.
    pub(super) fn in_flight(&self) -> usize {
        // a sync is not a request's own
        self.mover.in_flight() + self.unsynced.len() + self.syncing.len()
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.mover.event()
    }

    pub(super) fn settle(&mut self) {
        self.go_on();
        while self.in_flight() > 0 {
            self.mover.wait();
            self.go_on();
        }
    }
}

fn is_flush(flight: &InFlight<Op>) -> bool {
    matches!(flight.token().for_engine(), Some(Request::Flush))
}
