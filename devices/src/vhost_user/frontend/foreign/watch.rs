//! Whether the memory that a back end was given is still the guest's.
//!
//! Xen says when memory leaves a guest. When some comes nobody says so, and a back
//! end that is built for Xen maps at once what it is given, and what is not there
//! then never: so the guest's pages are counted, and another number is a reason to
//! give it its memory again. Pages that left are counted for as long as the back end
//! has them mapped. As many that come while it gives them up would not show, so
//! after memory has left the back end is told once more.
//!
//! A guest that goes on giving and taking has it told half of the time at most.

use std::time::{Duration, Instant};

/// How often pages are counted, and memory is told at most.
pub(in super::super) const LOOK: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(super) struct Watch {
    /// How often memory had left the guest before it was told last.
    left: u64,
    /// How many pages the guest had then.
    pages: Option<u64>,
    /// That is to be told once more.
    again: bool,
    /// When it may be told next, and is looked at.
    next: Instant,
}

impl Watch {
    /// Memory is about to be told: it has left the guest `left` times, and there
    /// are `pages` of it, as far as anybody knows.
    pub(super) fn begin(before: Option<&Watch>, left: u64, pages: Option<u64>) -> Watch {
        Watch {
            left,
            pages,
            again: before.is_some_and(|before| before.left != left),
            next: Instant::now(),
        }
    }

    /// It was told, which took so long.
    pub(super) fn told(&mut self, took: Duration) {
        self.next = Instant::now() + LOOK.max(took);
    }

    /// Whether it is to be told anew: memory has left the guest `left` times, and
    /// `pages` counts.
    pub(super) fn is_outdated(&mut self, left: u64, pages: impl FnOnce() -> Option<u64>) -> bool {
        let now = Instant::now();
        if now < self.next {
            return false;
        }
        self.next = now + LOOK;
        match pages() {
            _ if self.left != left => true,
            // who is not counted, or is not there any more, has no other memory
            None => false,
            pages => self.again || pages != self.pages,
        }
    }

    /// Until when nothing will be found.
    pub(super) fn patience(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Told of memory that had left once, with so many pages, long ago.
    fn told(before: Option<&Watch>, left: u64, pages: Option<u64>) -> Watch {
        Watch::begin(before, left, pages)
    }

    #[test]
    fn memory_is_outdated_when_some_has_left_or_the_number_of_pages_is_another() {
        let outdated = |left, pages| told(None, 1, Some(7)).is_outdated(left, || pages);

        assert!(!outdated(1, Some(7)));
        assert!(outdated(2, Some(7)));
        assert!(outdated(1, Some(8)));
        assert!(outdated(1, Some(6)));
        assert!(outdated(2, None));
        assert!(!outdated(1, None));
    }

    #[test]
    fn what_has_left_is_told_once_more_and_then_no_more() {
        let first = told(None, 1, Some(7));
        let mut second = told(Some(&first), 2, Some(7));
        let mut third = told(Some(&second), 2, Some(7));

        assert!(second.is_outdated(2, || Some(7)));
        assert!(!third.is_outdated(2, || Some(7)));
    }

    #[test]
    fn pages_are_counted_now_and_then_and_the_seldomer_the_longer_telling_takes() {
        let mut watch = told(None, 1, Some(7));
        watch.told(Duration::from_millis(1));
        let quick = watch.patience();
        watch.told(Duration::from_secs(7200));
        let slow = watch.patience();

        let outdated = watch.is_outdated(2, || Some(8));

        assert!(!outdated);
        assert!(
            quick <= LOOK && slow > Duration::from_secs(3600),
            "{quick:?} {slow:?}"
        );
    }
}
