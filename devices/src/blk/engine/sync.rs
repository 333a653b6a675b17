//! Requests carried out by system calls, one after the other.
//!
//! Everything of a batch is complete when [`Sync::submit`] returns.

use std::io;
use std::sync::Arc;

use swiotlb::{InFlight, Mapped};

use super::extents;
use super::outcome::{Outcomes, ended_early};
use crate::blk::cache::Durability;
use crate::blk::image::Image;
use crate::blk::op::Op;
use crate::blk::request::{Request, Status};
use crate::blk::stats::BlkStats;
use crate::blk::sys::{Direction, Span};

/// See the module.
pub(in crate::blk) struct Sync {
    image: Arc<Image>,
    stats: Arc<BlkStats>,
    durability: Durability,
    completed: Vec<InFlight<Op>>,
    outcomes: Outcomes,
}

impl Sync {
    pub(super) fn new(image: Arc<Image>, stats: Arc<BlkStats>, durability: Durability) -> Self {
        Sync {
            outcomes: Outcomes::new(Arc::clone(&image), Arc::clone(&stats)),
            image,
            stats,
            durability,
            completed: Vec::new(),
        }
    }

    pub(super) fn submit(&mut self, batch: Vec<Mapped<Op>>) {
        let mut unsynced = Vec::new();
        for mapped in batch {
            let mut flight = mapped.submit();
            let Some(request) = flight.token().for_engine() else {
                // refused before: its outcome stands
                self.completed.push(flight);
                continue;
            };
            let sync = matches!(request, Request::Flush)
                || self.durability.write_through() && !matches!(request, Request::Read { .. });
            let (moved, result) = self.carry_out(request, &flight);
            self.outcomes.note(&mut flight, moved, result);
            // one flush for the whole batch, behind its writes
            match sync && flight.token().outcome().status == Status::Ok {
                true => unsynced.push(flight),
                false => self.completed.push(flight),
            }
        }
        if !unsynced.is_empty() {
            self.sync(unsynced);
        }
    }

    pub(super) fn reap(&mut self) -> Vec<InFlight<Op>> {
        std::mem::take(&mut self.completed)
    }

    /// Makes the image durable, and completes those who wait for that.
    fn sync(&mut self, mut waiting: Vec<InFlight<Op>>) {
        self.stats.count_sync();
        if let Err(error) = self.image.sync() {
            self.outcomes.note_all(&mut waiting, &error);
        }
        self.completed.append(&mut waiting);
    }

    /// Returns how many bytes were moved, too.
    fn carry_out(&self, request: &Request, flight: &InFlight<Op>) -> (u64, io::Result<()>) {
        match request {
            Request::Read { offset, len } => self.move_all(Direction::Read, flight, *offset, *len),
            Request::Write { offset, len } => {
                self.move_all(Direction::Write, flight, *offset, *len)
            }
            Request::Discard(list) => (0, extents::discard(&self.image, list)),
            Request::WriteZeroes(list) => (0, extents::zero(&self.image, list)),
            // the flush follows the batch; the ID is no engine's work
            Request::Flush | Request::GetId => (0, Ok(())),
        }
    }

    /// Moves `len` bytes; returns how many of them were moved.
    fn move_all(
        &self,
        direction: Direction,
        flight: &InFlight<Op>,
        offset: u64,
        len: u64,
    ) -> (u64, io::Result<()>) {
        let skip = 0;
        let mut left = Span { offset, skip, len };
        while left.len > 0 {
            match self.image.transfer(direction, flight, left) {
                Ok(0) => return (left.skip, Err(ended_early())),
                Ok(count) => left = left.after(count),
                Err(error) => return (left.skip, Err(error)),
            }
        }
        (left.skip, Ok(()))
    }
}
