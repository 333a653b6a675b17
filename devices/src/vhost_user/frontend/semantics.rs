//! What the type of a device demands when its back end has gone, besides that
//! the next one gets what was not done.
//!
//! Most demand nothing: their requests stand alone, and who does them is not
//! seen. A socket device's driver has connections, which end with the back end
//! that had them; the next one knows none of them, and their users would wait
//! for ever. The driver is told so, by an event in a buffer of its event queue
//! (virtio 1.3 §5.10.6.7), at once and not when the next back end comes: who is
//! connected need not wait for that.
//!
//! Its packets in flight are repeated all the same. One that asks for a
//! connection has its answer from the next back end; one of a connection that
//! is over is answered by a reset, which a driver that was told ignores.

use std::collections::VecDeque;

use swiotlb::{Access, Transfer};

use super::line::Request;
use super::stats::VhostUserStats;
use crate::virtio::counters::add;
use crate::virtio::worker::with_causes;
use crate::virtio::{ActiveQueue, DeviceType, QueueError};
use crate::vsock::TRANSPORT_RESET;

/// The event queue of a socket device. virtio 1.3 §5.10.2
const SOCKET_EVENTS: u16 = 2;

/// What the driver of such a device is told in queue `queue` when a back end has
/// gone: the bytes of a buffer.
pub(super) fn word_of_loss(device: DeviceType, queue: u16) -> Option<&'static [u8]> {
    match (device, queue) {
        (DeviceType::SOCKET, SOCKET_EVENTS) => Some(&TRANSPORT_RESET),
        _ => None,
    }
}

/// Whether the driver of such a device is told anything then.
pub(super) fn has_word_of_loss(device: DeviceType) -> bool {
    device == DeviceType::SOCKET
}

/// What a driver is told in a queue, and whether it has to be.
pub(super) struct WordOfLoss {
    word: Option<&'static [u8]>,
    /// A back end has gone, and there was no buffer yet to say so in.
    owed: bool,
}

impl WordOfLoss {
    /// Of queue `queue` of such a device.
    pub(super) fn new(device: DeviceType, queue: u16) -> Self {
        WordOfLoss {
            word: word_of_loss(device, queue),
            owed: false,
        }
    }

    /// The back end has gone.
    pub(super) fn lost(&mut self) {
        self.owed = self.word.is_some();
    }

    /// Whether the driver is still to be told.
    pub(super) fn is_owed(&self) -> bool {
        self.owed
    }

    /// Tells the driver what is owed to it, in the first of the requests that no back
    /// end has which is a buffer with room for that, and takes it out.
    ///
    /// # Errors
    /// The buffer cannot be written.
    pub(super) fn tell(
        &mut self,
        waiting: &mut VecDeque<Request>,
        queue: &mut ActiveQueue,
        stats: &VhostUserStats,
    ) -> Result<(), QueueError> {
        let Some(word) = self.word.filter(|_| self.owed) else {
            return Ok(());
        };
        let len = u32::try_from(word.len()).unwrap_or(u32::MAX);
        let fits = |request: &Request| !request.asks() && request.room >= len.into();
        let place = waiting.iter().position(fits);
        let Some(request) = place.and_then(|place| waiting.remove(place)) else {
            return Ok(());
        };
        self.owed = false;
        let pieces = request.pieces.iter();
        let ranges = pieces
            .filter(|piece| piece.access == Access::Write)
            .map(|piece| piece.range);
        let mut transfers = [Transfer::to_guest(ranges, word)];
        queue.dma().transfer(&mut transfers);
        let [transfer] = transfers;
        if let Err(fault) = transfer.result {
            let why = format!("its buffer cannot be written: {}", with_causes(&fault));
            let head = request.head.index();
            return Err(QueueError::Request { head, why });
        }
        add(&stats.losses_told, 1);
        queue.push_copied(request.head, len)
    }
}
