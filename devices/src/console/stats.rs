//! What a console has done, counted. Written by its workers, read by anyone.

use crate::virtio::counters::counters;

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
    /// Failures of the host.
    host_errors,
    /// Chains without a byte to read or to write.
    bad_requests,
}
