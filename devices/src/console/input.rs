//! Serves a receive queue, on the worker thread that owns it.
//!
//! The host's end is read only while chains wait to be filled and the guest has
//! the port open, and not even waited for otherwise: so whoever writes there is
//! held back by the guest.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use swiotlb::Transfer;

use super::port::Port;
use super::reach::{Direction, Reach};
use crate::virtio::counters::add;
use crate::virtio::queue::DescriptorRanges;
use crate::virtio::worker::with_causes;
use crate::virtio::{ActiveQueue, Chain, Head, QueueError, QueueHandler};

/// Most bytes read at once.
const READ: usize = 64 << 10;
/// Reads before the worker looks whether it is to stop.
const ROUNDS: usize = 16;

/// A chain that waits to be filled.
#[derive(Debug)]
struct Waiting {
    head: Head,
    ranges: DescriptorRanges,
    /// Bytes that it takes, as far as one read brings them.
    room: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Input {
    port: Arc<Port>,
    host: Reach,
    waiting: VecDeque<Waiting>,
    /// Read, and not given to the guest.
    inbox: Vec<u8>,
}

impl Input {
    /// # Errors
    /// No descriptors.
    pub(super) fn new(port: Arc<Port>) -> io::Result<Self> {
        Ok(Input {
            host: Reach::new(Arc::clone(&port), Direction::Input)?,
            waiting: VecDeque::new(),
            inbox: port.take_inbox(),
            port,
        })
    }

    /// Moves what can be moved.
    fn pump(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        for _ in 0..ROUNDS {
            let nothing = self.waiting.is_empty()
                || !self.port.takes_input()
                || self.inbox.is_empty() && !self.read();
            self.tell_size(queue);
            if nothing {
                self.rest();
                return Ok(());
            }
            self.deliver(queue)?;
        }
        self.port.bells.input.ring();
        Ok(())
    }

    /// Reads what the waiting chains take; false if there is nothing.
    fn read(&mut self) -> bool {
        let room = self.waiting.iter().map(|waiting| waiting.room);
        let room = room.fold(0, usize::saturating_add).min(READ);
        let mut bytes = vec![0; room];
        while let Some(stream) = self.host.stream() {
            match stream.read(&mut bytes) {
                Ok(count) => {
                    bytes.truncate(count);
                    self.inbox = bytes;
                    // who types has a window, perhaps of a new size
                    self.port.look_at_size();
                    return true;
                }
                Err(halt) if self.host.goes_on(&halt) => {}
                Err(_) => break,
            }
        }
        false
    }

    /// Spreads what was read over the waiting chains, as one batch.
    fn deliver(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        let mut rest = self.inbox.as_slice();
        let mut transfers = Vec::new();
        let mut lens = Vec::new();
        for waiting in &self.waiting {
            if rest.is_empty() {
                break;
            }
            let (bytes, after) = rest.split_at(waiting.room.min(rest.len()));
            rest = after;
            lens.push(bytes.len());
            transfers.push(Transfer::to_guest(waiting.ranges.iter().copied(), bytes));
        }
        queue.dma().transfer(&mut transfers);
        let results: Vec<_> = transfers.into_iter().map(|t| t.result).collect();
        let (mut given, mut broken) = (0, Ok(()));
        for (len, result) in lens.into_iter().zip(results) {
            let Some(waiting) = self.waiting.pop_front() else {
                break;
            };
            if let Err(fault) = result {
                // there is no status to tell it by; its bytes and those after
                // it are kept for when the device has been reset
                let head = waiting.head.index();
                let why = format!("its buffer cannot be written: {}", with_causes(&fault));
                broken = Err(QueueError::Request { head, why });
                break;
            }
            given += len;
            add(&self.port.stats.input_chains, 1);
            add(&self.port.stats.input_bytes, len);
            queue.push_copied(waiting.head, u32::try_from(len).unwrap_or(u32::MAX))?;
        }
        self.inbox.drain(..given.min(self.inbox.len()));
        broken
    }

    fn tell_size(&self, queue: &ActiveQueue) {
        if self.port.take_size_news() {
            add(&self.port.stats.resizes, 1);
            queue.config_changed();
        }
    }

    /// Waits for what there is to wait for now.
    fn rest(&mut self) {
        let wanted = !self.waiting.is_empty() && self.port.takes_input() && self.inbox.is_empty();
        self.host.rest(wanted);
    }
}

impl QueueHandler for Input {
    fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
        for chain in chains {
            let room = chain.writable.iter().map(|range| range.len());
            let room = room.fold(0, u32::saturating_add);
            if room == 0 {
                add(&self.port.stats.bad_requests, 1);
                queue.push_copied(chain.head, 0)?;
                continue;
            }
            self.waiting.push_back(Waiting {
                head: chain.head,
                ranges: chain.writable,
                room: usize::try_from(room).unwrap_or(READ).min(READ),
            });
        }
        self.pump(queue)
    }

    fn room(&self) -> usize {
        self.port.queue_size.saturating_sub(self.waiting.len())
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.host.as_fd())
    }

    fn advance(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        self.host.wake();
        self.pump(queue)
    }

    fn settle(&mut self, _queue: &mut ActiveQueue) {
        // nothing of the guest's is held for them, and it forgets them
        self.waiting.clear();
        self.host.rest(false);
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.port.park_inbox(std::mem::take(&mut self.inbox));
    }
}
