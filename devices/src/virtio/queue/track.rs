//! A queue that notes what it has in flight, to be taken up where it was left.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::inflight::Inflight;
use super::{ActiveQueue, QueueError};

/// See the module.
pub(super) struct Tracked {
    inflight: Inflight,
    /// What an earlier worker took and did not give back.
    left: VecDeque<u16>,
}

impl ActiveQueue {
    /// Has the queue note its requests in `inflight`, and go on where whoever
    /// used that before has stopped. The used ring says how far it got. To be
    /// called before the queue is served.
    ///
    /// # Errors
    /// The used ring cannot be read.
    pub fn track(mut self, mut inflight: Inflight) -> Result<Self, QueueError> {
        let used = self.ring.used_idx(&self.memory, Ordering::Acquire)?.0;
        self.ring.set_next_used(used);
        let recovered = inflight.recover(used);
        if let Some(next) = recovered.next_avail {
            self.ring.set_next_avail(next);
        }
        if !recovered.heads.is_empty() {
            tracing::info!(
                queue = self.index,
                requests = recovered.heads.len(),
                "requests that were left in flight are served again"
            );
        }
        self.tracked = Some(Tracked {
            inflight,
            left: recovered.heads.into(),
        });
        Ok(self)
    }

    /// Up to `max` heads that were left behind, if there are any.
    pub(super) fn left_behind(&mut self, max: usize) -> Option<Vec<u16>> {
        let left = &mut self.tracked.as_mut()?.left;
        let count = left.len().min(max);
        (count > 0).then(|| left.drain(..count).collect())
    }

    pub(super) fn note_taken(&mut self, heads: &[u16]) {
        if let Some(tracked) = &mut self.tracked {
            for &head in heads {
                tracked.inflight.taken(head);
            }
        }
    }

    pub(super) fn note_completing(&self, head: u16) {
        if let Some(tracked) = &self.tracked {
            tracked.inflight.completing(head);
        }
    }

    pub(super) fn note_completed(&self, head: u16) {
        if let Some(tracked) = &self.tracked {
            tracked.inflight.completed(head, self.ring.next_used());
        }
    }

    /// Puts the available ring back over what was taken last and not served:
    /// receive buffers, mostly. Whoever takes the queue up, here or on another
    /// host, finds them available.
    pub(super) fn untake(&mut self) {
        let Some(tracked) = self.tracked.take() else {
            return;
        };
        let size = self.ring.size();
        for _ in 0..size {
            let previous = self.ring.next_avail().wrapping_sub(1);
            let entry = self.ring.avail_ring() + 4 + 2 * u64::from(previous % size);
            let Ok(head) = self.memory.read_obj::<u16>(GuestAddress(entry)) else {
                break;
            };
            if !tracked.inflight.untake(u16::from_le(head)) {
                break;
            }
            self.ring.set_next_avail(previous);
        }
        let left = tracked.inflight.in_flight();
        if left > 0 {
            tracing::info!(
                queue = self.index,
                requests = left,
                "requests are left in flight"
            );
        }
    }
}
