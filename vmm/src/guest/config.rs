//! What a guest and its devices are given when they are started.
//!
//! Plain data, made by the control plane.

use std::fmt;
use std::time::Duration;

use swiotlb::GrantMode;
use xen::DomId;

use super::mapping::Mapping;

/// Bytes between the register windows of two devices (`VIRTIO_MMIO_DEV_SIZE`,
/// `tools/libs/light/libxl_arm.c`).
pub const SLOT_SIZE: u64 = 0x200;

/// Addresses of a guest that are claimed for virtio devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioWindow {
    /// First guest-physical address.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

impl MmioWindow {
    /// Where libxl puts virtio devices of Arm guests
    /// (`GUEST_VIRTIO_MMIO_BASE`, `xen/include/public/arch-arm.h`).
    pub const ARM: MmioWindow = MmioWindow {
        base: 0x0200_0000,
        size: 0x0010_0000,
    };

    /// The last address, if the window is neither empty nor wraps and consists
    /// of whole slots.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        let whole = self.base.is_multiple_of(SLOT_SIZE) && self.size.is_multiple_of(SLOT_SIZE);
        match whole {
            true => self.base.checked_add(self.size.checked_sub(1)?),
            false => None,
        }
    }

    /// Whether `base` is the first address of a slot in the window.
    #[must_use]
    pub fn has_slot(&self, base: u64) -> bool {
        let last = base.checked_add(SLOT_SIZE - 1);
        base.is_multiple_of(SLOT_SIZE)
            && base >= self.base
            && last.is_some_and(|last| self.last().is_some_and(|end| last <= end))
    }
}

impl MmioWindow {
    /// What to claim for a device at `base`: all of where libxl puts virtio
    /// devices if it is there, so that the slots beside it answer too, else
    /// the device's own slot. Elsewhere nothing is known of what is beside it.
    #[must_use]
    pub fn around(base: u64) -> MmioWindow {
        match MmioWindow::ARM.has_slot(base) {
            true => MmioWindow::ARM,
            false => MmioWindow {
                base,
                size: SLOT_SIZE,
            },
        }
    }

    /// Several windows, for messages.
    #[must_use]
    pub fn list(windows: &[MmioWindow]) -> String {
        let windows: Vec<String> = windows.iter().map(ToString::to_string).collect();
        windows.join(", ")
    }
}

impl fmt::Display for MmioWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.base, self.size)
    }
}

/// How a device is known to the control plane and in logs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceKey {
    /// Its directory under `backend` in xenstore, such as `virtio_disk`.
    pub kind: String,
    /// Its number there.
    pub devid: u32,
}

impl DeviceKey {
    /// The key of device `devid` of `kind`.
    #[must_use]
    pub fn new(kind: impl Into<String>, devid: u32) -> Self {
        DeviceKey {
            kind: kind.into(),
            devid,
        }
    }
}

impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.devid)
    }
}

/// One device to be served.
pub struct DeviceSlot {
    /// How the control plane knows it.
    pub id: DeviceKey,
    /// First address of its register window.
    pub base: u64,
    /// Its interrupt, an SPI.
    pub irq: u32,
    /// `grant_usage`: offer ACCESS_PLATFORM and insist on it.
    pub grants: bool,
    /// How its plain addresses relate to the machine's.
    pub mapping: Mapping,
    /// The device.
    pub device: Box<dyn devices::virtio::Device>,
}

impl fmt::Debug for DeviceSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceSlot")
            .field("id", &self.id)
            .field("base", &format_args!("{:#x}", self.base))
            .field("irq", &self.irq)
            .field("grants", &self.grants)
            .field("mapping", &self.mapping.kind())
            .finish_non_exhaustive()
    }
}

/// How interrupts and kicks pass through the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventMode {
    /// Interrupts by irqfd where the kernel has it, else by hypercall; kicks
    /// as register accesses.
    #[default]
    Auto,
    /// Interrupts by hypercall; kicks as register accesses.
    Plain,
    /// Interrupts by irqfd, or the device is refused.
    Irqfd,
    /// As [`EventMode::Irqfd`], and kicks by ioeventfd. Not the default: each
    /// kick still passes through the event channel, and an unmatched write
    /// through the kernel's hands.
    Ioeventfd,
}

/// How the data of a guest's requests is reached where there is a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataPath {
    /// The bounce pool of each queue.
    pub pool: swiotlb::Options,
    /// Whether granted data is mapped or copied.
    pub granted: GrantMode,
}

impl DataPath {
    /// Slots of a pool where nothing is said: 8 MiB.
    pub const SLOTS: u32 = 4096;
}

impl Default for DataPath {
    fn default() -> Self {
        let mut pool = swiotlb::Options::default();
        pool.adjust_size(Self::SLOTS);
        DataPath {
            pool,
            granted: GrantMode::default(),
        }
    }
}

/// A guest to be served.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// Its id.
    pub domid: DomId,
    /// Its name, for logs.
    pub name: String,
    /// Addresses to claim: all of them, so that a slot without a device
    /// answers that there is none. They do not overlap.
    pub windows: Vec<MmioWindow>,
    /// Take plain addresses from devices that were given grants, too.
    pub allow_foreign_with_grants: bool,
    /// How events pass.
    pub events: EventMode,
    /// How its data is reached.
    pub data: DataPath,
    /// A queue that takes longer to stop is logged.
    pub stop_warning: Duration,
}

impl GuestConfig {
    /// A guest with the usual window, automatic events and five seconds until
    /// a stopping queue is logged.
    #[must_use]
    pub fn new(domid: DomId, name: impl Into<String>) -> Self {
        GuestConfig {
            domid,
            name: name.into(),
            windows: vec![MmioWindow::ARM],
            allow_foreign_with_grants: false,
            events: EventMode::Auto,
            data: DataPath::default(),
            stop_warning: Duration::from_secs(5),
        }
    }

    /// How long the end of the guest waits for a queue that does not stop.
    #[must_use]
    pub fn stop_limit(&self) -> Duration {
        self.stop_warning.saturating_mul(6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_lie_within_the_window_and_on_its_grid() {
        let window = MmioWindow::ARM;

        assert!(window.has_slot(0x0200_0000));
        assert!(window.has_slot(0x020f_fe00));
        assert!(!window.has_slot(0x0210_0000));
        assert!(!window.has_slot(0x01ff_fe00));
        assert!(!window.has_slot(0x0200_0100));
        assert!(!window.has_slot(u64::MAX - 0x1ff));
    }

    #[test]
    fn a_device_elsewhere_has_its_own_slot_claimed_and_no_more() {
        let elsewhere = MmioWindow::around(0x0a00_0000);

        assert_eq!(MmioWindow::around(0x0200_0400), MmioWindow::ARM);
        assert!(elsewhere.has_slot(0x0a00_0000) && !elsewhere.has_slot(0x0a00_0200));
        assert_eq!(
            MmioWindow::list(&[MmioWindow::ARM, elsewhere]),
            "0x2000000+0x100000, 0xa000000+0x200"
        );
    }

    #[test]
    fn windows_that_are_no_range_have_no_end() {
        let window = |base, size| MmioWindow { base, size };

        assert_eq!(window(0, 0x200).last(), Some(0x1ff));
        assert_eq!(window(0, 0).last(), None);
        assert_eq!(window(0x100, 0x200).last(), None);
        assert_eq!(window(0, 0x201).last(), None);
        assert_eq!(window(u64::MAX - 0x1ff, 0x400).last(), None);
    }
}
