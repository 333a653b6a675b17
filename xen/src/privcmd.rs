//! Hypercalls, foreign mappings and the gate to device-model operations:
//! `/dev/xen/privcmd`, or the fake's.
//!
//! A [`Privcmd`] is cheap to clone and usable from any thread; whoever serves
//! a guest keeps one. The device-model operations themselves are further
//! methods of it, in [`dm_op`](crate::dm_op).

mod eventfd;
mod foreign;

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;

use thiserror::Error;

pub use eventfd::{EventfdSupport, Ioeventfd, IoeventfdRequest, Irqfd};
pub use foreign::ForeignPages;

use crate::domid::DomId;
use crate::fake;
use crate::features::FeatureWord;
use crate::memory::SharedRun;
use crate::sys::mapping::Mapping;
use crate::sys::privcmd::PrivcmdFile;
use crate::sys::reservation::Reservation;

/// What is said when the kernel forbids a hypercall or a domain.
const RESTRICTED: &str = "this privcmd is restricted (IOCTL_PRIVCMD_RESTRICT, or, outside dom0, \
     the kernel's lockdown to the xenstore `target` domain since XSA-482)";

/// Why a call on privcmd failed.
#[derive(Debug, Error)]
pub enum Error {
    /// EPERM.
    #[error("{call} for {subject} is forbidden: {RESTRICTED}")]
    Restricted {
        /// The call.
        call: &'static str,
        /// Domain and values.
        subject: String,
    },
    /// ESRCH.
    #[error("{call}: {subject} does not exist")]
    NoDomain {
        /// The call.
        call: &'static str,
        /// Domain and values.
        subject: String,
    },
    /// The kernel lacks the call.
    #[error("{call} is not in this kernel ({needs})")]
    NotInKernel {
        /// The call.
        call: &'static str,
        /// Version and option that would have it.
        needs: &'static str,
        /// The error that says so.
        source: io::Error,
    },
    /// Everything else.
    #[error("{call} for {subject} failed")]
    Failed {
        /// The call.
        call: &'static str,
        /// Domain and values.
        subject: String,
        /// What the kernel or Xen said.
        source: io::Error,
    },
}

impl Error {
    /// Names an errno.
    pub(crate) fn new(call: &'static str, subject: impl fmt::Display, source: io::Error) -> Error {
        let subject = subject.to_string();
        match source.raw_os_error() {
            Some(libc::EPERM) => Error::Restricted { call, subject },
            Some(libc::ESRCH) => Error::NoDomain { call, subject },
            _ => Error::Failed {
                call,
                subject,
                source,
            },
        }
    }

    /// Whether the domain is gone, so that retrying is pointless.
    #[must_use]
    pub fn is_no_domain(&self) -> bool {
        matches!(self, Error::NoDomain { .. })
    }
}

/// Result of a call on privcmd.
pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug)]
enum Backend {
    Kernel(PrivcmdFile),
    Fake(fake::PrivcmdFile),
}

/// Calls the method on whichever file there is.
macro_rules! on_file {
    ($self:expr, $file:ident => $call:expr) => {
        match &*$self.0 {
            Backend::Kernel($file) => $call,
            Backend::Fake($file) => $call,
        }
    };
}

/// An open `/dev/xen/privcmd`; clones share it.
#[derive(Clone, Debug)]
pub struct Privcmd(Arc<Backend>);

impl Privcmd {
    pub(crate) fn kernel(file: PrivcmdFile) -> Privcmd {
        Privcmd(Arc::new(Backend::Kernel(file)))
    }

    pub(crate) fn fake(file: fake::PrivcmdFile) -> Privcmd {
        Privcmd(Arc::new(Backend::Fake(file)))
    }

    /// The feature word of **this** domain (`XENVER_get_features`, word 0).
    /// A guest's word cannot be asked for.
    ///
    /// # Errors
    /// [`Error::Restricted`] on a restricted file.
    pub fn features(&self) -> Result<FeatureWord> {
        on_file!(self, file => file.features(0))
            .map(FeatureWord::from_raw)
            .map_err(|e| Error::new("XENVER_get_features", "word 0 of this domain", e))
    }

    /// Xen's version, major and minor.
    ///
    /// # Errors
    /// [`Error::Restricted`] on a restricted file.
    pub fn version(&self) -> Result<(u16, u16)> {
        on_file!(self, file => file.version())
            .map_err(|e| Error::new("XENVER_version", "this host", e))
    }

    /// The highest guest frame number of a domain (`XENMEM_maximum_gpfn`).
    ///
    /// # Errors
    /// [`Error::Restricted`] on a restricted file, [`Error::NoDomain`].
    pub fn maximum_gpfn(&self, dom: DomId) -> Result<u64> {
        on_file!(self, file => file.maximum_gpfn(dom))
            .map_err(|e| Error::new("XENMEM_maximum_gpfn", format_args!("domain {dom}"), e))
    }

    /// How many pages a domain may have, of which it may have given some away
    /// (`XENMEM_maximum_reservation`).
    ///
    /// # Errors
    /// [`Error::Restricted`] on a restricted file, [`Error::NoDomain`].
    pub fn maximum_reservation(&self, dom: DomId) -> Result<u64> {
        on_file!(self, file => file.maximum_reservation(dom)).map_err(|e| {
            Error::new(
                "XENMEM_maximum_reservation",
                format_args!("domain {dom}"),
                e,
            )
        })
    }

    /// How many pages a domain has (`XENMEM_current_reservation`). Pages that it
    /// gave back count for as long as somebody has them mapped.
    ///
    /// # Errors
    /// [`Error::Restricted`] on a restricted file, [`Error::NoDomain`].
    pub fn current_reservation(&self, dom: DomId) -> Result<u64> {
        on_file!(self, file => file.current_reservation(dom)).map_err(|e| {
            Error::new(
                "XENMEM_current_reservation",
                format_args!("domain {dom}"),
                e,
            )
        })
    }

    /// Gives up everything on this file but calls that concern `dom`; the
    /// hypercalls of this type other than device-model operations end.
    /// There is no way back.
    ///
    /// # Errors
    /// [`Error::Failed`] with EINVAL if it is restricted to another domain.
    pub fn restrict(&self, dom: DomId) -> Result<()> {
        on_file!(self, file => file.restrict(dom))
            .map_err(|e| Error::new("IOCTL_PRIVCMD_RESTRICT", format_args!("domain {dom}"), e))
    }

    /// Maps `count` frames of a resource from `frame` on, read-write
    /// (`XENMEM_acquire_resource`).
    ///
    /// # Errors
    /// [`Error::Failed`] if the resource does not exist,
    /// [`Error::Restricted`], [`Error::NoDomain`].
    pub fn mmap_resource(
        &self,
        dom: DomId,
        kind: u32,
        id: u32,
        frame: u32,
        count: u64,
    ) -> Result<Mapping> {
        on_file!(self, file => file.mmap_resource(dom, kind, id, frame, count)).map_err(|e| {
            Error::new(
                "IOCTL_PRIVCMD_MMAP_RESOURCE",
                format_args!("domain {dom}, resource {kind}, id {id}, frame {frame}+{count}"),
                e,
            )
        })
    }

    /// Maps guest frames in the order given, as one range. Frames that are
    /// not there do not fail the call: see [`ForeignPages`].
    ///
    /// # Errors
    /// [`Error::Restricted`], [`Error::NoDomain`], or [`Error::Failed`] when
    /// nothing could be mapped for a reason that concerns no single page.
    pub fn map_foreign(&self, dom: DomId, gfns: &[u64], write: bool) -> Result<ForeignPages> {
        let mut errors = vec![0; gfns.len()];
        let mapping = on_file!(self, file => file.mmap_batch(dom, gfns, &mut errors, write))
            .map_err(|e| batch_error(dom, gfns, e))?;
        Ok(ForeignPages::new(mapping, errors))
    }

    /// As [`Privcmd::map_foreign`], writable and to place `at` of a
    /// reservation. Gives the negative errno of each page, or 0.
    ///
    /// # Errors
    /// As [`Privcmd::map_foreign`]; nothing is mapped there then.
    pub(crate) fn map_foreign_into(
        &self,
        dom: DomId,
        gfns: &[u64],
        into: &Reservation,
        at: usize,
    ) -> Result<Vec<i32>> {
        let mut errors = vec![0; gfns.len()];
        on_file!(self, file => file.mmap_batch_into(dom, gfns, &mut errors, into, at))
            .map_err(|e| batch_error(dom, gfns, e))?;
        Ok(errors)
    }

    /// Whether this is the kernel's file.
    pub(crate) fn is_kernel(&self) -> bool {
        matches!(&*self.0, Backend::Kernel(_))
    }

    /// Another privcmd file, for another process: calls that concern `dom`, and
    /// no others.
    ///
    /// # Errors
    /// [`Error::Failed`]: it cannot be opened, or not restricted.
    pub(crate) fn restricted_file(&self, dom: DomId) -> Result<File> {
        PrivcmdFile::open_restricted(dom)
            .map_err(|e| Error::new("IOCTL_PRIVCMD_RESTRICT", format_args!("domain {dom}"), e))
    }

    /// The file that is a domain's memory, where there is one.
    ///
    /// # Errors
    /// [`Error::NoDomain`].
    pub(crate) fn memory_file(&self, dom: DomId) -> Result<Option<(Arc<File>, Vec<SharedRun>)>> {
        match &*self.0 {
            Backend::Kernel(_) => Ok(None),
            Backend::Fake(file) => file
                .memory_file(dom)
                .map(Some)
                .map_err(|e| Error::new("memory file", format_args!("domain {dom}"), e)),
        }
    }

    /// One device-model operation, raw; [`dm_op`](crate::dm_op) types them.
    pub(crate) fn dm_op_raw(&self, dom: DomId, bufs: &mut [&mut [u8]]) -> io::Result<()> {
        on_file!(self, file => file.dm_op(dom, bufs))
    }
}

fn batch_error(dom: DomId, gfns: &[u64], error: io::Error) -> Error {
    let first = gfns.first().copied().unwrap_or_default();
    Error::new(
        "IOCTL_PRIVCMD_MMAPBATCH_V2",
        format_args!("domain {dom}, {} frames from {first:#x}", gfns.len()),
        error,
    )
}

#[cfg(test)]
mod tests;
