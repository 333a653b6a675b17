//! The used ring: entries that are shown together, and interrupts.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::{ActiveQueue, Head, QueueError, tally};

impl ActiveQueue {
    /// Shows several requests at once, of which none was ever lent anything, as
    /// with [`ActiveQueue::push_copied`]: the driver sees all of them or none.
    /// virtio 1.3 §5.1.6.4.1 wants that of the buffers of one packet; for a
    /// batch it is quicker, too.
    ///
    /// # Errors
    /// As [`ActiveQueue::push`].
    pub fn push_together(&mut self, requests: Vec<(Head, u32)>) -> Result<(), QueueError> {
        let mut requests = requests;
        // completions of an earlier activation: the guest has forgotten them
        requests.retain(|(head, _)| head.generation == self.generation);
        let first = Wrapping(self.ring.next_used());
        let Some((last, written)) = requests.pop() else {
            return Ok(());
        };
        let mut next = first;
        let mut shown = Vec::with_capacity(requests.len() + 1);
        for (head, written) in requests {
            self.note_completing(head.index);
            shown.push(head.index);
            let slot = next.0 % self.ring.size();
            let entry = self.ring.used_ring() + 4 + 8 * u64::from(slot);
            let element = [u32::from(head.index).to_le(), written.to_le()];
            self.memory
                .write_obj(element, GuestAddress(entry))
                .map_err(virtio_queue::Error::GuestMemory)?;
            self.count_push(written);
            next += 1;
        }
        // with the last entry the index passes all of them
        self.ring.set_next_used(next.0);
        self.note_completing(last.index);
        shown.push(last.index);
        self.ring.add_used(&self.memory, last.index, written)?;
        for head in shown {
            self.note_completed(head);
        }
        self.count_push(written);
        Ok(())
    }

    pub(super) fn count_push(&mut self, written: u32) {
        self.unannounced = true;
        tally(&self.stats.pushed, 1);
        tally(&self.stats.written, u64::from(written));
    }

    /// Interrupts the guest if it wants to hear of what was pushed.
    ///
    /// # Errors
    /// The rings' memory failed.
    pub fn notify(&mut self) -> Result<(), QueueError> {
        if !std::mem::take(&mut self.unannounced) {
            return Ok(());
        }
        let new = Wrapping(self.ring.next_used());
        let old = std::mem::replace(&mut self.announced, new);
        // orders the used index before what is read below
        fence(Ordering::SeqCst);
        let needed = match self.ring.event_idx_enabled() {
            true => event_passed(self.used_event()?, new, old),
            false => !self.interrupts_off()?,
        };
        if needed {
            self.notifier.used_ring();
        }
        Ok(())
    }

    /// After which entry the driver wants an interrupt. virtio 1.3 §2.7.7
    fn used_event(&self) -> Result<Wrapping<u16>, QueueError> {
        let at = self.ring.avail_ring() + 4 + 2 * u64::from(self.ring.size());
        let event: u16 = self
            .memory
            .load(GuestAddress(at), Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(Wrapping(u16::from_le(event)))
    }

    /// Whether the driver's flag says that it wants no interrupts.
    /// virtio 1.3 §2.7.7
    fn interrupts_off(&self) -> Result<bool, QueueError> {
        let flags: u16 = self
            .memory
            .load(GuestAddress(self.ring.avail_ring()), Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT != 0)
    }
}

/// Whether the index has passed the entry that the driver waits for.
/// virtio 1.3 §2.7.7.2
fn event_passed(event: Wrapping<u16>, new: Wrapping<u16>, old: Wrapping<u16>) -> bool {
    new - event - Wrapping(1) < new - old
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Buffer, DriverRing, GuestRam};
    use crate::virtio::features::{RING_EVENT_IDX, VERSION_1};

    #[test]
    fn entries_that_are_pushed_together_are_seen_together_over_the_rings_end() {
        let ram = GuestRam::new(16);
        let mut ring = DriverRing::new(&ram, 4);
        let (mut queue, _) = ring.activate(VERSION_1);
        let mut seen = Vec::new();

        for round in 0..3 {
            for _ in 0..3 {
                ring.add(&[Buffer::writable(ram.alloc(16), 16)]);
            }
            let chains = queue.take(4).unwrap();
            let lens = [round, round + 10, round + 20];
            let requests = chains.into_iter().map(|chain| chain.head).zip(lens);
            queue.push_together(requests.collect()).unwrap();
            seen.extend(ring.used().into_iter().map(|(_, len)| len));
        }
        queue.push_together(Vec::new()).unwrap();

        assert_eq!(seen, [0, 10, 20, 1, 11, 21, 2, 12, 22]);
        assert_eq!(ring.used_index(), 9);
    }

    #[test]
    fn a_driver_that_waits_for_an_entry_in_the_middle_is_interrupted() {
        let ram = GuestRam::new(16);
        let mut ring = DriverRing::new(&ram, 8);
        let (mut queue, line) = ring.activate(VERSION_1 | RING_EVENT_IDX);
        let used_event = ring.layout().avail + 4 + 2 * 8;
        let mut edges = Vec::new();

        for wanted in [1u16, 100] {
            ram.write(used_event, &wanted.to_le_bytes());
            for _ in 0..3 {
                ring.add(&[Buffer::writable(ram.alloc(16), 16)]);
            }
            let heads = queue.take(8).unwrap().into_iter().map(|chain| chain.head);
            queue
                .push_together(heads.map(|head| (head, 1)).collect())
                .unwrap();
            queue.notify().unwrap();
            edges.push(line.edges());
        }

        assert_eq!(edges, [1, 1]);
    }

    #[test]
    fn the_index_passes_an_event_once_and_over_the_counters_end() {
        let passed = |event, new, old| event_passed(Wrapping(event), Wrapping(new), Wrapping(old));

        assert!(passed(5, 6, 5) && passed(5, 9, 3));
        assert!(!passed(5, 5, 3) && !passed(5, 9, 6));
        assert!(passed(u16::MAX, 1, u16::MAX - 1) && !passed(1, 1, u16::MAX));
    }
}
