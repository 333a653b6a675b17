//! Where the next back end goes on in a ring that another one has served.
//!
//! Only the guest's memory knows: whoever served the ring is gone. The requests
//! that were not done are as many as the available index is ahead of the used
//! one. If requests were completed in their order they are the last of the
//! available ring; if not, one of them stands further ahead and a later one is
//! done already, and to go on from the used index would lose the one and do the
//! other twice. So the used entries that both rings still show are compared with
//! the available ones of the same places: the same heads, or the ring cannot go
//! on. Who tracks what is in flight knows better and is not compared.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use crate::virtio::queue::ring::RingMemory;
use crate::virtio::{
    ActiveQueue, DeviceError, DmaProvider, Interrupt, Notifier, QueueLayout, QueuePosition, Ring,
};

/// What has to be so that a ring goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Conditions {
    /// The next one knows itself which requests were in flight.
    pub tracked: bool,
    /// Requests with something to read must not be done again.
    pub once: bool,
}

/// Why a ring cannot go on.
#[derive(Debug, Error)]
enum Stuck {
    /// The driver is ahead by more than the ring has.
    #[error("its available index is {ahead} ahead of the used one in a ring of {size}")]
    Ahead {
        /// By how many.
        ahead: u16,
        /// Entries.
        size: u16,
    },
    /// A later request was done before an earlier one.
    #[error(
        "requests were completed out of their order and the back end does not track them \
         (INFLIGHT_SHMFD): {in_flight} were in flight, and which is not known"
    )]
    OutOfOrder {
        /// How many.
        in_flight: u16,
    },
    /// `after-restart = "reset"`.
    #[error("the last back end went away with requests that must not be repeated")]
    Repeated,
}

/// The available entry with which `ring` goes on.
///
/// # Errors
/// The ring cannot be reached, or cannot go on.
pub(super) fn base(
    memory: &dyn DmaProvider,
    ring: &Ring,
    conditions: Conditions,
) -> Result<u16, DeviceError> {
    let mut dma = memory.open()?;
    let layout = ring.layout();
    let seen = Seen {
        memory: RingMemory::map(&layout, &mut dma)?,
        layout,
    };
    let avail = seen.index(layout.avail)?;
    let used = seen.index(layout.used)?;
    let ahead = avail.wrapping_sub(used);
    let size = layout.size;
    if ahead > size {
        return Err(Box::new(Stuck::Ahead { ahead, size }));
    }
    if ahead == 0 {
        return Ok(used);
    }
    if !conditions.tracked && !seen.is_in_order(used, (size - ahead).min(used))? {
        return Err(Box::new(Stuck::OutOfOrder { in_flight: ahead }));
    }
    drop(seen);
    if conditions.once && has_something_to_read(memory, ring, used)? {
        return Err(Box::new(Stuck::Repeated));
    }
    Ok(used)
}

struct Seen {
    memory: RingMemory,
    layout: QueueLayout,
}

impl Seen {
    /// The index of a ring. virtio 1.3 §2.7.6, §2.7.8
    fn index(&self, ring: u64) -> Result<u16, DeviceError> {
        let at = GuestAddress(ring.saturating_add(2));
        Ok(u16::from_le(self.memory.load(at, Ordering::Acquire)?))
    }

    /// Whether the last `count` used entries before `used` are of the available
    /// ones in the same places.
    fn is_in_order(&self, used: u16, count: u16) -> Result<bool, DeviceError> {
        let (mut offered, mut done) = (Vec::new(), Vec::new());
        for back in 1..=count {
            let slot = u64::from(used.wrapping_sub(back) % self.layout.size);
            let avail = GuestAddress(self.layout.avail + 4 + 2 * slot);
            let entry = GuestAddress(self.layout.used + 4 + 8 * slot);
            offered.push(u32::from(u16::from_le(self.memory.read_obj(avail)?)));
            done.push(u32::from_le(self.memory.read_obj(entry)?));
        }
        offered.sort_unstable();
        done.sort_unstable();
        Ok(offered == done)
    }
}

/// Whether a request from `first` on has anything for the device to read.
fn has_something_to_read(
    memory: &dyn DmaProvider,
    ring: &Ring,
    first: u16,
) -> Result<bool, DeviceError> {
    let mut queue = ActiveQueue::activate(
        ring.index(),
        ring.layout(),
        QueuePosition {
            next_avail: first,
            next_used: first,
        },
        ring.features(),
        memory.open()?,
        // it only looks
        Arc::new(Notifier::new(Arc::new(Mute))),
        Arc::default(),
    )?;
    let chains = queue.take(ring.layout().size.into())?;
    Ok(chains.iter().any(|chain| !chain.readable.is_empty()))
}

/// The line of a queue that is only looked at.
struct Mute;

impl Interrupt for Mute {
    fn raise(&self) -> std::io::Result<()> {
        Ok(())
    }
}
