//! How long things take: histograms that workers write and anyone reads.
//!
//! Buckets are powers of two, so that a worker counts without a lock and
//! without a division.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets of a histogram: below 1 µs, below 2 µs, and so on to below 2²³ µs
/// (about 8 s); the last takes what is longer.
const BUCKETS: usize = 25;

/// Names of a histogram's values as the statistics have them, for good: the sum
/// in µs, then the buckets.
pub(crate) type Names = [&'static str; BUCKETS + 1];

/// The [`Names`] of what a literal says: `names!("read")` are
/// `read_latency_us`, `read_latency_below_1_us` and so on.
macro_rules! names {
    ($what:literal) => {
        $crate::virtio::histogram::names!(@ $what:
            "us", "below_1_us", "below_2_us", "below_4_us", "below_8_us", "below_16_us",
            "below_32_us", "below_64_us", "below_128_us", "below_256_us", "below_512_us",
            "below_1024_us", "below_2048_us", "below_4096_us", "below_8192_us",
            "below_16384_us", "below_32768_us", "below_65536_us", "below_131072_us",
            "below_262144_us", "below_524288_us", "below_1048576_us", "below_2097152_us",
            "below_4194304_us", "below_8388608_us", "above_us")
    };
    (@ $what:literal: $($name:literal),*) => {
        [$(concat!($what, "_latency_", $name)),*]
    };
}

pub(crate) use names;

/// Counts durations by their size, and sums them.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// Of all durations, µs.
    sum: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Histogram {
    /// `count` things took that long each.
    pub fn count(&self, took: Duration, count: usize) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.sum
            .fetch_add(micros.saturating_mul(count), Ordering::Relaxed);
        if let Some(bucket) = self.buckets.get(bucket(micros)) {
            bucket.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// The sum and each bucket, those that are not zero, with their names.
    pub fn list(&self, names: &Names) -> Vec<(&'static str, u64)> {
        let values = std::iter::once(&self.sum).chain(&self.buckets);
        let values = values.map(|value| value.load(Ordering::Relaxed));
        let named = names.iter().copied().zip(values);
        named.filter(|(_, value)| *value > 0).collect()
    }
}

/// The place of a duration among the buckets.
fn bucket(micros: u64) -> usize {
    // as many bits as the number has: below 1, below 2, below 4
    let bits = u64::BITS - micros.leading_zeros();
    usize::try_from(bits).map_or(BUCKETS - 1, |bits| bits.min(BUCKETS - 1))
}

/// How many durations of `what` a device's statistics list.
#[cfg(test)]
pub(crate) fn timed(statistics: &[(&str, u64)], what: &str) -> u64 {
    let buckets = ["below", "above"].map(|side| format!("{what}_latency_{side}_"));
    statistics
        .iter()
        .filter(|(name, _)| buckets.iter().any(|bucket| name.starts_with(bucket)))
        .map(|(_, count)| count)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Names = names!("read");

    fn counted(took: Duration) -> Vec<(&'static str, u64)> {
        let histogram = Histogram::default();
        histogram.count(took, 1);
        histogram.list(&NAMES)
    }

    #[test]
    fn a_duration_is_counted_below_the_next_power_of_two() {
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
    fn no_duration_is_too_long() {
        assert_eq!(
            counted(Duration::MAX).last(),
            Some(&("read_latency_above_us", 1))
        );
    }

    #[test]
    fn what_took_equally_long_is_counted_and_summed_at_once() {
        let histogram = Histogram::default();

        histogram.count(Duration::from_micros(3), 4);
        histogram.count(Duration::from_micros(5), 1);
        histogram.count(Duration::from_micros(9), 0);

        assert_eq!(
            histogram.list(&NAMES),
            [
                ("read_latency_us", 17),
                ("read_latency_below_4_us", 4),
                ("read_latency_below_8_us", 1),
            ]
        );
    }
}
