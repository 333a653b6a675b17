//! How long requests take, as the guest's driver sees it: from the batch that
//! took a request from the ring to the one that gave it back.
//!
//! A histogram for each kind of request. Its buckets are powers of two, so that
//! a worker counts without a lock and without a division, and a batch reads the
//! clock twice.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::request::Request;

/// Buckets of a histogram: below 1 µs, below 2 µs, and so on to below 2²³ µs
/// (about 8 s); the last takes what is longer.
const BUCKETS: usize = 25;

/// Kinds of requests that are told apart.
const KINDS: usize = 5;

/// The row of a kind in [`NAMES`].
macro_rules! names {
    ($kind:literal) => {
        names!(@ $kind:
            "us", "below_1_us", "below_2_us", "below_4_us", "below_8_us", "below_16_us",
            "below_32_us", "below_64_us", "below_128_us", "below_256_us", "below_512_us",
            "below_1024_us", "below_2048_us", "below_4096_us", "below_8192_us",
            "below_16384_us", "below_32768_us", "below_65536_us", "below_131072_us",
            "below_262144_us", "below_524288_us", "below_1048576_us", "below_2097152_us",
            "below_4194304_us", "below_8388608_us", "above_us")
    };
    (@ $kind:literal: $($name:literal),*) => {
        [$(concat!($kind, "_latency_", $name)),*]
    };
}

/// Names as the statistics have them, for good: in each row the sum in µs, then
/// the buckets.
static NAMES: [[&str; BUCKETS + 1]; KINDS] = [
    names!("read"),
    names!("write"),
    names!("flush"),
    names!("discard"),
    names!("write_zeroes"),
];

#[derive(Debug, Default)]
struct Histogram {
    /// Of all latencies, µs.
    sum: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// The histograms of one disk. They outlive resets.
#[derive(Debug, Default)]
pub(super) struct Latencies([Histogram; KINDS]);

impl Latencies {
    /// Counts a request that was carried out.
    pub(super) fn count(&self, request: &Request, latency: Duration) {
        let kind = match request {
            Request::Read { .. } => 0,
            Request::Write { .. } => 1,
            Request::Flush => 2,
            Request::Discard(_) => 3,
            Request::WriteZeroes(_) => 4,
            // no disk is asked
            Request::GetId => return,
        };
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let Some(histogram) = self.0.get(kind) else {
            return;
        };
        histogram.sum.fetch_add(micros, Ordering::Relaxed);
        if let Some(bucket) = histogram.buckets.get(bucket(micros)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Each sum and each bucket that is not empty, with its name.
    pub(super) fn list(&self) -> Vec<(&'static str, u64)> {
        let rows = self.0.iter().zip(&NAMES);
        rows.flat_map(|(histogram, names)| {
            let values = std::iter::once(&histogram.sum).chain(&histogram.buckets);
            names.iter().zip(values)
        })
        .map(|(name, value)| (*name, value.load(Ordering::Relaxed)))
        .filter(|(_, value)| *value > 0)
        .collect()
    }
}

/// The place of a latency among the buckets.
fn bucket(micros: u64) -> usize {
    // as many bits as the number has: below 1, below 2, below 4
    let bits = u64::BITS - micros.leading_zeros();
    usize::try_from(bits).map_or(BUCKETS - 1, |bits| bits.min(BUCKETS - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Request = Request::Read {
        offset: 0,
        len: 512,
    };

    fn counted(latency: Duration) -> Vec<(&'static str, u64)> {
        let latencies = Latencies::default();
        latencies.count(&READ, latency);
        latencies.list()
    }

    #[test]
    fn a_latency_is_counted_below_the_next_power_of_two() {
        let bounds: Vec<_> = [0, 1, 2, 63, 64, 8_388_607, 8_388_608]
            .map(|micros| counted(Duration::from_micros(micros)))
            .into_iter()
            .map(|list| list.last().unwrap().0)
            .collect();

        assert_eq!(
            bounds,
            [
                "read_latency_below_1_us",
                "read_latency_below_2_us",
                "read_latency_below_4_us",
                "read_latency_below_64_us",
                "read_latency_below_128_us",
                "read_latency_below_8388608_us",
                "read_latency_above_us",
            ]
        );
    }

    #[test]
    fn kinds_are_counted_apart_and_summed() {
        let latencies = Latencies::default();
        let micros = Duration::from_micros;

        latencies.count(&READ, micros(3));
        latencies.count(&READ, micros(5));
        latencies.count(&Request::Flush, micros(700));
        latencies.count(&Request::GetId, micros(9));

        assert_eq!(
            latencies.list(),
            [
                ("read_latency_us", 8),
                ("read_latency_below_4_us", 1),
                ("read_latency_below_8_us", 1),
                ("flush_latency_us", 700),
                ("flush_latency_below_1024_us", 1),
            ]
        );
    }

    #[test]
    fn no_latency_is_too_long() {
        assert_eq!(
            counted(Duration::MAX).last(),
            Some(&("read_latency_above_us", 1))
        );
    }

    #[test]
    fn no_two_names_are_the_same() {
        let mut names: Vec<_> = NAMES.iter().flatten().collect();
        names.sort();
        names.dedup();

        assert_eq!(names.len(), KINDS * (BUCKETS + 1));
    }
}
