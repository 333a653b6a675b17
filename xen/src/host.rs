//! Where Xen is reached: this machine's device files, or the fake.
//!
//! Made once at start by the control thread; what it opens goes to whoever
//! serves a guest.

use std::io;
use std::path::Path;

use thiserror::Error;

use crate::evtchn::Evtchn;
use crate::fake;
use crate::gntdev::Gntdev;
use crate::privcmd::Privcmd;
use crate::sys;
use crate::xenstore::{self, Xenstore};

/// Where Linux says that it runs on Xen.
const HYPERVISOR_TYPE: &str = "/sys/hypervisor/type";

/// Why a device file could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The kernel does not run on Xen.
    #[error(
        "{path} is missing and this kernel does not run on Xen ({HYPERVISOR_TYPE} does not say \
         \"xen\"): boot it under Xen, or try `xen-dm demo`, which needs none"
    )]
    NotOnXen {
        /// The file wanted.
        path: &'static str,
        /// What opening it gave.
        source: io::Error,
    },
    /// On Xen, but the driver is not there.
    #[error("{path} is missing: load the kernel module {module} (`modprobe {module}`)")]
    NoDriver {
        /// The file wanted.
        path: &'static str,
        /// Its driver.
        module: &'static str,
        /// What opening it gave.
        source: io::Error,
    },
    /// EACCES or EPERM.
    #[error("{path} may not be opened: run as root, or as a user that the file's mode lets in")]
    NoPermission {
        /// The file wanted.
        path: &'static str,
        /// What opening it gave.
        source: io::Error,
    },
    /// Everything else.
    #[error("{path} could not be opened")]
    Failed {
        /// The file wanted.
        path: &'static str,
        /// What opening it gave.
        source: io::Error,
    },
}

impl OpenError {
    fn new(path: &'static str, module: &'static str, on_xen: bool, source: io::Error) -> OpenError {
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) if !on_xen => {
                OpenError::NotOnXen { path, source }
            }
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => OpenError::NoDriver {
                path,
                module,
                source,
            },
            Some(libc::EACCES | libc::EPERM) => OpenError::NoPermission { path, source },
            _ => OpenError::Failed { path, source },
        }
    }
}

/// Result of opening a device file.
pub type Result<T> = std::result::Result<T, OpenError>;

/// Real Xen, or the one in this process.
#[derive(Clone, Debug)]
pub enum Host {
    /// The kernel's device files.
    Kernel,
    /// A fake machine.
    Fake(fake::Machine),
}

impl Host {
    /// Opens hypercalls and foreign memory.
    ///
    /// # Errors
    /// As [`OpenError`] says.
    pub fn open_privcmd(&self) -> Result<Privcmd> {
        match self {
            Host::Kernel => sys::privcmd::PrivcmdFile::open().map(Privcmd::kernel),
            Host::Fake(machine) => machine.open_privcmd().map(Privcmd::fake),
        }
        .map_err(|e| self.error(sys::privcmd::PATH, "xen-privcmd", e))
    }

    /// Opens grants.
    ///
    /// # Errors
    /// As [`OpenError`] says.
    pub fn open_gntdev(&self) -> Result<Gntdev> {
        match self {
            Host::Kernel => sys::gntdev::GntdevFile::open().map(Gntdev::kernel),
            Host::Fake(machine) => machine.open_gntdev().map(Gntdev::fake),
        }
        .map_err(|e| self.error(sys::gntdev::PATH, "xen-gntdev", e))
    }

    /// Opens event channels; every open file has a queue of its own.
    ///
    /// # Errors
    /// As [`OpenError`] says.
    pub fn open_evtchn(&self) -> Result<Evtchn> {
        match self {
            Host::Kernel => sys::evtchn::EvtchnFile::open().map(Evtchn::kernel),
            Host::Fake(machine) => machine.open_evtchn().map(Evtchn::fake),
        }
        .map_err(|e| self.error(sys::evtchn::PATH, "xen-evtchn", e))
    }

    /// Connects to xenstored; the connection is made anew when it is lost.
    ///
    /// # Errors
    /// [`xenstore::Error::Unavailable`] tells what was tried.
    pub fn connect_xenstore(&self) -> std::result::Result<Xenstore, xenstore::Error> {
        match self {
            Host::Kernel => Xenstore::open(),
            Host::Fake(machine) => {
                let machine = machine.clone();
                Xenstore::with_connector(
                    move || machine.xenstore_stream(),
                    xenstore::Options::default(),
                )
            }
        }
    }

    fn error(&self, path: &'static str, module: &'static str, source: io::Error) -> OpenError {
        let on_xen = match self {
            Host::Kernel => is_xen(Path::new(HYPERVISOR_TYPE)) || Path::new("/proc/xen").exists(),
            Host::Fake(_) => true,
        };
        OpenError::new(path, module, on_xen, source)
    }
}

fn is_xen(hypervisor_type: &Path) -> bool {
    std::fs::read_to_string(hypervisor_type).is_ok_and(|text| text.trim() == "xen")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_error(on_xen: bool, errno: i32) -> OpenError {
        let source = io::Error::from_raw_os_error(errno);
        OpenError::new("/dev/xen/gntdev", "xen-gntdev", on_xen, source)
    }

    #[test]
    fn a_missing_file_without_xen_says_so() {
        let error = open_error(false, libc::ENOENT);

        assert!(matches!(error, OpenError::NotOnXen { .. }));
        assert!(error.to_string().contains("/dev/xen/gntdev"));
        assert!(error.to_string().contains("boot it under Xen"));
    }

    #[test]
    fn a_missing_file_on_xen_names_the_module() {
        let error = open_error(true, libc::ENOENT);

        assert!(matches!(error, OpenError::NoDriver { .. }));
        assert!(error.to_string().contains("modprobe xen-gntdev"));
    }

    #[test]
    fn a_forbidden_file_names_the_remedy() {
        let error = open_error(true, libc::EACCES);

        assert!(matches!(error, OpenError::NoPermission { .. }));
        assert!(error.to_string().contains("run as root"));
    }

    #[test]
    fn other_failures_keep_their_cause() {
        let error = open_error(true, libc::EMFILE);

        let source = std::error::Error::source(&error).unwrap();
        assert!(matches!(error, OpenError::Failed { .. }));
        assert_eq!(
            source.to_string(),
            io::Error::from_raw_os_error(libc::EMFILE).to_string()
        );
    }
}
