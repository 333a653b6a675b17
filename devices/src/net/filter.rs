//! Which frames the guest wants to see. virtio 1.3 §5.1.6.5.1 to §5.1.6.5.3
//!
//! A filter never changes: a command of the guest makes another one, which the
//! workers of the receive queues find when they look.

use std::collections::HashSet;

use super::mac::Mac;

/// Addresses of each kind that are kept; with more, all of the kind are let
/// through.
const ADDRESSES_MAX: usize = 256;
/// VLANs that there are. IEEE 802.1Q
const VLANS: u16 = 4096;
/// The frame's type that says that a VLAN's number follows.
const TYPE_VLAN: [u8; 2] = [0x81, 0x00];

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// The card's own address.
    pub mac: Mac,
    /// Everything is let through.
    pub promiscuous: bool,
    pub all_multicast: bool,
    pub all_unicast: bool,
    pub no_multicast: bool,
    pub no_unicast: bool,
    pub no_broadcast: bool,
    unicast: Addresses,
    multicast: Addresses,
    /// `None` lets through all.
    vlans: Option<HashSet<u16>>,
}

/// Addresses that are let through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Addresses {
    known: HashSet<Mac>,
    /// There were more than are kept.
    overflow: bool,
}

impl Addresses {
    fn of(macs: impl ExactSizeIterator<Item = Mac>) -> Self {
        match macs.len() > ADDRESSES_MAX {
            true => Addresses {
                known: HashSet::new(),
                overflow: true,
            },
            false => Addresses {
                known: macs.collect(),
                overflow: false,
            },
        }
    }

    fn has(&self, mac: Mac) -> bool {
        self.overflow || self.known.contains(&mac)
    }
}

impl Filter {
    /// What a card starts with: everything is let through, but of VLANs
    /// nothing that the guest has not asked for, if it can ask.
    pub fn new(mac: Mac, asks_for_vlans: bool) -> Self {
        Filter {
            mac,
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Addresses::default(),
            multicast: Addresses::default(),
            vlans: asks_for_vlans.then(HashSet::new),
        }
    }

    /// The addresses that are let through beside the card's own.
    pub fn set_addresses(
        &mut self,
        unicast: impl ExactSizeIterator<Item = Mac>,
        multicast: impl ExactSizeIterator<Item = Mac>,
    ) {
        self.unicast = Addresses::of(unicast);
        self.multicast = Addresses::of(multicast);
    }

    /// Lets a VLAN through, or not any more; false for one that there is not.
    pub fn set_vlan(&mut self, vlan: u16, wanted: bool) -> bool {
        if let Some(vlans) = &mut self.vlans
            && vlan < VLANS
        {
            match wanted {
                true => vlans.insert(vlan),
                false => vlans.remove(&vlan),
            };
            return true;
        }
        false
    }

    /// Whether the guest wants to see a frame.
    pub fn lets_through(&self, frame: &[u8]) -> bool {
        let Some(destination) = frame.first_chunk().copied().map(Mac) else {
            return false;
        };
        self.wants_vlan(frame) && (self.promiscuous || self.wants_address(destination))
    }

    fn wants_vlan(&self, frame: &[u8]) -> bool {
        let Some(vlans) = &self.vlans else {
            return true;
        };
        match frame.get(12..16) {
            Some(&[a, b, high, low]) if [a, b] == TYPE_VLAN => {
                vlans.contains(&(u16::from_be_bytes([high, low]) % VLANS))
            }
            _ => true,
        }
    }

    fn wants_address(&self, destination: Mac) -> bool {
        if destination == Mac::BROADCAST {
            return !self.no_broadcast;
        }
        if destination.is_multicast() {
            return !self.no_multicast && (self.all_multicast || self.multicast.has(destination));
        }
        !self.no_unicast
            && (self.all_unicast || destination == self.mac || self.unicast.has(destination))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const GROUP: Mac = Mac([1, 0, 0x5e, 0, 0, 1]);

    fn to(mac: Mac) -> Vec<u8> {
        let mut frame = mac.0.to_vec();
        frame.resize(64, 0);
        frame
    }

    fn in_vlan(vlan: u16) -> Vec<u8> {
        let mut frame = to(OWN);
        frame[12..14].copy_from_slice(&TYPE_VLAN);
        // a priority stands in front of the number
        frame[14..16].copy_from_slice(&(0xe000 | vlan).to_be_bytes());
        frame
    }

    /// Which of own, other, group and broadcast get through.
    fn through(change: fn(&mut Filter)) -> [bool; 4] {
        let mut filter = Filter::new(OWN, false);
        filter.promiscuous = false;
        change(&mut filter);
        [OWN, OTHER, GROUP, Mac::BROADCAST].map(|mac| filter.lets_through(&to(mac)))
    }

    #[test]
    fn a_card_starts_with_everything() {
        let filter = Filter::new(OWN, false);

        assert!(
            [OWN, OTHER, GROUP]
                .iter()
                .all(|mac| filter.lets_through(&to(*mac)))
        );
        assert!(filter.lets_through(&in_vlan(7)));
        assert!(!filter.lets_through(&[2, 0, 0, 0, 0]), "no address");
    }

    #[test]
    fn each_mode_lets_through_its_own() {
        assert_eq!(through(|_| {}), [true, false, false, true]);
        assert_eq!(through(|f| f.promiscuous = true), [true; 4]);
        assert_eq!(through(|f| f.all_unicast = true), [true, true, false, true]);
        assert_eq!(
            through(|f| f.all_multicast = true),
            [true, false, true, true]
        );
        assert_eq!(
            through(|f| f.no_unicast = true),
            [false, false, false, true]
        );
        assert_eq!(
            through(|f| f.no_broadcast = true),
            [true, false, false, false]
        );
        let none = through(|f| (f.all_multicast, f.no_multicast) = (true, true));
        assert_eq!(none, [true, false, false, true]);
    }

    #[test]
    fn addresses_are_let_through_and_too_many_are_all() {
        let few = through(|f| f.set_addresses([OTHER].into_iter(), [GROUP].into_iter()));
        let many = through(|f| {
            let crowd = vec![Mac::BROADCAST; 257];
            f.set_addresses(crowd.into_iter(), [].into_iter());
        });

        assert_eq!(few, [true; 4]);
        assert_eq!(many, [true, true, false, true]);
    }

    #[test]
    fn a_vlan_is_seen_when_it_was_asked_for() {
        let mut filter = Filter::new(OWN, true);

        let before = filter.lets_through(&in_vlan(7));
        let set = filter.set_vlan(7, true);
        let [asked, other] = [7, 8].map(|vlan| filter.lets_through(&in_vlan(vlan)));
        filter.set_vlan(7, false);
        let after = filter.lets_through(&in_vlan(7));

        assert!(set && !filter.set_vlan(4096, true));
        assert_eq!((before, asked, other, after), (false, true, false, false));
        assert!(filter.lets_through(&to(OWN)), "without a VLAN");
    }
}
