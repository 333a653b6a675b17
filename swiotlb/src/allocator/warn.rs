//! A line in the log at most every few seconds.

use std::time::{Duration, Instant};

use crate::sync::{AtomicU64, Ordering};

/// The least time between two lines.
const INTERVAL: Duration = Duration::from_secs(5);

/// Decides whether to speak.
#[derive(Debug)]
pub(super) struct Warner {
    start: Instant,
    /// Milliseconds after `start` from which the next line may be written.
    next: AtomicU64,
}

impl Default for Warner {
    fn default() -> Self {
        Warner {
            start: Instant::now(),
            next: AtomicU64::new(0),
        }
    }
}

impl Warner {
    /// Whether a line may be written now; if so, the next one has to wait.
    pub(super) fn may_speak(&self) -> bool {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let now = millis(self.start.elapsed());
        let next = self.next.load(Ordering::Relaxed);
        let later = now.saturating_add(millis(INTERVAL));
        now >= next
            && self
                .next
                .compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}
