//! One vCPU's slot of the ioreq page, seen from Xen's side.
//!
//! The offsets stand here a second time on purpose: a device model that had
//! the layout wrong would otherwise agree with its own mistake.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, VolatileSlice};

use crate::Mapping;

// struct ioreq, xen/include/public/hvm/ioreq.h
const SLOT_BYTES: usize = 32;
const ADDRESS: usize = 0;
const DATA: usize = 8;
const COUNT: usize = 16;
const SIZE: usize = 20;
const EVENT_PORT: usize = 24;
const BITS: usize = 30;
const KIND: usize = 31;
const STATE_MASK: u8 = 0x0f;
const DIR_BIT: u8 = 0x20;

/// `STATE_IOREQ_NONE`.
pub(super) const STATE_NONE: u8 = 0;
/// `STATE_IOREQ_READY`.
pub(super) const STATE_READY: u8 = 1;
/// `STATE_IOREQ_INPROCESS`.
pub(super) const STATE_INPROCESS: u8 = 2;
/// `STATE_IORESP_READY`.
pub(super) const STATE_RESP_READY: u8 = 3;
/// `IOREQ_TYPE_COPY`.
pub(super) const TYPE_COPY: u8 = 1;
/// `IOREQ_TYPE_INVALIDATE`.
pub(super) const TYPE_INVALIDATE: u8 = 8;

/// What Xen asks the device model.
#[derive(Copy, Clone, Debug)]
pub(super) struct Request {
    /// Guest-physical address.
    pub(super) address: u64,
    /// Value written, or 0.
    pub(super) data: u64,
    /// Bytes.
    pub(super) size: u32,
    /// The guest reads.
    pub(super) read: bool,
    /// `IOREQ_TYPE_*`.
    pub(super) kind: u8,
}

/// A slot in a mapped ioreq page.
pub(super) struct Slot<'a>(VolatileSlice<'a>);

impl<'a> Slot<'a> {
    /// The slot of `vcpu`; `None` past the page's end.
    pub(super) fn of(page: &'a Mapping, vcpu: u32) -> Option<Slot<'a>> {
        let at = usize::try_from(vcpu).ok()?.checked_mul(SLOT_BYTES)?;
        page.volatile().subslice(at, SLOT_BYTES).ok().map(Slot)
    }

    /// The state nibble; what was written before it is visible after.
    pub(super) fn state(&self) -> u8 {
        self.0.load(BITS, Ordering::Acquire).unwrap_or(0u8) & STATE_MASK
    }

    /// Sets the state nibble; what was written before is visible with it.
    pub(super) fn set_state(&self, state: u8) {
        let bits: u8 = self.0.load(BITS, Ordering::Relaxed).unwrap_or(0);
        self.store(BITS, (bits & !STATE_MASK) | (state & STATE_MASK));
    }

    /// The event channel that the slot names.
    pub(super) fn event_port(&self) -> u32 {
        self.get32(EVENT_PORT)
    }

    /// Names the event channel.
    pub(super) fn set_event_port(&self, port: u32) {
        self.put32(EVENT_PORT, port);
    }

    /// The data field.
    pub(super) fn data(&self) -> u64 {
        self.get64(DATA)
    }

    /// The request as it stands in the slot.
    pub(super) fn request(&self) -> Request {
        let bits: u8 = self.0.load(BITS, Ordering::Relaxed).unwrap_or(0);
        Request {
            address: self.get64(ADDRESS),
            data: self.get64(DATA),
            size: self.get32(SIZE),
            read: bits & DIR_BIT != 0,
            kind: self.0.load(KIND, Ordering::Relaxed).unwrap_or(0),
        }
    }

    /// Writes a request and makes it READY, in the order `ioreq_send` has
    /// (`xen/common/ioreq.c`): contents first, then the state.
    pub(super) fn send(&self, request: Request, port: u32) {
        let dir = if request.read { DIR_BIT } else { 0 };
        self.put64(ADDRESS, request.address);
        self.put64(DATA, request.data);
        self.put32(COUNT, 1);
        self.put32(SIZE, request.size);
        self.put32(EVENT_PORT, port);
        self.store(KIND, request.kind);
        self.store(BITS, dir | STATE_NONE);
        self.set_state(STATE_READY);
    }

    fn store(&self, at: usize, value: u8) {
        // The offsets lie within the slot, so the access cannot fail.
        let stored = self.0.store(value, at, Ordering::Release);
        debug_assert!(stored.is_ok());
    }

    fn get32(&self, at: usize) -> u32 {
        self.0.load(at, Ordering::Relaxed).unwrap_or(0)
    }

    fn get64(&self, at: usize) -> u64 {
        self.0.load(at, Ordering::Relaxed).unwrap_or(0)
    }

    fn put32(&self, at: usize, value: u32) {
        let stored = self.0.store(value, at, Ordering::Relaxed);
        debug_assert!(stored.is_ok());
    }

    fn put64(&self, at: usize, value: u64) {
        let stored = self.0.store(value, at, Ordering::Relaxed);
        debug_assert!(stored.is_ok());
    }
}
