//! Looking at a ring for a little while before sleeping.
//!
//! To sleep and to be woken takes system calls, a kick costs the guest
//! a trap, and an idle processor takes its time to wake up: all that is more than
//! most requests. Where the next one comes soon it is cheaper to wait for it
//! awake. Where it does not, looking is wasted: each time that it was in vain
//! the worker sleeps twice as often before it tries again.

use std::time::{Duration, Instant};

/// How long a worker looks: the time that it takes to wake a driver which waits
/// for an interrupt, on an idle processor in a virtual machine, and more.
const WINDOW: Duration = Duration::from_micros(50);
/// Looks between two readings of the clock.
const LOOKS: u32 = 16;
/// The most sleeps without a look before them.
const SLEEPS: u32 = 1024;

/// When a worker looks, from what came of it. Belongs to the worker.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Sleeps before the next look.
    left: u32,
    /// How many there are to be after the next look in vain.
    next: u32,
}

impl Watch {
    /// Looks, if it is time to, until something is there; true if it is.
    pub fn look(&mut self, mut is_there: impl FnMut() -> bool) -> bool {
        if self.left > 0 {
            self.left -= 1;
            return false;
        }
        let start = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if is_there() {
                    self.next = 0;
                    return true;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= WINDOW {
                break;
            }
            // whoever is to bring it may be waiting for this processor
            std::thread::yield_now();
        }
        self.next = (2 * self.next).clamp(1, SLEEPS);
        self.left = self.next;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `sleeps` had a look before them, in vain.
    fn looks(watch: &mut Watch, sleeps: u32) -> usize {
        let looked = (0..sleeps).map(|_| {
            let mut looked = false;
            watch.look(|| {
                looked = true;
                false
            });
            looked
        });
        looked.filter(|looked| *looked).count()
    }

    #[test]
    fn what_comes_soon_is_looked_for_every_time() {
        let mut watch = Watch::default();

        let found = (0..100).filter(|_| watch.look(|| true)).count();

        assert_eq!(found, 100);
    }

    #[test]
    fn looks_in_vain_become_few() {
        let mut watch = Watch::default();

        assert_eq!(looks(&mut watch, 2048), 11);
        assert_eq!(looks(&mut watch, 10 * 1025), 10);
    }

    #[test]
    fn one_that_was_not_in_vain_is_followed_by_more() {
        let mut watch = Watch::default();
        looks(&mut watch, 5000);

        let slept = (0..).take_while(|_| !watch.look(|| true)).count();

        assert!(slept <= 1024, "{slept}");
        assert!(watch.look(|| true));
    }
}
