//! What a guest and its devices are to be, made once and never changed: the
//! toolstack's nodes with the configuration file's word on them.
//!
//! The control thread makes specs when a device appears.

use std::path::Path;

use devices::blk::{BlkConfig, ConfigError};
use devices::registry::DeviceSpec;
use xen::DomId;

use crate::config::Config;
use crate::discovery::{DiskNode, DomainInfo};
use crate::guest::GuestConfig;

/// A device to be served, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSpec {
    /// First address of its registers, guest-physical.
    pub base: u64,
    /// Its interrupt, an SPI.
    pub irq: u32,
    /// The guest is to use grants.
    pub grants: bool,
    /// Its name in the guest's configuration, such as `xvda`.
    pub name: Option<String>,
    /// The device.
    pub device: DeviceSpec,
}

impl SlotSpec {
    /// The image behind the device.
    #[must_use]
    pub fn image(&self) -> Option<&Path> {
        match &self.device {
            DeviceSpec::Blk(spec) => Some(spec.path()),
            _ => None,
        }
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
        stop_warning: config.stop_warning(),
        ..GuestConfig::new(domid, info.name.clone())
    }
}

/// The disk number `devid` of a guest.
///
/// # Errors
/// Values that no disk can have.
pub fn disk(
    config: &Config,
    info: &DomainInfo,
    devid: u32,
    node: &DiskNode,
) -> Result<SlotSpec, ConfigError> {
    let section = config.guest(&info.name, info.uuid.as_deref());
    let from_toolstack = BlkConfig {
        readonly: node.readonly,
        discard: node.discard,
        ..BlkConfig::new(&node.image)
    };
    let spec = section
        .disk(node.name.as_deref(), devid)
        .apply(from_toolstack)
        .validate()?;
    Ok(SlotSpec {
        base: node.base,
        irq: node.irq,
        grants: node.grants,
        name: node.name.clone(),
        device: DeviceSpec::Blk(spec),
    })
}
