//! Calls that shall fail: what a test has asked for.
//!
//! Every call of a device file of the fake asks here first.

use super::errno::Errno;

/// A call of a device file.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum Call {
    /// The feature word (`XENVER_get_features`).
    Features,
    /// `XENVER_version`.
    Version,
    /// `XENMEM_maximum_gpfn`.
    MaximumGpfn,
    /// `XENMEM_maximum_reservation`.
    MaximumReservation,
    /// `XENMEM_current_reservation`.
    CurrentReservation,
    /// `IOCTL_PRIVCMD_DM_OP`.
    DmOp,
    /// `IOCTL_PRIVCMD_MMAP_RESOURCE`.
    MmapResource,
    /// `IOCTL_PRIVCMD_MMAPBATCH_V2`.
    MmapBatch,
    /// `IOCTL_PRIVCMD_RESTRICT`.
    PrivcmdRestrict,
    /// `IOCTL_PRIVCMD_IRQFD`.
    Irqfd,
    /// `IOCTL_PRIVCMD_IOEVENTFD`.
    Ioeventfd,
    /// `IOCTL_GNTDEV_MAP_GRANT_REF`.
    GrantMap,
    /// `mmap` of gntdev.
    GrantMmap,
    /// `IOCTL_GNTDEV_UNMAP_GRANT_REF`.
    GrantUnmap,
    /// `IOCTL_GNTDEV_GRANT_COPY`.
    GrantCopy,
    /// `IOCTL_EVTCHN_BIND_INTERDOMAIN`.
    Bind,
    /// `IOCTL_EVTCHN_UNBIND`.
    Unbind,
    /// `IOCTL_EVTCHN_NOTIFY`.
    Notify,
    /// `read` of evtchn.
    Read,
    /// `write` of evtchn.
    Unmask,
    /// `IOCTL_EVTCHN_RESET`.
    Reset,
    /// `IOCTL_EVTCHN_RESTRICT_DOMID`.
    EvtchnRestrict,
}

/// A device file.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum DeviceFile {
    /// `/dev/xen/privcmd`.
    Privcmd,
    /// `/dev/xen/gntdev`.
    Gntdev,
    /// `/dev/xen/evtchn`.
    Evtchn,
}

impl Call {
    /// The device file that has the call.
    #[must_use]
    pub fn device(self) -> DeviceFile {
        match self {
            Call::Features
            | Call::Version
            | Call::MaximumGpfn
            | Call::MaximumReservation
            | Call::CurrentReservation
            | Call::DmOp
            | Call::MmapResource
            | Call::MmapBatch
            | Call::PrivcmdRestrict
            | Call::Irqfd
            | Call::Ioeventfd => DeviceFile::Privcmd,
            Call::GrantMap | Call::GrantMmap | Call::GrantUnmap | Call::GrantCopy => {
                DeviceFile::Gntdev
            }
            Call::Bind
            | Call::Unbind
            | Call::Notify
            | Call::Read
            | Call::Unmask
            | Call::Reset
            | Call::EvtchnRestrict => DeviceFile::Evtchn,
        }
    }
}

/// Which calls a planned failure counts.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// Every call of one device file.
    Device(DeviceFile),
    /// One kind of call.
    Call(Call),
}

impl Target {
    fn matches(self, call: Call) -> bool {
        match self {
            Target::Device(device) => call.device() == device,
            Target::Call(this) => call == this,
        }
    }
}

#[derive(Debug)]
struct Planned {
    target: Target,
    left: u64,
    errno: i32,
}

/// The failures still to come.
#[derive(Default, Debug)]
pub(super) struct Faults(Vec<Planned>);

impl Faults {
    /// Has the `nth` matching call from now on (1 is the next) fail.
    pub(super) fn plan(&mut self, target: Target, nth: u64, errno: i32) {
        self.0.push(Planned {
            target,
            left: nth.max(1),
            errno,
        });
    }

    /// Counts `call`.
    ///
    /// # Errors
    /// The planned errno, once, when its turn has come.
    pub(super) fn check(&mut self, call: Call) -> Result<(), Errno> {
        let mut hit = None;
        self.0.retain_mut(|planned| {
            if !planned.target.matches(call) {
                return true;
            }
            planned.left -= 1;
            if planned.left == 0 {
                hit.get_or_insert(Errno(planned.errno));
            }
            planned.left > 0
        });
        hit.map_or(Ok(()), Err)
    }
}
