//! What happened on a data path, counted.
//!
//! Written by the thread that owns the [`crate::Dma`], read by whoever reports.

use std::sync::atomic::{AtomicU64, Ordering};

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
    /// Ranges that had to be bounced.
    bounced,
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

/// One counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
