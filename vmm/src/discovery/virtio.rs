//! The nodes of a device of `virtio = [ ... ]` (`libxl__set_xenstore_virtio`,
//! `tools/libs/light/libxl_virtio.c`): a type, and not a word about what is
//! behind the device.

use std::fmt;

use devices::virtio::DeviceType;
use xen::xenstore::Node;

use super::NodeError;
use super::node::{Announced, read, unserved};

/// Its directory under `backend`.
pub(super) const KIND: &str = "virtio";
/// Before the type in the `type` node, as in a device tree's `compatible`.
const VENDOR: &str = "virtio,";
/// Before the number in a type.
const PREFIX: &str = "device";

/// A virtio device type in the spelling of guest configurations: `device`
/// and the id in hexadecimal, so that `device1a` is a file system and
/// `device26` something else
/// (Linux `Documentation/devicetree/bindings/virtio/virtio-device.yaml`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioType(pub DeviceType);

impl VirtioType {
    /// Reads `device1a`.
    #[must_use]
    pub fn parse_short(text: &str) -> Option<VirtioType> {
        let digits = text.strip_prefix(PREFIX)?;
        // `from_str_radix` takes a sign
        let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = u32::from_str_radix(digits, 16).ok()?;
        (plain && id != DeviceType::NONE.0).then_some(VirtioType(DeviceType(id)))
    }
}

impl fmt::Display for VirtioType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{:x}", self.0.0)
    }
}

/// Reads what only these devices have.
///
/// # Errors
/// [`NodeError`] about `type`.
pub(super) fn read_virtio(node: &Node<'_>) -> Result<Announced, NodeError> {
    let text: String = read(node, "type")?;
    text.strip_prefix(VENDOR)
        .and_then(VirtioType::parse_short)
        .map(Announced::Virtio)
        .ok_or_else(|| {
            let expected = "\"virtio,device\" and a device id in hexadecimal, such as \
                            \"virtio,device4\"";
            unserved(node, "type", text, expected)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_in_a_type_is_hexadecimal() {
        let id = |text| VirtioType::parse_short(text).map(|found| found.0.0);

        assert_eq!(id("device4"), Some(4));
        assert_eq!(id("device1a"), Some(26));
        assert_eq!(id("device1A"), Some(26));
        assert_eq!(id("device26"), Some(38));
    }

    #[test]
    fn a_type_is_written_as_it_is_read() {
        let found = VirtioType::parse_short("device1a").unwrap();

        assert_eq!(found.to_string(), "device1a");
    }

    #[test]
    fn what_is_no_type_is_none() {
        for text in [
            "device",
            "device0",
            "device-4",
            "device+4",
            "4",
            "device4g",
            "device123456789",
        ] {
            assert_eq!(VirtioType::parse_short(text), None, "{text}");
        }
    }
}
