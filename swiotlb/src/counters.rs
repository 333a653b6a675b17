//! What happened on a data path, counted.
//!
//! Written by the thread that owns the [`crate::Dma`], read by whoever reports.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::fault::BounceReason;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one data path. Relaxed words: a reader may see a batch
        /// half counted.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        /// The values of [`Counters`] at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct CountersSnapshot {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Reads every counter.
            pub fn snapshot(&self) -> CountersSnapshot {
                CountersSnapshot { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Ranges that were reached where they are, by plain address.
    direct,
    /// Ranges that were reached by mapping their grants.
    granted,
    /// Ranges that had to be bounced, for whatever reason.
    bounced,
    /// Of these: their pages cannot be pinned.
    bounced_pinned,
    /// Of these: not contiguous.
    bounced_straddles,
    /// Of these: not aligned as the consumer needs it.
    bounced_misaligned,
    /// Of these: above the consumer's limit.
    bounced_limit,
    /// Of these: because everything is.
    bounced_forced,
    /// Of these: granted, and a copy is cheaper than a mapping.
    bounced_cheaper,
    /// Bytes copied into bounce buffers.
    bounced_bytes_in,
    /// Bytes copied out of bounce buffers.
    bounced_bytes_out,
    /// Times that a request had to wait for room in the pool.
    pool_full,
    /// Requests refused because a range could not be reached.
    rejected,
    /// Ranges that were looked up frame by frame or chunk by chunk.
    lookups,
    /// Segments made.
    segments,
    /// Small copies (headers, tables, status bytes).
    transfers,
    /// Grant copies among them.
    grant_copies,
    /// Batches of grants mapped in one call.
    loans,
    /// Batches that were mapped again range by range because one was refused.
    loans_split,
    /// Loans that the host did not take back cleanly.
    loans_lost,
}

impl Counters {
    /// Counts ranges that have to be bounced.
    pub(crate) fn bounce(&self, ranges: usize, reason: BounceReason) {
        self.bounced.add(ranges);
        let counter = match reason {
            BounceReason::Pinned => &self.bounced_pinned,
            BounceReason::Straddles => &self.bounced_straddles,
            BounceReason::Misaligned(_) => &self.bounced_misaligned,
            BounceReason::Limit(_) => &self.bounced_limit,
            BounceReason::Forced => &self.bounced_forced,
            BounceReason::Cheaper => &self.bounced_cheaper,
        };
        counter.add(ranges);
    }
}

/// One counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: usize) {
        self.add_bytes(n as u64);
    }

    /// Adds a number of bytes.
    pub fn add_bytes(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
