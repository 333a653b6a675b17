//! Where the next back end goes on in a ring that another one has served.
//!
//! Only the guest's memory knows: whoever served the ring is gone. The requests
//! that were not done are as many as the available index is ahead of the used
//! one, and a back end begins at the used index. Who tracks its requests
//! (INFLIGHT_SHMFD) knows the rest. Another one takes the last of the available
//! ring, which is right if requests were completed in their order. If not, one
//! that was not done stands further ahead and a later one is done already: where
//! the ring shows which ([`unfinished`]), the two change places. The driver has
//! made these entries available and looks at them no more; those that it adds
//! meanwhile stand behind them. Where the ring does not show it, it cannot go on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use swiotlb::{Dma, Range, Transfer};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use super::unfinished::unfinished;
use crate::virtio::queue::ring::RingMemory;
use crate::virtio::{
    ActiveQueue, DeviceError, DmaProvider, Interrupt, Notifier, QueueLayout, QueuePosition, Ring,
};

/// What has to be so that a ring goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Conditions {
    /// The next one knows itself which requests were in flight: the last one has
    /// kept a record, and it reads it.
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
    /// Which requests were done does not come out.
    #[error(
        "requests were completed out of their order, and the back end does not track them \
         (INFLIGHT_SHMFD): {in_flight} were in flight, and which does not come out"
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
    let seen = Seen::of(ring.layout(), &mut dma)?;
    let (used, ahead) = (seen.used, seen.ahead()?);
    if ahead > 0 && !conditions.tracked {
        let changes = seen.changes(ahead)?;
        if !changes.is_empty() {
            tracing::info!(
                queue = ring.index(),
                entries = changes.len(),
                "requests were completed out of their order; the ring is put in order"
            );
        }
        for (at, head) in changes {
            let bytes = head.to_le_bytes();
            let mut write = [Transfer::to_guest([Range::new(at, 2)?], &bytes)];
            dma.transfer(&mut write);
            let [write] = write;
            write.result?;
        }
    }
    drop(seen);
    if ahead > 0 && conditions.once && has_something_to_read(memory, ring, used)? {
        return Err(Box::new(Stuck::Repeated));
    }
    Ok(used)
}

/// A ring as it is found. virtio 1.3 §2.7.6, §2.7.8
struct Seen {
    memory: RingMemory,
    layout: QueueLayout,
    avail: u16,
    used: u16,
}

impl Seen {
    fn of(layout: QueueLayout, dma: &mut Dma) -> Result<Self, DeviceError> {
        let memory = RingMemory::map(&layout, dma)?;
        let index =
            |ring: u64| memory.load(GuestAddress(ring.saturating_add(2)), Ordering::Acquire);
        let (avail, used) = (index(layout.avail)?, index(layout.used)?);
        Ok(Seen {
            memory,
            layout,
            avail: u16::from_le(avail),
            used: u16::from_le(used),
        })
    }

    /// How many requests are in flight.
    fn ahead(&self) -> Result<u16, DeviceError> {
        let (ahead, size) = (self.avail.wrapping_sub(self.used), self.layout.size);
        match ahead > size {
            true => Err(Box::new(Stuck::Ahead { ahead, size })),
            false => Ok(ahead),
        }
    }

    /// Where the available entry of a position is.
    fn entry(&self, position: u16) -> u64 {
        self.layout.avail + 4 + 2 * u64::from(position % self.layout.size)
    }

    fn head(&self, position: u16) -> Result<u16, DeviceError> {
        let head: u16 = self.memory.read_obj(GuestAddress(self.entry(position)))?;
        Ok(u16::from_le(head))
    }

    /// The used entry of a position: head and length.
    fn used(&self, position: u16) -> Result<(u16, u32), DeviceError> {
        let slot = u64::from(position % self.layout.size);
        let at = GuestAddress(self.layout.used + 4 + 8 * slot);
        let [id, len]: [u32; 2] = self.memory.read_obj(at)?;
        // a head is one of 32768 at most
        let head = u16::try_from(u32::from_le(id)).unwrap_or(u16::MAX);
        Ok((head, u32::from_le(len)))
    }

    /// Whether the used ring has been filled to its end before.
    fn is_round(&self) -> Result<bool, DeviceError> {
        for position in self.used..self.layout.size {
            if self.used(position)? != (0, 0) {
                return Ok(true);
            }
        }
        Ok(self.used >= self.layout.size)
    }

    /// The available entries to be changed, and the heads to be there, so that
    /// the last `ahead` are those that were not done.
    fn changes(&self, ahead: u16) -> Result<Vec<(u64, u16)>, DeviceError> {
        let size = self.layout.size;
        let (offered, done) = match self.is_round()? {
            true => (size, size),
            false => (self.avail.min(size), self.used),
        };
        let first = self.avail.wrapping_sub(offered);
        let positions: Vec<u16> = (0..offered).map(|at| first.wrapping_add(at)).collect();
        let avail = positions
            .iter()
            .map(|position| self.head(*position))
            .collect::<Result<Vec<_>, _>>()?;
        let used = (1..=done)
            .rev()
            .map(|back| Ok(self.used(self.used.wrapping_sub(back))?.0))
            .collect::<Result<Vec<_>, DeviceError>>()?;
        let all = offered == self.avail && done == self.used && !self.is_round()?;
        let open = unfinished(&avail, &used, ahead.into(), all)
            .ok_or(Stuck::OutOfOrder { in_flight: ahead })?;
        let end = usize::from(offered - ahead);
        // those that are done take the places of those that are not
        let late = (end..avail.len()).filter(|at| !open.contains(at));
        let early = open.iter().copied().filter(|at| *at < end);
        let moved = early.zip(late);
        let kept = (end..).zip(open.iter().copied());
        let wanted = moved.chain(kept).filter(|(to, from)| to != from);
        let change =
            |(to, from): (usize, usize)| Some((self.entry(*positions.get(to)?), *avail.get(from)?));
        Ok(wanted.filter_map(change).collect())
    }
}

/// Whether a request from `first` on has anything for the device to read.
fn has_something_to_read(
    memory: &dyn DmaProvider,
    ring: &Ring,
    first: u16,
) -> Result<bool, DeviceError> {
    let mut queue = queue_at(memory, ring, first)?;
    let chains = queue.take(ring.layout().size.into())?;
    Ok(chains.iter().any(|chain| !chain.readable.is_empty()))
}

/// A ring that nobody else has, at entry `first`. Its driver is not told of anything.
pub(super) fn queue_at(
    memory: &dyn DmaProvider,
    ring: &Ring,
    first: u16,
) -> Result<ActiveQueue, DeviceError> {
    let queue = ActiveQueue::activate(
        ring.index(),
        ring.layout(),
        QueuePosition {
            next_avail: first,
            next_used: first,
        },
        ring.features(),
        memory.open()?,
        Arc::new(Notifier::new(Arc::new(Mute))),
        Arc::default(),
    )?;
    Ok(queue)
}

/// The line of such a queue.
struct Mute;

impl Interrupt for Mute {
    fn raise(&self) -> std::io::Result<()> {
        Ok(())
    }
}
