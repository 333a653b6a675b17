//! Keeps what goes wrong again and again from filling the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// At most one line in this time.
const PERIOD: Duration = Duration::from_secs(60);

/// Says when one kind of trouble may be logged again. Belongs to what outlives
/// the device's resets: a guest can have its handlers made anew as often as it
/// likes.
#[derive(Debug, Default)]
pub struct LogLimit(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    withheld: u64,
}

impl LogLimit {
    /// Trouble has come: `Some` if it may be logged, with how many times it
    /// was not since the last line.
    pub fn due(&self) -> Option<u64> {
        self.due_at(Instant::now())
    }

    fn due_at(&self, now: Instant) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = told
            .last
            .is_none_or(|last| now.duration_since(last) >= PERIOD);
        if !fresh {
            told.withheld = told.withheld.saturating_add(1);
            return None;
        }
        told.last = Some(now);
        Some(std::mem::take(&mut told.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_minute_tells_how_many_were_withheld() {
        let limit = LogLimit::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);

        let lines: Vec<_> = [0, 1, 59, 60, 61, 200]
            .into_iter()
            .map(|seconds| limit.due_at(at(seconds)))
            .collect();

        assert_eq!(lines, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
