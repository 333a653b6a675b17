//! What a guest's thread counts.

use swiotlb::CountersSnapshot;

use super::config::DeviceKey;

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

/// Counters of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStats {
    /// Which.
    pub id: DeviceKey,
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
    /// Its data path.
    pub dma: CountersSnapshot,
    /// Its queues.
    pub queues: Vec<QueueCounts>,
}

/// Counters of a queue, over all its activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Chains taken from the guest.
    pub taken: u64,
    /// Chains given back.
    pub pushed: u64,
    /// Bytes written to the guest.
    pub written: u64,
}
