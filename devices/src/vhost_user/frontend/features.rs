//! Which feature bits pass from the back end to the guest, and which belong to
//! one of the two rings alone. virtio 1.3 §6
//!
//! | bits | the guest's ring | the back end's ring |
//! |---|---|---|
//! | 0 to 23, 50 to 63: the device's | as the back end offers them | as the guest's driver takes them |
//! | INDIRECT_DESC, EVENT_IDX | offered always: the transport serves that ring | taken if offered, and not refused |
//! | the same, where the two rings are one (`memory = "foreign"`) | as the back end offers them | as the guest's driver takes them |
//! | VERSION_1 | insisted on | insisted on |
//! | ACCESS_PLATFORM | the guest's kind of addresses | never: it is given addresses of its own memory |
//! | RING_RESET | offered always; the back end's ring is stopped and set up anew | never |
//! | RING_PACKED, IN_ORDER, ORDER_PLATFORM, NOTIFICATION_DATA, NOTIF_CONFIG_DATA, SR_IOV, ADMIN_VQ | never | never |
//! | 24, 26, 27 (of before virtio 1, or vhost's own) | never | never |
//! | 30: PROTOCOL_FEATURES | never | taken if offered |

use super::peer::PROTOCOL_FEATURES;
use crate::virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1};

/// Bits that a device type has to itself. virtio 1.3 §2.2
pub(super) const DEVICE: u64 = 0x00ff_ffff | !((1 << 50) - 1);

/// Bits that a ring's driver and whoever serves it agree about: they pass where
/// the back end serves the guest's ring itself.
pub(super) const RING: u64 = RING_INDIRECT_DESC | RING_EVENT_IDX;

/// Bits that a device can do without.
pub(super) const REFUSABLE: u64 = DEVICE | RING_INDIRECT_DESC | RING_EVENT_IDX;

/// What of a back end's features its guest is offered.
pub(super) fn offered(back_end: u64, refused: u64) -> u64 {
    back_end & DEVICE & !refused
}

/// What a back end is told to use for a guest that uses `guest`.
pub(super) fn negotiated(back_end: u64, guest: u64, refused: u64) -> u64 {
    let own = VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC | PROTOCOL_FEATURES;
    back_end & (guest & DEVICE | own) & !refused
}

/// What a guest uses and a back end does not have.
pub(super) fn missing(back_end: u64, guest: u64) -> u64 {
    guest & DEVICE & !back_end
}

/// The same as [`negotiated`] for a back end that has the guest's rings.
pub(super) fn negotiated_foreign(back_end: u64, guest: u64, refused: u64) -> u64 {
    let own = VERSION_1 | PROTOCOL_FEATURES;
    back_end & (guest & (DEVICE | RING) | own) & !refused
}

/// The same as [`missing`] for a back end that has the guest's rings.
pub(super) fn missing_foreign(back_end: u64, guest: u64) -> u64 {
    guest & (DEVICE | RING) & !back_end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::features::{ACCESS_PLATFORM, RING_RESET};

    #[test]
    fn a_devices_own_bits_pass_and_the_rings_do_not() {
        let all = u64::MAX;

        assert_eq!(offered(all, 0), DEVICE);
        assert_eq!(offered(1 << 5 | 1 << 9 | 1 << 34, 1 << 9), 1 << 5);
        assert_eq!(DEVICE & (1 << 24 | 1 << 28 | 1 << 33 | 1 << 49), 0);
        assert_eq!(
            DEVICE & (1 << 23 | 1 << 50 | 1 << 63),
            1 << 23 | 1 << 50 | 1 << 63
        );
    }

    #[test]
    fn the_back_ends_ring_has_what_the_back_end_has() {
        let guest = 1 << 3 | VERSION_1 | ACCESS_PLATFORM | RING_RESET | RING_EVENT_IDX;
        let back_end = 1 << 3 | 1 << 4 | VERSION_1 | ACCESS_PLATFORM | RING_INDIRECT_DESC;

        assert_eq!(
            negotiated(back_end, guest, 0),
            1 << 3 | VERSION_1 | RING_INDIRECT_DESC
        );
        assert_eq!(
            negotiated(back_end, guest, RING_INDIRECT_DESC),
            1 << 3 | VERSION_1
        );
        assert_eq!(missing(back_end, guest | 1 << 7), 1 << 7);
        assert_eq!(
            negotiated_foreign(back_end, guest | RING_INDIRECT_DESC, 0),
            1 << 3 | VERSION_1 | RING_INDIRECT_DESC
        );
        assert_eq!(negotiated_foreign(back_end, guest, 0), 1 << 3 | VERSION_1);
        assert_eq!(missing_foreign(back_end, guest), RING_EVENT_IDX);
        assert_eq!(missing(back_end, guest), 0);
    }
}
