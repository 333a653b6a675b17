//! How long things take: a histogram that workers write and anyone reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds, microseconds, with the name of what took no longer.
const BOUNDS: [(u64, &str); 10] = [
    (16, "took_16us"),
    (64, "took_64us"),
    (256, "took_256us"),
    (1 << 10, "took_1ms"),
    (1 << 12, "took_4ms"),
    (1 << 14, "took_16ms"),
    (1 << 16, "took_65ms"),
    (1 << 18, "took_262ms"),
    (1 << 20, "took_1s"),
    (u64::MAX, "took_longer"),
];

/// Counts durations by their size: each in the first bound that it does not
/// exceed.
#[derive(Debug, Default)]
pub(crate) struct ServiceTime([AtomicU64; BOUNDS.len()]);

impl ServiceTime {
    /// Something took that long.
    pub fn note(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let slot = BOUNDS.iter().zip(&self.0);
        if let Some((_, count)) = slot.into_iter().find(|((bound, _), _)| micros <= *bound) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Each count with its name.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        BOUNDS
            .iter()
            .zip(&self.0)
            .map(|((_, name), count)| (*name, count.load(Ordering::Relaxed)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_once_in_the_first_bound_that_holds_it() {
        let time = ServiceTime::default();

        for micros in [0, 16, 17, 1024, 1 << 20, (1 << 20) + 1] {
            time.note(Duration::from_micros(micros));
        }
        time.note(Duration::MAX);

        let counts: Vec<_> = time.list().into_iter().map(|(_, count)| count).collect();
        assert_eq!(counts, [2, 1, 0, 1, 0, 0, 0, 0, 1, 2]);
    }
}
