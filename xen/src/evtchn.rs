//! Event channels: `/dev/xen/evtchn`, or the fake's.
//!
//! An [`Evtchn`] is one open file with its own queue of fired ports, read by
//! one thread (its owner's event loop); a [`Channel`] is one bound port and
//! may be notified from any thread. A port that fired stays masked until it
//! is unmasked.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use thiserror::Error;

use crate::domid::DomId;
use crate::fake;
use crate::sys::evtchn::EvtchnFile;

/// Why a call on evtchn failed.
#[derive(Debug, Error)]
pub enum Error {
    /// Binding to a port of a guest.
    #[error("event channel {remote_port} of domain {dom} could not be bound")]
    Bind {
        /// The guest.
        dom: DomId,
        /// Its port.
        remote_port: u32,
        /// What the kernel or Xen said.
        source: io::Error,
    },
    /// A call with a local port.
    #[error("{call} of event channel {port} failed")]
    Port {
        /// What was to be done.
        call: &'static str,
        /// The local port.
        port: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// Reading fired ports.
    #[error("fired event channels could not be read")]
    Read(#[source] io::Error),
    /// Restricting the file.
    #[error("event channels could not be restricted to domain {dom}")]
    Restrict {
        /// The guest.
        dom: DomId,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Result of a call on evtchn.
pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug)]
enum Backend {
    Kernel(EvtchnFile),
    Fake(fake::EvtchnFile),
}

macro_rules! on_file {
    ($self:expr, $file:ident => $call:expr) => {
        match &*$self.0 {
            Backend::Kernel($file) => $call,
            Backend::Fake($file) => $call,
        }
    };
}

/// What [`Evtchn::read`] found.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Fired {
    /// So many ports were written to the buffer; 0 when none has fired.
    Ports(usize),
    /// The kernel's queue overflowed and was emptied: any port may have
    /// fired, and may be masked.
    Overflow,
}

/// An open `/dev/xen/evtchn`; clones share it.
#[derive(Clone, Debug)]
pub struct Evtchn(Arc<Backend>);

impl Evtchn {
    pub(crate) fn kernel(file: EvtchnFile) -> Evtchn {
        Evtchn(Arc::new(Backend::Kernel(file)))
    }

    pub(crate) fn fake(file: fake::EvtchnFile) -> Evtchn {
        Evtchn(Arc::new(Backend::Fake(file)))
    }

    /// Connects a new local port to a port that `dom` has left open to us.
    ///
    /// # Errors
    /// [`Error::Bind`]: EINVAL for a port that is not open to us.
    pub fn bind_interdomain(&self, dom: DomId, remote_port: u32) -> Result<Channel> {
        let port =
            on_file!(self, file => file.bind_interdomain(dom, remote_port)).map_err(|source| {
                Error::Bind {
                    dom,
                    remote_port,
                    source,
                }
            })?;
        Ok(Channel {
            evtchn: self.clone(),
            port,
        })
    }

    /// Takes fired ports from the queue, without blocking.
    ///
    /// # Errors
    /// [`Error::Read`]. An overflow is no error: the queue is reset, see
    /// [`Fired::Overflow`].
    pub fn read(&self, ports: &mut [u32]) -> Result<Fired> {
        match on_file!(self, file => file.read(ports)) {
            Ok(count) => Ok(Fired::Ports(count)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Fired::Ports(0)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(Fired::Ports(0)),
            Err(e) if e.raw_os_error() == Some(libc::EFBIG) => {
                on_file!(self, file => file.reset()).map_err(Error::Read)?;
                Ok(Fired::Overflow)
            }
            Err(e) => Err(Error::Read(e)),
        }
    }

    /// Lets a port fire again; harmless if it can.
    ///
    /// # Errors
    /// [`Error::Port`].
    pub fn unmask(&self, port: u32) -> Result<()> {
        on_file!(self, file => file.unmask(port)).map_err(|source| Error::Port {
            call: "unmasking",
            port,
            source,
        })
    }

    /// Refuses all later binding but to ports of `dom`. No way back.
    ///
    /// # Errors
    /// [`Error::Restrict`], for a file that is restricted already.
    pub fn restrict(&self, dom: DomId) -> Result<()> {
        on_file!(self, file => file.restrict(dom)).map_err(|source| Error::Restrict { dom, source })
    }
}

impl AsFd for Evtchn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        on_file!(self, file => file.fd())
    }
}

/// For event loops; readable when a port has fired.
impl AsRawFd for Evtchn {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// A bound port, unbound when dropped.
#[derive(Debug)]
pub struct Channel {
    evtchn: Evtchn,
    port: u32,
}

impl Channel {
    /// The local port's number, as [`Evtchn::read`] gives it.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Signals the other end.
    ///
    /// # Errors
    /// [`Error::Port`].
    pub fn notify(&self) -> Result<()> {
        on_file!(self.evtchn, file => file.notify(self.port)).map_err(|source| Error::Port {
            call: "notification",
            port: self.port,
            source,
        })
    }

    /// Lets the port fire again.
    ///
    /// # Errors
    /// [`Error::Port`].
    pub fn unmask(&self) -> Result<()> {
        self.evtchn.unmask(self.port)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if let Err(error) = on_file!(self.evtchn, file => file.unbind(self.port)) {
            tracing::warn!(port = self.port, %error, "event channel not unbound");
        }
    }
}

#[cfg(test)]
mod tests;
