//! Device-model operations, typed: what a device model may ask of Xen about
//! its guest (`xen/include/public/hvm/dm_op.h`).
//!
//! They are methods of [`Privcmd`], called on any thread. Those that only
//! x86 knows are values of [`X86Op`].

mod x86;

use std::fmt;
use std::io;

use thiserror::Error;
use zerocopy::IntoBytes;

pub use x86::{EventKind, Extent, X86Op};

use crate::domid::DomId;
use crate::privcmd::Privcmd;
use crate::sys::abi::dm_op as abi;

/// Why Xen refused a device-model operation.
#[derive(Debug, Error)]
pub enum Error {
    /// ENOSYS for any operation: this Xen has none of them. EOPNOTSUPP for the
    /// creation of an ioreq server.
    #[error(
        "domain {dom}: this Xen was built without CONFIG_IOREQ_SERVER, so that no device model \
         can serve it (Debian's Xen for arm64 is such a one)"
    )]
    NoIoreqServer {
        /// The guest.
        dom: DomId,
    },
    /// EPERM or EACCES.
    #[error(
        "domain {dom}: {op} ({values}) is forbidden: this privcmd is restricted to another \
         domain, or this domain may not control that one (outside dom0 Linux allows only the \
         xenstore `target` domain since XSA-482)"
    )]
    Restricted {
        /// The guest.
        dom: DomId,
        /// The operation.
        op: &'static str,
        /// Its arguments.
        values: String,
    },
    /// ESRCH.
    #[error("domain {dom}: {op} ({values}): there is no such domain")]
    NoDomain {
        /// The guest.
        dom: DomId,
        /// The operation.
        op: &'static str,
        /// Its arguments.
        values: String,
    },
    /// ENOSPC for the creation of an ioreq server.
    #[error("domain {dom}: all {max} ioreq servers that a domain can have exist",
            max = abi::MAX_IOREQ_SERVERS)]
    TooManyServers {
        /// The guest.
        dom: DomId,
    },
    /// EEXIST or EBUSY.
    #[error("domain {dom}: {op} ({values}): already in use")]
    Busy {
        /// The guest.
        dom: DomId,
        /// The operation.
        op: &'static str,
        /// Its arguments.
        values: String,
    },
    /// ENOENT: the server or the range is not there.
    #[error("domain {dom}: {op} ({values}): no such server or range")]
    NotFound {
        /// The guest.
        dom: DomId,
        /// The operation.
        op: &'static str,
        /// Its arguments.
        values: String,
    },
    /// Everything else.
    #[error("domain {dom}: {op} ({values}) failed")]
    Failed {
        /// The guest.
        dom: DomId,
        /// The operation.
        op: &'static str,
        /// Its arguments.
        values: String,
        /// What the kernel or Xen said.
        source: io::Error,
    },
}

impl Error {
    fn new(dom: DomId, op: &'static str, values: impl fmt::Display, source: io::Error) -> Error {
        let create = op == CREATE;
        let values = values.to_string();
        match source.raw_os_error() {
            Some(libc::ENOSYS) => Error::NoIoreqServer { dom },
            Some(libc::EOPNOTSUPP) if create => Error::NoIoreqServer { dom },
            Some(libc::ENOSPC) if create => Error::TooManyServers { dom },
            Some(libc::EPERM | libc::EACCES) => Error::Restricted { dom, op, values },
            Some(libc::ESRCH) => Error::NoDomain { dom, op, values },
            Some(libc::EEXIST | libc::EBUSY) => Error::Busy { dom, op, values },
            Some(libc::ENOENT) => Error::NotFound { dom, op, values },
            _ => Error::Failed {
                dom,
                op,
                values,
                source,
            },
        }
    }
}

/// Result of a device-model operation.
pub type Result<T> = std::result::Result<T, Error>;

const CREATE: &str = "create_ioreq_server";

/// Id of an ioreq server within its domain (`ioservid_t`).
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct ServerId(pub u16);

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What `get_ioreq_server_info` tells.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct ServerInfo {
    /// Event channel of the buffered ring; 0 without one.
    pub bufioreq_port: u32,
    /// Guest frame of the ioreq page, if it was placed in the guest.
    pub ioreq_gfn: u64,
    /// Guest frame of the buffered ring, if it was placed in the guest.
    pub bufioreq_gfn: u64,
}

/// Accesses that an ioreq server is to be given. A request goes to a server
/// only if it lies wholly within one of its ranges.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum IoRange {
    /// x86 I/O ports, first and last.
    Port(u16, u16),
    /// Guest-physical addresses, first and last.
    Memory(u64, u64),
    /// One PCI function: segment, bus, device, function.
    Pci(u16, u8, u8, u8),
}

impl IoRange {
    fn encode(self, id: ServerId) -> abi::IoreqServerRange {
        let (kind, start, end) = match self {
            IoRange::Port(start, end) => (abi::IO_RANGE_PORT, start.into(), end.into()),
            IoRange::Memory(start, end) => (abi::IO_RANGE_MEMORY, start, end),
            IoRange::Pci(segment, bus, device, function) => {
                let sbdf = u64::from(abi::sbdf(segment, bus, device, function));
                (abi::IO_RANGE_PCI, sbdf, sbdf)
            }
        };
        abi::IoreqServerRange {
            id: id.0,
            pad: 0,
            kind,
            start,
            end,
        }
    }
}

impl fmt::Display for IoRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IoRange::Port(start, end) => write!(f, "ports {start:#x}-{end:#x}"),
            IoRange::Memory(start, end) => write!(f, "memory {start:#x}-{end:#x}"),
            IoRange::Pci(segment, bus, device, function) => {
                write!(f, "PCI {segment:04x}:{bus:02x}:{device:02x}.{function}")
            }
        }
    }
}

/// The operation that sets an interrupt's level, for irqfd.
pub(crate) fn set_irq_level_op(irq: u32, level: bool) -> abi::DmOp {
    let payload = abi::SetIrqLevel {
        irq,
        level: level.into(),
        pad: [0; 3],
    };
    abi::DmOp::new(abi::SET_IRQ_LEVEL, &payload)
}

impl Privcmd {
    /// Makes an ioreq server without buffered requests
    /// (`XEN_DMOP_create_ioreq_server`). Xen pauses the domain meanwhile.
    ///
    /// # Errors
    /// [`Error::NoIoreqServer`], [`Error::TooManyServers`], and the general ones.
    pub fn create_ioreq_server(&self, dom: DomId) -> Result<ServerId> {
        let payload = abi::CreateIoreqServer {
            handle_bufioreq: abi::BUFIOREQ_OFF,
            ..Default::default()
        };
        let mut op = abi::DmOp::new(abi::CREATE_IOREQ_SERVER, &payload);
        self.dm_op(dom, CREATE, &"bufioreq off", &mut op)?;
        Ok(ServerId(op.payload::<abi::CreateIoreqServer>().id))
    }

    /// Asks about an ioreq server, without placing its pages in the guest
    /// (`XEN_DMOP_get_ioreq_server_info` with `no_gfns`).
    ///
    /// # Errors
    /// [`Error::NotFound`] and the general ones.
    pub fn ioreq_server_info(&self, dom: DomId, id: ServerId) -> Result<ServerInfo> {
        let payload = abi::GetIoreqServerInfo {
            id: id.0,
            flags: abi::NO_GFNS,
            ..Default::default()
        };
        let mut op = abi::DmOp::new(abi::GET_IOREQ_SERVER_INFO, &payload);
        let values = format_args!("server {id}");
        self.dm_op(dom, "get_ioreq_server_info", &values, &mut op)?;
        let info: abi::GetIoreqServerInfo = op.payload();
        Ok(ServerInfo {
            bufioreq_port: info.bufioreq_port,
            ioreq_gfn: info.ioreq_gfn,
            bufioreq_gfn: info.bufioreq_gfn,
        })
    }

    /// Claims a range for an ioreq server
    /// (`XEN_DMOP_map_io_range_to_ioreq_server`).
    ///
    /// # Errors
    /// [`Error::Busy`] if it overlaps a range of the same server,
    /// [`Error::NotFound`], and the general ones.
    pub fn map_io_range(&self, dom: DomId, id: ServerId, range: IoRange) -> Result<()> {
        let mut op = abi::DmOp::new(abi::MAP_IO_RANGE, &range.encode(id));
        let values = format_args!("server {id}, {range}");
        self.dm_op(dom, "map_io_range_to_ioreq_server", &values, &mut op)
    }

    /// Gives a range up (`XEN_DMOP_unmap_io_range_from_ioreq_server`).
    ///
    /// # Errors
    /// [`Error::NotFound`] unless exactly that range is claimed, and the
    /// general ones.
    pub fn unmap_io_range(&self, dom: DomId, id: ServerId, range: IoRange) -> Result<()> {
        let mut op = abi::DmOp::new(abi::UNMAP_IO_RANGE, &range.encode(id));
        let values = format_args!("server {id}, {range}");
        self.dm_op(dom, "unmap_io_range_from_ioreq_server", &values, &mut op)
    }

    /// Lets requests through to a server, or no more
    /// (`XEN_DMOP_set_ioreq_server_state`).
    ///
    /// # Errors
    /// [`Error::NotFound`] and the general ones.
    pub fn set_ioreq_server_state(&self, dom: DomId, id: ServerId, enabled: bool) -> Result<()> {
        let payload = abi::SetIoreqServerState {
            id: id.0,
            enabled: enabled.into(),
            pad: 0,
        };
        let mut op = abi::DmOp::new(abi::SET_IOREQ_SERVER_STATE, &payload);
        let values = format_args!("server {id}, enabled {enabled}");
        self.dm_op(dom, "set_ioreq_server_state", &values, &mut op)
    }

    /// Destroys an ioreq server and its ranges (`XEN_DMOP_destroy_ioreq_server`).
    /// The id may be one that an earlier process has left behind.
    ///
    /// # Errors
    /// [`Error::NotFound`] and the general ones.
    pub fn destroy_ioreq_server(&self, dom: DomId, id: ServerId) -> Result<()> {
        let payload = abi::DestroyIoreqServer { id: id.0, pad: 0 };
        let mut op = abi::DmOp::new(abi::DESTROY_IOREQ_SERVER, &payload);
        let values = format_args!("server {id}");
        self.dm_op(dom, "destroy_ioreq_server", &values, &mut op)
    }

    /// Sets the level of an interrupt (`XEN_DMOP_set_irq_level`). On Arm
    /// `irq` is an SPI (32 and above) that Xen has not allocated itself; an
    /// edge-triggered one is raised by `true` and needs no `false`.
    ///
    /// # Errors
    /// [`Error::Failed`] with EINVAL for an interrupt that is none such, and
    /// the general ones.
    pub fn set_irq_level(&self, dom: DomId, irq: u32, level: bool) -> Result<()> {
        let mut op = set_irq_level_op(irq, level);
        let values = format_args!("interrupt {irq}, level {}", u8::from(level));
        self.dm_op(dom, "set_irq_level", &values, &mut op)
    }

    /// The number of vCPUs a domain can have (`XEN_DMOP_nr_vcpus`).
    ///
    /// # Errors
    /// The general ones; [`Error::Failed`] with EOPNOTSUPP before Xen 4.15.
    pub fn nr_vcpus(&self, dom: DomId) -> Result<u32> {
        let mut op = abi::DmOp::new(abi::NR_VCPUS, &abi::NrVcpus::default());
        self.dm_op(dom, "nr_vcpus", &"", &mut op)?;
        Ok(op.payload::<abi::NrVcpus>().vcpus)
    }

    fn dm_op(
        &self,
        dom: DomId,
        name: &'static str,
        values: &dyn fmt::Display,
        op: &mut abi::DmOp,
    ) -> Result<()> {
        self.dm_op_raw(dom, &mut [op.as_mut_bytes()])
            .map_err(|source| Error::new(dom, name, values, source))
    }
}

#[cfg(test)]
mod tests;
