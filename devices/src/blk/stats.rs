//! What a disk has done, counted. Written by its workers, read by anyone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::latency::Latencies;
use super::op::Op;
use super::request::{BadRequest, Request, Status};
use crate::virtio::log_limit::LogLimit;

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one disk, all its queues together. They outlive resets.
        #[derive(Debug, Default)]
        pub struct BlkStats {
            $($name: AtomicU64,)*
            latencies: Latencies,
            /// Requests that the host failed so far, as the log tells them.
            failures: AtomicU64,
            /// Requests that a reset loses.
            pub(super) reset_log: LogLimit,
            /// Pools that cannot be registered, or have no room.
            pub(super) pool_log: LogLimit,
            /// Guest memory that the host cannot reach.
            pub(super) memory_log: LogLimit,
        }

        /// The values of [`BlkStats`] at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct BlkStatsSnapshot {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl BlkStats {
            /// Reads every counter; a batch may be half counted.
            pub fn snapshot(&self) -> BlkStatsSnapshot {
                BlkStatsSnapshot { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }

        impl BlkStatsSnapshot {
            /// Each value with its name.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

stats! {
    /// Reads that succeeded.
    reads,
    /// Bytes read from the image.
    read_bytes,
    /// Writes that succeeded.
    writes,
    /// Bytes written to the image.
    written_bytes,
    /// Flushes that succeeded.
    flushes,
    /// Times that the image was made durable: once for all flushes of a batch,
    /// and for its writes where the driver cannot flush.
    syncs,
    /// Serial numbers told.
    ids,
    /// Discards that succeeded.
    discards,
    /// Bytes discarded.
    discarded_bytes,
    /// Write-zeroes that succeeded.
    write_zeroes,
    /// Bytes made zero.
    zeroed_bytes,
    /// Requests that the host failed.
    host_errors,
    /// Times that a queue had to wait for the disk's limits.
    limited,
    /// Requests refused because they break a rule.
    bad_requests,
    /// Requests refused because there is no such request here.
    unsupported,
    /// Requests refused because their memory could not be reached.
    unreachable,
}

/// The reads and writes of a batch: counters that all queues share are asked for
/// once a batch.
#[derive(Debug, Default)]
pub(super) struct Batch {
    reads: u64,
    read_bytes: u64,
    writes: u64,
    written_bytes: u64,
}

impl BlkStats {
    /// Each value with its name: the counters, and how long requests took.
    pub(super) fn list(&self) -> Vec<(&'static str, u64)> {
        let mut list = self.snapshot().list();
        list.extend(self.latencies.list());
        list
    }

    /// Counts a request that the host has failed; how many there were, if it is
    /// to be logged: a failing disk fails again and again, and is told of ever
    /// more seldom.
    pub(super) fn count_failure(&self) -> Option<u64> {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        failures.is_power_of_two().then_some(failures)
    }

    /// Counts an attempt to make the image durable.
    pub(super) fn count_sync(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a queue that waits for the disk's limits.
    pub(super) fn count_limited(&self) {
        self.limited.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds what a batch has counted.
    pub(super) fn add(&self, batch: &Batch) {
        for (counter, n) in [
            (&self.reads, batch.reads),
            (&self.read_bytes, batch.read_bytes),
            (&self.writes, batch.writes),
            (&self.written_bytes, batch.written_bytes),
        ] {
            if n > 0 {
                counter.fetch_add(n, Ordering::Relaxed);
            }
        }
    }

    /// Counts a request that is finished `now`; reads and writes in `batch`.
    pub(super) fn count(&self, batch: &mut Batch, op: &Op, now: Instant) {
        let add = |counter: &AtomicU64, n: u64| {
            counter.fetch_add(n, Ordering::Relaxed);
        };
        let request = match op.request() {
            Err(BadRequest::Memory(_)) => return add(&self.unreachable, 1),
            Err(BadRequest::Unsupported(_) | BadRequest::Flags(_)) => {
                return add(&self.unsupported, 1);
            }
            Err(_) => return add(&self.bad_requests, 1),
            Ok(request) => request,
        };
        if op.outcome().status != Status::Ok {
            return add(&self.host_errors, 1);
        }
        let latency = now.saturating_duration_since(op.taken());
        self.latencies.count(request, latency);
        match request {
            Request::Read { len, .. } => {
                batch.reads += 1;
                batch.read_bytes += *len;
            }
            Request::Write { len, .. } => {
                batch.writes += 1;
                batch.written_bytes += *len;
            }
            Request::Flush => add(&self.flushes, 1),
            Request::GetId => add(&self.ids, 1),
            Request::Discard(extents) => {
                add(&self.discards, 1);
                add(&self.discarded_bytes, extents.iter().map(|e| e.len).sum());
            }
            Request::WriteZeroes(extents) => {
                add(&self.write_zeroes, 1);
                add(&self.zeroed_bytes, extents.iter().map(|e| e.len).sum());
            }
        }
    }
}
