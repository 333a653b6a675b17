//! Serves the control transmitq, on the worker thread that owns it.

use std::sync::Arc;

use swiotlb::Transfer;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::Board;
use super::message::{Message, event};
use crate::console::port::Port;
use crate::console::stats::ControlStats;
use crate::virtio::counters::add;
use crate::virtio::worker::with_causes;
use crate::virtio::{ActiveQueue, Chain, QueueError, QueueHandler};

/// Messages taken at once.
const BATCH: usize = 16;

/// What is wrong with a message.
type Refusal = &'static str;

/// Does what the driver says.
#[derive(Debug)]
pub(in super::super) struct Receiver {
    board: Arc<Board>,
    ports: Vec<Arc<Port>>,
    stats: Arc<ControlStats>,
}

impl Receiver {
    pub fn new(board: Arc<Board>, ports: Vec<Arc<Port>>, stats: Arc<ControlStats>) -> Self {
        Receiver {
            board,
            ports,
            stats,
        }
    }

    fn obey(&self, bytes: &[u8]) -> Result<(), Refusal> {
        let message = Message::read_from_bytes(bytes).map_err(|_| "it is too short")?;
        let number = usize::try_from(message.port.get()).unwrap_or(usize::MAX);
        let port = self.ports.get(number).ok_or("there is no such port");
        match (message.event.get(), message.value.get()) {
            // about the device, whatever port it names
            (event::DEVICE_READY, 1) => self.board.device_ready(),
            (event::DEVICE_READY, _) => return Err("the driver has not come up"),
            (event::PORT_READY, 1) => {
                port?;
                self.board.port_ready(number);
            }
            (event::PORT_READY, _) => {
                port?;
                return Err("the driver has not set a port up");
            }
            (event::PORT_OPEN, value) => port?.opened_by_guest(value != 0),
            _ => return Err("it is none that a driver sends"),
        }
        Ok(())
    }
}

impl QueueHandler for Receiver {
    fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
        for chain in chains {
            let mut message = Message::new_zeroed();
            let len = chain.readable.iter().map(|range| u64::from(range.len()));
            // what follows a message is nothing that a driver has to say
            let len = usize::try_from(len.sum::<u64>()).unwrap_or(usize::MAX);
            let bytes = message.as_mut_bytes();
            let bytes = bytes.get_mut(..len.min(Message::LEN)).unwrap_or_default();
            let head = chain.head.index();
            let mut transfers = [Transfer::from_guest(chain.readable, bytes)];
            queue.dma().transfer(&mut transfers);
            let [transfer] = transfers;
            if let Err(fault) = transfer.result {
                let why = format!("its message cannot be read: {}", with_causes(&fault));
                return Err(QueueError::Request { head, why });
            }
            match self.obey(bytes) {
                Ok(()) => add(&self.stats.control_received, 1),
                Err(why) => {
                    add(&self.stats.bad_control, 1);
                    // a guest can send such messages as fast as it likes
                    tracing::debug!(why, "a control message is ignored");
                }
            }
            queue.push_copied(chain.head, 0)?;
        }
        Ok(())
    }

    fn room(&self) -> usize {
        BATCH
    }
}
