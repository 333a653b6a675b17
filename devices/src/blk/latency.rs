//! How long requests take, as the guest's driver sees it: from the batch that
//! took a request from the ring to the one that gave it back.
//!
//! A histogram for each kind of request; a batch reads the clock twice.

use std::time::Duration;

use super::request::Request;
use crate::virtio::histogram::{Histogram, Names, names};

/// Kinds of requests that are told apart.
const KINDS: usize = 5;

static NAMES: [Names; KINDS] = [
    names!("read"),
    names!("write"),
    names!("flush"),
    names!("discard"),
    names!("write_zeroes"),
];

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
        if let Some(histogram) = self.0.get(kind) {
            histogram.count(latency, 1);
        }
    }

    /// Each sum and each bucket that is not zero, with its name.
    pub(super) fn list(&self) -> Vec<(&'static str, u64)> {
        let rows = self.0.iter().zip(&NAMES);
        rows.flat_map(|(histogram, names)| histogram.list(names))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Request = Request::Read {
        offset: 0,
        len: 512,
    };

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
    fn no_two_names_are_the_same() {
        let mut names: Vec<_> = NAMES.iter().flatten().collect();
        let all = names.len();
        names.sort();
        names.dedup();

        assert_eq!(names.len(), all);
    }
}
