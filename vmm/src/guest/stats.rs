//! What a guest's thread counts.

use devices::virtio::HostPlace;
use swiotlb::{CountersSnapshot, GrantPolicySnapshot};

use super::config::{DataPath, DeviceKey};
use super::mapping::Mapping;

/// Counters of a guest at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestStats {
    /// Requests answered, of every kind.
    pub ioreqs: u64,
    /// Requests that made no sense: sizes, repetitions, addresses, kinds.
    pub malformed: u64,
    /// Accesses to slots without a device.
    pub empty: u64,
    /// Times that mapped guest memory was to be forgotten.
    pub invalidations: u64,
    /// Answers that waited for queues to stop.
    pub deferred: u64,
    /// Answers that Xen did not take, the guest having gone.
    pub unanswered: u64,
    /// Failures of a device's own code that were caught.
    pub panics: u64,
    /// Each device, in the order of their addresses.
    pub devices: Vec<DeviceStats>,
}

/// How a device is wired to its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wiring {
    /// First address of its registers, guest-physical.
    pub base: u64,
    /// Its interrupt, an SPI.
    pub irq: u32,
    /// Its driver is to hand out grants.
    pub grants: bool,
    /// Plain addresses are taken.
    pub plain: bool,
    /// How plain addresses relate to the machine's.
    pub mapping: Mapping,
    /// The kernel raises its interrupt.
    pub irqfd: bool,
    /// How its data is reached where there is a choice.
    pub data: DataPath,
}

/// Counters of a device, and what they belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStats {
    /// Which.
    pub id: DeviceKey,
    /// Its virtio device id.
    pub device_type: u32,
    /// How it is wired.
    pub wiring: Wiring,
    /// The kernel takes its kicks.
    pub ioeventfd: bool,
    /// The features that its driver has taken so far.
    pub features: u64,
    /// Whether its driver is up.
    pub running: bool,
    /// Whether it waits for a reset.
    pub needs_reset: bool,
    /// Whether it is being removed.
    pub removing: bool,
    /// Accesses to its registers that made no sense.
    pub malformed: u64,
    /// Interrupts raised.
    pub interrupts: u64,
    /// Interrupts that the host failed to raise.
    pub interrupts_lost: u64,
    /// Accesses that wait for queues to stop.
    pub waiting: u64,
    /// Where users of the host find it.
    pub places: Vec<HostPlace>,
    /// The device's own statistics.
    pub statistics: Vec<(&'static str, u64)>,
    /// Its data path.
    pub dma: CountersSnapshot,
    /// How its granted data is reached, and why.
    pub granted: GrantPolicySnapshot,
    /// Its queues.
    pub queues: Vec<QueueCounts>,
}

/// Counters of a queue, over all its activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Kicks, however they came.
    pub kicks: u64,
    /// Chains taken from the guest.
    pub taken: u64,
    /// Chains given back.
    pub pushed: u64,
    /// Bytes written to the guest.
    pub written: u64,
}
