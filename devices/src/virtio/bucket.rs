//! A limit on how much of something a guest gets over time: a token bucket.

use std::time::{Duration, Instant};

/// Parts of a token: what a rate of one token per second yields in a nanosecond.
const PARTS: i128 = 1_000_000_000;

/// How much there is over time; neither is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Tokens.
    pub per_second: u64,
    /// The most tokens after a pause.
    pub burst: u64,
}

/// Tokens that flow in at a rate, up to a burst. It belongs to the device and
/// not to a handler: a reset does not fill it.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    rate: Rate,
    /// Parts of tokens in it; below zero, parts that are owed.
    level: i128,
    /// When `level` was right.
    at: Instant,
}

impl TokenBucket {
    /// A full one.
    pub fn new(rate: Rate, now: Instant) -> Self {
        TokenBucket {
            rate,
            level: parts(rate.burst),
            at: now,
        }
    }

    /// The most tokens that it ever has.
    pub fn burst(&self) -> u64 {
        self.rate.burst
    }

    /// How long it takes until there are `count` tokens, at most a burst:
    /// zero if there are.
    pub fn wait(&mut self, count: u64, now: Instant) -> Duration {
        self.fill(now);
        let missing = parts(count.min(self.rate.burst)).saturating_sub(self.level);
        let missing = u128::try_from(missing).unwrap_or(0);
        let nanos = missing.div_ceil(self.rate.per_second.max(1).into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Takes tokens out. Those that are not there are owed: they are waited for
    /// before the next.
    pub fn take(&mut self, count: u64) {
        self.level = self.level.saturating_sub(parts(count));
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_nanos();
        let elapsed = i128::try_from(elapsed).unwrap_or(i128::MAX);
        let rate = i128::from(self.rate.per_second);
        let level = self.level.saturating_add(elapsed.saturating_mul(rate));
        self.level = level.min(parts(self.rate.burst));
        self.at = self.at.max(now);
    }
}

fn parts(tokens: u64) -> i128 {
    i128::from(tokens) * PARTS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(per_second: u64, burst: u64) -> (TokenBucket, Instant) {
        let start = Instant::now();
        let rate = Rate { per_second, burst };
        (TokenBucket::new(rate, start), start)
    }

    #[test]
    fn a_burst_is_there_at_once_and_the_rest_comes_at_the_rate() {
        let (mut bucket, start) = bucket(1000, 500);

        let first = bucket.wait(500, start);
        bucket.take(500);
        let second = bucket.wait(100, start);
        let later = bucket.wait(100, start + Duration::from_millis(60));

        assert_eq!(first, Duration::ZERO);
        assert_eq!(second, Duration::from_millis(100));
        assert_eq!(later, Duration::from_millis(40));
    }

    #[test]
    fn it_never_holds_more_than_a_burst() {
        let (mut bucket, start) = bucket(1000, 10);
        let much_later = start + Duration::from_secs(1_000_000);

        let all = bucket.wait(u64::MAX, much_later);
        bucket.take(10);

        assert_eq!(all, Duration::ZERO);
        assert_eq!(bucket.wait(1, much_later), Duration::from_millis(1));
    }

    #[test]
    fn what_is_owed_is_waited_for() {
        let (mut bucket, start) = bucket(1000, 10);

        bucket.take(110);

        let wait = bucket.wait(1, start);
        assert_eq!(wait, Duration::from_millis(101));
        assert_eq!(bucket.wait(1, start + wait), Duration::ZERO);
    }

    #[test]
    fn a_clock_that_stands_or_runs_back_gives_nothing() {
        let (mut bucket, start) = bucket(1000, 10);
        let later = start + Duration::from_secs(1);
        bucket.wait(1, later);
        bucket.take(10);

        assert!(bucket.wait(10, start) > Duration::ZERO);
        assert!(bucket.wait(10, later) > Duration::ZERO);
    }

    proptest! {
        #[test]
        fn over_any_time_it_yields_no_more_than_rate_and_burst(
            rate in 1..1_000_000u64,
            burst in 1..100_000u64,
            asked in prop::collection::vec((1..100_000u64, 0..2_000_000_000u64), 1..50),
        ) {
            let (mut bucket, start) = bucket(rate, burst);
            let (mut now, mut given) = (start, 0i128);
            for (count, pause) in asked {
                now += Duration::from_nanos(pause);
                let count = count.min(burst);
                now += bucket.wait(count, now);
                prop_assert_eq!(bucket.wait(count, now), Duration::ZERO);
                bucket.take(count);
                given += i128::from(count);
            }
            let yielded = (now - start).as_nanos() as i128 * i128::from(rate) / PARTS;
            prop_assert!(given <= i128::from(burst) + yielded + 1);
        }
    }
}
