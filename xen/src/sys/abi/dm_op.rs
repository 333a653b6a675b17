//! Device-model operations: `xen/include/public/hvm/dm_op.h`.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::assert_layout;

/// `XEN_DMOP_create_ioreq_server`, with [`CreateIoreqServer`].
pub const CREATE_IOREQ_SERVER: u32 = 1;
/// `XEN_DMOP_get_ioreq_server_info`, with [`GetIoreqServerInfo`].
pub const GET_IOREQ_SERVER_INFO: u32 = 2;
/// `XEN_DMOP_map_io_range_to_ioreq_server`, with [`IoreqServerRange`].
pub const MAP_IO_RANGE: u32 = 3;
/// `XEN_DMOP_unmap_io_range_from_ioreq_server`, with [`IoreqServerRange`].
pub const UNMAP_IO_RANGE: u32 = 4;
/// `XEN_DMOP_set_ioreq_server_state`, with [`SetIoreqServerState`].
pub const SET_IOREQ_SERVER_STATE: u32 = 5;
/// `XEN_DMOP_destroy_ioreq_server`, with [`DestroyIoreqServer`].
pub const DESTROY_IOREQ_SERVER: u32 = 6;
/// `XEN_DMOP_track_dirty_vram`, with [`TrackDirtyVram`] and a bitmap in buffer 1.
pub const TRACK_DIRTY_VRAM: u32 = 7;
/// `XEN_DMOP_set_pci_intx_level`, with [`SetPciIntxLevel`].
pub const SET_PCI_INTX_LEVEL: u32 = 8;
/// `XEN_DMOP_set_isa_irq_level`, with [`SetIsaIrqLevel`].
pub const SET_ISA_IRQ_LEVEL: u32 = 9;
/// `XEN_DMOP_set_pci_link_route`, with [`SetPciLinkRoute`].
pub const SET_PCI_LINK_ROUTE: u32 = 10;
/// `XEN_DMOP_modified_memory`, with [`ModifiedMemory`] and extents in buffer 1.
pub const MODIFIED_MEMORY: u32 = 11;
/// `XEN_DMOP_set_mem_type`, with [`SetMemType`].
pub const SET_MEM_TYPE: u32 = 12;
/// `XEN_DMOP_inject_event`, with [`InjectEvent`].
pub const INJECT_EVENT: u32 = 13;
/// `XEN_DMOP_inject_msi`, with [`InjectMsi`].
pub const INJECT_MSI: u32 = 14;
/// `XEN_DMOP_map_mem_type_to_ioreq_server`, with [`MapMemType`].
pub const MAP_MEM_TYPE: u32 = 15;
/// `XEN_DMOP_remote_shutdown`, with [`RemoteShutdown`].
pub const REMOTE_SHUTDOWN: u32 = 16;
/// `XEN_DMOP_relocate_memory`, with [`RelocateMemory`].
pub const RELOCATE_MEMORY: u32 = 17;
/// `XEN_DMOP_pin_memory_cacheattr`, with [`PinMemoryCacheattr`].
pub const PIN_MEMORY_CACHEATTR: u32 = 18;
/// `XEN_DMOP_set_irq_level`, with [`SetIrqLevel`].
pub const SET_IRQ_LEVEL: u32 = 19;
/// `XEN_DMOP_nr_vcpus`, with [`NrVcpus`].
pub const NR_VCPUS: u32 = 20;

/// `HVM_IOREQSRV_BUFIOREQ_OFF`: no buffered requests; the only value that
/// Xen takes for a guest that is not x86.
pub const BUFIOREQ_OFF: u8 = 0;
/// `XEN_DMOP_no_gfns`: do not place the ioreq pages in the guest.
pub const NO_GFNS: u16 = 1;
/// `XEN_DMOP_IO_RANGE_PORT`: x86 I/O ports.
pub const IO_RANGE_PORT: u32 = 0;
/// `XEN_DMOP_IO_RANGE_MEMORY`: guest-physical addresses.
pub const IO_RANGE_MEMORY: u32 = 1;
/// `XEN_DMOP_IO_RANGE_PCI`: PCI functions, see [`sbdf`].
pub const IO_RANGE_PCI: u32 = 2;
/// Servers one domain can have (`MAX_NR_IOREQ_SERVERS`, `xen/common/ioreq.c`).
pub const MAX_IOREQ_SERVERS: usize = 8;
/// Ranges of one type one server can have (`MAX_NR_IO_RANGES`).
pub const MAX_IO_RANGES: usize = 256;
/// Buffers of one call that Linux accepts (`dm_op_max_nr_bufs`).
pub const MAX_BUFFERS: usize = 16;
/// Bytes of one buffer that Linux accepts (`dm_op_buf_max_size`).
pub const MAX_BUFFER_SIZE: usize = 4096;

/// `XEN_DMOP_PCI_SBDF`: a PCI function as a range of type [`IO_RANGE_PCI`].
#[must_use]
pub const fn sbdf(segment: u16, bus: u8, device: u8, function: u8) -> u32 {
    ((segment as u32) << 16)
        | ((bus as u32) << 8)
        | (((device & 0x1f) as u32) << 3)
        | ((function & 7) as u32)
}

/// `struct xen_dm_op`: what buffer 0 of a call holds.
#[derive(Copy, Clone, Debug, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct DmOp {
    /// One of the operation numbers of this module.
    pub op: u32,
    /// Must be 0.
    pub pad: u32,
    /// The operation's structure, followed by zeros.
    pub payload: [u8; 24],
}
assert_layout!(DmOp, 32, op @ 0, pad @ 4, payload @ 8);

impl DmOp {
    /// The operation `op` with its structure. `T` is one of this module's
    /// structures (24 bytes at most; more would be cut off).
    #[must_use]
    pub fn new<T: IntoBytes + Immutable>(op: u32, payload: &T) -> Self {
        const { assert!(size_of::<T>() <= 24) };
        let mut this = DmOp {
            op,
            ..DmOp::new_zeroed()
        };
        for (to, from) in this.payload.iter_mut().zip(payload.as_bytes()) {
            *to = *from;
        }
        this
    }

    /// The structure as Xen left it.
    #[must_use]
    pub fn payload<T: FromBytes + IntoBytes>(&self) -> T {
        const { assert!(size_of::<T>() <= 24) };
        let mut value = T::new_zeroed();
        for (to, from) in value.as_mut_bytes().iter_mut().zip(&self.payload) {
            *to = *from;
        }
        value
    }
}

/// Declares payload structures: derives, `repr(C)` and the layout assertion.
macro_rules! payloads {
    ($(
        $(#[$meta:meta])*
        $name:ident, $size:literal { $( $(#[$fmeta:meta])* $field:ident @ $offset:literal : $type:ty ),* $(,)? }
    )*) => { $(
        $(#[$meta])*
        #[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
        #[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $( $(#[$fmeta])* pub $field: $type, )* }
        assert_layout!($name, $size, $($field @ $offset),*);
    )* };
}

payloads! {
    /// `struct xen_dm_op_create_ioreq_server`.
    CreateIoreqServer, 6 {
        /// In: [`BUFIOREQ_OFF`].
        handle_bufioreq @ 0: u8,
        /// Must be 0.
        pad @ 1: [u8; 3],
        /// Out: the server's id.
        id @ 4: u16,
    }
    /// `struct xen_dm_op_get_ioreq_server_info`.
    GetIoreqServerInfo, 24 {
        /// In: the server's id.
        id @ 0: u16,
        /// In: 0 or [`NO_GFNS`].
        flags @ 2: u16,
        /// Out: event channel of the buffered ring.
        bufioreq_port @ 4: u32,
        /// Out: frame of the ioreq page, unless [`NO_GFNS`].
        ioreq_gfn @ 8: u64,
        /// Out: frame of the buffered ring, unless [`NO_GFNS`].
        bufioreq_gfn @ 16: u64,
    }
    /// `struct xen_dm_op_ioreq_server_range`.
    IoreqServerRange, 24 {
        /// The server's id.
        id @ 0: u16,
        /// Must be 0.
        pad @ 2: u16,
        /// [`IO_RANGE_PORT`], [`IO_RANGE_MEMORY`] or [`IO_RANGE_PCI`].
        kind @ 4: u32,
        /// First address.
        start @ 8: u64,
        /// Last address, inclusive.
        end @ 16: u64,
    }
    /// `struct xen_dm_op_set_ioreq_server_state`.
    SetIoreqServerState, 4 {
        /// The server's id.
        id @ 0: u16,
        /// 1 lets requests through.
        enabled @ 2: u8,
        /// Must be 0.
        pad @ 3: u8,
    }
    /// `struct xen_dm_op_destroy_ioreq_server`.
    DestroyIoreqServer, 4 {
        /// The server's id.
        id @ 0: u16,
        /// Must be 0.
        pad @ 2: u16,
    }
    /// `struct xen_dm_op_track_dirty_vram` (x86).
    TrackDirtyVram, 16 {
        /// Pages to track.
        nr @ 0: u32,
        /// Must be 0.
        pad @ 4: u32,
        /// First frame.
        first_pfn @ 8: u64,
    }
    /// `struct xen_dm_op_set_pci_intx_level` (x86).
    SetPciIntxLevel, 6 {
        /// PCI segment.
        domain @ 0: u16,
        /// PCI bus.
        bus @ 2: u8,
        /// PCI device.
        device @ 3: u8,
        /// Pin, 0 is INTA.
        intx @ 4: u8,
        /// 0 or 1.
        level @ 5: u8,
    }
    /// `struct xen_dm_op_set_isa_irq_level` (x86).
    SetIsaIrqLevel, 2 {
        /// ISA interrupt, 0 to 15.
        isa_irq @ 0: u8,
        /// 0 or 1.
        level @ 1: u8,
    }
    /// `struct xen_dm_op_set_pci_link_route` (x86).
    SetPciLinkRoute, 2 {
        /// PCI link, 0 to 3.
        link @ 0: u8,
        /// ISA interrupt 1 to 15, or 0 to disable the link.
        isa_irq @ 1: u8,
    }
    /// `struct xen_dm_op_modified_memory` (x86).
    ModifiedMemory, 8 {
        /// In: extents in buffer 1. Out, on failure: 1 + the failing one.
        nr_extents @ 0: u32,
        /// Must be 0.
        opaque @ 4: u32,
    }
    /// `struct xen_dm_op_modified_memory_extent` (x86), in buffer 1.
    ModifiedMemoryExtent, 16 {
        /// Contiguous pages.
        nr @ 0: u32,
        /// Must be 0.
        pad @ 4: u32,
        /// First frame.
        first_pfn @ 8: u64,
    }
    /// `struct xen_dm_op_set_mem_type` (x86).
    SetMemType, 16 {
        /// Contiguous pages.
        nr @ 0: u32,
        /// New `hvmmem_type_t`.
        mem_type @ 4: u16,
        /// Must be 0.
        pad @ 6: u16,
        /// First frame.
        first_pfn @ 8: u64,
    }
    /// `struct xen_dm_op_inject_event` (x86).
    InjectEvent, 24 {
        /// Index of the vCPU.
        vcpuid @ 0: u32,
        /// Interrupt vector.
        vector @ 4: u8,
        /// `XEN_DMOP_EVENT_*`.
        kind @ 5: u8,
        /// Length of the instruction, in bytes.
        insn_len @ 6: u8,
        /// Must be 0.
        pad0 @ 7: u8,
        /// Error code, or all ones for none.
        error_code @ 8: u32,
        /// Must be 0.
        pad1 @ 12: u32,
        /// CR2 of a page fault.
        cr2 @ 16: u64,
    }
    /// `struct xen_dm_op_inject_msi` (x86).
    InjectMsi, 16 {
        /// Low 32 bits of the message.
        data @ 0: u32,
        /// Must be 0.
        pad @ 4: u32,
        /// Address, `0xfeexxxxx`.
        addr @ 8: u64,
    }
    /// `struct xen_dm_op_map_mem_type_to_ioreq_server` (x86).
    MapMemType, 16 {
        /// The server's id.
        id @ 0: u16,
        /// Memory type.
        kind @ 2: u16,
        /// Accesses to forward (bit 0 reads, bit 1 writes), 0 unmaps.
        flags @ 4: u32,
        /// Must be 0.
        opaque @ 8: u64,
    }
    /// `struct xen_dm_op_remote_shutdown`.
    RemoteShutdown, 4 {
        /// `SHUTDOWN_*` of `xen/include/public/sched.h`.
        reason @ 0: u32,
    }
    /// `struct xen_dm_op_relocate_memory` (x86).
    RelocateMemory, 24 {
        /// Frames to move.
        size @ 0: u32,
        /// Must be 0.
        pad @ 4: u32,
        /// First frame now.
        src_gfn @ 8: u64,
        /// First frame then.
        dst_gfn @ 16: u64,
    }
    /// `struct xen_dm_op_pin_memory_cacheattr` (x86).
    PinMemoryCacheattr, 24 {
        /// First frame.
        start @ 0: u64,
        /// Last frame.
        end @ 8: u64,
        /// `XEN_DMOP_MEM_CACHEATTR_*`.
        kind @ 16: u32,
        /// Must be 0.
        pad @ 20: u32,
    }
    /// `struct xen_dm_op_set_irq_level`.
    SetIrqLevel, 8 {
        /// Interrupt; on Arm an SPI, 32 or above.
        irq @ 0: u32,
        /// 0 or 1.
        level @ 4: u8,
        /// Must be 0; Xen checks it.
        pad @ 5: [u8; 3],
    }
    /// `struct xen_dm_op_nr_vcpus`.
    NrVcpus, 4 {
        /// Out: vCPUs of the domain.
        vcpus @ 0: u32,
    }
}
