//! The ioreq page: `xen/include/public/hvm/ioreq.h`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::assert_layout;

/// `STATE_IOREQ_NONE`: Xen may write a request.
pub const STATE_NONE: u8 = 0;
/// `STATE_IOREQ_READY`: a request waits for the device model.
pub const STATE_READY: u8 = 1;
/// `STATE_IOREQ_INPROCESS`: a device model (or the kernel on its behalf) has it.
pub const STATE_INPROCESS: u8 = 2;
/// `STATE_IORESP_READY`: the response waits for Xen.
pub const STATE_RESP_READY: u8 = 3;

/// `IOREQ_TYPE_PIO`: x86 port access.
pub const TYPE_PIO: u8 = 0;
/// `IOREQ_TYPE_COPY`: memory access.
pub const TYPE_COPY: u8 = 1;
/// `IOREQ_TYPE_PCI_CONFIG`: PCI configuration access.
pub const TYPE_PCI_CONFIG: u8 = 2;
/// `IOREQ_TYPE_TIMEOFFSET`: the guest set its clock (x86).
pub const TYPE_TIMEOFFSET: u8 = 7;
/// `IOREQ_TYPE_INVALIDATE`: drop cached mappings of the guest.
pub const TYPE_INVALIDATE: u8 = 8;

/// `IOREQ_WRITE`, as a value of the direction bit.
pub const DIR_WRITE: u8 = 0;
/// `IOREQ_READ`, as a value of the direction bit.
pub const DIR_READ: u8 = 1;

/// Bits of [`Ioreq::bits`] that hold the state.
pub const BITS_STATE: u8 = 0x0f;
/// Bit of [`Ioreq::bits`]: `data` is a guest address.
pub const BITS_DATA_IS_PTR: u8 = 0x10;
/// Bit of [`Ioreq::bits`]: the guest reads.
pub const BITS_DIR: u8 = 0x20;
/// Bit of [`Ioreq::bits`]: addresses of a repeated request go down.
pub const BITS_DF: u8 = 0x40;

/// `struct ioreq`: one vCPU's slot of the page.
#[derive(
    Copy, Clone, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Ioreq {
    /// Address (guest-physical, port, or SBDF << 32 | register).
    pub addr: u64,
    /// Value, or guest address of values when `data_is_ptr`.
    pub data: u64,
    /// Repetitions (x86 `rep`).
    pub count: u32,
    /// Bytes of one access.
    pub size: u32,
    /// The vCPU's event channel in the guest; set once the server is enabled.
    pub vp_eport: u32,
    /// Unused.
    pub pad0: u16,
    /// State (4 bits), `data_is_ptr`, direction, `df`, one unused.
    pub bits: u8,
    /// `IOREQ_TYPE_*`.
    pub kind: u8,
}
assert_layout!(Ioreq, 32, addr @ 0, data @ 8, count @ 16, size @ 20, vp_eport @ 24, pad0 @ 28, bits @ 30, kind @ 31);

/// vCPUs whose requests fit the one page that Xen gives out.
pub const MAX_VCPUS: usize = super::PAGE_SIZE / size_of::<Ioreq>();
const _: () = assert!(MAX_VCPUS == 128);

/// `XENMEM_resource_ioreq_server` (`xen/include/public/memory.h`): kind of
/// the resource; its id is the server's.
pub const RESOURCE_IOREQ_SERVER: u32 = 0;
/// `XENMEM_resource_ioreq_server_frame_ioreq(0)`: frame of the page in that resource.
pub const RESOURCE_FRAME_IOREQ: u32 = 1;
