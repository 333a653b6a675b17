//! What a source of entropy has done, counted. Written by its worker, read by
//! anyone.

use crate::virtio::counters::counters;
use crate::virtio::histogram::{Histogram, Names, names};

counters! {
    /// Counters of one source of entropy. They outlive resets.
    RngStats, RngStatsSnapshot;
    /// Chains that were answered with random bytes.
    requests,
    /// Random bytes given to the guest.
    bytes,
    /// Times that chains had to wait for the rate limit.
    limited,
    /// Times that the source had nothing to give.
    starved,
    /// Chains without room for a single byte.
    bad_requests,
}

/// Names of how long requests take.
pub(super) static REQUEST: Names = names!("request");

/// Counters, and how long requests take: from the batch that took one from the
/// ring to when it was given back.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub counters: RngStats,
    pub request_latency: Histogram,
}
