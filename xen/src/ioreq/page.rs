//! The shared page and its slots, with the ordering that Xen relies on.
//!
//! Used by the server and by the tickets it gives out, on any thread. Xen
//! owns a slot in NONE, READY and IORESP_READY; whoever moved it from READY
//! to INPROCESS owns it until IORESP_READY.

use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use vm_memory::{AtomicInteger, VolatileMemory, VolatileSlice};

use super::request::{Direction, Ioreq, IoreqKind};
use super::{Error, Result};
use crate::domid::DomId;
use crate::evtchn::Channel;
use crate::sys::abi::ioreq as abi;
use crate::sys::mapping::Mapping;

/// What a look at a slot gave.
#[derive(Debug)]
pub(super) enum Look {
    /// Nothing to do: no request, one already answered, or one that a ticket
    /// is out for.
    Nothing,
    /// Somebody else (the kernel's ioeventfd) has it in hand.
    Busy,
    /// A request, now ours.
    Taken(Ioreq),
}

/// One vCPU's place in the server.
#[derive(Debug)]
pub(super) struct Vcpu {
    /// The channel that its requests come by.
    pub(super) channel: Channel,
    /// Whether a request of it is ours and unanswered. Who clears it answers.
    held: AtomicBool,
}

impl Vcpu {
    pub(super) fn new(channel: Channel) -> Vcpu {
        Vcpu {
            channel,
            held: AtomicBool::new(false),
        }
    }
}

/// The mapped page, and every vCPU once the server is enabled.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) dom: DomId,
    mapping: Mapping,
}

impl Page {
    pub(super) fn new(dom: DomId, mapping: Mapping) -> Page {
        Page { dom, mapping }
    }

    /// Address of the page, for ioeventfd.
    pub(super) fn address(&self) -> usize {
        self.mapping.address()
    }

    /// The event channel that Xen names for a vCPU, once the server is
    /// enabled; 0 or none before.
    pub(super) fn remote_port(&self, vcpu: u32) -> Option<u32> {
        let slot = self.slot(vcpu)?;
        let port: &AtomicU32 = slot.field(offset_of!(abi::Ioreq, vp_eport))?;
        Some(port.load(Ordering::Relaxed))
    }

    fn slot(&self, vcpu: u32) -> Option<Slot<'_>> {
        let size = size_of::<abi::Ioreq>();
        let start = usize::try_from(vcpu).ok()?.checked_mul(size)?;
        let memory = self.mapping.volatile().subslice(start, size).ok()?;
        Some(Slot { memory })
    }

    /// Takes the request of a vCPU, if there is one.
    pub(super) fn look(&self, index: u32, vcpu: &Vcpu) -> Look {
        let Some(slot) = self.slot(index) else {
            return Look::Nothing;
        };
        let Some(bits) = slot.bits() else {
            return Look::Nothing;
        };
        let seen = bits.load(Ordering::Acquire);
        match seen & abi::BITS_STATE {
            abi::STATE_READY => {}
            abi::STATE_INPROCESS if !vcpu.held.load(Ordering::Acquire) => return Look::Busy,
            _ => return Look::Nothing,
        }
        let ours = seen & !abi::BITS_STATE | abi::STATE_INPROCESS;
        // The kernel's ioeventfd may take it at this very moment; then it is
        // looked at again. Acquire: the fields below were written before READY.
        if bits
            .compare_exchange(seen, ours, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            return Look::Busy;
        }
        vcpu.held.store(true, Ordering::Release);
        match slot.read(index, seen) {
            Some(request) => Look::Taken(request),
            None => Look::Nothing,
        }
    }

    /// Answers a vCPU's request and lets it run. `data` is what a read gives;
    /// none leaves the slot's data alone. Without a `request` whatever stands
    /// there is answered: the server is ending.
    pub(super) fn answer(
        &self,
        index: u32,
        vcpu: &Vcpu,
        request: Option<&Ioreq>,
        data: Option<u64>,
    ) -> Result<()> {
        let stale = || Error::Stale {
            dom: self.dom,
            vcpu: index,
        };
        if !vcpu.held.swap(false, Ordering::AcqRel) {
            return Err(stale());
        }
        let slot = self.slot(index).ok_or_else(stale)?;
        let bits = slot.bits().ok_or_else(stale)?;
        loop {
            let seen = bits.load(Ordering::Acquire);
            let is_ours = match seen & abi::BITS_STATE {
                abi::STATE_INPROCESS => true,
                // The kernel's ioeventfd looks and stores without care for who
                // took the request in between, and then puts one that it does
                // not know back to READY: it is still ours to answer. One that
                // it did know it has answered itself, and what stands here
                // then is another.
                abi::STATE_READY => {
                    request.is_none_or(|request| slot.read(index, seen).as_ref() == Some(request))
                }
                _ => false,
            };
            if !is_ours {
                return Err(stale());
            }
            if let Some(data) = data {
                let field: &AtomicU64 =
                    slot.field(offset_of!(abi::Ioreq, data)).ok_or_else(stale)?;
                field.store(data, Ordering::Relaxed);
            }
            let answered = seen & !abi::BITS_STATE | abi::STATE_RESP_READY;
            // Release: Xen sees the data before the state.
            if bits
                .compare_exchange(seen, answered, Ordering::Release, Ordering::Relaxed)
                .is_ok()
            {
                break;
            }
        }
        vcpu.channel.notify().map_err(|source| Error::Events {
            dom: self.dom,
            source,
        })
    }

    /// Whether a vCPU's slot is free: Xen has taken the last answer.
    pub(super) fn is_free(&self, index: u32) -> bool {
        let slot = self.slot(index);
        let bits = slot.as_ref().and_then(Slot::bits);
        bits.is_none_or(|bits| bits.load(Ordering::Acquire) & abi::BITS_STATE == abi::STATE_NONE)
    }

    /// Whether an answer of ours is outstanding.
    pub(super) fn is_held(vcpu: &Vcpu) -> bool {
        vcpu.held.load(Ordering::Acquire)
    }
}

/// One vCPU's 32 bytes.
struct Slot<'a> {
    memory: VolatileSlice<'a>,
}

impl Slot<'_> {
    /// A field of the slot, by its offset. None for one that is not aligned
    /// or lies outside, which the layout rules out.
    fn field<T: AtomicInteger>(&self, offset: usize) -> Option<&T> {
        self.memory.get_atomic_ref(offset).ok()
    }

    /// State, direction and flags.
    fn bits(&self) -> Option<&AtomicU8> {
        self.field(offset_of!(abi::Ioreq, bits))
    }

    /// Copies the request out. `bits` is the byte seen when it was READY.
    fn read(&self, vcpu: u32, bits: u8) -> Option<Ioreq> {
        let word = |offset| {
            self.field::<AtomicU64>(offset)
                .map(|field| field.load(Ordering::Relaxed))
        };
        let half = |offset| {
            self.field::<AtomicU32>(offset)
                .map(|field| field.load(Ordering::Relaxed))
        };
        let kind: &AtomicU8 = self.field(offset_of!(abi::Ioreq, kind))?;
        Some(Ioreq {
            vcpu,
            address: word(offset_of!(abi::Ioreq, addr))?,
            data: word(offset_of!(abi::Ioreq, data))?,
            count: half(offset_of!(abi::Ioreq, count))?,
            size: half(offset_of!(abi::Ioreq, size))?,
            direction: if bits & abi::BITS_DIR == 0 {
                Direction::Write
            } else {
                Direction::Read
            },
            kind: IoreqKind::from_raw(kind.load(Ordering::Relaxed)),
            df: bits & abi::BITS_DF != 0,
            data_is_ptr: bits & abi::BITS_DATA_IS_PTR != 0,
        })
    }
}
