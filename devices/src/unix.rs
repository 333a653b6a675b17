//! Unix sockets of devices: those that they listen on, made for their owner
//! alone and taken away with the device, and connections.

mod stream;

use std::fs::Metadata;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};
use thiserror::Error;

pub(crate) use stream::{Halt, Stream};

/// Longest path that a socket can have, bytes. Linux unix(7), sun_path
pub(crate) const PATH_MAX: usize = 107;

/// Why a path cannot be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The host refuses.
    #[error("{path} cannot be listened on")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Someone else listens there.
    #[error("somebody else listens on {path}")]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// Something else is where the socket belongs.
    #[error("{path} exists and is no socket: it is not replaced by one")]
    NoSocket {
        /// Where.
        path: PathBuf,
    },
}

/// A socket that listens on a path. Dropping it removes the path, unless
/// somebody has put something else there meanwhile.
#[derive(Debug)]
pub(crate) struct Listener {
    fd: OwnedFd,
    path: PathBuf,
    /// What was bound there, by device and inode.
    bound: Option<(u64, u64)>,
}

impl Listener {
    /// Listens on `path`, for the owner alone; at most `backlog` clients wait.
    /// A socket that is left over from a process that is gone is replaced.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn new(path: &Path, backlog: i32) -> Result<Self, ListenError> {
        let failed = |errno: Errno| ListenError::Listen {
            path: path.to_owned(),
            source: errno.into(),
        };
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        clear(path, &address)?;
        let fd = stream_socket().map_err(failed)?;
        // before it has a name: nobody else gets in meanwhile. Linux unix(7)
        rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        bind(&fd, &address).map_err(failed)?;
        listen(&fd, backlog).map_err(failed)?;
        Ok(Listener {
            fd,
            path: path.to_owned(),
            bound: std::fs::symlink_metadata(path).ok().map(|found| id(&found)),
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes a client, if one waits; its socket does not block.
    ///
    /// # Errors
    /// The host's, such as no more descriptors.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        match accept_with(&self.fd, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(client) => Ok(Some(client)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // another process may have put its own there
        let found = std::fs::symlink_metadata(&self.path).ok();
        if self.bound.is_some()
            && found.map(|found| id(&found)) == self.bound
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            let path = self.path.display();
            tracing::warn!(%path, %error, "a device's socket is left behind");
        }
    }
}

/// Connects to the socket at `path`; the connection does not block.
///
/// # Errors
/// Nobody listens there, or too many wait already.
pub(crate) fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket = stream_socket()?;
    connect(&socket, &address)?;
    Ok(socket)
}

fn stream_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn id(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Removes a socket that nobody listens on.
fn clear(path: &Path, address: &SocketAddrUnix) -> Result<(), ListenError> {
    let failed = |source: io::Error| ListenError::Listen {
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ListenError::NoSocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    let probe = stream_socket().map_err(|errno| failed(errno.into()))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(failed),
        // AGAIN: its queue is full
        Ok(()) | Err(Errno::AGAIN) => Err(ListenError::InUse {
            path: path.to_owned(),
        }),
        Err(errno) => Err(failed(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_socket_is_its_owners_alone_and_goes_with_its_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");

        let listener = Listener::new(&path, 1).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        let client = UnixStream::connect(&path);
        let accepted = (listener.accept().unwrap(), listener.accept().unwrap());
        drop(listener);

        assert_eq!(mode & 0o777, 0o600);
        assert!(client.is_ok() && accepted.0.is_some() && accepted.1.is_none());
        assert!(!path.exists());
    }

    #[test]
    fn what_was_left_behind_is_replaced_and_what_is_somebody_elses_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let in_directory = |name| directory.path().join(name);
        // closing a listener leaves its name
        drop(UnixListener::bind(in_directory("stale")).unwrap());
        let _taken = UnixListener::bind(in_directory("taken")).unwrap();
        std::fs::write(in_directory("file"), b"precious").unwrap();

        let [stale, taken, file] =
            ["stale", "taken", "file"].map(|name| Listener::new(&in_directory(name), 1));

        assert!(stale.is_ok());
        assert!(matches!(taken, Err(ListenError::InUse { .. })));
        assert!(matches!(file, Err(ListenError::NoSocket { .. })));
        assert_eq!(std::fs::read(in_directory("file")).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_that_was_replaced_meanwhile_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = Listener::new(&path, 1).unwrap();
        std::fs::rename(&path, directory.path().join("kept")).unwrap();
        let _other = UnixListener::bind(&path).unwrap();

        drop(listener);

        assert!(connect_to(&path).is_ok());
    }
}
