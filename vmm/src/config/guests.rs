//! What the configuration file says about single guests and their devices.

use std::collections::BTreeMap;
use std::path::PathBuf;

use devices::blk::BlkConfig;
use devices::registry::DeviceConfig;
use devices::virtio::DeviceType;
use serde::Deserialize;

use super::{BadValue, GrantedData, PoolOptions, pattern};
use crate::discovery::VirtioType;
use crate::guest::EventMode;

/// The disks of a guest that have no section of their own.
const ANY_DISK: &str = "*";

/// The sections `[guest.…]`, under a uuid, a name, or a pattern with `*` for
/// any text and `?` for any character.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct GuestSections(BTreeMap<String, GuestOverrides>);

/// What is different for a guest.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct GuestOverrides {
    /// In place of [`super::Config::allow_foreign_with_grants`].
    pub allow_foreign_with_grants: Option<bool>,
    /// In place of [`super::Config::events`].
    pub events: Option<EventMode>,
    /// In place of [`super::Config::swiotlb`].
    pub swiotlb: Option<PoolOptions>,
    /// In place of [`super::Config::granted_data`].
    pub granted_data: Option<GrantedData>,
    /// Whether the guest is mapped 1:1 (Xen's `direct-map`). Without it, the
    /// toolstack's node counts
    /// ([`toolstack_word_node`](crate::discovery::toolstack_word_node)), else
    /// it is not.
    pub direct_mapped: Option<bool>,
    /// Under the disk's name (`xvda`), its number (`51712`), or `*`.
    disk: BTreeMap<String, DiskOverrides>,
    /// What is behind the devices of `virtio = [ ... ]`: under the device's
    /// number in that list, from 0, its type (`device4`), or a pattern of
    /// types.
    virtio: BTreeMap<String, DeviceConfig>,
}

/// What is different for a disk. The keys and their bounds are those of
/// [`BlkConfig`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct DiskOverrides {
    format: Option<devices::blk::Format>,
    null: Option<u64>,
    serial: Option<String>,
    discard: Option<bool>,
    queue_size: Option<u16>,
    queues: Option<u16>,
    logical_block_size: Option<u32>,
    physical_block_size: Option<u32>,
    direct: Option<bool>,
    engine: Option<devices::blk::EngineKind>,
    write_cache: Option<bool>,
    operations_per_second: Option<u64>,
    operations_burst: Option<u64>,
    bytes_per_second: Option<u64>,
    bytes_burst: Option<u64>,
}

impl GuestSections {
    pub(super) fn check(&self) -> Result<(), BadValue> {
        for (guest, section) in &self.0 {
            for (disk, overrides) in &section.disk {
                if disk != ANY_DISK && !is_disk(disk) {
                    let message = format!(
                        "{disk:?} names no disk: it is neither a name such as xvda, nor a number \
                         such as 51712, nor \"*\""
                    );
                    return Err(BadValue::new(["guest", guest, "disk", disk], message));
                }
                let config = overrides.apply(BlkConfig::new("any"));
                config.validate().map_err(|error| {
                    BadValue::new(["guest", guest, "disk", disk, error.key()], error)
                })?;
            }
            for (entry, device) in &section.virtio {
                check_entry(entry, device)
                    .map_err(|message| BadValue::new(["guest", guest, "virtio", entry], message))?;
                let kind = device.kind().name;
                let below = ["guest", guest, "virtio", entry, kind];
                device.clone().validate().map_err(|error| {
                    BadValue::new(below.into_iter().chain(error.key().split('.')), &error)
                })?;
                // whoever reads the file may run anywhere
                if let Some((key, path)) = device.paths().find(|(_, path)| !path.is_absolute()) {
                    let message = format!("{} is no absolute path", path.display());
                    let keys = below.into_iter().chain(key.split('.'));
                    return Err(BadValue::new(keys, message));
                }
            }
        }
        Ok(())
    }

    /// The section of a guest, and its key.
    pub(super) fn find(
        &self,
        name: &str,
        uuid: Option<&str>,
    ) -> Option<(&String, &GuestOverrides)> {
        let is_uuid = |key: &String| uuid.is_some_and(|uuid| key.eq_ignore_ascii_case(uuid));
        let by_uuid = self.0.iter().find(|(key, _)| is_uuid(key));
        by_uuid
            .or_else(|| self.0.get_key_value(name))
            .or_else(|| pattern::best(&self.0, name))
    }
}

/// Whether a guest can have a disk of this name or number: what libxl takes
/// for `vdev`. xen-vbd-interface(7)
fn is_disk(key: &str) -> bool {
    let is_number = is_plain_number;
    // letters for the disk, digits for a partition of it; no disk has more of
    // either, its number being one of 28 bits
    let lettered = |rest: &str| {
        let partition = rest.trim_start_matches(|c: char| c.is_ascii_lowercase());
        let letters = rest.len() - partition.len();
        (1..=4).contains(&letters)
            && (partition.is_empty() || partition.len() <= 3 && is_number(partition))
    };
    let numbered = |rest: &str| match rest.split_once('p') {
        Some((disk, partition)) => is_number(disk) && is_number(partition),
        None => is_number(rest),
    };
    let hexadecimal = |digits| u32::from_str_radix(digits, 16).is_ok();
    is_number(key)
        || ["xvd", "hd", "sd"]
            .iter()
            .any(|prefix| key.strip_prefix(prefix).is_some_and(lettered))
        || key.strip_prefix('d').is_some_and(numbered)
        || key.strip_prefix("0x").is_some_and(hexadecimal)
}

/// Whether it is a number as it is looked up: without a sign or leading zeros.
fn is_plain_number(text: &str) -> bool {
    text.parse::<u32>()
        .is_ok_and(|number| number.to_string() == text)
}

/// Says what is wrong with the key of a device, which would never be found or
/// never fit.
fn check_entry(entry: &str, device: &DeviceConfig) -> Result<(), String> {
    let kind = device.kind();
    match VirtioType::parse_short(entry) {
        Some(announced) if announced.to_string() != entry => {
            Err(format!("{entry:?} is written {announced}"))
        }
        Some(announced) if announced.0 != kind.device_type => {
            let (own, id) = (VirtioType(kind.device_type), kind.device_type.0);
            Err(match device {
                DeviceConfig::VhostUser(_) => format!(
                    "{announced} has not the virtio-id {id}: say virtio-id = {}, or {own} (in \
                     hexadecimal) in place of {announced}",
                    announced.0.0
                ),
                _ => format!(
                    "{announced} is no {}, which is {own}: device ids {} and {id}, in hexadecimal \
                     in the key",
                    kind.name, announced.0.0
                ),
            })
        }
        None if !is_plain_number(entry) && !pattern::is_pattern(entry) => Err(format!(
            "{entry:?} is neither a device's number nor a type such as device4 (hexadecimal) nor a \
             pattern of types"
        )),
        _ => Ok(()),
    }
}

impl GuestOverrides {
    /// What is different for a disk, known by its name and its number. The
    /// name goes before the number, and both before `*`.
    #[must_use]
    pub fn disk(&self, name: Option<&str>, devid: u32) -> DiskOverrides {
        name.and_then(|name| self.disk.get(name))
            .or_else(|| self.disk.get(&devid.to_string()))
            .or_else(|| self.disk.get(ANY_DISK))
            .cloned()
            .unwrap_or_default()
    }

    /// What is behind a device of `virtio = [ ... ]`, if that is said. Its
    /// number goes before its type, and that before patterns of types.
    #[must_use]
    pub fn virtio(&self, devid: u32, announced: DeviceType) -> Option<&DeviceConfig> {
        self.entry(devid, announced).map(|(_, device)| device)
    }

    /// The same, and its key.
    pub(super) fn entry(
        &self,
        devid: u32,
        announced: DeviceType,
    ) -> Option<(&String, &DeviceConfig)> {
        let announced = VirtioType(announced);
        let is_type = |key: &String| VirtioType::parse_short(key) == Some(announced);
        let by_type = self.virtio.iter().find(|(key, _)| is_type(key));
        self.virtio
            .get_key_value(&devid.to_string())
            .or(by_type)
            .or_else(|| pattern::best(&self.virtio, &announced.to_string()))
    }
}

impl DiskOverrides {
    /// Puts what is said here in the place of what `disk` has.
    #[must_use]
    pub fn apply(&self, mut disk: BlkConfig) -> BlkConfig {
        disk.format = self.format.unwrap_or(disk.format);
        if self.null.is_some() {
            // what the toolstack has named is left alone
            disk.path = PathBuf::new();
            disk.null = self.null;
        }
        disk.serial = self.serial.clone().or(disk.serial);
        disk.logical_block_size = self.logical_block_size.or(disk.logical_block_size);
        disk.physical_block_size = self.physical_block_size.or(disk.physical_block_size);
        disk.discard = self.discard.unwrap_or(disk.discard);
        disk.queue_size = self.queue_size.unwrap_or(disk.queue_size);
        disk.queues = self.queues.unwrap_or(disk.queues);
        disk.direct = self.direct.unwrap_or(disk.direct);
        disk.engine = self.engine.unwrap_or(disk.engine);
        disk.write_cache = self.write_cache.unwrap_or(disk.write_cache);
        disk.operations_per_second = self.operations_per_second.or(disk.operations_per_second);
        disk.operations_burst = self.operations_burst.or(disk.operations_burst);
        disk.bytes_per_second = self.bytes_per_second.or(disk.bytes_per_second);
        disk.bytes_burst = self.bytes_burst.or(disk.bytes_burst);
        disk
    }
}
