//! The memory table of a back end that maps the guest's memory itself.
//!
//! VHOST_USER_PROTOCOL_F_XEN_MMAP makes each description of a region 8 bytes
//! longer (QEMU `docs/interop/vhost-user.rst`, "Memory region description"):
//!
//! ```text
//!  0  guest address        u64     16  user address         u64
//!  8  size                 u64     24  mmap offset          u64
//! 32  xen mmap flags       u32: bit 0 FOREIGN, bit 1 GRANT, bit 8 NO_ADVANCE_MAP
//! 36  xen mmap data        u32: the guest's domain id
//! ```
//!
//! The crate `vhost` has this description in place of the shorter one when it is
//! built with its feature `xen`, and then takes no others; here what was
//! negotiated decides. A file that is mapped as such has no flag.
//!
//! | peers | deviate so | here |
//! |---|---|---|
//! | vm-memory, and so all of rust-vmm's back ends | NO_ADVANCE_MAP is 0x8; the specification's 0x100 is refused as no flag at all | never sent: foreign memory is mapped in advance |
//! | the same | a foreign region's mmap offset has to be 0 | it is |
//! | the same | what became of a single frame is not looked at: one that is not there ends the process when it is touched | told anew when memory has come; the guest has no reason to name others |
//! | vhost-user-backend up to 0.10 | the used index of a ring that begins anew, or goes on, is not looked at | such a back end has to be started anew for each driver, and cannot follow one that died under its driver |
//! | vhost-device-vsock 0.3 | a packet whose data is in more than one descriptor, as Linux 6.12.117 sends long ones, is neither sent nor used | nothing: its guest needs `memory = "bounce"` |
//! | vhost with `xen` | closes the connection if XEN_MMAP is not negotiated | it is, wherever it is offered |
//! | xen-vhost-frontend | privcmd is handed out unrestricted | restricted to the guest |

use super::super::peer::Region;
use crate::virtio::{SharedRegion, Sharing};

/// The region is Xen's foreign memory.
const FOREIGN: u32 = 1 << 0;

/// A region, for a back end with or without XEN_MMAP. Its address in messages is
/// the guest's: rings are so told by the addresses that the guest has for them.
pub(super) fn description(region: &SharedRegion, xen_mmap: bool) -> Vec<u8> {
    let mut bytes = Region {
        guest: region.address,
        len: region.len,
        user: region.address,
        offset: region.offset,
    }
    .bytes();
    if xen_mmap {
        let (flags, data) = match region.sharing {
            Sharing::File => (0, 0),
            Sharing::Foreign { domid } => (FOREIGN, u32::from(domid)),
        };
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(data.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn region(sharing: Sharing, offset: u64) -> SharedRegion {
        SharedRegion {
            address: 0x0000_0002_4000_0000,
            len: 0x1000_0000,
            file: File::open("/dev/null").unwrap().into(),
            offset,
            sharing,
        }
    }

    /// The same on every machine: tests are run on little-endian ones.
    const COMMON: [u8; 24] = [
        0x00, 0x00, 0x00, 0x40, 0x02, 0x00, 0x00, 0x00, // guest address
        0x00, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x00, // size
        0x00, 0x00, 0x00, 0x40, 0x02, 0x00, 0x00, 0x00, // user address
    ];

    #[test]
    fn foreign_memory_is_described_in_forty_bytes() {
        let described = description(&region(Sharing::Foreign { domid: 0x1234 }, 0), true);

        let own = [
            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // mmap offset
            0x01, 0x00, 0x00, 0x00, // FOREIGN
            0x34, 0x12, 0x00, 0x00, // domain id
        ];
        assert_eq!(described, [&COMMON[..], &own].concat());
    }

    #[test]
    fn a_file_has_no_flag_in_forty_bytes() {
        let described = description(&region(Sharing::File, 0x5000), true);

        let own = [
            0x00, 0x50, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // mmap offset
            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        ];
        assert_eq!(described, [&COMMON[..], &own].concat());
    }

    #[test]
    fn a_file_is_described_in_thirty_two_bytes_without_the_extension() {
        let described = description(&region(Sharing::File, 0x5000), false);

        let own = [0x00, 0x50, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00];
        assert_eq!(described, [&COMMON[..], &own].concat());
    }
}
