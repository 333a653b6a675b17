//! The two ways to xenstored: a unix socket, and the kernel's device.
//!
//! Requests are written by any thread (one at a time, the connection sees to
//! that), replies read by the reader thread alone.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::Error;

/// Names xenstored's socket (`tools/libs/store`), or its directory.
const SOCKET_VARIABLE: &str = "XENSTORED_PATH";
/// The socket's name in its directory.
const SOCKET_NAME: &str = "socket";
/// Where xenstored has its socket when nothing else is said.
const SOCKETS: [&str; 2] = ["/var/run/xenstored/socket", "/run/xenstored/socket"];
/// Where the kernel passes requests on, to whatever domain xenstored is in.
const DEVICES: [&str; 2] = ["/dev/xen/xenbus", "/proc/xen/xenbus"];

/// By which way xenstored is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// The socket of a xenstored in this domain.
    Socket(PathBuf),
    /// The kernel's device: xenstored may be in any domain.
    Device(PathBuf),
    /// A stream that somebody else has connected.
    Stream,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Socket(path) => write!(f, "the socket {}", path.display()),
            Way::Device(path) => write!(f, "the kernel's device {}", path.display()),
            Way::Stream => f.write_str("a connected stream"),
        }
    }
}

/// A connected way to xenstored.
pub(super) enum Transport {
    /// A stream socket, blocking for writes.
    Socket(UnixStream),
    /// The kernel's device, non-blocking for reads; the kernel never blocks
    /// a write for long.
    Device(File),
}

/// Makes a [`Transport`], again whenever the last one was lost.
pub(super) type Connect = Box<dyn Fn() -> io::Result<Transport> + Send>;

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(socket) => socket.fmt(f),
            Self::Device(device) => device.fmt(f),
        }
    }
}

impl Transport {
    /// A socket whose writes are given up after `timeout`.
    pub(super) fn socket(socket: UnixStream, timeout: Duration) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_write_timeout(Some(timeout))?;
        Ok(Self::Socket(socket))
    }

    fn device(path: &Path) -> io::Result<Self> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map(Self::Device)
    }

    /// The way it is, being at `path`.
    pub(super) fn way(&self, path: &Path) -> Way {
        match self {
            Self::Socket(_) => Way::Socket(path.to_owned()),
            Self::Device(_) => Way::Device(path.to_owned()),
        }
    }

    /// Writes a whole message: the kernel's device wants it in one piece.
    pub(super) fn send(&self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Socket(socket) => (&mut &*socket).write_all(message),
            Self::Device(device) => (&mut &*device).write_all(message),
        }
    }

    /// Reads what is there, after the descriptor was seen readable.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => (&mut &*socket).read(buffer),
            Self::Device(device) => (&mut &*device).read(buffer),
        }
    }

    /// Whether a failed write leaves the stream in pieces. The device takes
    /// a message or refuses it whole.
    pub(super) fn broken_by_failed_send(&self) -> bool {
        matches!(self, Self::Socket(_))
    }

    /// Lets the other side and our own reader see the end.
    pub(super) fn shut_down(&self) {
        if let Self::Socket(socket) = self {
            // Fails only when the peer is gone already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl AsRawFd for Transport {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Socket(socket) => socket.as_raw_fd(),
            Self::Device(device) => device.as_raw_fd(),
        }
    }
}

/// The sockets to try, in this order.
fn sockets() -> Vec<PathBuf> {
    let told = std::env::var_os(SOCKET_VARIABLE)
        .map(PathBuf::from)
        .map(|path| {
            if path.is_dir() {
                path.join(SOCKET_NAME)
            } else {
                path
            }
        });
    told.into_iter()
        .chain(SOCKETS.iter().map(PathBuf::from))
        .collect()
}

/// Opens `path`, whichever of the two it is.
pub(super) fn open_path(path: &Path, timeout: Duration) -> io::Result<Transport> {
    let kind = std::fs::metadata(path)?.file_type();
    if kind.is_socket() {
        Transport::socket(UnixStream::connect(path)?, timeout)
    } else {
        Transport::device(path)
    }
}

/// Finds the first way that works: the sockets, then the devices. Returns it
/// and its path.
pub(super) fn find(timeout: Duration) -> Result<(Transport, PathBuf), Error> {
    let mut tried = Vec::new();
    for path in sockets()
        .into_iter()
        .chain(DEVICES.iter().map(PathBuf::from))
    {
        match open_path(&path, timeout) {
            Ok(transport) => return Ok((transport, path)),
            Err(error) => tried.push((path, error)),
        }
    }
    Err(Error::Unavailable { tried })
}
