//! The limits on how much a guest asks of its disk, and how a queue waits for
//! them.
//!
//! All queues of a disk draw on one [`Budget`]. A queue whose next request may
//! not go yet rests until the timer of its [`Brake`] rings; other queues, and
//! requests that the engine has, go on. A request goes as soon as there is
//! anything left, and what it costs beyond that is owed: large requests are
//! neither starved by small ones nor bounded by the burst.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::op::Op;
use super::request::Request;
use crate::virtio::bucket::{Rate, TokenBucket};
use crate::virtio::timer::Timer;

/// What a disk's requests are limited to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rates {
    /// Requests, those for the serial number apart.
    pub operations: Option<Rate>,
    /// Bytes read and written.
    pub bytes: Option<Rate>,
}

/// What a request takes from the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    operations: u64,
    bytes: u64,
}

impl Cost {
    /// Of `request`, or of a part of it behind the `first`.
    pub(super) fn of(request: &Request, first: bool) -> Self {
        let bytes = match request {
            Request::Read { len, .. } | Request::Write { len, .. } => *len,
            // what they move is the host's affair
            Request::Flush | Request::GetId | Request::Discard(_) | Request::WriteZeroes(_) => 0,
        };
        Cost {
            operations: u64::from(first),
            bytes,
        }
    }
}

/// What a guest may still ask of its disk. It belongs to the device: a reset
/// does not fill it.
#[derive(Debug)]
pub(super) struct Budget {
    operations: Option<TokenBucket>,
    bytes: Option<TokenBucket>,
}

impl Budget {
    /// A full one; `None` without a limit.
    pub(super) fn new(rates: Rates, now: Instant) -> Option<Arc<Mutex<Self>>> {
        if rates == Rates::default() {
            return None;
        }
        let bucket = |rate: Option<Rate>| rate.map(|rate| TokenBucket::new(rate, now));
        Some(Arc::new(Mutex::new(Budget {
            operations: bucket(rates.operations),
            bytes: bucket(rates.bytes),
        })))
    }

    /// Takes what a request costs.
    ///
    /// # Errors
    /// How long it has to wait.
    fn take(&mut self, cost: Cost, now: Instant) -> Result<(), Duration> {
        let costs = [cost.operations, cost.bytes];
        let mut buckets = [&mut self.operations, &mut self.bytes];
        let mut delay = Duration::ZERO;
        for (bucket, cost) in buckets.iter_mut().zip(costs) {
            if let Some(bucket) = bucket {
                delay = delay.max(bucket.wait(cost.min(1), now));
            }
        }
        if delay > Duration::ZERO {
            return Err(delay);
        }
        for (bucket, cost) in buckets.into_iter().zip(costs) {
            if let Some(bucket) = bucket {
                bucket.take(cost);
            }
        }
        Ok(())
    }
}

/// Holds one queue to its disk's budget. Belongs to the queue's worker.
#[derive(Debug)]
pub(super) struct Brake {
    budget: Arc<Mutex<Budget>>,
    timer: Timer,
    /// Readable when the timer has rung or the engine has something.
    events: OwnedFd,
}

impl Brake {
    /// A brake whose event is also that of the queue's engine.
    ///
    /// # Errors
    /// No descriptor.
    pub(super) fn new(
        budget: Arc<Mutex<Budget>>,
        engine: Option<BorrowedFd<'_>>,
    ) -> io::Result<Self> {
        let timer = Timer::new()?;
        let events = epoll::create(CreateFlags::CLOEXEC)?;
        for fd in engine.into_iter().chain([timer.as_fd()]) {
            epoll::add(&events, fd, EventData::new_u64(0), EventFlags::IN)?;
        }
        Ok(Brake {
            budget,
            timer,
            events,
        })
    }

    /// Becomes readable when requests may go on, or the engine has something.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// The event has come.
    pub(super) fn rung(&self) {
        self.timer.take();
    }

    /// How many of `ops`, from the first, may go now. The timer is set for the
    /// first that may not.
    pub(super) fn admit<'a>(&self, ops: impl Iterator<Item = &'a mut Op>) -> usize {
        let now = Instant::now();
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        for op in ops {
            if let Some(cost) = op.unpaid() {
                if let Err(delay) = budget.take(cost, now) {
                    self.timer.arm(delay);
                    break;
                }
                op.pay();
            }
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn budget(operations: u64, bytes: u64, now: Instant) -> Arc<Mutex<Budget>> {
        let rate = |per_second| Rate {
            per_second,
            burst: per_second,
        };
        let rates = Rates {
            operations: Some(rate(operations)),
            bytes: Some(rate(bytes)),
        };
        Budget::new(rates, now).unwrap()
    }

    fn read(len: u64) -> Cost {
        Cost::of(&Request::Read { offset: 0, len }, true)
    }

    #[test]
    fn the_scarcer_of_operations_and_bytes_counts() {
        let now = Instant::now();
        let (many, few) = (budget(1000, 4096, now), budget(2, 1 << 30, now));

        let bytes = [4096, 512].map(|len| many.lock().unwrap().take(read(len), now));
        let operations = [512; 3].map(|len| few.lock().unwrap().take(read(len), now));

        assert_eq!(bytes[0], Ok(()));
        assert!(bytes[1].is_err());
        assert_eq!(operations, [Ok(()), Ok(()), Err(SECOND / 2)]);
    }

    #[test]
    fn a_request_above_the_burst_goes_and_is_owed() {
        let now = Instant::now();
        let budget = budget(1000, 1000, now);
        let mut budget = budget.lock().unwrap();

        let large = budget.take(read(11_000), now);
        let next = budget.take(read(512), now + 10 * SECOND);
        let later = budget.take(read(512), now + 11 * SECOND);

        assert_eq!(large, Ok(()));
        assert_eq!(next, Err(SECOND / 1000));
        assert_eq!(later, Ok(()));
    }

    #[test]
    fn a_refused_request_takes_nothing() {
        let now = Instant::now();
        let budget = budget(1, 1 << 30, now);
        let mut budget = budget.lock().unwrap();
        budget.take(read(512), now).unwrap();

        let refused = [budget.take(read(1 << 30), now), budget.take(read(1), now)];

        assert_eq!(refused, [Err(SECOND), Err(SECOND)]);
    }

    #[test]
    fn a_later_part_of_a_request_is_no_operation() {
        let part = Cost::of(&Request::Write { offset: 0, len: 9 }, false);

        assert_eq!((part.operations, part.bytes), (0, 9));
    }

    #[test]
    fn without_a_limit_there_is_no_budget() {
        assert!(Budget::new(Rates::default(), Instant::now()).is_none());
    }
}
