//! Where Xen is reached: this machine's device files, or the fake.
//!
//! Made once at start by the control thread; what it opens goes to whoever
//! serves a guest.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use thiserror::Error;

use crate::evtchn::Evtchn;
use crate::fake;
use crate::features::FeatureWord;
use crate::gntdev::Gntdev;
use crate::privcmd::Privcmd;
use crate::sys;
use crate::xenstore::{self, Xenstore};

/// Where Linux says that it runs on Xen.
const HYPERVISOR_TYPE: &str = "/sys/hypervisor/type";
/// Where Linux tells Xen's version, without privilege.
const VERSION: &str = "/sys/hypervisor/version";
/// Where Linux tells how many grants one map request may name.
const GNTDEV_LIMIT: &str = "/sys/module/xen_gntdev/parameters/limit";

/// A device file of Xen's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostFile {
    /// Hypercalls and foreign memory.
    Privcmd,
    /// Grants of other domains.
    Gntdev,
    /// Event channels.
    Evtchn,
    /// Grants of this domain's own pages, which no device model needs.
    Gntalloc,
    /// xenstore through the kernel.
    Xenbus,
}

impl HostFile {
    /// Every one of them.
    pub const ALL: [HostFile; 5] = [
        HostFile::Privcmd,
        HostFile::Gntdev,
        HostFile::Evtchn,
        HostFile::Gntalloc,
        HostFile::Xenbus,
    ];

    /// Where it is.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            HostFile::Privcmd => sys::privcmd::PATH,
            HostFile::Gntdev => sys::gntdev::PATH,
            HostFile::Evtchn => sys::evtchn::PATH,
            HostFile::Gntalloc => "/dev/xen/gntalloc",
            HostFile::Xenbus => "/dev/xen/xenbus",
        }
    }

    /// The kernel module that brings it, where it is not built in.
    #[must_use]
    pub fn module(self) -> &'static str {
        match self {
            HostFile::Privcmd => "xen-privcmd",
            HostFile::Gntdev => "xen-gntdev",
            HostFile::Evtchn => "xen-evtchn",
            HostFile::Gntalloc => "xen-gntalloc",
            // built in, where there is Xen at all
            HostFile::Xenbus => "xenfs",
        }
    }
}

/// Why a device file could not be opened. The text says what is wrong,
/// [`OpenError::remedy`] what helps.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The kernel does not run on Xen.
    #[error("{}", self.problem())]
    NotOnXen {
        /// The file wanted.
        path: &'static str,
        /// What opening it gave.
        source: io::Error,
    },
    /// On Xen, but the driver is not there.
    #[error("{}", self.problem())]
    NoDriver {
        /// The file wanted.
        path: &'static str,
        /// Its driver.
        module: &'static str,
        /// What opening it gave.
        source: io::Error,
    },
    /// EACCES or EPERM.
    #[error("{}", self.problem())]
    NoPermission {
        /// The file wanted.
        path: &'static str,
        /// What opening it gave.
        source: io::Error,
    },
    /// Everything else.
    #[error("{}", self.problem())]
    Failed {
        /// The file wanted.
        path: &'static str,
        /// What opening it gave.
        source: io::Error,
    },
}

/// What helps where there is no Xen.
pub const BOOT_XEN: &str = "boot it under Xen, or try `xen-dm demo`, which needs none";

impl OpenError {
    /// What is wrong.
    #[must_use]
    pub fn problem(&self) -> String {
        match self {
            OpenError::NotOnXen { path, .. } => format!(
                "{path} is missing and this kernel does not run on Xen ({HYPERVISOR_TYPE} does \
                 not say \"xen\")"
            ),
            OpenError::NoDriver { path, .. } => format!("{path} is missing"),
            OpenError::NoPermission { path, .. } => format!("{path} may not be opened"),
            OpenError::Failed { path, .. } => format!("{path} could not be opened"),
        }
    }

    /// What helps; nothing where that is not known.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            OpenError::NotOnXen { .. } => BOOT_XEN.to_owned(),
            OpenError::NoDriver { module, .. } => {
                format!("load the kernel module {module} (`modprobe {module}`)")
            }
            OpenError::NoPermission { .. } => {
                "run as root, or as a user that the file's mode lets in".to_owned()
            }
            OpenError::Failed { .. } => String::new(),
        }
    }
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
        .map_err(|e| self.error(HostFile::Privcmd, e))
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
        .map_err(|e| self.error(HostFile::Gntdev, e))
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
        .map_err(|e| self.error(HostFile::Evtchn, e))
    }

    /// Opens a device file and closes it again: whether that works.
    ///
    /// # Errors
    /// As [`OpenError`] says.
    pub fn probe(&self, file: HostFile) -> Result<()> {
        match self {
            Host::Kernel => OpenOptions::new()
                .read(true)
                .write(true)
                .open(file.path())
                .map(drop),
            Host::Fake(machine) => machine.open(file),
        }
        .map_err(|e| self.error(file, e))
    }

    /// Connects to xenstored; the connection is made anew when it is lost.
    ///
    /// # Errors
    /// [`xenstore::Error::Unavailable`] tells what was tried.
    pub fn connect_xenstore(&self) -> std::result::Result<Xenstore, xenstore::Error> {
        self.connect_xenstore_with(xenstore::Options::default())
    }

    /// As [`Host::connect_xenstore`], with options.
    ///
    /// # Errors
    /// As [`Host::connect_xenstore`].
    pub fn connect_xenstore_with(
        &self,
        options: xenstore::Options,
    ) -> std::result::Result<Xenstore, xenstore::Error> {
        match self {
            Host::Kernel => Xenstore::open_with(options),
            Host::Fake(machine) => {
                let machine = machine.clone();
                Xenstore::with_connector(move || machine.xenstore_stream(), options)
            }
        }
    }

    /// Whether this kernel runs on Xen.
    #[must_use]
    pub fn is_on_xen(&self) -> bool {
        match self {
            Host::Kernel => is_xen(Path::new(HYPERVISOR_TYPE)) || Path::new("/proc/xen").exists(),
            Host::Fake(machine) => machine.config().on_xen,
        }
    }

    /// Xen's version as far as it is told without privilege, such as `4.20.1`.
    #[must_use]
    pub fn xen_version(&self) -> Option<String> {
        match self {
            Host::Kernel => {
                let part = |name| {
                    let text = std::fs::read_to_string(Path::new(VERSION).join(name)).ok()?;
                    Some(text.trim().to_owned())
                };
                let extra = part("extra").unwrap_or_default();
                Some(format!("{}.{}{extra}", part("major")?, part("minor")?))
            }
            Host::Fake(machine) => {
                let (major, minor) = machine.config().version;
                Some(format!("{major}.{minor}"))
            }
        }
    }

    /// This domain's feature word, as far as it is told without privilege.
    ///
    /// # Errors
    /// As [`FeatureWord::of_this_domain`].
    pub fn features(&self) -> io::Result<FeatureWord> {
        match self {
            Host::Kernel => FeatureWord::of_this_domain(),
            Host::Fake(machine) => Ok(FeatureWord::from_raw(machine.config().features)),
        }
    }

    /// Grants that one map request to gntdev may name, where the kernel tells.
    #[must_use]
    pub fn gntdev_limit(&self) -> Option<usize> {
        match self {
            Host::Kernel => {
                let text = std::fs::read_to_string(GNTDEV_LIMIT).ok()?;
                text.trim().parse().ok()
            }
            Host::Fake(machine) => Some(machine.config().gntdev_limit),
        }
    }

    fn error(&self, file: HostFile, source: io::Error) -> OpenError {
        OpenError::new(file.path(), file.module(), self.is_on_xen(), source)
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
        assert!(error.remedy().contains("boot it under Xen"));
    }

    #[test]
    fn a_missing_file_on_xen_names_the_module() {
        let error = open_error(true, libc::ENOENT);

        assert!(matches!(error, OpenError::NoDriver { .. }));
        assert!(error.remedy().contains("modprobe xen-gntdev"));
    }

    #[test]
    fn a_forbidden_file_names_the_remedy() {
        let error = open_error(true, libc::EACCES);

        assert!(matches!(error, OpenError::NoPermission { .. }));
        assert!(error.remedy().contains("run as root"));
    }

    #[test]
    fn a_file_of_the_fake_is_as_closed_as_its_machine_says() {
        let machine = fake::Machine::with_config(fake::MachineConfig {
            closed_files: vec![
                (HostFile::Gntdev, libc::ENOENT),
                (HostFile::Evtchn, libc::EACCES),
            ],
            ..fake::MachineConfig::default()
        });
        let host = Host::Fake(machine.unwrap());

        let probed = HostFile::ALL.map(|file| host.probe(file));

        assert!(matches!(
            probed,
            [
                Ok(()),
                Err(OpenError::NoDriver { .. }),
                Err(OpenError::NoPermission { .. }),
                Ok(()),
                Ok(())
            ]
        ));
        assert!(host.open_gntdev().is_err() && host.open_evtchn().is_err());
        assert!(host.open_privcmd().is_ok());
    }

    #[test]
    fn the_fake_tells_what_it_is_without_a_device_file() {
        let host = Host::Fake(fake::Machine::new().unwrap());

        assert!(host.is_on_xen());
        assert_eq!(host.xen_version().as_deref(), Some("4.20"));
        assert_eq!(host.features().unwrap().raw(), 0x0006_6805);
        assert_eq!(host.gntdev_limit(), Some(65536));
    }

    #[test]
    fn a_machine_whose_privcmd_is_tied_serves_one_domain() {
        let machine = fake::Machine::with_config(fake::MachineConfig {
            privcmd_domain: Some(crate::DomId(1)),
            ..fake::MachineConfig::default()
        })
        .unwrap();
        let ours = machine.create_domain(fake::DomainConfig::with_memory(1 << 20));
        let privcmd = Host::Fake(machine).open_privcmd().unwrap();

        let version = privcmd.version();
        let other = privcmd.nr_vcpus(crate::DomId(2));

        assert_eq!(privcmd.nr_vcpus(ours.unwrap().id()).unwrap(), 1);
        assert!(matches!(
            version,
            Err(crate::privcmd::Error::Restricted { .. })
        ));
        assert!(matches!(other, Err(crate::dm_op::Error::Restricted { .. })));
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
