//! What all virtio devices share.

pub(crate) mod bell;
pub(crate) mod bucket;
pub(crate) mod counters;
pub mod descriptor;
pub mod device;
pub mod features;
pub(crate) mod histogram;
pub mod interrupt;
pub mod log_limit;
pub mod mmio;
pub(crate) mod poller;
pub mod queue;
pub mod ring;
pub mod timer;
mod watch;
pub mod worker;

pub use device::{
    Device, DeviceError, DeviceType, DmaProvider, HostPlace, QueueHandler, SharedRegion, Sharing,
    Trial,
};
pub use interrupt::{Interrupt, Notifier};
pub use mmio::{Answer, Transport, TransportOptions};
pub use queue::{ActiveQueue, Chain, Head, QueueError, QueueLayout, QueuePosition};
pub use ring::{Ring, RingServer};
