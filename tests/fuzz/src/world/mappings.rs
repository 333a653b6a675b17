//! What mapping and unmapping do, in the model and for real.

use std::sync::Arc;

use swiotlb::allocator::{Isolation, PadPolicy};
use swiotlb::contiguity::FrameTranslation;
use swiotlb::*;

use super::{Held, HeldAs, World};
use crate::values::Number;

impl World {
    pub(super) fn map(&mut self, orig: u64, len: u64, direction: Direction, attrs: &Attrs) -> bool {
        let mapped = self
            .worker
            .map_owned(&self.window(), orig, len, direction, attrs);
        match mapped {
            Err(_) => {
                // slots that were taken for it may have been padded
                self.forget_free_slots();
                false
            }
            Ok(mapping) if mapping.bounced().is_none() => {
                self.check_direct(&mapping, orig, len, attrs);
                self.direct.push(mapping);
                self.direct.truncate(4);
                false
            }
            Ok(mapping) => {
                assert!(direction != Direction::None && len > 0);
                self.hold(mapping, orig, attrs);
                true
            }
        }
    }

    /// INV-12 and INV-13.
    pub(super) fn check_direct(
        &self,
        mapping: &Mapping<Arc<Device>>,
        orig: u64,
        len: u64,
        attrs: &Attrs,
    ) {
        let (dma, last) = (mapping.dma_address(), orig + (len - 1));
        assert!(dma.checked_add(len - 1).expect("no wrap") <= self.device.limit());
        if attrs.mmio {
            return;
        }
        let bus = self.bus(dma).expect("in its window");
        for gfn in (orig / 4096..=last / 4096).take(256) {
            let bfn = self.foreign.gfn_to_bfn(gfn).expect("a frame");
            assert_eq!(bfn - bus / 4096, gfn - orig / 4096, "not one piece");
        }
    }

    pub(super) fn hold(&mut self, mapping: Mapping<Arc<Device>>, orig: u64, attrs: &Attrs) {
        let device = self.device.constraints().clone();
        let lease = mapping.bounced().expect("bounced").lease();
        let (dma, len, direction) = (lease.dma_address(), lease.len(), lease.direction());
        let slots = u64::from(lease.slots());
        // INV-03 and INV-12
        let bus = self.bus(dma).expect("in its window");
        assert_eq!((bus ^ orig) & device.min_align_mask, 0);
        assert!(dma.checked_add(len - 1).expect("no wrap") <= self.device.limit());
        let granule = if device.untrusted {
            u64::from(device.granule.max(1)) - 1
        } else {
            0
        };
        let page = if self.settings.isolation == Isolation::Page {
            4095
        } else {
            0
        };
        let align = (attrs.align - 1) | granule | page;
        let before = orig & device.min_align_mask & (align | 2047);
        let slots_at = dma - before;
        assert_eq!((bus - before) & align, 0);
        assert!(slots * 2048 >= before + len);
        if device.seg_boundary != u64::MAX {
            let window = |address: u64| address / (device.seg_boundary + 1);
            assert_eq!(
                window(bus - before),
                window(bus - before + slots * 2048 - 1)
            );
        }
        // INV-01
        let disjoint = |held: &Held| {
            held.slots_at + held.slots * 2048 <= slots_at
                || slots_at + slots * 2048 <= held.slots_at
        };
        assert!(self.held.iter().all(disjoint), "slots have two owners");
        let bytes = lease.bytes().expect("inside its pool");
        let at = self.heaps.lock().expect("heaps")[0].offset_of(&bytes);
        let fills = direction.to_device() || device.consumer == Consumer::Trusted;
        let mut seen = match (fills, device.consumer) {
            (true, _) => self.ram_model[orig as usize..][..len as usize].to_vec(),
            (false, Consumer::Declaring) => crate::heap::copy_of(&bytes),
            (false, _) => vec![0; len as usize],
        };
        if at.is_none() {
            // a transient pool's bytes are looked at here, the pool's in `check_bytes`
            assert_eq!(crate::heap::copy_of(&bytes), seen);
        }
        if let Some(at) = at {
            let start = at - before as usize;
            if self.settings.pad == PadPolicy::Zero {
                let end = start + slots as usize * 2048;
                self.pool_model[start..at].fill(0);
                self.pool_model[at + len as usize..end].fill(0);
            }
            if !fills && device.consumer == Consumer::Declaring {
                seen.copy_from_slice(&self.pool_model[at..][..len as usize]);
            }
            self.pool_model[at..][..len as usize].copy_from_slice(&seen);
        }
        self.held.push(Held {
            orig,
            len,
            direction,
            dma,
            slots_at,
            slots,
            bytes: seen,
            at,
            kind: HeldAs::Value(mapping),
        });
    }

    /// The last one goes on as an address.
    pub(super) fn leave(&mut self) {
        let held = self.held.last_mut().expect("just mapped");
        if let HeldAs::Value(mapping) = std::mem::replace(&mut held.kind, HeldAs::Address) {
            assert_eq!(mapping.into_dma_address(), held.dma);
        }
    }

    /// Its slots are free again.
    pub(super) fn freed(&mut self, held: &Held) {
        if let Some(at) = held.at.filter(|_| self.settings.scrub_on_free) {
            let start = at - (held.dma - held.slots_at) as usize;
            self.pool_model[start..][..held.slots as usize * 2048].fill(0);
        }
    }

    /// What is in free slots does not matter after a mapping that failed.
    pub(super) fn forget_free_slots(&mut self) {
        let heaps = self.heaps.lock().expect("heaps");
        let mut now = heaps[0].bytes().to_vec();
        for held in &self.held {
            if let Some(at) = held.at {
                let start = at - (held.dma - held.slots_at) as usize;
                let slots = start..start + held.slots as usize * 2048;
                now[slots.clone()].copy_from_slice(&self.pool_model[slots]);
            }
        }
        self.pool_model = now;
    }

    /// Copies back in the model; what the crate has to say of it.
    pub(super) fn copy_back(&mut self, held: &Held, from: u64, to: u64) -> Result<(), ()> {
        let part = &held.bytes[from as usize..to as usize];
        let start = held.orig.checked_add(from).ok_or(())?;
        let start = usize::try_from(start).map_err(|_| ())?;
        let end = start.checked_add(part.len()).ok_or(())?;
        let original = self.ram_model.get_mut(start..end).ok_or(())?;
        original.copy_from_slice(part);
        Ok(())
    }

    pub(super) fn copy_back_all(&mut self, held: &Held, direction: Direction) -> Result<(), ()> {
        let whole = match self.device.constraints().consumer {
            Consumer::Trusted => true,
            Consumer::Declaring => false,
            Consumer::Untrusted { copy_back_whole } => copy_back_whole,
        };
        match whole && direction.from_device() {
            true => self.copy_back(held, 0, held.len),
            false => Ok(()),
        }
    }

    pub(super) fn unmap(&mut self, which: u8) {
        let Some(index) = self.pick(which, |held| matches!(held.kind, HeldAs::Value(_))) else {
            return;
        };
        let mut held = self.held.remove(index);
        let HeldAs::Value(mapping) = std::mem::replace(&mut held.kind, HeldAs::Address) else {
            return;
        };
        let unmapped = mapping.unmap(&self.window());
        let expected = self.copy_back_all(&held, held.direction);
        assert_eq!(unmapped.is_ok(), expected.is_ok());
        self.freed(&held);
    }

    pub(super) fn unmap_written(&mut self, which: u8, ends: [Number; 4]) {
        let Some(index) = self.pick(which, |held| matches!(held.kind, HeldAs::Value(_))) else {
            return;
        };
        let mut held = self.held.remove(index);
        let HeldAs::Value(mapping) = std::mem::replace(&mut held.kind, HeldAs::Address) else {
            return;
        };
        let [a, b, c, d] = ends.map(|end| end.around(held.len));
        let parts = [a..b, c..d];
        let unmapped = mapping.unmap_written(&self.window(), &parts);
        let inside = |part: &std::ops::Range<u64>| part.start <= part.end && part.end <= held.len;
        let mut expected = parts.iter().all(inside);
        if expected && held.direction.from_device() {
            for part in parts.iter().filter(|part| !part.is_empty()) {
                expected &= self.copy_back(&held, part.start, part.end).is_ok();
            }
        }
        assert_eq!(unmapped.is_ok(), expected, "{unmapped:?}");
        self.freed(&held);
    }

    pub(super) fn unmap_address(
        &mut self,
        dma: u64,
        len: u64,
        direction: Direction,
        attrs: &Attrs,
    ) {
        let unmapped = self
            .device
            .unmap(&self.window(), dma, len, direction, attrs);
        let index = self.held.iter().position(|held| {
            matches!(held.kind, HeldAs::Address)
                && held.dma == dma
                && held.len == len
                && held.direction.covers(direction)
        });
        let Some(index) = index else {
            let harmless = unmapped.is_err() || (self.owner(dma).is_none() && !self.in_pool(dma));
            assert!(harmless || self.bus(dma).is_none(), "what was unmapped?");
            return;
        };
        let held = self.held.remove(index);
        let expected = match attrs.skip_cpu_sync {
            true => Ok(()),
            false => self.copy_back_all(&held, direction),
        };
        assert_eq!(unmapped.is_ok(), expected.is_ok(), "{unmapped:?}");
        self.freed(&held);
    }
}
