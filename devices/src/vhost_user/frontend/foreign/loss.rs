//! Tells a driver whose back end has gone what its device's type demands
//! ([`semantics`](super::super::semantics)), in a ring that nobody serves.
//!
//! The driver's buffers in flight are those that the next back end would be given;
//! the first of them is used for it, and the ring goes on behind. A driver that has
//! no buffer there at this time is not told: what it offers later goes to whoever
//! has the ring by then. Linux's socket driver always has eight.

use swiotlb::Transfer;

use super::GuestMemory;
use super::restart::{self, Conditions};
use crate::vhost_user::frontend::semantics::word_of_loss;
use crate::vhost_user::frontend::shared::Shared;
use crate::virtio::counters::add;
use crate::virtio::worker::with_causes;
use crate::virtio::{DeviceError, DmaProvider, Ring};

/// A back end has gone that may have had rings of the guest's.
pub(in super::super) fn tell_loss(shared: &Shared) {
    let Some(GuestMemory(memory, _)) = shared.guest_memory.get() else {
        return;
    };
    // a driver that wants one of them back has to wait until this is over
    let lost = shared.state().guest_rings.wanted();
    let lost = lost
        .iter()
        .filter(|ring| ring.served && ring.base.is_none());
    for lost in lost {
        let (ring, queue) = (&lost.ring, lost.ring.index());
        let Some(word) = word_of_loss(shared.spec.device_type, queue) else {
            continue;
        };
        match tell(&**memory, ring, word) {
            Ok(Some(base)) => {
                let mut state = shared.state();
                state.guest_rings.told(queue, lost.number, base);
                drop(state);
                add(&shared.stats.losses_told, 1);
                ring.interrupt();
            }
            Ok(None) => tracing::debug!(queue, "the driver has no buffer to be told in"),
            // the next back end does not get the ring either, and that is said then
            Err(error) => {
                let error = with_causes(&*error);
                tracing::debug!(queue, error, "the driver cannot be told of the loss");
            }
        }
    }
}

/// Puts `word` into the first buffer in flight; the entry behind it, or `None` where
/// there is no such buffer.
fn tell(memory: &dyn DmaProvider, ring: &Ring, word: &[u8]) -> Result<Option<u16>, DeviceError> {
    let conditions = Conditions {
        tracked: false,
        once: false,
    };
    let base = restart::base(memory, ring, conditions)?;
    let mut queue = restart::queue_at(memory, ring, base)?;
    let Some(chain) = queue.take(1)?.pop() else {
        return Ok(None);
    };
    let room: u64 = chain
        .writable
        .iter()
        .map(|range| u64::from(range.len()))
        .sum();
    if !chain.readable.is_empty() || room < word.len() as u64 {
        return Ok(None);
    }
    let mut transfers = [Transfer::to_guest(chain.writable, word)];
    queue.dma().transfer(&mut transfers);
    let [transfer] = transfers;
    transfer.result?;
    queue.push_copied(chain.head, u32::try_from(word.len()).unwrap_or(u32::MAX))?;
    Ok(Some(base.wrapping_add(1)))
}
