//! The table of devices: what there is, how each is configured, and how it is
//! made.
//!
//! Adding a device adds a line to the table and a folder beside this file.
//! The control plane reads configurations and makes devices here; tests go
//! through the table, so that no device is left out.

use std::borrow::Cow;
use std::path::Path;

use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::blk::{self, BlkDevice};
use crate::console::{self, ConsoleDevice};
use crate::net::{self, NetDevice};
use crate::rng::{self, RngDevice};
use crate::vhost_user::frontend::{self, VhostUserDevice};
use crate::virtio::{Device, DeviceType};
use crate::vsock::{self, VsockDevice};

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its name in configurations and logs.
    pub name: &'static str,
    /// Its virtio device id; [`DeviceType::NONE`] where each device's
    /// configuration says.
    pub device_type: DeviceType,
}

macro_rules! table {
    // the id of a device: its kind's, or its own
    (@id $device_type:expr, $device:ident) => {{
        let _ = $device;
        $device_type
    }};
    (@id $device_type:expr, $device:ident, $own:ident) => {
        $device.$own()
    };
    ($(
        $variant:ident, $name:literal, $device_type:expr $(=> $own:ident)?,
        $config:ty, $invalid:ty,
        $spec:ty, $open:path, $error:ty;
    )*) => {
        /// Every kind, in the order of the table.
        pub const KINDS: &[Kind] = &[$(Kind { name: $name, device_type: $device_type }),*];

        /// A device as its user describes it: in a file, a table under the
        /// kind's name.
        #[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
        #[non_exhaustive]
        pub enum DeviceConfig {
            $(
                #[doc = concat!("A `", $name, "`.")]
                #[serde(rename = $name)]
                $variant($config),
            )*
        }

        /// A configuration that no device of its kind can have. The text names
        /// the key and its value.
        #[derive(Debug, PartialEq, Eq, Error)]
        #[non_exhaustive]
        pub enum ConfigError {
            $(
                #[doc = concat!("Of a `", $name, "`.")]
                #[error(transparent)]
                $variant(#[from] $invalid),
            )*
        }

        impl ConfigError {
            /// The key whose value it is about; with dots, and numbers from 0,
            /// where it is in a list of tables: `port.1.buffer`.
            #[must_use]
            pub fn key(&self) -> Cow<'static, str> {
                match self {
                    $(Self::$variant(error) => error.key().into(),)*
                }
            }
        }

        impl DeviceConfig {
            /// Reads the keys of a device whose kind is known already.
            ///
            /// # Errors
            /// A kind or a key that does not exist, or a value of the wrong
            /// type.
            pub fn read<'de, D: Deserializer<'de>>(kind: &str, keys: D) -> Result<Self, D::Error> {
                match kind {
                    $($name => <$config>::deserialize(keys).map(Self::$variant),)*
                    other => Err(serde::de::Error::unknown_variant(other, &[$($name),*])),
                }
            }

            /// Its kind.
            #[must_use]
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$variant(device) => Kind {
                        name: $name,
                        device_type: table!(@id $device_type, device $(, $own)?),
                    },)*
                }
            }

            /// The paths that it names, by their keys, as
            /// [`ConfigError::key`] has them.
            pub fn paths(&self) -> Box<dyn Iterator<Item = (Cow<'static, str>, &Path)> + '_> {
                match self {
                    $(Self::$variant(config) => {
                        Box::new(config.paths().map(|(key, path)| (key.into(), path)))
                    })*
                }
            }

            /// Checks everything that can be checked without touching the
            /// host.
            ///
            /// # Errors
            /// [`ConfigError`], about the first key that is wrong.
            pub fn validate(self) -> Result<DeviceSpec, ConfigError> {
                match self {
                    $(Self::$variant(config) => Ok(DeviceSpec::$variant(config.validate()?)),)*
                }
            }
        }

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
                    $(Self::$variant(device) => Kind {
                        name: $name,
                        device_type: table!(@id $device_type, device $(, $own)?),
                    },)*
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

// variant, name, virtio device id (or `NONE`, and what says each device's),
//     what its user says, why that may be wrong (with `key()`),
//     spec, how it is made, why it may not be
table! {
    Blk, "blk", DeviceType::BLOCK,
        blk::BlkConfig, blk::ConfigError,
        blk::BlkSpec, BlkDevice::open, blk::ImageError;
    Rng, "rng", DeviceType::ENTROPY,
        rng::RngConfig, rng::ConfigError,
        rng::RngSpec, RngDevice::open, rng::SourceError;
    Console, "console", DeviceType::CONSOLE,
        console::ConsoleConfig, console::ConfigError,
        console::ConsoleSpec, ConsoleDevice::open, console::EndpointError;
    Vsock, "vsock", DeviceType::SOCKET,
        vsock::VsockConfig, vsock::ConfigError,
        vsock::VsockSpec, VsockDevice::open, vsock::ListenError;
    Net, "net", DeviceType::NETWORK,
        net::NetConfig, net::ConfigError,
        net::NetSpec, NetDevice::open, net::OpenError;
    VhostUser, "vhost-user", DeviceType::NONE => device_type,
        frontend::VhostUserConfig, frontend::ConfigError,
        frontend::VhostUserSpec, VhostUserDevice::open, frontend::OpenError;
}

#[cfg(test)]
mod tests {
    use serde::de::value::MapDeserializer;

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
        let config = DeviceConfig::Blk(blk::BlkConfig::new(image.path()));
        let spec = config.clone().validate().unwrap();

        let kind = spec.kind();
        let device = spec.open().unwrap();

        assert_eq!(device.device_type(), kind.device_type);
        assert_eq!(config.kind(), kind);
        assert_eq!(kind.name, "blk");
    }

    #[test]
    fn a_device_behind_a_back_end_is_of_the_type_that_is_configured() {
        let config = DeviceConfig::VhostUser(frontend::VhostUserConfig::new("/fs.sock", 26));

        let configured = config.kind();
        let checked = config.validate().unwrap().kind();

        assert_eq!(
            (configured.name, configured.device_type.0),
            ("vhost-user", 26)
        );
        assert_eq!(checked, configured);
    }

    #[test]
    fn a_device_is_read_by_the_name_of_its_kind() {
        let keys = || {
            let keys = [("path", "/disk.img")].into_iter();
            MapDeserializer::<_, serde::de::value::Error>::new(keys)
        };

        let disk = DeviceConfig::read("blk", keys()).unwrap();
        let unknown = DeviceConfig::read("disk", keys()).unwrap_err().to_string();

        assert_eq!(disk, DeviceConfig::Blk(blk::BlkConfig::new("/disk.img")));
        assert!(
            unknown.contains("disk") && unknown.contains("blk"),
            "{unknown}"
        );
    }

    #[test]
    fn a_value_that_cannot_be_names_its_key() {
        let config = blk::BlkConfig {
            queue_size: 3,
            ..blk::BlkConfig::new("/disk.img")
        };

        let error = DeviceConfig::Blk(config).validate().unwrap_err();

        assert_eq!(error.key(), "queue-size");
        assert!(error.to_string().contains("queue-size 3"));
    }

    #[test]
    fn a_missing_image_is_told_in_the_devices_own_words() {
        let spec = DeviceSpec::Blk(blk::BlkConfig::new("/nonexistent/disk").validate().unwrap());

        let error = spec.open().err().unwrap();

        assert!(error.to_string().contains("/nonexistent/disk"));
    }
}
