//! What a guest and its devices are to be, made once and never changed: the
//! toolstack's nodes with the configuration file's word on them.
//!
//! The control thread makes specs when a device appears.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use devices::blk::{BlkConfig, Format};
use devices::registry::{ConfigError, DeviceConfig, DeviceSpec, Kind};
use thiserror::Error;
use xen::DomId;

use crate::config::Config;
use crate::discovery::{Announced, DeviceNode, DomainInfo, VirtioType};
use crate::guest::{DataPath, DeviceKey, GuestConfig};

/// A device to be served, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSpec {
    /// First address of its registers, guest-physical.
    pub base: u64,
    /// Its interrupt, an SPI.
    pub irq: u32,
    /// The guest is to use grants.
    pub grants: bool,
    /// Its name in the guest's configuration, such as `xvda`, or its type.
    pub name: Option<String>,
    /// The section of the configuration that says what is behind it, if one
    /// does; it may say so of others, too.
    pub section: Option<String>,
    /// The device.
    pub device: DeviceSpec,
}

impl SlotSpec {
    /// The image behind the device.
    #[must_use]
    pub fn image(&self) -> Option<&Path> {
        match &self.device {
            DeviceSpec::Blk(spec) => spec.path(),
            _ => None,
        }
    }

    /// How the image's bytes make a disk, if there is an image.
    #[must_use]
    pub fn format(&self) -> Option<Format> {
        match &self.device {
            DeviceSpec::Blk(spec) => spec.format(),
            _ => None,
        }
    }

    /// The same for a guest's device `key`: a network card that was given no
    /// address has one of the guest's identity, the same each time.
    #[must_use]
    pub fn of_guest(mut self, info: &DomainInfo, key: &DeviceKey) -> Self {
        if let DeviceSpec::Net(card) = self.device {
            let guest = info.uuid.as_deref().unwrap_or(&info.name);
            self.device = DeviceSpec::Net(card.or_address_of(guest, key.devid));
        }
        self
    }
}

/// The guest `domid`.
#[must_use]
pub fn guest(config: &Config, domid: DomId, info: &DomainInfo) -> GuestConfig {
    let section = config.guest(&info.name, info.uuid.as_deref());
    let allow = section.allow_foreign_with_grants;
    GuestConfig {
        allow_foreign_with_grants: allow.unwrap_or(config.allow_foreign_with_grants),
        events: section.events.unwrap_or(config.events),
        data: DataPath {
            pool: section.swiotlb.unwrap_or(config.swiotlb).options(),
            granted: section.granted_data.unwrap_or(config.granted_data).mode(),
        },
        stop_warning: config.stop_warning(),
        ..GuestConfig::new(domid, info.name.clone())
    }
}

/// Why nodes and configuration make no device.
#[derive(Debug, Error)]
pub enum SpecError {
    /// A value that no such device can have.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Nobody says what is behind the device.
    #[error(
        "the configuration has no entry for it: xenstore says that {device} is a {announced}, and \
         not what is behind it. Say so in a section [guest.{guest:?}.virtio.{}.KIND]",
        device.devid
    )]
    NoEntry {
        /// The guest's name.
        guest: String,
        /// The device.
        device: DeviceKey,
        /// What the toolstack announced.
        announced: VirtioType,
    },
    /// The configuration says something else than the toolstack.
    #[error(
        "the guest's configuration announces a {announced}, and ours has a {}, which is {}: \
         correct one of them",
        configured.name,
        VirtioType(configured.device_type)
    )]
    Kind {
        /// What the toolstack announced.
        announced: VirtioType,
        /// What our configuration has.
        configured: Kind,
    },
}

/// The device `key` of a guest.
///
/// # Errors
/// [`SpecError`].
pub fn device(
    file: &Config,
    info: &DomainInfo,
    key: &DeviceKey,
    node: &DeviceNode,
) -> Result<SlotSpec, SpecError> {
    let section = file.guest(&info.name, info.uuid.as_deref());
    let (name, described, device) = match &node.announced {
        Announced::Disk(disk) => {
            let from_toolstack = BlkConfig {
                readonly: disk.readonly,
                discard: disk.discard,
                ..BlkConfig::new(&disk.image)
            };
            let overrides = section.disk(disk.name.as_deref(), key.devid);
            let config = DeviceConfig::Blk(overrides.apply(from_toolstack));
            // whose image is the toolstack's word
            (disk.name.clone(), None, config)
        }
        Announced::Virtio(announced) => {
            let entry = section.virtio(key.devid, announced.0);
            let config = entry.cloned().ok_or_else(|| SpecError::NoEntry {
                guest: info.name.clone(),
                device: key.clone(),
                announced: *announced,
            })?;
            check_kind(*announced, &config)?;
            let (guest, uuid) = (&info.name, info.uuid.as_deref());
            let section = file.section_of(guest, uuid, key.devid, announced.0);
            (Some(announced.to_string()), section, config)
        }
    };
    let spec = SlotSpec {
        base: node.base,
        irq: node.irq,
        grants: node.grants,
        name,
        section: described,
        device: device.validate()?,
    };
    Ok(spec.of_guest(info, key))
}

/// The guest's driver is chosen by what the device is, so that a wrong kind
/// would only be seen inside of the guest.
fn check_kind(announced: VirtioType, config: &DeviceConfig) -> Result<(), SpecError> {
    let configured = config.kind();
    match configured.device_type == announced.0 {
        true => Ok(()),
        false => Err(SpecError::Kind {
            announced,
            configured,
        }),
    }
}

/// A file, whatever its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FileId {
    /// A regular file: device and inode.
    File(u64, u64),
    /// A block device: its number.
    Block(u64),
}

impl FileId {
    /// Which file is at `path`, if one is.
    pub(crate) fn of(path: &Path) -> Option<FileId> {
        let metadata = fs::metadata(path).ok()?;
        Some(match metadata.file_type().is_block_device() {
            true => FileId::Block(metadata.rdev()),
            false => FileId::File(metadata.dev(), metadata.ino()),
        })
    }
}
