//! A timer that a handler can wait on like on any other event.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Rings once after a while. Becomes readable then, until [`Timer::take`].
/// Belongs to one worker thread.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// A timer that does not run.
    ///
    /// # Errors
    /// No descriptor. Linux timerfd_create(2)
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Timer(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Rings after `delay`, and not at the time that was set before.
    pub fn arm(&self, delay: Duration) {
        // a delay of zero would stop it
        self.set(delay.max(Duration::from_nanos(1)));
    }

    /// Does not ring any more.
    pub fn stop(&self) {
        self.set(Duration::ZERO);
    }

    /// Whether it has rung since the last call.
    pub fn take(&self) -> bool {
        let mut expirations = [0; 8];
        matches!(rustix::io::read(&self.0, &mut expirations), Ok(8))
    }

    fn set(&self, delay: Duration) {
        let value = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec {
                tv_sec: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: delay.subsec_nanos().into(),
            },
        };
        if let Err(error) = timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &value) {
            // all its arguments are valid ones
            tracing::error!(%error, "a timer cannot be set");
        }
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::readable;

    #[test]
    fn it_rings_once_and_not_after_it_was_stopped() {
        let timer = Timer::new().unwrap();
        timer.arm(Duration::ZERO);

        assert!(readable(timer.as_fd(), Duration::from_secs(10)));
        assert!(timer.take());
        assert!(!timer.take());

        timer.arm(Duration::from_secs(3600));
        timer.stop();
        assert!(!readable(timer.as_fd(), Duration::ZERO));
    }
}
