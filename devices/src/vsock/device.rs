//! The socket device as its transport sees it: features, configuration space,
//! queues; and what a host can do with it while it runs.

use std::path::Path;
use std::sync::{Arc, Weak};

use thiserror::Error;

use super::config::VsockSpec;
use super::event::Event;
use super::hub::Hub;
use super::receive::Receive;
use super::stats::{ACCEPT, Stats, VsockStatsSnapshot};
use super::transmit::Transmit;
use crate::unix::ListenError;
use crate::virtio::{Device, DeviceError, DeviceType, QueueHandler};

/// Stream sockets. virtio 1.3 §5.10.3
const F_STREAM: u64 = 1 << 0;

/// A queue that the device does not have. virtio 1.3 §5.10.2
#[derive(Debug, Error)]
#[error("a socket device has three queues, not a number {0}")]
struct NoSuchQueue(u16);

/// A virtio socket device. Its connections end with a reset; the host's clients
/// that wait at the door do not.
#[derive(Debug)]
pub struct VsockDevice {
    hub: Arc<Hub>,
    queue_sizes: [u16; 3],
}

impl VsockDevice {
    /// Listens on the path of `spec`.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn open(spec: VsockSpec) -> Result<Self, ListenError> {
        let queue_sizes = [spec.queue_size; 3];
        let hub = Arc::new(Hub::open(spec)?);
        tracing::info!(
            path = %hub.spec.path.display(),
            cid = hub.spec.cid,
            connections = hub.spec.connections,
            buffer = hub.spec.buffer,
            "vsock opened"
        );
        Ok(VsockDevice { hub, queue_sizes })
    }

    /// What a host can do with it while it runs.
    #[must_use]
    pub fn handle(&self) -> VsockHandle {
        VsockHandle {
            hub: Arc::downgrade(&self.hub),
            stats: Arc::clone(&self.hub.stats),
        }
    }
}

impl Device for VsockDevice {
    fn device_type(&self) -> DeviceType {
        DeviceType::SOCKET
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // the upper half is reserved. virtio 1.3 §5.10.4
        let config = u64::from(self.hub.spec.cid).to_le_bytes();
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = config.get(at..).unwrap_or_default();
        data.fill(0);
        for (to, from) in data.iter_mut().zip(rest) {
            *to = *from;
        }
    }

    fn start_queue(
        &mut self,
        index: u16,
        _features: u64,
    ) -> Result<Box<dyn QueueHandler>, DeviceError> {
        // STREAM is offered for drivers to see, and meant without it, too.
        // virtio 1.3 §5.10.3
        let hub = Arc::clone(&self.hub);
        Ok(match index {
            0 => Box::new(Receive::new(hub)?),
            1 => Box::new(Transmit::new(hub)?),
            2 => Box::new(Event::new(hub)),
            other => return Err(Box::new(NoSuchQueue(other))),
        })
    }

    fn resume(&mut self) {
        tracing::info!(
            path = %self.hub.spec.path.display(),
            "the guest is told that its connections have ended: they were another process's"
        );
        self.hub.lose();
    }

    fn reset(&mut self) {
        self.hub.lock().clear();
        self.hub.event().hear();
        self.hub.stir();
    }

    fn statistics(&self) -> Vec<(&'static str, u64)> {
        let open = self.hub.lock().len();
        let mut list = self.hub.stats.counters.snapshot().list();
        list.push(("connections", u64::try_from(open).unwrap_or(u64::MAX)));
        list.extend(self.hub.stats.accept_latency.list(&ACCEPT));
        list
    }

    fn host_path(&self) -> Option<&Path> {
        Some(self.hub.listener.path())
    }
}

/// A socket device as its host sees it; clones are the same. It does not keep
/// the device alive.
#[derive(Clone, Debug)]
pub struct VsockHandle {
    hub: Weak<Hub>,
    stats: Arc<Stats>,
}

impl VsockHandle {
    /// Ends all connections, as [`Device::resume`] finds them ended, and tells
    /// the guest so. False if the device is gone.
    pub fn end_connections(&self) -> bool {
        let Some(hub) = self.hub.upgrade() else {
            return false;
        };
        hub.lose();
        true
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> VsockStatsSnapshot {
        self.stats.counters.snapshot()
    }
}
