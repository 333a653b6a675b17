//! Addresses of network cards. IEEE 802 §8

use std::fmt;

/// An address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mac(pub [u8; 6]);

impl Mac {
    /// To all.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// The address of a single card, as in `52:54:00:12:34:56`.
    pub fn parse(text: &str) -> Option<Mac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2)?;
            let digits = part.bytes().all(|digit| digit.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16).ok().filter(|_| digits)?;
        }
        let mac = Mac(bytes);
        (parts.next().is_none() && mac.is_card()).then_some(mac)
    }

    /// A locally administered address, the same for the same parts.
    pub fn derived(parts: &[&[u8]]) -> Mac {
        // FNV-1a; each part's length keeps parts apart
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for part in parts {
            for byte in part.iter().chain(&part.len().to_le_bytes()) {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        // its low bits are the worst
        let [_, _, a, b, c, d, e, f] = (hash ^ hash >> 48).to_be_bytes();
        Mac([a & 0xfc | 0x02, b, c, d, e, f])
    }

    /// To several cards.
    pub fn is_multicast(self) -> bool {
        let [first, ..] = self.0;
        first & 1 != 0
    }

    /// Of a single card.
    pub fn is_card(self) -> bool {
        !self.is_multicast() && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written_and_nothing_else_is_one() {
        let mac = Mac::parse("52:54:00:aB:cd:EF").unwrap();

        assert_eq!(mac.to_string(), "52:54:00:ab:cd:ef");
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5",
            "52-54-00-12-34-56",
            "52:54:00:12:34:+5",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
        ] {
            assert_eq!(Mac::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_derived_address_is_a_cards_and_locally_administered() {
        for number in 0..200u32 {
            let mac = Mac::derived(&[b"guest", &number.to_le_bytes()]);
            assert!(mac.is_card() && mac.0[0] & 2 != 0, "{mac}");
        }
        assert_ne!(Mac::derived(&[b"ab", b"c"]), Mac::derived(&[b"a", b"bc"]));
    }
}
