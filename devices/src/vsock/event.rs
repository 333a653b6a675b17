//! Serves the event queue, on the worker thread that owns it: tells the guest
//! when all its connections have ended without a word. virtio 1.3 §5.10.6.7

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use swiotlb::Transfer;

use super::hub::Hub;
use crate::virtio::counters::add;
use crate::virtio::queue::DescriptorRanges;
use crate::virtio::worker::with_causes;
use crate::virtio::{ActiveQueue, Chain, Head, QueueError, QueueHandler};

/// `struct virtio_vsock_event` with VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
pub(crate) const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// See the module.
#[derive(Debug)]
pub(super) struct Event {
    hub: Arc<Hub>,
    waiting: VecDeque<(Head, DescriptorRanges)>,
    /// The guest is to be told, and has given no chain for it.
    pending: bool,
}

impl Event {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        Event {
            hub,
            waiting: VecDeque::new(),
            pending: false,
        }
    }

    fn tell(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        if !self.pending {
            return Ok(());
        }
        let Some((head, ranges)) = self.waiting.pop_front() else {
            return Ok(());
        };
        self.pending = false;
        let mut transfers = [Transfer::to_guest(ranges, &TRANSPORT_RESET)];
        queue.dma().transfer(&mut transfers);
        let [transfer] = transfers;
        if let Err(fault) = transfer.result {
            let why = format!("its buffer cannot be written: {}", with_causes(&fault));
            let head = head.index();
            return Err(QueueError::Request { head, why });
        }
        add(&self.hub.stats.counters.transport_resets, 1);
        queue.push_copied(head, u32::try_from(TRANSPORT_RESET.len()).unwrap_or(0))
    }
}

impl QueueHandler for Event {
    fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
        for chain in chains {
            let room = chain.writable.iter().map(|range| u64::from(range.len()));
            if room.sum::<u64>() < TRANSPORT_RESET.len() as u64 {
                add(&self.hub.stats.counters.bad_packets, 1);
                queue.push_copied(chain.head, 0)?;
                continue;
            }
            self.waiting.push_back((chain.head, chain.writable));
        }
        self.tell(queue)
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.hub.event().as_fd())
    }

    fn advance(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        self.pending |= self.hub.event().hear();
        self.tell(queue)
    }

    fn settle(&mut self, _queue: &mut ActiveQueue) {
        // nothing of the guest's is held for them, and it forgets them
        self.waiting.clear();
    }
}
