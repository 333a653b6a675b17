//! A guest that is served, and how far each of its devices is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use devices::blk::Format;

use crate::discovery::DomainInfo;
use crate::guest::{DeviceKey, Guest};
use crate::spec::{FileId, SlotSpec};
use crate::state::Recorded;

/// A guest that is served.
pub(super) struct ServedGuest {
    /// Name and uuid.
    pub info: DomainInfo,
    /// Its thread.
    pub guest: Guest,
    /// Its ioreq server's record.
    pub record: Recorded,
    /// Its devices.
    pub devices: BTreeMap<DeviceKey, ServedDevice>,
    /// xenstored has lost it, and Xen has not.
    pub forgotten: bool,
}

/// How far a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is before the guest, and whether it can be used has not come out yet. The
    /// toolstack does not know of it.
    Trial,
    /// The guest can use it.
    Served,
    /// It cannot be used, and is being removed for that.
    Unusable,
    /// It is being removed; what comes then is seen then.
    Removing,
}

/// A device that is served.
#[derive(Debug)]
pub(super) struct ServedDevice {
    /// What it is, such as `blk`.
    pub kind: &'static str,
    /// Its name in the guest's configuration.
    pub name: Option<String>,
    /// Its image.
    pub path: Option<PathBuf>,
    /// The format of its image.
    pub format: Option<Format>,
    /// Which file its image is.
    pub image: Option<FileId>,
    /// The section of the configuration that says what is behind it.
    pub section: Option<String>,
    /// How far it is.
    pub phase: Phase,
    /// How often its driver came up. A guest can repeat that at will, so only
    /// the first time is worth a line in the log.
    pub starts: u64,
    /// The toolstack was told that the driver is up, and nobody has touched the
    /// device's nodes since. A guest can have its driver come up at will, and
    /// each word to the toolstack is a transaction.
    pub is_told: bool,
    /// How often it broke.
    pub failures: u64,
}

impl ServedDevice {
    pub(super) fn new(spec: &SlotSpec, phase: Phase) -> Self {
        let image = spec.image().and_then(FileId::of);
        ServedDevice {
            kind: spec.device.kind().name,
            name: spec.name.clone(),
            path: spec.image().map(Path::to_owned),
            format: spec.format(),
            image,
            section: spec.section.clone(),
            phase,
            starts: 0,
            is_told: false,
            failures: 0,
        }
    }
}
