//! What can be known of a host; plain data, and the JSON of `xen-dm check`.

use serde::{Deserialize, Serialize};

/// What was found on a host. `None`, or a variant that says so, is what could
/// not be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Version of this program.
    pub xen_dm: String,
    /// Whether the kernel says that it runs on Xen. If not, nothing of Xen's
    /// was asked for.
    pub on_xen: bool,
    /// Xen's version.
    pub xen: Option<String>,
    /// Linux's version.
    pub kernel: Option<String>,
    /// Xen's device files.
    pub files: Vec<FileFact>,
    /// Whether this Xen hands guests' accesses to device models.
    pub ioreq_server: IoreqServer,
    /// Whether privcmd is tied to one domain, or to none (XSA-482).
    pub privcmd_restricted: Option<bool>,
    /// The xenstore node `target` of this domain: whom privcmd is tied to.
    pub target: Option<u16>,
    /// Interrupts through the kernel.
    pub irqfd: Eventfd,
    /// Kicks through the kernel.
    pub ioeventfd: Eventfd,
    /// The way to xenstored.
    pub xenstore: XenstoreFact,
    /// This domain's number.
    pub domid: Option<u16>,
    /// Bytes that each of the guests may have which xenstore shows to this
    /// domain; nothing where it does not answer.
    pub guests_memory: Option<Vec<u64>>,
    /// This domain's feature word and what it means.
    pub features: Option<Features>,
    /// What this process may use.
    pub limits: Limits,
}

/// One of Xen's device files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFact {
    /// Where it is, or should be.
    pub path: String,
    /// The kernel module that brings it.
    pub module: String,
    /// How opening it went.
    pub state: FileState,
    /// What was said, if it failed.
    pub error: Option<String>,
    /// What helps, if that is known.
    pub remedy: Option<String>,
}

/// How opening a device file went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    /// It can be opened.
    Open,
    /// It is not there, or has no driver behind it.
    Missing,
    /// This user may not.
    Forbidden,
    /// Something else failed.
    Failed,
    /// The open did not return.
    Silent,
}

/// Whether Xen hands guests' accesses to device models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IoreqServer {
    /// It does.
    Present,
    /// It was built without `CONFIG_IOREQ_SERVER`.
    Absent,
    /// The kernel forbids the question, see [`Facts::privcmd_restricted`].
    Forbidden,
    /// Xen answered something else.
    Failed,
    /// privcmd could not be opened.
    NotAsked,
}

/// Whether the kernel has irqfd or ioeventfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Eventfd {
    /// It has.
    Available,
    /// It was built without `CONFIG_XEN_PRIVCMD_EVENTFD`.
    NotConfigured,
    /// It is older than the call.
    TooOld,
    /// privcmd could not be opened.
    NotAsked,
}

/// The way to xenstored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XenstoreFact {
    /// It answers.
    pub reachable: bool,
    /// By which way.
    pub route: Option<Route>,
    /// The socket's or device's path.
    pub path: Option<String>,
    /// What was said, if it does not answer.
    pub error: Option<String>,
}

/// A kind of way to xenstored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// The unix socket of a xenstored in this domain.
    Socket,
    /// The kernel's device.
    Device,
    /// A stream inside of this process.
    Stream,
}

/// This domain's feature word and what it means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// `XENVER_get_features`, word 0, in hexadecimal.
    pub word: String,
    /// How this domain's own frames relate to the machine's: `OneToOne`,
    /// `Translated`, or `Disabled`.
    pub mapping: String,
    /// Whether this kernel's swiotlb-xen is in use for it.
    pub linux_swiotlb: bool,
    /// Neither bit was set, and being the initial domain decided.
    pub legacy_rule: bool,
    /// Both bits were set, which Xen never does.
    pub contradictory: bool,
    /// This domain is the initial one (`XENFEAT_dom0`).
    pub initial_domain: bool,
}

/// What this process may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Open files.
    pub open_files: OpenFiles,
    /// Bytes that may be locked into memory; nothing if unlimited.
    pub locked_memory: Option<u64>,
    /// Mappings that a process may have (`vm.max_map_count`).
    pub mappings: Option<u64>,
    /// Grants that one map request may name (`limit` of gntdev).
    pub gntdev_grants: Option<usize>,
}

/// Open files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFiles {
    /// The limit in force; nothing if unlimited.
    pub soft: Option<u64>,
    /// How far it can be raised; nothing if unlimited.
    pub hard: Option<u64>,
    /// Devices of one queue, each in a guest of its own, that fit at least;
    /// nothing if unlimited.
    pub devices: Option<u64>,
}
