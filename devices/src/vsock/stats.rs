//! What a vsock device has done, counted. Written by its workers, read by
//! anyone.

use crate::virtio::counters::counters;
use crate::virtio::histogram::{Histogram, Names, names};

counters! {
    /// Counters of one vsock device. They outlive resets.
    VsockStats, VsockStatsSnapshot;
    /// Packets of the guest.
    tx_packets,
    /// Bytes of the guest that sockets of the host have taken.
    tx_bytes,
    /// Packets to the guest.
    rx_packets,
    /// Bytes of the host that the guest was given.
    rx_bytes,
    /// Connections that the guest has opened.
    opened_by_guest,
    /// Connections that the host has opened.
    opened_by_host,
    /// Connections that the other side did not want, or that there was no
    /// room for.
    refused,
    /// Resets sent to the guest.
    resets,
    /// Times that a connection began to wait for the guest's credit.
    credit_stalls,
    /// Times that the guest's bytes began to wait for a reader of the host.
    reader_stalls,
    /// Bytes of the guest that nobody of the host has read.
    dropped_bytes,
    /// Clients of the host that asked for nothing sensible, or took too long.
    bad_clients,
    /// Failures of the host.
    host_errors,
    /// Packets, or buffers for packets, that break a rule.
    bad_packets,
    /// Times that the guest was told that all its connections have ended.
    transport_resets,
}

/// Names of how long the guest takes to accept.
pub(super) static ACCEPT: Names = names!("accept");

/// Counters, and how long the guest takes to accept a connection of the host.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub counters: VsockStats,
    pub accept_latency: Histogram,
}
