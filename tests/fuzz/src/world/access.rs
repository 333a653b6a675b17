//! What synchronising, writing and coherent memory do, in the model and for
//! real.

use swiotlb::allocator::PadPolicy;
use swiotlb::*;

use super::{Held, HeldAs, RAM, World};
use crate::values::Number;

impl World {
    /// The part of a mapping that a synchronisation is about.
    pub(super) fn inside(&self, held: &Held, dma: u64, len: u64) -> Option<(u64, u64)> {
        let start = dma.checked_sub(held.dma)?;
        let end = match self.device.constraints().sync_policy {
            constraints::SyncPolicy::Strict => start.checked_add(len).filter(|&e| e <= held.len)?,
            constraints::SyncPolicy::Clamp => start.saturating_add(len).min(held.len),
        };
        (start <= end).then_some((start, end))
    }

    /// Copies in the model what a synchronisation copies.
    pub(super) fn synced(
        &mut self,
        index: usize,
        (from, to): (u64, u64),
        direction: Direction,
        turn: SyncFor,
    ) -> bool {
        if from == to {
            return true;
        }
        match turn {
            SyncFor::Cpu if direction.from_device() => {
                let held = self.held.remove(index);
                let copied = self.copy_back(&held, from, to).is_ok();
                self.held.insert(index, held);
                copied
            }
            SyncFor::Device if direction.to_device() => {
                let held = &mut self.held[index];
                // it was copied from there when it was mapped
                let orig = (held.orig + from) as usize;
                let fresh = &self.ram_model[orig..][..(to - from) as usize];
                held.bytes[from as usize..to as usize].copy_from_slice(fresh);
                if let Some(at) = held.at {
                    self.pool_model[at + from as usize..][..fresh.len()].copy_from_slice(fresh);
                }
                true
            }
            SyncFor::Cpu | SyncFor::Device => true,
        }
    }

    pub(super) fn sync(&mut self, which: u8, by: Number, len: Number, turn: SyncFor) {
        let Some(index) = self.pick(which, |held| matches!(held.kind, HeldAs::Value(_))) else {
            return;
        };
        let held = &self.held[index];
        let HeldAs::Value(mapping) = &held.kind else {
            return;
        };
        let dma = held.dma.wrapping_add(by.around(held.len));
        let len = len.around(held.len);
        let synced = mapping.sync(&self.window(), dma, len, turn);
        let direction = held.direction;
        let expected = match self.inside(held, dma, len) {
            Some(range) => self.synced(index, range, direction, turn),
            None => false,
        };
        assert_eq!(synced.is_ok(), expected, "{synced:?}");
    }

    pub(super) fn sync_address(&mut self, dma: u64, len: u64, direction: Direction, turn: SyncFor) {
        let synced = self.device.sync(&self.window(), dma, len, direction, turn);
        let Some(index) = self.owner(dma).filter(|_| direction != Direction::None) else {
            return;
        };
        let held = &self.held[index];
        let clamped = self.device.constraints().sync_policy == constraints::SyncPolicy::Clamp;
        let range = self
            .inside(held, dma, len)
            .filter(|_| !matches!(held.kind, HeldAs::Coherent))
            .filter(|(from, to)| !(clamped && from == to && len > 0));
        let covered = held.direction.covers(direction);
        let expected = match range.filter(|_| covered) {
            Some(range) => self.synced(index, range, direction, turn),
            None => false,
        };
        assert_eq!(synced.is_ok(), expected, "{synced:?}");
    }

    pub(super) fn device_writes(&mut self, which: u8, at: u16, len: u16, byte: u8) {
        let Some(index) = self.pick(which, |held| matches!(held.kind, HeldAs::Value(_))) else {
            return;
        };
        let held = &mut self.held[index];
        let HeldAs::Value(mapping) = &held.kind else {
            return;
        };
        let at = usize::from(at) % held.bytes.len();
        let len = usize::from(len).min(held.bytes.len() - at);
        let lease = mapping.bounced().expect("bounced").lease();
        let bytes = lease.bytes().expect("inside its pool");
        bytes
            .subslice(at, len)
            .expect("inside")
            .copy_from(&vec![byte; len]);
        held.bytes[at..at + len].fill(byte);
        if let Some(start) = held.at {
            self.pool_model[start + at..][..len].fill(byte);
        }
    }

    pub(super) fn guest_writes(&mut self, at: u64, len: u16, byte: u8) {
        let at = (at % RAM as u64) as usize;
        let len = usize::from(len).min(RAM - at);
        let ram = self.ram.slice();
        let bytes = ram.subslice(at, len).expect("inside");
        bytes.copy_from(&vec![byte; len]);
        self.ram_model[at..at + len].fill(byte);
    }

    pub(super) fn coherent(&mut self, size: u64) {
        let Ok(memory) = self.worker.alloc_coherent(size) else {
            self.forget_free_slots();
            return;
        };
        let len = size.next_multiple_of(4096);
        let (dma, slots) = (memory.dma_address(), u64::from(memory.lease().slots()));
        let bytes = memory.bytes().expect("inside its pool");
        assert_eq!(crate::heap::copy_of(&bytes), vec![0; len as usize]);
        let at = self.heaps.lock().expect("heaps")[0].offset_of(&bytes);
        assert_eq!(
            self.bus(dma).expect("in its window") % len.next_power_of_two(),
            0
        );
        assert!(self.held.iter().all(|held| {
            held.slots_at + held.slots * 2048 <= dma || dma + slots * 2048 <= held.slots_at
        }));
        if let Some(at) = at {
            let held = at..at + len as usize;
            self.pool_model[held].fill(0);
            if self.settings.pad == PadPolicy::Zero {
                self.pool_model[at..][..slots as usize * 2048].fill(0);
            }
        }
        let address = memory.into_dma_address();
        self.held.push(Held {
            kind: HeldAs::Coherent,
            orig: 0,
            len,
            direction: Direction::Bidirectional,
            dma: address,
            slots_at: address,
            slots,
            bytes: Vec::new(),
            at,
        });
    }

    pub(super) fn free_coherent(&mut self, dma: u64, size: u64) {
        let freed = self.device.free_coherent(dma, size);
        let index = self.held.iter().position(|held| {
            matches!(held.kind, HeldAs::Coherent)
                && held.dma == dma
                && size.checked_next_multiple_of(4096) == Some(held.len)
        });
        assert_eq!(freed.is_ok(), index.is_some(), "{freed:?}");
        if let Some(index) = index {
            self.held.remove(index);
        }
    }
}
