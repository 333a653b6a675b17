//! A back end's hands on the memory that it was given: it finds requests there,
//! and writes what it likes.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;

use vm_memory::{MmapRegion, VolatileMemory};

use super::SHADOW;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Where the rings' part of the memory ends, in which pages are shared.
const SLOTS: u64 = 1 << 18;
/// Pages behind it that are filled.
const FILLED: u64 = 40;

/// A buffer in the pool.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub address: u64,
    pub len: u64,
    pub writable: bool,
}

/// Memory and a ring in it.
pub struct Hands {
    memory: MmapRegion,
    /// Its address in messages and descriptors.
    base: u64,
    desc: u64,
    used: u64,
    avail: u64,
    /// Features of the ring.
    pub indirect: bool,
    pub event_idx: bool,
    pub kick: Option<File>,
    pub call: Option<File>,
    /// Entries used so far.
    pub next: u16,
}

impl Hands {
    pub fn new(memory: Arc<(File, u64, u64, u64)>, ring: [u64; 3], features: [bool; 2]) -> Self {
        let (file, offset, base, len) = &*memory;
        let file = file.try_clone().expect("a file");
        let file = vm_memory::FileOffset::new(file, *offset);
        let len = usize::try_from(*len).expect("a length");
        Hands {
            memory: MmapRegion::from_file(file, len).expect("memory that can be mapped"),
            base: *base,
            desc: ring[0],
            used: ring[1],
            avail: ring[2],
            event_idx: features[0],
            indirect: features[1],
            kick: None,
            call: None,
            next: 0,
        }
    }

    fn offset(&self, address: u64) -> usize {
        usize::try_from(address.wrapping_sub(self.base)).unwrap_or(usize::MAX)
    }

    /// What is at an address that it was given.
    pub fn read(&self, address: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(len).expect("a length")];
        let slice = self.memory.get_slice(self.offset(address), bytes.len());
        slice.expect("a buffer in the pool").copy_to(&mut bytes);
        bytes
    }

    /// Writes, as far as there is memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        if let Ok(slice) = self.memory.get_slice(self.offset(address), bytes.len()) {
            slice.copy_from(bytes);
        }
    }

    fn number<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let slice = self.memory.get_slice(self.offset(address), N);
        slice.expect("a ring in the pool").copy_to(&mut bytes);
        bytes
    }

    fn u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.number(address))
    }

    fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.number(address))
    }

    pub fn avail_index(&self) -> u16 {
        self.u16(self.avail + 2)
    }

    /// The head that was made available as number `index`.
    pub fn available(&self, index: u16) -> u16 {
        self.u16(self.avail + 4 + 2 * u64::from(index % SHADOW))
    }

    pub fn used_index(&self) -> u16 {
        self.u16(self.used + 2)
    }

    /// Id and length of the used entry number `index`.
    pub fn used_entry(&self, index: u16) -> (u32, u32) {
        let at = self.used + 4 + 8 * u64::from(index % SHADOW);
        (self.u32(at), self.u32(at + 4))
    }

    /// Whether its kick must have been rung when available entries from `old`
    /// to `new` were shown. virtio 1.3 §2.7.10
    pub fn wants_kick(&self, old: u16, new: u16) -> bool {
        if !self.event_idx {
            return old != new && self.u16(self.used) & 1 == 0;
        }
        let event = self.u16(self.event());
        event.wrapping_sub(old) < new.wrapping_sub(old)
    }

    /// Whether its kick was rung.
    pub fn was_kicked(&mut self) -> bool {
        let kick = self.kick.as_mut();
        kick.is_some_and(|kick| kick.read(&mut [0; 8]).is_ok())
    }

    /// Where it says when it wants to be kicked.
    fn event(&self) -> u64 {
        self.used + 4 + 8 * u64::from(SHADOW)
    }

    /// Buffers of the request at `head`, and their table if they have one.
    pub fn places(&self, head: u16) -> (Vec<Place>, Option<Place>) {
        let of = |at: u64| {
            let address = u64::from_le_bytes(self.number(at));
            let (flags, next) = (self.u16(at + 12), self.u16(at + 14));
            let place = Place {
                address,
                len: self.u32(at + 8).into(),
                writable: flags & WRITE != 0,
            };
            (place, flags, next)
        };
        let (first, flags, _) = of(self.desc + 16 * u64::from(head));
        let (mut places, mut at) = (Vec::new(), head);
        let (start, count, table) = if flags & INDIRECT == 0 {
            (self.desc, u64::from(SHADOW), None)
        } else {
            at = 0;
            (first.address, first.len / 16, Some(first))
        };
        for _ in 0..count {
            let (place, flags, next) = of(start + 16 * u64::from(at));
            places.push(place);
            if flags & NEXT == 0 {
                return (places, table);
            }
            assert!(u64::from(next) < count, "a chain leaves its table");
            at = next;
        }
        panic!("a chain has no end");
    }

    /// What else is in the last page of a buffer that has pages to itself.
    pub fn behind(&self, place: Place) -> Vec<u8> {
        let end = place.address + place.len;
        match place.address >= self.base + SLOTS {
            true => self.read(end, end.next_multiple_of(4096) - end),
            false => Vec::new(),
        }
    }

    /// Where its memory ends.
    pub fn end(&self) -> u64 {
        self.base + self.memory.size() as u64
    }

    /// Whether a buffer is in its memory and in no part of the ring.
    pub fn has(&self, place: Place) -> bool {
        place.address > self.event() && place.address + place.len <= self.end()
    }

    /// Writes a used entry; it is not shown yet.
    pub fn use_one(&mut self, id: u32, len: u32) {
        let at = self.used + 4 + 8 * u64::from(self.next % SHADOW);
        self.write(at, &[id.to_le_bytes(), len.to_le_bytes()].concat());
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the used entries, and calls.
    pub fn show(&mut self) {
        self.write(self.used + 2, &self.next.to_le_bytes());
        if let Some(call) = &mut self.call {
            let _ = call.write(&1u64.to_ne_bytes());
        }
    }

    /// Says when it wants to be kicked.
    pub fn set_event(&self, flags: u16, event: u16) {
        self.write(self.used, &flags.to_le_bytes());
        self.write(self.event(), &event.to_le_bytes());
    }

    /// Writes somewhere, but not to the available index: a driver writes that
    /// and reads it never, and the guest's model here does read it.
    pub fn scribble(&self, part: u16, bytes: &[u8]) {
        // mostly the rings and the cells, which begin the memory
        let most = if part & 0x8000 == 0 {
            0x3000
        } else {
            self.memory.size() as u64
        };
        let index = self.avail_index();
        self.write(self.base + u64::from(part & 0x7fff) * most / 0x8000, bytes);
        self.write(self.avail + 2, &index.to_le_bytes());
    }

    /// Fills what is behind the rings, as far as requests mostly are.
    pub fn fill(&self, byte: u8) {
        let start = self.event() + 2;
        self.write(start, &[byte; 4096 * 3]);
        let slots = self.base + SLOTS;
        for page in 0..FILLED {
            self.write(slots + page * 4096, &[byte; 4096]);
        }
    }
}
