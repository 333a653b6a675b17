//! The device-model operations that only x86 Xen has.
//!
//! Kept as values so that they can be made, compared and encoded anywhere;
//! [`Privcmd::x86_op`] carries one out.

use std::fmt;

use zerocopy::IntoBytes;

use super::{Error, Result, ServerId};
use crate::domid::DomId;
use crate::privcmd::Privcmd;
use crate::sys::abi::dm_op as abi;

/// Contiguous guest frames.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Extent {
    /// First frame.
    pub first_gfn: u64,
    /// How many.
    pub count: u32,
}

/// Kind of an injected event (`XEN_DMOP_EVENT_*`).
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u8)]
pub enum EventKind {
    /// External interrupt.
    External = 0,
    /// Non-maskable interrupt.
    Nmi = 2,
    /// Hardware exception.
    HardwareException = 3,
    /// Software interrupt.
    SoftwareInterrupt = 4,
    /// Privileged software exception (ICEBP).
    PrivilegedSoftwareException = 5,
    /// Software exception (INT3, INTO).
    SoftwareException = 6,
}

/// One operation.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum X86Op {
    /// Marks pages and asks which were written to since the last call; the
    /// answer is a bitmap, one bit a page.
    TrackDirtyVram(Extent),
    /// Sets the level of a PCI interrupt pin.
    SetPciIntxLevel {
        /// PCI segment.
        segment: u16,
        /// PCI bus.
        bus: u8,
        /// PCI device.
        device: u8,
        /// 0 is INTA.
        pin: u8,
        /// Level.
        level: bool,
    },
    /// Sets the level of an ISA interrupt.
    SetIsaIrqLevel {
        /// 0 to 15.
        irq: u8,
        /// Level.
        level: bool,
    },
    /// Routes a PCI interrupt link.
    SetPciLinkRoute {
        /// 0 to 3.
        link: u8,
        /// 1 to 15, none to disable the link.
        irq: Option<u8>,
    },
    /// Says that pages were written to (during live migration).
    ModifiedMemory(Vec<Extent>),
    /// Changes the type of pages.
    SetMemType {
        /// `hvmmem_type_t`.
        mem_type: u16,
        /// The pages.
        extent: Extent,
    },
    /// Injects an event into a vCPU.
    InjectEvent {
        /// Index of the vCPU.
        vcpu: u32,
        /// Vector.
        vector: u8,
        /// What it is.
        kind: EventKind,
        /// Length of the instruction, in bytes.
        insn_len: u8,
        /// Error code, if the exception has one.
        error_code: Option<u32>,
        /// CR2 for a page fault.
        cr2: u64,
    },
    /// Delivers a message-signalled interrupt.
    InjectMsi {
        /// `0xfeexxxxx`.
        address: u64,
        /// The message.
        data: u32,
    },
    /// Sends accesses to pages of a type to an ioreq server, or no more.
    MapMemType {
        /// The server.
        id: ServerId,
        /// `hvmmem_type_t`.
        mem_type: u16,
        /// Whether writes are sent.
        writes: bool,
    },
    /// Declares that the domain shut down.
    RemoteShutdown {
        /// `SHUTDOWN_*`.
        reason: u32,
    },
    /// Moves guest frames.
    RelocateMemory {
        /// From there.
        from: Extent,
        /// To there.
        to_gfn: u64,
    },
    /// Pins the caching type of frames.
    PinMemoryCacheattr {
        /// First frame.
        first_gfn: u64,
        /// Last frame.
        last_gfn: u64,
        /// `XEN_DMOP_MEM_CACHEATTR_*`, all ones to unpin.
        kind: u32,
    },
}

impl X86Op {
    /// Its name in Xen's header, without the prefix.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            X86Op::TrackDirtyVram(_) => "track_dirty_vram",
            X86Op::SetPciIntxLevel { .. } => "set_pci_intx_level",
            X86Op::SetIsaIrqLevel { .. } => "set_isa_irq_level",
            X86Op::SetPciLinkRoute { .. } => "set_pci_link_route",
            X86Op::ModifiedMemory(_) => "modified_memory",
            X86Op::SetMemType { .. } => "set_mem_type",
            X86Op::InjectEvent { .. } => "inject_event",
            X86Op::InjectMsi { .. } => "inject_msi",
            X86Op::MapMemType { .. } => "map_mem_type_to_ioreq_server",
            X86Op::RemoteShutdown { .. } => "remote_shutdown",
            X86Op::RelocateMemory { .. } => "relocate_memory",
            X86Op::PinMemoryCacheattr { .. } => "pin_memory_cacheattr",
        }
    }

    /// Buffer 0 of the call.
    #[must_use]
    pub fn encode(&self) -> abi::DmOp {
        match *self {
            X86Op::TrackDirtyVram(Extent { first_gfn, count }) => {
                let (nr, first_pfn) = (count, first_gfn);
                let vram = abi::TrackDirtyVram {
                    nr,
                    pad: 0,
                    first_pfn,
                };
                abi::DmOp::new(abi::TRACK_DIRTY_VRAM, &vram)
            }
            X86Op::SetPciIntxLevel {
                segment,
                bus,
                device,
                pin,
                level,
            } => {
                let (domain, intx, level) = (segment, pin, level.into());
                let intx = abi::SetPciIntxLevel {
                    domain,
                    bus,
                    device,
                    intx,
                    level,
                };
                abi::DmOp::new(abi::SET_PCI_INTX_LEVEL, &intx)
            }
            X86Op::SetIsaIrqLevel { irq, level } => {
                let isa = abi::SetIsaIrqLevel {
                    isa_irq: irq,
                    level: level.into(),
                };
                abi::DmOp::new(abi::SET_ISA_IRQ_LEVEL, &isa)
            }
            X86Op::SetPciLinkRoute { link, irq } => {
                let route = abi::SetPciLinkRoute {
                    link,
                    isa_irq: irq.unwrap_or(0),
                };
                abi::DmOp::new(abi::SET_PCI_LINK_ROUTE, &route)
            }
            X86Op::ModifiedMemory(ref extents) => {
                let nr_extents = u32::try_from(extents.len()).unwrap_or(u32::MAX);
                let modified = abi::ModifiedMemory {
                    nr_extents,
                    opaque: 0,
                };
                abi::DmOp::new(abi::MODIFIED_MEMORY, &modified)
            }
            X86Op::SetMemType { mem_type, extent } => {
                let (nr, first_pfn) = (extent.count, extent.first_gfn);
                let types = abi::SetMemType {
                    nr,
                    mem_type,
                    pad: 0,
                    first_pfn,
                };
                abi::DmOp::new(abi::SET_MEM_TYPE, &types)
            }
            X86Op::InjectEvent {
                vcpu,
                vector,
                kind,
                insn_len,
                error_code,
                cr2,
            } => {
                let event = abi::InjectEvent {
                    vcpuid: vcpu,
                    vector,
                    kind: kind as u8,
                    insn_len,
                    // All ones: none.
                    error_code: error_code.unwrap_or(!0),
                    cr2,
                    ..Default::default()
                };
                abi::DmOp::new(abi::INJECT_EVENT, &event)
            }
            X86Op::InjectMsi { address, data } => {
                let msi = abi::InjectMsi {
                    data,
                    pad: 0,
                    addr: address,
                };
                abi::DmOp::new(abi::INJECT_MSI, &msi)
            }
            X86Op::MapMemType {
                id,
                mem_type,
                writes,
            } => {
                // XEN_DMOP_IOREQ_MEM_ACCESS_WRITE
                let flags = if writes { 2 } else { 0 };
                let map = abi::MapMemType {
                    id: id.0,
                    kind: mem_type,
                    flags,
                    opaque: 0,
                };
                abi::DmOp::new(abi::MAP_MEM_TYPE, &map)
            }
            X86Op::RemoteShutdown { reason } => {
                abi::DmOp::new(abi::REMOTE_SHUTDOWN, &abi::RemoteShutdown { reason })
            }
            X86Op::RelocateMemory { from, to_gfn } => {
                let (size, src_gfn, dst_gfn) = (from.count, from.first_gfn, to_gfn);
                let moved = abi::RelocateMemory {
                    size,
                    pad: 0,
                    src_gfn,
                    dst_gfn,
                };
                abi::DmOp::new(abi::RELOCATE_MEMORY, &moved)
            }
            X86Op::PinMemoryCacheattr {
                first_gfn,
                last_gfn,
                kind,
            } => {
                let (start, end) = (first_gfn, last_gfn);
                let pinned = abi::PinMemoryCacheattr {
                    start,
                    end,
                    kind,
                    pad: 0,
                };
                abi::DmOp::new(abi::PIN_MEMORY_CACHEATTR, &pinned)
            }
        }
    }

    /// Buffer 1 of the call, if it has one: what Xen reads from it, or room
    /// for what it writes.
    #[must_use]
    pub fn second_buffer(&self) -> Option<Vec<u8>> {
        match self {
            X86Op::TrackDirtyVram(extent) => {
                let bytes = usize::try_from(extent.count.div_ceil(8)).ok()?;
                Some(vec![0; bytes])
            }
            X86Op::ModifiedMemory(extents) => Some(
                extents
                    .iter()
                    .map(|extent| abi::ModifiedMemoryExtent {
                        nr: extent.count,
                        pad: 0,
                        first_pfn: extent.first_gfn,
                    })
                    .flat_map(|extent| extent.as_bytes().to_vec())
                    .collect(),
            ),
            _ => None,
        }
    }
}

impl fmt::Display for X86Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            X86Op::ModifiedMemory(extents) => write!(f, "{} extents", extents.len()),
            other => write!(f, "{other:?}"),
        }
    }
}

impl Privcmd {
    /// Carries out an operation that x86 alone has, and gives its second
    /// buffer as Xen left it (the bitmap of
    /// [`X86Op::TrackDirtyVram`]), empty for those without.
    ///
    /// # Errors
    /// [`Error::Failed`] with EOPNOTSUPP on Arm, and the general ones.
    pub fn x86_op(&self, dom: DomId, op: &X86Op) -> Result<Vec<u8>> {
        let mut first = op.encode();
        let mut second = op.second_buffer();
        let result = match &mut second {
            Some(second) => self.dm_op_raw(dom, &mut [first.as_mut_bytes(), second]),
            None => self.dm_op_raw(dom, &mut [first.as_mut_bytes()]),
        };
        result.map_err(|source| Error::new(dom, op.name(), op, source))?;
        Ok(second.unwrap_or_default())
    }
}
