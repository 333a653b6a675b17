//! The unix socket: made with its final mode, never in another's place, and
//! reached within a bounded time.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// Connections that wait to be taken.
const BACKLOG: i32 = 16;
/// Pause before a full backlog is tried again.
const PAUSE: Duration = Duration::from_millis(20);

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// Listens at `path`, for this user alone. The socket of a dead process is
/// removed.
///
/// # Errors
/// `AddrInUse` if somebody listens there, or something else is there; what the
/// system says.
pub(super) fn listen_at(path: &Path) -> io::Result<UnixListener> {
    remove_stale(path)?;
    let address = SocketAddrUnix::new(path)?;
    let socket = socket()?;
    // Linux makes the file with the mode of the unbound socket: nobody else
    // gets in between
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let in_use = |what| Err(io::Error::new(io::ErrorKind::AddrInUse, what));
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return in_use("there is something that is no socket");
        }
        Ok(_) => {}
    }
    match connect(socket()?, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        Err(Errno::NOENT) => Ok(()),
        _ => in_use("another process listens there"),
    }
}

/// Connects to `path` until `end`; reads and writes do not block.
///
/// # Errors
/// `TimedOut`, or what the system says.
pub(super) fn connect_to(path: &Path, end: Instant) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    loop {
        let socket = socket()?;
        match connect(&socket, &address) {
            Ok(()) => return Ok(UnixStream::from(socket)),
            // the backlog is full, which says that somebody is there
            Err(Errno::AGAIN) if Instant::now() < end => std::thread::sleep(PAUSE),
            Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(errno) => return Err(errno.into()),
        }
    }
}
