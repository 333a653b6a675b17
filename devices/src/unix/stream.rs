//! A connected unix socket that does not block.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use rustix::time::Timespec;

/// Why nothing was moved.
#[derive(Debug)]
pub(crate) enum Halt {
    /// Nothing now.
    Wait,
    /// The other end does not send, or does not take, any more.
    Gone,
    /// The host failed.
    Failed(io::Error),
}

/// One thread reads it and another writes it, without a lock.
#[derive(Debug)]
pub(crate) struct Stream(OwnedFd);

impl Stream {
    pub fn new(fd: OwnedFd) -> Self {
        Stream(fd)
    }

    /// Reads at least one byte into `bytes`, which is not empty.
    ///
    /// # Errors
    /// [`Halt`].
    pub fn read(&self, bytes: &mut [u8]) -> Result<usize, Halt> {
        self.receive(bytes, RecvFlags::empty())
    }

    /// The same, and leaves what it has read to be read again.
    ///
    /// # Errors
    /// [`Halt`].
    pub fn peek(&self, bytes: &mut [u8]) -> Result<usize, Halt> {
        self.receive(bytes, RecvFlags::PEEK)
    }

    fn receive(&self, bytes: &mut [u8], flags: RecvFlags) -> Result<usize, Halt> {
        match rustix::io::retry_on_intr(|| recv(&self.0, &mut *bytes, flags)) {
            Ok((_, 0)) => Err(Halt::Gone),
            Ok((_, count)) => Ok(count.min(bytes.len())),
            Err(errno) => Err(halt(errno)),
        }
    }

    /// Writes some of `bytes`, which is not empty.
    ///
    /// # Errors
    /// [`Halt`].
    pub fn write(&self, bytes: &[u8]) -> Result<usize, Halt> {
        // no signal from a reader that is gone
        match rustix::io::retry_on_intr(|| send(&self.0, bytes, SendFlags::NOSIGNAL)) {
            Ok(0) => Err(Halt::Wait),
            Ok(count) => Ok(count),
            Err(errno) => Err(halt(errno)),
        }
    }

    /// Nothing more is written: the other end reads what is there, and then
    /// the end.
    pub fn end_writes(&self) {
        self.end(Shutdown::Write);
    }

    /// Nothing more is read: whoever writes there finds the connection broken.
    pub fn end_reads(&self) {
        self.end(Shutdown::Read);
    }

    fn end(&self, how: Shutdown) {
        // it fails only where both ends are gone already
        let _ = shutdown(&self.0, how);
    }

    /// Whether the other end is closed, and does not only send nothing more.
    pub fn hung_up(&self) -> bool {
        let mut polled = [PollFd::new(&self.0, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let gone = PollFlags::HUP | PollFlags::ERR;
        poll(&mut polled, Some(&now)).is_ok()
            && polled.iter().any(|fd| fd.revents().intersects(gone))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn halt(errno: Errno) -> Halt {
    match errno {
        Errno::AGAIN => Halt::Wait,
        Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Halt::Gone,
        other => Halt::Failed(other.into()),
    }
}
