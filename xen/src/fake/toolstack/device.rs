//! Which nodes libxl writes for which device.

use crate::DomId;
use crate::xenstore::XenbusState;

/// Where the first virtio-mmio device of an Arm guest is
/// (`GUEST_VIRTIO_MMIO_BASE`, `xen/include/public/arch-arm.h`).
pub const VIRTIO_MMIO_BASE: u64 = 0x0200_0000;
/// From one device to the next, in bytes (`VIRTIO_MMIO_DEV_SIZE`,
/// `libxl_arm.c`).
pub const VIRTIO_MMIO_STRIDE: u64 = 0x200;
/// The first device's interrupt (`GUEST_VIRTIO_MMIO_SPI_FIRST`,
/// `xen/include/public/arch-arm.h`).
pub const VIRTIO_MMIO_SPI_FIRST: u32 = 33;

/// The kinds of device, as they stand in paths.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum Kind {
    /// `virtio`: any device, told by its `type`.
    Virtio,
    /// `virtio_disk`: a disk with `specification=virtio`.
    VirtioDisk,
}

impl Kind {
    /// The name in paths.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::VirtioDisk => "virtio_disk",
        }
    }
}

/// Which device.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct DeviceId {
    /// The domain the device model is in.
    pub backend: DomId,
    /// The guest.
    pub domain: DomId,
    /// The device's kind.
    pub kind: Kind,
    /// Its number among the guest's devices of the kind.
    pub devid: u32,
}

impl DeviceId {
    /// The back end's directory.
    #[must_use]
    pub fn backend_path(&self) -> String {
        let Self {
            backend,
            domain,
            kind,
            devid,
        } = self;
        format!(
            "/local/domain/{backend}/backend/{}/{domain}/{devid}",
            kind.name()
        )
    }

    /// The front end's directory.
    #[must_use]
    pub fn frontend_path(&self) -> String {
        format!(
            "/local/domain/{}/device/{}/{}",
            self.domain,
            self.kind.name(),
            self.devid
        )
    }

    /// libxl's own directory.
    #[must_use]
    pub fn libxl_path(&self) -> String {
        format!(
            "/libxl/{}/device/{}/{}",
            self.domain,
            self.kind.name(),
            self.devid
        )
    }
}

/// Keys and values, in the order libxl writes them.
type Nodes = Vec<(&'static str, String)>;

/// What libxl writes for a device.
pub trait Device {
    /// Which device it is.
    fn id(&self) -> DeviceId;
    /// The back end's nodes but `frontend`.
    fn backend_nodes(&self) -> Vec<(&'static str, String)>;
    /// The front end's nodes but `backend`.
    fn frontend_nodes(&self) -> Vec<(&'static str, String)>;
}

/// A disk with `specification=virtio` (`device_disk_add`, `libxl_disk.c`).
#[derive(Clone, Debug)]
pub struct VirtioDisk {
    /// The domain the device model is in.
    pub backend: DomId,
    /// The guest.
    pub domain: DomId,
    /// `51712` for `xvda`; see [`vdev_number`].
    pub devid: u32,
    /// The name given in the configuration, such as `xvda`.
    pub dev: String,
    /// The image's path.
    pub params: String,
    /// `mode` `w`, else `r`.
    pub writable: bool,
    /// `device-type` `cdrom`, else `disk`.
    pub cdrom: bool,
    /// `removable`.
    pub removable: bool,
    /// `discard-enable`.
    pub discard: bool,
    /// `direct-io-safe`, a node that is there only if set.
    pub direct_io_safe: bool,
    /// Guest-physical address of the registers; written in decimal.
    pub base: u64,
    /// The interrupt's number.
    pub irq: u32,
    /// Whether the guest is to use grants.
    pub grant_usage: bool,
    /// The front end's `trusted`.
    pub trusted: bool,
}

impl VirtioDisk {
    /// Disk number `index` of a guest (0 is `xvda`, in the first register
    /// slot, and so on), writable, with grants, in dom0.
    #[must_use]
    pub fn new(domain: DomId, index: u8, params: impl Into<String>) -> Self {
        let (base, irq) = slot(index);
        let letter = char::from(b'a'.saturating_add(index.min(25)));
        Self {
            backend: DomId(0),
            domain,
            devid: vdev_number(index),
            dev: format!("xvd{letter}"),
            params: params.into(),
            writable: true,
            cdrom: false,
            removable: false,
            discard: true,
            direct_io_safe: false,
            base,
            irq,
            grant_usage: true,
            trusted: true,
        }
    }
}

/// Registers and interrupt of a guest's device number `index`, as libxl
/// allots them on Arm.
#[must_use]
pub fn slot(index: u8) -> (u64, u32) {
    let base = VIRTIO_MMIO_BASE.saturating_add(VIRTIO_MMIO_STRIDE.saturating_mul(index.into()));
    (base, VIRTIO_MMIO_SPI_FIRST.saturating_add(index.into()))
}

/// The number of whole disk `index`, 0 for `xvda`
/// (`docs/man/xen-vbd-interface.7.pandoc`).
#[must_use]
pub fn vdev_number(index: u8) -> u32 {
    let index = u32::from(index);
    if index < 16 {
        (202 << 8) | (index << 4)
    } else {
        (1 << 28) | (index << 8)
    }
}

fn flag(set: bool) -> String {
    u8::from(set).to_string()
}

impl Device for VirtioDisk {
    fn id(&self) -> DeviceId {
        let Self {
            backend,
            domain,
            devid,
            ..
        } = *self;
        DeviceId {
            backend,
            domain,
            kind: Kind::VirtioDisk,
            devid,
        }
    }

    fn backend_nodes(&self) -> Nodes {
        let kind = if self.cdrom { "cdrom" } else { "disk" };
        let mut nodes = vec![
            ("params", self.params.clone()),
            ("frontend-id", self.domain.to_string()),
            ("online", flag(true)),
            ("removable", flag(self.removable)),
            ("bootable", flag(true)),
            ("state", XenbusState::Initialising.to_string()),
            ("dev", self.dev.clone()),
            ("type", "standalone".to_owned()),
            ("mode", if self.writable { "w" } else { "r" }.to_owned()),
            ("device-type", kind.to_owned()),
        ];
        if self.direct_io_safe {
            nodes.push(("direct-io-safe", flag(true)));
        }
        nodes.extend([
            ("discard-enable", flag(self.discard)),
            ("specification", "virtio".to_owned()),
            ("transport", "mmio".to_owned()),
            ("base", self.base.to_string()),
            ("irq", self.irq.to_string()),
            ("grant_usage", flag(self.grant_usage)),
        ]);
        nodes
    }

    fn frontend_nodes(&self) -> Nodes {
        let kind = if self.cdrom { "cdrom" } else { "disk" };
        vec![
            ("backend-id", self.backend.to_string()),
            ("state", XenbusState::Initialising.to_string()),
            ("virtual-device", self.devid.to_string()),
            ("device-type", kind.to_owned()),
            ("trusted", flag(self.trusted)),
        ]
    }
}

/// A device of `virtio = [ ... ]` (`libxl_virtio.c`).
#[derive(Clone, Debug)]
pub struct VirtioDevice {
    /// The domain the device model is in.
    pub backend: DomId,
    /// The guest.
    pub domain: DomId,
    /// Its place in the list.
    pub devid: u32,
    /// `type`, such as `virtio,device4` for an entropy source; the number is
    /// hexadecimal.
    pub device_type: String,
    /// Guest-physical address of the registers; written in hexadecimal.
    pub base: u64,
    /// The interrupt's number.
    pub irq: u32,
    /// Whether the guest is to use grants.
    pub grant_usage: bool,
}

impl VirtioDevice {
    /// Device number `devid` of a guest's list, in register slot `index`, of
    /// virtio device id `virtio_id` (virtio 1.3 §5), with grants, in dom0.
    #[must_use]
    pub fn new(domain: DomId, devid: u32, index: u8, virtio_id: u32) -> Self {
        let (base, irq) = slot(index);
        Self {
            backend: DomId(0),
            domain,
            devid,
            device_type: format!("virtio,device{virtio_id:x}"),
            base,
            irq,
            grant_usage: true,
        }
    }
}

impl Device for VirtioDevice {
    fn id(&self) -> DeviceId {
        let Self {
            backend,
            domain,
            devid,
            ..
        } = *self;
        DeviceId {
            backend,
            domain,
            kind: Kind::Virtio,
            devid,
        }
    }

    fn backend_nodes(&self) -> Nodes {
        vec![
            ("frontend-id", self.domain.to_string()),
            ("online", flag(true)),
            ("state", XenbusState::Initialising.to_string()),
            ("irq", self.irq.to_string()),
            ("base", format!("{:#x}", self.base)),
            ("type", self.device_type.clone()),
            ("transport", "mmio".to_owned()),
            ("grant_usage", flag(self.grant_usage)),
        ]
    }

    fn frontend_nodes(&self) -> Nodes {
        vec![
            ("backend-id", self.backend.to_string()),
            ("state", XenbusState::Initialising.to_string()),
        ]
    }
}
