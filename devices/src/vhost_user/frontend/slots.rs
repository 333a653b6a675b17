//! Bounce buffers of one queue's pieces, at the start of pages: many a back end
//! hands them to its kernel.
//!
//! A page that was given back is kept for the next request: no allocator is
//! asked for most of them, and what was used last is still near. Kept pages
//! are given up as soon as somebody finds no room.

use std::sync::Arc;

use smallvec::SmallVec;
use swiotlb::{Access, Attrs, Device, Direction, Lease, PAGE_SIZE, Worker};

/// A bounce buffer of one piece, or of a table.
pub(super) type Berth = Lease<Arc<Device>>;
/// Those of a request.
pub(super) type Berths = SmallVec<[Berth; 1]>;

/// See the module. Belongs to one worker.
pub(super) struct Slots {
    worker: Worker,
    /// Pages that nobody uses now.
    spare: Vec<Berth>,
    /// How many of them are kept at most.
    most: usize,
}

impl Slots {
    /// Of the pool of `worker`; keeps up to `most` pages.
    pub(super) fn new(worker: Worker, most: usize) -> Self {
        Slots {
            worker,
            spare: Vec::new(),
            most,
        }
    }

    /// A buffer for `len` bytes, if there is room. What the back end is to
    /// write is zero there, and so is what is beyond the bytes.
    #[inline]
    pub(super) fn take(&mut self, len: u64, access: Access) -> Option<Berth> {
        let berth = match len <= PAGE_SIZE {
            true => match self.spare.pop() {
                Some(page) => page,
                None => self.lease(PAGE_SIZE)?,
            },
            false => self.lease(len)?,
        };
        berth.zero_from(match access {
            Access::Read => len,
            Access::Write => 0,
        });
        Some(berth)
    }

    fn lease(&mut self, len: u64) -> Option<Berth> {
        let attrs = Attrs {
            align: PAGE_SIZE,
            no_warn: true, // the queue waits: that is no news
            ..Attrs::default()
        };
        loop {
            let lease = self
                .worker
                .lease(0, len, Direction::Bidirectional, &attrs)
                .ok();
            if lease.is_some() || self.spare.is_empty() {
                return lease;
            }
            self.spare.clear();
        }
    }

    /// Takes buffers back.
    #[inline]
    pub(super) fn give_back(&mut self, berths: Berths) {
        for berth in berths {
            if berth.len() == PAGE_SIZE && self.spare.len() < self.most {
                self.spare.push(berth);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhost_user::frontend::VhostUserConfig;
    use crate::vhost_user::frontend::pool::Pool;

    fn slots(most: usize) -> Slots {
        let config = VhostUserConfig {
            pool_mib: 1,
            ..VhostUserConfig::new("/s", 4)
        };
        let pool = Pool::new(&config.validate().unwrap()).unwrap();
        Slots::new(pool.queue(0).unwrap().worker.unwrap(), most)
    }

    fn bytes(berth: &Berth) -> Vec<u8> {
        let slice = berth.bytes().unwrap();
        let mut bytes = vec![0; slice.len()];
        slice.copy_to(&mut bytes);
        bytes
    }

    fn fill(berth: &Berth) {
        let slice = berth.bytes().unwrap();
        slice.copy_from(&vec![0xee_u8; slice.len()]);
    }

    #[test]
    fn a_page_that_was_used_is_used_again_and_shows_nothing_of_it() {
        let mut slots = slots(4);
        let first = slots.take(100, Access::Write).unwrap();
        let address = first.dma_address();
        fill(&first);
        slots.give_back([first].into_iter().collect());

        let read = slots.take(1000, Access::Read).unwrap();
        let reused = (read.dma_address(), bytes(&read));
        fill(&read);
        slots.give_back([read].into_iter().collect());
        let written = slots.take(10, Access::Write).unwrap();

        assert_eq!(reused.0, address);
        assert_eq!(reused.1[1000..], [0; 3096]);
        assert_eq!(written.dma_address(), address);
        assert_eq!(bytes(&written), [0; 4096]);
    }

    #[test]
    fn every_buffer_starts_a_page_and_a_longer_one_is_zeroed_too() {
        let mut slots = slots(4);
        let long = slots.take(10_000, Access::Write).unwrap();
        fill(&long);
        slots.give_back([long].into_iter().collect());

        let again = slots.take(10_000, Access::Write).unwrap();
        let page = slots.take(1, Access::Read).unwrap();

        assert_eq!(bytes(&again), [0; 10_000]);
        assert_eq!(
            (
                again.dma_address() % PAGE_SIZE,
                page.dma_address() % PAGE_SIZE
            ),
            (0, 0)
        );
    }

    #[test]
    fn pages_that_are_kept_take_no_room_from_whoever_needs_it() {
        let mut slots = slots(1000);
        let pages: Berths = (0..256)
            .map(|_| slots.take(4096, Access::Read).unwrap())
            .collect();
        assert!(slots.take(1, Access::Read).is_none());
        slots.give_back(pages);

        let large = (0..4).filter_map(|_| slots.take(1 << 18, Access::Read));

        assert_eq!(large.count(), 4);
    }
}
