//! What a console has done, counted. Written by its workers, read by anyone.

use crate::virtio::counters::counters;
use crate::virtio::histogram::{Names, names};

counters! {
    /// Counters of one console. They outlive resets.
    ConsoleStats, ConsoleStatsSnapshot;
    /// Chains of the guest whose bytes were all taken.
    output_chains,
    /// Bytes taken from the guest.
    output_bytes,
    /// Bytes that the terminal, socket or file has taken.
    written_bytes,
    /// Bytes dropped because the buffer was full, or at the console's end.
    dropped_bytes,
    /// Times that the guest's output began to be held.
    stalls,
    /// Chains filled with input.
    input_chains,
    /// Bytes given to the guest.
    input_bytes,
    /// Clients that have connected.
    clients,
    /// Times that a reader or writer of the host has gone.
    hangups,
    /// Changes of the window's size that the guest was told of.
    resizes,
    /// Characters of emergency writes.
    emergency_bytes,
    /// Characters of emergency writes that the host did not take.
    emergency_dropped,
    /// Bytes written to the log.
    logged_bytes,
    /// Bytes that the log has lost: the host did not take them.
    log_lost_bytes,
    /// Logs that were full and made way for the next.
    log_rotations,
    /// Failures of the host.
    host_errors,
    /// Chains without a byte to read or to write.
    bad_requests,
}

counters! {
    /// What was said of the ports of a console that has several.
    ControlStats, ControlStatsSnapshot;
    /// Messages to the driver.
    control_sent,
    /// Messages of the driver.
    control_received,
    /// Messages of the driver that are none, or name no port; and its buffers
    /// that are too small.
    bad_control,
}

/// Names of how long output takes: a chain, from the batch that took it from the
/// ring to when its bytes were all taken.
pub(super) static OUTPUT: Names = names!("output");
