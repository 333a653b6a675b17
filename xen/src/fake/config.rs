//! What a fake machine and its domains are like.

use std::time::Duration;

use super::ram::{Bank, PAGE};
use crate::DomId;
use crate::host::HostFile;

/// A fake Xen with its dom0.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Feature word of dom0 (`XENVER_get_features`, submap 0).
    pub features: u32,
    /// Xen's version, as `XENVER_version` gives it.
    pub version: (u16, u16),
    /// Whether Xen was built with `CONFIG_IOREQ_SERVER`; without it every
    /// DM_OP fails with `ENOSYS`.
    pub ioreq_server: bool,
    /// What dom0's kernel says to `PRIVCMD_IRQFD` and `PRIVCMD_IOEVENTFD`.
    pub privcmd_eventfd: PrivcmdEventfd,
    /// How long the kernel's ioeventfd handler keeps a request INPROCESS.
    /// Zero: nobody can see the state.
    pub ioeventfd_linger: Duration,
    /// How long a vCPU waits for the device model before the access counts
    /// as hung.
    pub access_timeout: Duration,
    /// Grants that one map request may name (`limit` of gntdev).
    pub gntdev_limit: usize,
    /// Whether dom0's kernel says that it runs on Xen at all.
    pub on_xen: bool,
    /// The only domain that privcmd serves, as outside of dom0 since XSA-482
    /// (the `target` of the driver domain); every new file is tied to it.
    pub privcmd_domain: Option<DomId>,
    /// Device files that cannot be opened, and the error number of it:
    /// `ENOENT` without their driver, `EACCES` for a user without rights.
    pub closed_files: Vec<(HostFile, i32)>,
}

impl Default for MachineConfig {
    /// Xen 4.20 with IOREQ servers under Linux with `XEN_PRIVCMD_EVENTFD`.
    fn default() -> Self {
        MachineConfig {
            features: 0x0006_6805,
            version: (4, 20),
            ioreq_server: true,
            privcmd_eventfd: PrivcmdEventfd::Present,
            ioeventfd_linger: Duration::ZERO,
            access_timeout: Duration::from_secs(20),
            gntdev_limit: 64 * 1024,
            on_xen: true,
            privcmd_domain: None,
            closed_files: Vec::new(),
        }
    }
}

/// What dom0's kernel knows of irqfd and ioeventfd.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum PrivcmdEventfd {
    /// Both work.
    Present,
    /// Built without `CONFIG_XEN_PRIVCMD_EVENTFD`: `EOPNOTSUPP`.
    NotConfigured,
    /// Older than Linux 6.7: `ENOTTY`.
    Unknown,
}

impl PrivcmdEventfd {
    /// The error both calls give, if they do not work.
    pub(super) fn refusal(self) -> Option<i32> {
        match self {
            PrivcmdEventfd::Present => None,
            PrivcmdEventfd::NotConfigured => Some(libc::EOPNOTSUPP),
            PrivcmdEventfd::Unknown => Some(libc::ENOTTY),
        }
    }
}

/// A fake guest.
#[derive(Clone, Debug)]
pub struct DomainConfig {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// The feature word that the guest sees.
    pub features: u32,
    /// Where its RAM is.
    pub banks: Vec<Bank>,
    /// Frames of the banks that were ballooned out before it starts.
    pub holes: Vec<Bank>,
    /// Interrupt lines of its controller, the 32 private ones included.
    pub irqs: u32,
    /// Lines that Xen itself drives, closed to `set_irq_level`.
    pub xen_irqs: Vec<u32>,
    /// Grant table frames at most (512 references each).
    pub grant_frames: u32,
    /// Starts paused, as `xl create -p` does.
    pub paused: bool,
}

impl Default for DomainConfig {
    /// 256 MiB and one vCPU.
    fn default() -> Self {
        DomainConfig::with_memory(256 << 20)
    }
}

// xen/include/public/arch-arm.h: GUEST_RAM0_BASE, GUEST_RAM0_SIZE, GUEST_RAM1_BASE
const RAM0_BASE: u64 = 0x4000_0000;
const RAM0_SIZE: u64 = 0xc000_0000;
const RAM1_BASE: u64 = 0x2_0000_0000;

impl DomainConfig {
    /// A guest with `bytes` of RAM (whole pages count), laid out as on Arm:
    /// from 0x4000_0000 up to 3 GiB, the rest from 0x2_0000_0000.
    #[must_use]
    pub fn with_memory(bytes: u64) -> Self {
        let low = bytes.min(RAM0_SIZE);
        let mut banks = vec![Bank {
            first_gfn: RAM0_BASE / PAGE,
            frames: low / PAGE,
        }];
        if bytes > low {
            banks.push(Bank {
                first_gfn: RAM1_BASE / PAGE,
                frames: (bytes - low) / PAGE,
            });
        }
        DomainConfig {
            vcpus: 1,
            features: 0x0005_6005,
            banks,
            holes: Vec::new(),
            irqs: 64,
            xen_irqs: Vec::new(),
            grant_frames: 64,
            paused: false,
        }
    }

    /// The same with `vcpus` virtual CPUs.
    #[must_use]
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.vcpus = vcpus;
        self
    }

    /// The same with the feature word `features`.
    #[must_use]
    pub fn features(mut self, features: u32) -> Self {
        self.features = features;
        self
    }

    /// The same with frames ballooned out.
    #[must_use]
    pub fn hole(mut self, first_gfn: u64, frames: u64) -> Self {
        self.holes.push(Bank { first_gfn, frames });
        self
    }

    /// The same, created paused.
    #[must_use]
    pub fn paused(mut self) -> Self {
        self.paused = true;
        self
    }
}
