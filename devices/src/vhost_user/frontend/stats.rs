//! What has gone through one back end, counted. Written by its queues' workers
//! and by its session, read by anyone.

use crate::virtio::counters::counters;

counters! {
    /// Counters of one back end. They outlive resets and back ends.
    VhostUserStats, VhostUserStatsSnapshot;
    /// Requests that the back end has done.
    requests,
    /// Bytes copied into the pool for it to read.
    bytes_in,
    /// Bytes copied out of the pool for the guest.
    bytes_out,
    /// Chains that went through a shadow indirect table.
    indirect,
    /// Times that requests had to wait for room in the pool or the ring.
    waited,
    /// Kicks of the back end.
    kicks,
    /// Calls of the back end.
    calls,
    /// Connections to a back end.
    connections,
    /// Back ends that have gone away.
    lost,
    /// Back ends that did not answer in time.
    hung,
    /// Configuration spaces that back ends have changed.
    config_changes,
    /// Times that back ends were given the guest's memory.
    memory_told,
    /// Requests that another back end was given again.
    repeated,
    /// Drivers told, in a way of their device's, that a back end has gone.
    losses_told,
    /// Rules of a ring that back ends have broken.
    violations,
}
