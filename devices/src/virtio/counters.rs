//! Counters of one device: atomics that its workers write, and their values at
//! one moment, which anyone reads.

/// Declares a struct of counters and the struct of their values. Counters are
/// added to by `add(&stats.name, n)` of this module.
macro_rules! counters {
    (
        $(#[$outer:meta])* $stats:ident, $snapshot:ident;
        $($(#[$doc:meta])* $name:ident,)*
    ) => {
        $(#[$outer])*
        #[derive(Debug, Default)]
        pub struct $stats {
            $(pub(super) $name: std::sync::atomic::AtomicU64,)*
        }

        #[doc = concat!("The values of [`", stringify!($stats), "`] at one moment.")]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $snapshot {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl $snapshot {
            /// Each value with its name.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }

        impl $stats {
            /// Reads every counter; a batch may be half counted.
            pub fn snapshot(&self) -> $snapshot {
                $snapshot {
                    $($name: self.$name.load(std::sync::atomic::Ordering::Relaxed),)*
                }
            }
        }
    };
}

use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use counters;

/// Counts.
pub(crate) fn add(counter: &AtomicU64, n: usize) {
    let n = u64::try_from(n).unwrap_or(u64::MAX);
    counter.fetch_add(n, Ordering::Relaxed);
}
