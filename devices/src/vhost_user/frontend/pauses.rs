//! How long a back end is left alone before it is looked for again.

use std::time::Duration;

/// At first.
const FIRST: Duration = Duration::from_millis(20);
/// At most, while nobody is there.
const ABSENT_MAX: Duration = Duration::from_secs(1);
/// At most, where somebody is there and goes at once, each time.
const FLEETING_MAX: Duration = Duration::from_secs(10);

/// Pauses between tries, each twice as long as the one before of its kind.
pub(super) struct Pauses {
    /// While nobody is there.
    absent: Duration,
    /// Where somebody is there and goes at once.
    fleeting: Duration,
}

impl Pauses {
    pub(super) fn new() -> Self {
        Pauses {
            absent: FIRST,
            fleeting: FIRST,
        }
    }

    /// After a connection that has lasted so long.
    pub(super) fn after_connection(&mut self, lasted: Duration) -> Duration {
        self.absent = FIRST;
        if lasted >= ABSENT_MAX {
            self.fleeting = FIRST;
        }
        twice(&mut self.fleeting, FLEETING_MAX)
    }

    /// After there was none: however often it went at once before, it may be on
    /// its way back.
    pub(super) fn after_none(&mut self) -> Duration {
        twice(&mut self.absent, ABSENT_MAX)
    }
}

/// This pause; the next one is twice as long, and at most so long.
fn twice(pause: &mut Duration, most: Duration) -> Duration {
    std::mem::replace(pause, pause.saturating_mul(2).min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLEETING: Duration = Duration::from_millis(999);

    fn last(count: usize, mut pause: impl FnMut() -> Duration) -> Duration {
        (0..count).fold(Duration::ZERO, |_, _| pause())
    }

    #[test]
    fn whoever_is_not_there_is_looked_for_soon_and_then_every_second() {
        let mut pauses = Pauses::new();

        let first = [(); 3].map(|()| pauses.after_none().as_millis());
        let then = last(100, || pauses.after_none());

        assert_eq!(first, [20, 40, 80]);
        assert_eq!(then, ABSENT_MAX);
    }

    #[test]
    fn whoever_goes_at_once_is_tried_ever_more_seldom_until_it_stays() {
        let mut pauses = Pauses::new();

        let seldom = last(100, || pauses.after_connection(FLEETING));
        let stayed = pauses.after_connection(ABSENT_MAX);

        assert_eq!((seldom, stayed), (FLEETING_MAX, FIRST));
    }

    #[test]
    fn whoever_went_at_once_and_is_away_now_is_looked_for_as_anybody_who_is_away() {
        let mut pauses = Pauses::new();
        last(100, || pauses.after_connection(FLEETING));

        let away = last(100, || pauses.after_none());

        assert_eq!(away, ABSENT_MAX);
    }

    #[test]
    fn whoever_takes_long_to_come_is_not_taken_for_one_that_goes_at_once() {
        let mut pauses = Pauses::new();
        last(100, || pauses.after_none());

        let once = pauses.after_connection(FLEETING);
        let away = pauses.after_none();

        assert_eq!((once, away), (FIRST, FIRST));
    }
}
