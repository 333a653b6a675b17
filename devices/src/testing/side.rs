//! A queue of a device with its driver, served as its worker does.

use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{DriverRing, GuestRam, Line, readable};
use crate::virtio::features::{RING_INDIRECT_DESC, VERSION_1};
use crate::virtio::{ActiveQueue, Chain, Device, QueueError, QueueHandler};

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// See the module.
pub(crate) struct Side {
    pub ring: DriverRing,
    pub queue: ActiveQueue,
    pub line: Arc<Line>,
    pub handler: Box<dyn QueueHandler>,
}

impl Side {
    /// Queue `index` of a device whose driver has taken all features.
    pub fn start(ram: &GuestRam, device: &mut dyn Device, index: u16) -> Self {
        let features = device.features();
        Side::with(ram, device, index, features)
    }

    /// The same of a driver that has taken `features`.
    pub fn with(ram: &GuestRam, device: &mut dyn Device, index: u16, features: u64) -> Self {
        let ring = DriverRing::new(ram, 64);
        let (queue, line) = ring.activate(VERSION_1 | RING_INDIRECT_DESC);
        Side {
            handler: device.start_queue(index, features).unwrap(),
            ring,
            queue,
            line,
        }
    }

    /// Serves what is available.
    pub fn serve(&mut self) -> Result<(), QueueError> {
        while self.handler.room() > 0 {
            let chains = self.queue.take(self.handler.room())?;
            if chains.is_empty() {
                break;
            }
            self.handler.serve(&mut self.queue, chains)?;
        }
        self.queue.notify()
    }

    /// Whether the handler has something to do.
    pub fn rings(&self) -> bool {
        let event = self.handler.event();
        event.is_some_and(|event| readable(event, Duration::ZERO))
    }

    /// Does all that is to be done now.
    pub fn settle_down(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.rings() {
            assert!(Instant::now() < deadline, "the handler never rests");
            self.handler.advance(&mut self.queue).unwrap();
            self.serve().unwrap();
        }
    }
}

/// Stands for a handler that is gone.
pub(crate) struct Nobody;

impl QueueHandler for Nobody {
    fn serve(&mut self, _: &mut ActiveQueue, _: Vec<Chain>) -> Result<(), QueueError> {
        Ok(())
    }
}

/// Reads what there is at the host's end, until there are `len` bytes; true then.
pub(crate) fn read_more(host: &mut impl Read, bytes: &mut Vec<u8>, len: usize) -> bool {
    let mut piece = [0; 65536];
    let want = piece.len().min(len - bytes.len());
    match host.read(&mut piece[..want]) {
        Ok(count) => bytes.extend_from_slice(&piece[..count]),
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
    }
    bytes.len() == len
}
