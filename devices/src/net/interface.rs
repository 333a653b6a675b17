//! A tap's interface on the host: whether it is up, and which bridge it is on.
//!
//! The kernel tells of changes by rtnetlink. Its messages are not read: one
//! that comes has the interface looked at, as it does when messages were lost.
//! Linux rtnetlink(7), netdevice(7)

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use super::sys;
use super::tap::TapQueue;

/// Changes of interfaces. Linux include/uapi/linux/rtnetlink.h, RTMGRP_LINK
const LINKS: u32 = 1;
/// Messages thrown away at once; there are never so many without others that
/// wait.
const MESSAGES: usize = 1024;

/// How an interface was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// It is up, and so is its carrier.
    pub up: bool,
    /// The bridge, or what else it belongs to, if that is up.
    pub bridge: Option<String>,
}

/// Looks at interfaces of the network namespace that it was made in. Readable
/// when one of them may have changed.
#[derive(Debug)]
pub(super) struct Interfaces(OwnedFd);

impl Interfaces {
    /// Begins to listen.
    ///
    /// # Errors
    /// The host's.
    pub fn new() -> io::Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        // NETLINK_ROUTE is 0: the family's usual protocol
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, LINKS))?;
        Ok(Interfaces(socket))
    }

    /// Looks at the interface of a tap, whatever its name is by now. One that
    /// is in another namespace is up as far as anybody here knows.
    ///
    /// # Errors
    /// The host's; EBADFD where the interface was removed.
    pub fn look(&self, tap: &TapQueue) -> io::Result<Seen> {
        // first, so that what changes from here on is told again
        self.clear();
        let name = sys::name(tap.as_fd())?;
        let Some(up) = self.is_up(&name)? else {
            return Ok(Seen {
                up: true,
                bridge: None,
            });
        };
        let bridge = fs::read_link(format!("/sys/class/net/{name}/master")).ok();
        let bridge = bridge
            .as_deref()
            .and_then(|path| path.file_name()?.to_str());
        let bridge = bridge.filter(|bridge| matches!(self.is_up(bridge), Ok(Some(true))));
        Ok(Seen {
            up,
            bridge: bridge.map(str::to_owned),
        })
    }

    /// Whether an interface is up; nothing if there is none of this name.
    fn is_up(&self, name: &str) -> io::Result<Option<bool>> {
        match sys::is_running(self.0.as_fd(), name) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Throws away what was told.
    fn clear(&self) {
        for _ in 0..MESSAGES {
            match recv(&self.0, &mut [0], RecvFlags::empty()) {
                // messages were lost: the next call finds those that were not
                Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => {}
                Err(_) => return,
            }
        }
    }
}

impl AsFd for Interfaces {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
