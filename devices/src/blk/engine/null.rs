//! Requests of a disk that keeps nothing: complete at once, without a system
//! call. What is left to be measured is the way there and back.

use swiotlb::{InFlight, Mapped};

use crate::blk::op::{Op, Outcome};
use crate::blk::request::Status;

/// See the module.
#[derive(Default)]
pub(in crate::blk) struct Null {
    completed: Vec<InFlight<Op>>,
}

impl Null {
    pub(super) fn submit(&mut self, batch: Vec<Mapped<Op>>) {
        for mapped in batch {
            let mut flight = mapped.submit();
            // one that was refused before keeps its outcome
            if flight.token().for_engine().is_some() {
                // a read leaves its memory as it was, and claims nothing else
                flight.token_mut().complete(Outcome::of(Status::Ok));
                flight.set_written(0);
            }
            self.completed.push(flight);
        }
    }

    pub(super) fn reap(&mut self) -> Vec<InFlight<Op>> {
        std::mem::take(&mut self.completed)
    }
}
