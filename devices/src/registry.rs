//! The table of devices: what there is, and how each is made from its spec.
//!
//! Adding a device adds a line to the table and a folder beside this file.
//! The control plane makes devices here; tests go through the table, so that
//! no device is left out.

use thiserror::Error;

use crate::blk::{self, BlkDevice};
use crate::virtio::{Device, DeviceType};

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its name in configurations and logs.
    pub name: &'static str,
    /// Its virtio device id.
    pub device_type: DeviceType,
}

macro_rules! table {
    ($($variant:ident, $name:literal, $device_type:expr, $spec:ty, $open:path, $error:ty;)*) => {
        /// Every kind, in the order of the table.
        pub const KINDS: &[Kind] = &[$(Kind { name: $name, device_type: $device_type }),*];

        /// A device to be made: its kind and its checked, immutable spec.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum DeviceSpec {
            $(#[doc = concat!("A `", $name, "`.")] $variant($spec),)*
        }

        /// Why a device cannot be made.
        #[derive(Debug, Error)]
        #[non_exhaustive]
        pub enum OpenError {
            $(
                #[doc = concat!("A `", $name, "`.")]
                #[error(transparent)]
                $variant(#[from] $error),
            )*
        }

        impl DeviceSpec {
            /// Its kind.
            #[must_use]
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$variant(_) => Kind { name: $name, device_type: $device_type },)*
                }
            }

            /// Opens what the device stands on, such as an image, and makes
            /// the device.
            ///
            /// # Errors
            /// The host's, in the kind's own words.
            pub fn open(self) -> Result<Box<dyn Device>, OpenError> {
                match self {
                    $(Self::$variant(spec) => Ok(Box::new($open(spec)?)),)*
                }
            }
        }
    };
}

// variant, name, virtio device id, spec, how it is made, why it may not be
table! {
    Blk, "blk", DeviceType::BLOCK, blk::BlkSpec, BlkDevice::open, blk::ImageError;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_are_unique() {
        for (index, kind) in KINDS.iter().enumerate() {
            let others = &KINDS[index + 1..];
            assert!(others.iter().all(|other| other.name != kind.name));
            assert!(
                others
                    .iter()
                    .all(|other| other.device_type != kind.device_type)
            );
        }
    }

    #[test]
    fn a_device_is_of_the_type_the_table_says() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        let spec = blk::BlkConfig::new(image.path()).validate().unwrap();
        let spec = DeviceSpec::Blk(spec);

        let kind = spec.kind();
        let device = spec.open().unwrap();

        assert_eq!(device.device_type(), kind.device_type);
        assert_eq!(kind.name, "blk");
    }

    #[test]
    fn a_missing_image_is_told_in_the_devices_own_words() {
        let spec = DeviceSpec::Blk(blk::BlkConfig::new("/nonexistent/disk").validate().unwrap());

        let error = spec.open().err().unwrap();

        assert!(error.to_string().contains("/nonexistent/disk"));
    }
}
