//! A ring in the pool, of which this side is the driver. virtio 1.3 §2.7
//!
//! What this side wrote is never read back from there: which descriptors are
//! free, and what is in flight, is kept in private. What the back end writes is
//! read once, field by field, and judged.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use swiotlb::{Access, PoolMemory};
use virtio_bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};
use vm_memory::{Bytes, VolatileSlice};
use zerocopy::IntoBytes;

use super::error::Violation;
use super::line::Piece;
use super::pool::{CELL, RingLayout, SMALL_TABLE};
use crate::virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC};
use crate::virtio::queue::Descriptor;

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR: usize = size_of::<Descriptor>();

/// Memory of an indirect table that is not small, and its address for the back
/// end.
pub(super) type Table<'a> = (VolatileSlice<'a>, u64);

/// See the module. Belongs to one worker.
#[derive(Debug)]
pub(super) struct ShadowRing {
    memory: PoolMemory,
    layout: RingLayout,
    event_idx: bool,
    indirect: bool,
    /// Descriptors that nobody uses.
    free: Vec<u16>,
    /// How many descriptors the chain at each head has; none of what is not in
    /// flight.
    lens: Vec<u16>,
    /// The successor of each descriptor of a chain in flight.
    next: Vec<u16>,
    in_flight: usize,
    /// Entries made available, and of these shown.
    avail: Wrapping<u16>,
    shown: Wrapping<u16>,
    used: Wrapping<u16>,
}

impl ShadowRing {
    /// An empty ring in zeroed memory, for the back end's `features`.
    pub(super) fn new(memory: PoolMemory, layout: RingLayout, features: u64) -> Self {
        let size = usize::from(layout.size);
        ShadowRing {
            memory,
            layout,
            event_idx: features & RING_EVENT_IDX != 0,
            indirect: features & RING_INDIRECT_DESC != 0,
            free: (0..layout.size).rev().collect(),
            lens: vec![0; size],
            next: vec![0; size],
            in_flight: 0,
            avail: Wrapping(0),
            shown: Wrapping(0),
            used: Wrapping(0),
        }
    }

    /// Chains in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether a chain of `pieces` buffers goes through a table.
    pub(super) fn is_indirect(&self, pieces: usize) -> bool {
        // one descriptor for each chain: as many are in flight as the guest's
        // ring holds, whatever they are made of
        self.indirect && pieces > 1
    }

    /// Whether its table needs memory of its own.
    pub(super) fn needs_table(&self, pieces: usize) -> bool {
        self.is_indirect(pieces) && pieces > SMALL_TABLE
    }

    /// Descriptors that a chain of `pieces` buffers takes; `None` if the ring
    /// could never hold it.
    pub(super) fn cost(&self, pieces: usize) -> Option<usize> {
        match self.is_indirect(pieces) {
            true => Some(1),
            false => (pieces <= usize::from(self.layout.size)).then_some(pieces),
        }
    }

    /// Descriptors that are free.
    pub(super) fn room(&self) -> usize {
        self.free.len()
    }

    /// Where the next head's cell is, for the back end; `None` if there is no room.
    pub(super) fn next_cell(&self) -> Option<u64> {
        self.free
            .last()
            .map(|&head| self.memory.base() + self.cell(head))
    }

    fn cell(&self, head: u16) -> u64 {
        self.layout.cells + u64::from(head) * CELL
    }

    /// Writes a chain; [`ShadowRing::publish`] shows it. There is room, and
    /// memory for a table where it needs some. Returns its head.
    ///
    /// # Errors
    /// [`Violation::Memory`].
    pub(super) fn add(
        &mut self,
        pieces: &[Piece],
        table: Option<Table<'_>>,
    ) -> Result<u16, Violation> {
        let head = *self.free.last().ok_or(Violation::Memory)?;
        let count = match self.is_indirect(pieces.len()) {
            true => {
                self.write_table(head, pieces, table)?;
                1
            }
            false => self.write_chain(pieces)?,
        };
        if let Some(len) = self.lens.get_mut(usize::from(head)) {
            *len = count;
        }
        let slot = u64::from(self.avail.0 % self.layout.size);
        self.store(self.layout.avail + 4 + 2 * slot, head, Ordering::Relaxed)?;
        self.avail += 1;
        self.in_flight += 1;
        Ok(head)
    }

    fn write_table(
        &mut self,
        head: u16,
        pieces: &[Piece],
        table: Option<Table<'_>>,
    ) -> Result<(), Violation> {
        let len = pieces.len() * DESCRIPTOR;
        let (memory, address) = match table {
            Some(table) => table,
            None => {
                let own = self.cell(head);
                let memory = self.memory.slice(own, len as u64);
                (memory.ok_or(Violation::Memory)?, self.memory.base() + own)
            }
        };
        let mut next = 0;
        for (at, some) in pieces.chunks(SMALL_TABLE).enumerate() {
            let mut descriptors = [Descriptor::default(); SMALL_TABLE];
            for (piece, place) in some.iter().zip(&mut descriptors) {
                next += 1;
                let is_last = usize::from(next) == pieces.len();
                *place = descriptor(piece, (!is_last).then_some(next));
            }
            let bytes = descriptors.get(..some.len()).unwrap_or_default();
            let written = memory.write_slice(bytes.as_bytes(), at * SMALL_TABLE * DESCRIPTOR);
            written.map_err(|_| Violation::Memory)?;
        }
        let descriptor = Descriptor {
            addr: address.to_le(),
            len: u32::try_from(len).unwrap_or(u32::MAX).to_le(),
            flags: bit(VRING_DESC_F_INDIRECT).to_le(),
            next: 0,
        };
        self.write_descriptor(head, &descriptor)?;
        self.free.pop();
        Ok(())
    }

    fn write_chain(&mut self, pieces: &[Piece]) -> Result<u16, Violation> {
        let start = self.free.len().checked_sub(pieces.len());
        let start = start.ok_or(Violation::Memory)?;
        // the head is the last of them
        let chosen = self.free.get(start..).unwrap_or_default();
        let mut next = None;
        for (piece, &own) in pieces.iter().rev().zip(chosen) {
            if let Some(link) = self.next.get_mut(usize::from(own)) {
                *link = next.unwrap_or(0);
            }
            self.write_descriptor(own, &descriptor(piece, next))?;
            next = Some(own);
        }
        self.free.truncate(start);
        Ok(u16::try_from(pieces.len()).unwrap_or(u16::MAX))
    }

    fn write_descriptor(&self, index: u16, descriptor: &Descriptor) -> Result<(), Violation> {
        let at = self.layout.desc + (usize::from(index) * DESCRIPTOR) as u64;
        self.memory
            .slice(at, DESCRIPTOR as u64)
            .and_then(|slice| slice.write_slice(descriptor.as_bytes(), 0).ok())
            .ok_or(Violation::Memory)
    }

    /// Shows what was added. True: the back end wants a kick.
    ///
    /// # Errors
    /// [`Violation::Memory`].
    pub(super) fn publish(&mut self) -> Result<bool, Violation> {
        if self.avail == self.shown {
            return Ok(false);
        }
        let old = std::mem::replace(&mut self.shown, self.avail);
        // what it stands for is written by now
        self.store(self.layout.avail + 2, self.avail.0, Ordering::Release)?;
        // orders the index before what is read below
        fence(Ordering::SeqCst);
        if !self.event_idx {
            let flags = self.load(self.layout.used, Ordering::Relaxed)?;
            return Ok(flags & bit(VRING_USED_F_NO_NOTIFY) == 0);
        }
        let at = self.layout.used + 4 + 8 * u64::from(self.layout.size);
        let event = Wrapping(self.load(at, Ordering::Relaxed)?);
        // virtio 1.3 §2.7.10
        Ok(self.avail - event - Wrapping(1) < self.avail - old)
    }

    /// Takes the used entries that are there: head and bytes declared, each
    /// head once.
    ///
    /// # Errors
    /// What the back end did wrong; `out` has what came before.
    pub(super) fn take_used(&mut self, out: &mut Vec<(u16, u32)>) -> Result<(), Violation> {
        let index = Wrapping(self.load(self.layout.used + 2, Ordering::Acquire)?);
        let ahead = (index - self.used).0;
        if usize::from(ahead) > self.in_flight {
            return Err(Violation::Index {
                index: index.0,
                ahead,
                in_flight: self.in_flight,
            });
        }
        for _ in 0..ahead {
            let slot = u64::from(self.used.0 % self.layout.size);
            let at = self.layout.used + 4 + 8 * slot;
            let id: u32 = self.load_u32(at)?;
            let len = self.load_u32(at + 4)?;
            let head = self.release(id)?;
            self.used += 1;
            out.push((head, len));
        }
        Ok(())
    }

    /// Takes the descriptors of a chain back.
    fn release(&mut self, id: u32) -> Result<u16, Violation> {
        let unknown = Violation::NotInFlight { id };
        let head = u16::try_from(id).map_err(|_| unknown)?;
        let len = self.lens.get_mut(usize::from(head)).ok_or(unknown)?;
        let count = std::mem::take(len);
        if count == 0 {
            return Err(unknown);
        }
        let mut index = head;
        for _ in 0..count {
            self.free.push(index);
            index = self.next.get(usize::from(index)).copied().unwrap_or(0);
        }
        self.in_flight -= 1;
        Ok(head)
    }

    /// Whether there are used entries to be taken; also if that cannot be told,
    /// which [`ShadowRing::take_used`] then says.
    pub(super) fn has_used(&self) -> bool {
        let index = self.load(self.layout.used + 2, Ordering::Acquire);
        index != Ok(self.used.0)
    }

    /// Asks for a call at the next used entry. True: it is there already.
    ///
    /// # Errors
    /// [`Violation::Memory`].
    pub(super) fn rest(&mut self) -> Result<bool, Violation> {
        if self.event_idx {
            let at = self.layout.avail + 4 + 2 * u64::from(self.layout.size);
            self.store(at, self.used.0, Ordering::Relaxed)?;
            // orders the event before the index
            fence(Ordering::SeqCst);
        }
        let index = self.load(self.layout.used + 2, Ordering::Acquire)?;
        Ok(index != self.used.0)
    }

    fn store(&self, at: u64, value: u16, order: Ordering) -> Result<(), Violation> {
        self.memory
            .slice(at, 2)
            .and_then(|slice| slice.store(value.to_le(), 0, order).ok())
            .ok_or(Violation::Memory)
    }

    fn load(&self, at: u64, order: Ordering) -> Result<u16, Violation> {
        self.memory
            .slice(at, 2)
            .and_then(|slice| slice.load(0, order).ok())
            .map(u16::from_le)
            .ok_or(Violation::Memory)
    }

    fn load_u32(&self, at: u64) -> Result<u32, Violation> {
        self.memory
            .slice(at, 4)
            .and_then(|slice| slice.load(0, Ordering::Relaxed).ok())
            .map(u32::from_le)
            .ok_or(Violation::Memory)
    }
}

fn descriptor(piece: &Piece, next: Option<u16>) -> Descriptor {
    let write = match piece.access {
        Access::Write => bit(VRING_DESC_F_WRITE),
        Access::Read => 0,
    };
    let more = match next {
        Some(_) => bit(VRING_DESC_F_NEXT),
        None => 0,
    };
    Descriptor {
        addr: piece.address.to_le(),
        len: piece.range.len().to_le(),
        flags: (write | more).to_le(),
        next: next.unwrap_or(0).to_le(),
    }
}

/// A flag of descriptors or rings, of which there are sixteen.
fn bit(flag: u32) -> u16 {
    u16::try_from(flag).unwrap_or(0)
}
