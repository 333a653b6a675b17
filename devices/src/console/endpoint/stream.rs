//! A descriptor that bytes are read from and written to without blocking.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::SendFlags;

/// Why nothing was moved.
#[derive(Debug)]
pub(in super::super) enum Halt {
    /// Nothing now.
    Wait,
    /// The other end is gone.
    Gone,
    /// The host failed.
    Failed(io::Error),
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nature {
    /// The master of a pseudo-terminal.
    Terminal,
    /// A connected socket.
    Socket,
    /// A file or a character device.
    File,
}

/// A descriptor that does not block. One thread reads it and another writes
/// it, without a lock.
#[derive(Debug)]
pub(in super::super) struct Stream {
    fd: OwnedFd,
    nature: Nature,
}

impl Stream {
    pub(super) fn new(fd: OwnedFd, nature: Nature) -> Self {
        Stream { fd, nature }
    }

    /// Reads at least one byte into `bytes`, which is not empty.
    ///
    /// # Errors
    /// [`Halt`].
    pub fn read(&self, bytes: &mut [u8]) -> Result<usize, Halt> {
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut *bytes));
        match read {
            // end of file
            Ok(0) => Err(Halt::Gone),
            Ok(count) => Ok(count),
            Err(errno) => Err(self.halt(errno)),
        }
    }

    /// Writes some of `bytes`, which is not empty.
    ///
    /// # Errors
    /// [`Halt`].
    pub fn write(&self, bytes: &[u8]) -> Result<usize, Halt> {
        let written = rustix::io::retry_on_intr(|| match self.nature {
            // no signal from a client that is gone
            Nature::Socket => rustix::net::send(&self.fd, bytes, SendFlags::NOSIGNAL),
            Nature::Terminal | Nature::File => rustix::io::write(&self.fd, bytes),
        });
        match written {
            Ok(0) => Err(Halt::Wait),
            Ok(count) => Ok(count),
            Err(errno) => Err(self.halt(errno)),
        }
    }

    fn halt(&self, errno: Errno) -> Halt {
        match errno {
            Errno::AGAIN => Halt::Wait,
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Halt::Gone,
            // the terminal was hung up. Linux tty_io.c
            Errno::IO if self.nature == Nature::Terminal => Halt::Gone,
            other => Halt::Failed(other.into()),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
