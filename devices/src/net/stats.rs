//! What a network card has done, counted. Written by its workers, read by
//! anyone.

use crate::virtio::counters::counters;
use crate::virtio::histogram::{Histogram, Names, names};

counters! {
    /// Counters of one network card, all its queues together. They outlive
    /// resets.
    NetStats, NetStatsSnapshot;
    /// Frames given to the guest.
    rx_frames,
    /// Bytes of these, headers of virtio apart.
    rx_bytes,
    /// Frames that the guest does not want to see.
    rx_filtered,
    /// Frames that fit into no buffers of the guest, or break a rule.
    rx_dropped,
    /// Frames of the guest that were sent.
    tx_frames,
    /// Bytes of these.
    tx_bytes,
    /// Frames of the guest that the host had no room for, or no other end.
    tx_dropped,
    /// Times that frames of the guest began to wait for the host.
    tx_stalls,
    /// Frames or chains of the guest that break a rule.
    bad_requests,
    /// Commands of the guest that were carried out.
    commands,
    /// Commands that were refused.
    bad_commands,
    /// Times that the link has come up.
    link_ups,
    /// Times that the link has gone down.
    link_downs,
    /// Times that the guest was asked to announce itself.
    announcements,
    /// Failures of the host.
    host_errors,
}

/// Names of how long frames of the guest take.
pub(super) static TRANSMIT: Names = names!("transmit");

/// Counters, and how long frames of the guest take: from the batch that took
/// one from the ring to when it was given back.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub counters: NetStats,
    pub transmit_latency: Histogram,
}
