//! What can go wrong between this process and xenstored.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::path::PathError;
use super::wire::{Kind, PAYLOAD_MAX};

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident, $text:literal, $raw:path;)*) => {
        /// The name of an error as xenstored sends it (`xsd_errors`,
        /// `xen/include/public/io/xs_wire.h`).
        #[derive(Clone, Debug, Eq, PartialEq, Hash)]
        #[non_exhaustive]
        pub enum Errno {
            $($(#[$doc])* $name,)*
            /// A name this crate does not know.
            Other(String),
        }

        impl Errno {
            /// The error with this name.
            #[must_use]
            pub fn from_name(name: &str) -> Self {
                match name {
                    $($text => Self::$name,)*
                    _ => Self::Other(name.to_owned()),
                }
            }

            /// The name on the wire.
            #[must_use]
            pub fn name(&self) -> &str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Other(name) => name,
                }
            }

            /// The error with this number in the running kernel: the kernel
            /// device fails some requests in `write(2)` itself.
            pub(super) fn from_raw(number: i32) -> Option<Self> {
                match number {
                    $($raw => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    /// `EINVAL`: a malformed request.
    Invalid, "EINVAL", libc::EINVAL;
    /// `EACCES`: the caller may not do this to this node.
    Access, "EACCES", libc::EACCES;
    /// `EEXIST`: there already is such a thing.
    Exists, "EEXIST", libc::EEXIST;
    /// `EISDIR`.
    IsDirectory, "EISDIR", libc::EISDIR;
    /// `ENOENT`: no such node, or no such transaction.
    NotFound, "ENOENT", libc::ENOENT;
    /// `ENOMEM`: the daemon is out of memory, or the transaction broken.
    NoMemory, "ENOMEM", libc::ENOMEM;
    /// `ENOSPC`: a quota is reached.
    NoSpace, "ENOSPC", libc::ENOSPC;
    /// `EIO`: the daemon's database failed.
    Io, "EIO", libc::EIO;
    /// `ENOTEMPTY`.
    NotEmpty, "ENOTEMPTY", libc::ENOTEMPTY;
    /// `ENOSYS`: a request this daemon does not know.
    NotImplemented, "ENOSYS", libc::ENOSYS;
    /// `EROFS`: the connection may only read.
    ReadOnly, "EROFS", libc::EROFS;
    /// `EBUSY`: transactions do not nest.
    Busy, "EBUSY", libc::EBUSY;
    /// `EAGAIN`: the transaction conflicts with another change.
    Again, "EAGAIN", libc::EAGAIN;
    /// `EISCONN`: the domain is already introduced.
    IsConnected, "EISCONN", libc::EISCONN;
    /// `E2BIG`: the reply, or the number of watches, is too big.
    TooBig, "E2BIG", libc::E2BIG;
    /// `EPERM`: only a privileged domain may do this.
    NotPermitted, "EPERM", libc::EPERM;
    /// `EDQUOT`, sent as `EQUOTA` by some daemons: a quota is reached.
    Quota, "EQUOTA", libc::EDQUOT;
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A failed xenstore operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No way to xenstored worked.
    #[error("no way to xenstored: {}", list(tried))]
    Unavailable {
        /// Each socket and device that was tried, and why it failed.
        tried: Vec<(PathBuf, io::Error)>,
    },
    /// A resource of this process for the connection could not be had.
    #[error("setting up the xenstore connection: {what} failed")]
    Setup {
        /// What could not be had.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The connection is down, or went down before the reply came. Whether
    /// the daemon carried the request out is not known.
    #[error("xenstore {request} {subject}: not connected to xenstored")]
    Disconnected {
        /// The request.
        request: Kind,
        /// The path or domain it is about.
        subject: String,
    },
    /// The connection could not be made anew.
    #[error("reconnecting to xenstored: {why}")]
    Reconnect {
        /// Why not.
        why: &'static str,
    },
    /// No reply came in time. Whether the daemon carried the request out is
    /// not known.
    #[error("xenstore {request} {subject}: no reply within {after:?}")]
    Timeout {
        /// The request.
        request: Kind,
        /// The path or domain it is about.
        subject: String,
        /// How long was waited.
        after: Duration,
    },
    /// The request could not be sent.
    #[error("xenstore {request} {subject}: sending failed")]
    Send {
        /// The request.
        request: Kind,
        /// The path or domain it is about.
        subject: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The daemon refused the request.
    #[error("xenstore {request} {subject}: refused with {errno}")]
    Refused {
        /// The request.
        request: Kind,
        /// The path or domain it is about.
        subject: String,
        /// The daemon's reason.
        errno: Errno,
    },
    /// The daemon's reply is not what the protocol says.
    #[error("xenstore {request} {subject}: malformed reply, {problem}")]
    Malformed {
        /// The request.
        request: Kind,
        /// The path or domain it is about.
        subject: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The path is none; nothing was sent.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The request is longer than a message may be; nothing was sent.
    #[error(
        "xenstore {request} {subject}: {len} bytes are more than the {PAYLOAD_MAX} a message holds"
    )]
    TooLong {
        /// The request.
        request: Kind,
        /// The path it is about.
        subject: String,
        /// Bytes of path, value and their separators.
        len: usize,
    },
    /// A node that has to be there is not.
    #[error("xenstore node {path} is missing, expected {expected}")]
    Missing {
        /// The node's full path.
        path: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// A node holds what cannot be used.
    #[error("xenstore node {path} holds {value:?}, expected {expected}")]
    Value {
        /// The node's full path.
        path: String,
        /// What it holds; bytes that are no UTF-8 are replaced.
        value: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// A transaction met other changes each time it was tried.
    #[error("xenstore transaction conflicts with other changes after {attempts} attempts")]
    Conflict {
        /// How often it was tried.
        attempts: u32,
    },
}

impl Error {
    /// The daemon's reason, when it was the daemon that refused.
    #[must_use]
    pub fn errno(&self) -> Option<&Errno> {
        match self {
            Self::Refused { errno, .. } => Some(errno),
            _ => None,
        }
    }

    /// Whether the node is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Missing { .. }) || self.errno() == Some(&Errno::NotFound)
    }

    /// Whether the connection is down.
    #[must_use]
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Self::Disconnected { .. } | Self::Reconnect { .. })
    }
}

/// The places tried, for [`Error::Unavailable`].
fn list(tried: &[(PathBuf, io::Error)]) -> String {
    let each: Vec<String> = tried
        .iter()
        .map(|(path, error)| format!("{}: {error}", path.display()))
        .collect();
    each.join("; ")
}
