//! Which requests were not done, as far as a ring itself shows it.
//!
//! Both halves of a ring keep their last entries. Each head is made available and
//! used in turns, and is in flight if its last turn is an available entry. Of the
//! order between the halves this is known: when a head is made available for the
//! n-th time in all, fewer than n entries were used. So a used entry that stands no
//! earlier in its half than an available one stands in the other **came after it**.
//! That settles nearly all heads that are done, and the number in flight, which is
//! known, the others; or it does not, and then nothing is said.
//!
//! A request that has been in flight while half as many others as the ring has
//! entries came and went is not seen. Back ends that keep requests for so long have
//! to track them.

use std::collections::BTreeMap;

/// Where the entries of a head are, counted from the used index; the earliest
/// first.
#[derive(Default)]
struct Turns {
    avail: Vec<(isize, usize)>,
    used: Vec<isize>,
}

/// Whether a head is in flight.
enum State {
    Done,
    InFlight,
    Either,
}

impl Turns {
    /// The same where none of a head's turns is missing.
    fn state_of_all(&self) -> State {
        match self.avail.len() > self.used.len() {
            true => State::InFlight,
            false => State::Done,
        }
    }

    /// What is known of a head, in rings that show available entries from `first`
    /// on together with all that came of them.
    fn state(&self, first: isize) -> State {
        let last_first = self.avail.iter().rev().zip(self.used.iter().rev());
        for ((avail, _), used) in last_first {
            // if the last turn was an available entry, each used one came before the
            // available one that it is beside here
            if used >= avail {
                return State::Done;
            }
        }
        let whole = self.avail.iter().filter(|(at, _)| *at >= first).count();
        match whole > self.used.len() {
            true => State::InFlight,
            false => State::Either,
        }
    }
}

/// The places in `avail` of the heads that are in flight, in their order, of
/// which there are `ahead`. `avail` and `used` are the last entries of the two
/// rings, the latest last; `all`: there have been no others. `None`: it cannot be
/// told.
pub(super) fn unfinished(
    avail: &[u16],
    used: &[u16],
    ahead: usize,
    all: bool,
) -> Option<Vec<usize>> {
    let counted =
        |index: usize, end: usize| Some(isize::try_from(index).ok()? - isize::try_from(end).ok()?);
    let end = avail.len().checked_sub(ahead)?;
    let mut heads: BTreeMap<u16, Turns> = BTreeMap::new();
    for (index, head) in avail.iter().enumerate() {
        let at = counted(index, end)?;
        heads.entry(*head).or_default().avail.push((at, index));
    }
    for (index, head) in used.iter().enumerate() {
        let at = counted(index, used.len())?;
        heads.entry(*head).or_default().used.push(at);
    }
    let first = -counted(used.len() / 2, 0)?;
    let (mut sure, mut either) = (Vec::new(), Vec::new());
    for turns in heads.values() {
        let last = turns.avail.last().map(|(_, index)| *index);
        let state = match all {
            true => turns.state_of_all(),
            false => turns.state(first),
        };
        match state {
            State::Done => {}
            State::InFlight => sure.extend(last),
            State::Either => either.extend(last),
        }
    }
    if sure.len() != ahead {
        sure.append(&mut either);
    }
    sure.sort_unstable();
    (sure.len() == ahead).then_some(sure)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 128;
    const DEPTH: usize = 16;

    /// A driver that takes the descriptor that was freed last, and a device that
    /// completes whichever it likes.
    #[derive(Default)]
    struct Ring {
        free: Vec<u16>,
        flying: Vec<u16>,
        avail: Vec<u16>,
        used: Vec<u16>,
    }

    impl Ring {
        fn new() -> Ring {
            Ring {
                free: (0..SIZE as u16).rev().collect(),
                ..Ring::default()
            }
        }

        fn offer(&mut self) {
            let head = self.free.pop().unwrap();
            self.flying.push(head);
            self.avail.push(head);
        }

        fn complete(&mut self, which: usize) {
            let head = self.flying.remove(which % self.flying.len());
            self.used.push(head);
            self.free.push(head);
        }

        /// Has the device complete one of the first few, or the first if it was
        /// overtaken often enough.
        fn complete_near(&mut self, which: usize) {
            let place = self.avail.iter().rposition(|head| *head == self.flying[0]);
            let is_old = self.avail.len() - place.unwrap() > SIZE / 2;
            self.complete(if is_old { 0 } else { which });
        }

        /// What a ring of this size shows of it.
        fn shown(&self) -> Option<Vec<u16>> {
            let last = |entries: &[u16]| entries[entries.len().saturating_sub(SIZE)..].to_vec();
            let (avail, used) = (last(&self.avail), last(&self.used));
            let all = self.avail.len() <= SIZE;
            let found = unfinished(&avail, &used, self.flying.len(), all)?;
            Some(found.iter().map(|index| avail[*index]).collect())
        }
    }

    #[test]
    fn in_order_the_last_ones_are_unfinished() {
        let mut ring = Ring::new();
        for _ in 0..100 {
            (0..4).for_each(|_| ring.offer());
            (0..4).for_each(|_| ring.complete(0));
        }
        (0..3).for_each(|_| ring.offer());

        assert_eq!(ring.shown(), Some(ring.flying.clone()));
    }

    #[test]
    fn one_that_was_overtaken_is_found_and_those_that_overtook_it_are_not() {
        let mut ring = Ring::new();
        (0..6).for_each(|_| ring.offer());
        ring.complete(1);
        ring.complete(3);

        assert_eq!(ring.shown(), Some(vec![0, 2, 3, 5]));
        assert_eq!(ring.shown(), Some(ring.flying.clone()));
    }

    #[test]
    fn heads_that_no_driver_offers_so_leave_it_open() {
        assert_eq!(unfinished(&[3, 3, 3], &[], 3, true), None);
        assert_eq!(unfinished(&[1], &[], 2, false), None);
    }

    #[test]
    fn of_a_busy_ring_it_is_told_nearly_always() {
        let (mut ring, mut random, mut told) = (Ring::new(), 1u64, 0);
        for _ in 0..10_000 {
            while ring.flying.len() < DEPTH {
                ring.offer();
            }
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            ring.complete_near((random >> 40) as usize);
            told += usize::from(ring.shown().is_some());
        }

        assert!(told > 9_900, "{told} of 10000");
    }

    proptest! {
        #[test]
        fn what_is_told_is_so(steps in prop::collection::vec((1..8usize, 0..64usize), 1..400)) {
            let mut ring = Ring::new();
            for (offered, which) in steps {
                for _ in 0..offered {
                    if ring.flying.len() < DEPTH {
                        ring.offer();
                    }
                }
                ring.complete_near(which);
                let told = ring.shown();

                prop_assert!(told.is_none() || told.as_ref() == Some(&ring.flying), "{told:?}");
            }
        }
    }
}
