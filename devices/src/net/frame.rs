//! A frame with its header, as the guest, a tap and the card exchange it.
//! virtio 1.3 §5.1.6

use zerocopy::byteorder::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::features as net;

/// Bytes of the header in front of a frame.
pub(super) const HEADER_LEN: usize = size_of::<Header>();
/// Most bytes of a header and a frame: 64 KiB of IP with Ethernet's and a
/// VLAN's headers.
pub(super) const FRAME_MAX: usize = HEADER_LEN + 18 + 65535;
/// Least bytes of a frame: Ethernet's header.
pub(super) const FRAME_MIN: usize = 14;

/// The checksum is to be completed. virtio 1.3 §5.1.6
const NEEDS_CSUM: u8 = 1;
/// Ways of segmentation.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_UDP_L4: u8 = 5;
const GSO_TCPV6: u8 = 4;
/// With explicit congestion notification.
const GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr` with VERSION_1. virtio 1.3 §5.1.6
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub flags: u8,
    pub gso_type: u8,
    pub hdr_len: U16,
    pub gso_size: U16,
    pub csum_start: U16,
    pub csum_offset: U16,
    /// Buffers that a received frame fills.
    pub num_buffers: U16,
}

impl Header {
    /// Checks a header of the guest against the features that it has
    /// negotiated. The kernel checks what it says about the frame.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, features: u64) -> Result<(), &'static str> {
        let has = |bit: u64| features & bit != 0;
        if self.flags & NEEDS_CSUM != 0 && !has(net::CSUM) {
            return Err("a checksum is left open without VIRTIO_NET_F_CSUM");
        }
        let ecn = self.gso_type & GSO_ECN != 0;
        let allowed = match self.gso_type & !GSO_ECN {
            GSO_NONE => return Ok(()),
            GSO_TCPV4 => has(net::HOST_TSO4),
            GSO_TCPV6 => has(net::HOST_TSO6),
            GSO_UDP_L4 => has(net::HOST_USO) && !ecn,
            _ => false,
        };
        match allowed && (!ecn || has(net::HOST_ECN)) {
            true => Ok(()),
            false => Err("its way of segmentation was not negotiated"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_negotiated_may_be_left_to_the_host_and_nothing_else() {
        let check = |flags, gso_type, features| {
            let header = Header {
                flags,
                gso_type,
                ..Header::default()
            };
            header.check(features).is_ok()
        };

        assert!(check(0, 0, 0) && check(2, 0, 0));
        assert!(check(1, 0, net::CSUM) && !check(1, 0, 0));
        assert!(check(1, 1, net::CSUM | net::HOST_TSO4));
        assert!(!check(0, 1, net::HOST_TSO6) && check(0, 4, net::HOST_TSO6));
        assert!(check(0, 0x81, net::HOST_TSO4 | net::HOST_ECN));
        assert!(!check(0, 0x81, net::HOST_TSO4));
        assert!(check(0, 5, net::HOST_USO) && !check(0, 0x85, u64::MAX));
        // UDP fragmentation offload, and ways that do not exist
        assert!(!check(0, 3, u64::MAX) && !check(0, 2, u64::MAX) && !check(0, 0x7f, u64::MAX));
    }
}
