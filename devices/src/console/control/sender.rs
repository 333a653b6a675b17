//! Serves the control receiveq, on the worker thread that owns it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use swiotlb::Transfer;

use super::{Board, Next};
use crate::console::stats::ControlStats;
use crate::virtio::counters::add;
use crate::virtio::queue::DescriptorRanges;
use crate::virtio::worker::with_causes;
use crate::virtio::{ActiveQueue, Chain, Head, QueueError, QueueHandler};

/// A chain that waits for a message.
#[derive(Debug)]
struct Waiting {
    head: Head,
    ranges: DescriptorRanges,
    room: usize,
}

/// Tells the driver what the board says.
#[derive(Debug)]
pub(in super::super) struct Sender {
    board: Arc<Board>,
    stats: Arc<ControlStats>,
    /// Descriptors of its queue.
    queue_size: usize,
    waiting: VecDeque<Waiting>,
}

impl Sender {
    pub fn new(board: Arc<Board>, stats: Arc<ControlStats>, queue_size: usize) -> Self {
        Sender {
            board,
            stats,
            queue_size,
            waiting: VecDeque::new(),
        }
    }

    fn tell(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        while let Some(chain) = self.waiting.front() {
            let message = match self.board.next(chain.room) {
                Next::Nothing => return Ok(()),
                Next::TooLong => Vec::new(),
                Next::Message(message) => message,
            };
            let Some(Waiting { head, ranges, .. }) = self.waiting.pop_front() else {
                return Ok(());
            };
            if message.is_empty() {
                add(&self.stats.bad_control, 1);
                queue.push_copied(head, 0)?;
                continue;
            }
            let mut transfers = [Transfer::to_guest(ranges, &message)];
            queue.dma().transfer(&mut transfers);
            let [transfer] = transfers;
            if let Err(fault) = transfer.result {
                let why = format!("its buffer cannot be written: {}", with_causes(&fault));
                let head = head.index();
                return Err(QueueError::Request { head, why });
            }
            add(&self.stats.control_sent, 1);
            queue.push_copied(head, u32::try_from(message.len()).unwrap_or(u32::MAX))?;
        }
        Ok(())
    }
}

impl QueueHandler for Sender {
    fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
        for chain in chains {
            let room = chain.writable.iter().map(|range| range.len());
            let room = room.fold(0, u32::saturating_add);
            self.waiting.push_back(Waiting {
                head: chain.head,
                ranges: chain.writable,
                room: usize::try_from(room).unwrap_or(usize::MAX),
            });
        }
        self.tell(queue)
    }

    fn room(&self) -> usize {
        self.queue_size.saturating_sub(self.waiting.len())
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.board.bell.as_fd())
    }

    fn advance(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        self.board.bell.hear();
        self.tell(queue)
    }

    fn settle(&mut self, _queue: &mut ActiveQueue) {
        // nothing of the guest's is held for them, and it forgets them
        self.waiting.clear();
    }
}
