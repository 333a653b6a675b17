//! A tap of the host: frames are read from it and written to it as they are,
//! with virtio's header in front. Linux tuntap

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use thiserror::Error;

use super::features as net;
use super::frame::HEADER_LEN;
use super::sys;
use crate::virtio::log_limit::LogLimit;

// Linux include/uapi/linux/if_tun.h
const TUN_F_CSUM: u32 = 1;
const TUN_F_TSO4: u32 = 2;
const TUN_F_TSO6: u32 = 4;
const TUN_F_TSO_ECN: u32 = 8;
const TUN_F_USO4: u32 = 0x20;
const TUN_F_USO6: u32 = 0x40;

/// Why a tap cannot be had.
#[derive(Debug, Error)]
pub enum TapError {
    /// There are no taps here, or none for this user.
    #[error("/dev/net/tun cannot be opened")]
    Open(#[source] io::Error),
    /// The tap is not to be had.
    #[error("the tap {name} cannot be used")]
    Attach {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be set up.
    #[error("the tap {name} cannot have virtio's header in front of its frames")]
    Header {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What becomes of a frame.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Not now.
    Wait,
    /// It is lost: the interface is down, or has no room.
    Lost,
    /// It breaks a rule.
    Bad,
    /// There is no other end any more.
    Gone,
}

/// One queue of a tap; one thread reads it and another writes it.
#[derive(Debug)]
pub(super) struct TapQueue(OwnedFd);

/// A tap and all its queues. They are closed with it, and with the last one an
/// interface that was made for it is gone.
#[derive(Debug)]
pub(super) struct Tap {
    name: String,
    queues: Vec<TapQueue>,
    /// What the guest may be offered.
    pub features: u64,
    /// What the kernel does not do.
    log: LogLimit,
}

impl Tap {
    /// Takes the tap `name` with `pairs` queues, of which the first is used.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(name: &str, pairs: u16, offload: bool) -> Result<Self, TapError> {
        let multi_queue = pairs > 1;
        let mut queues = Vec::new();
        for _ in 0..pairs {
            queues.push(TapQueue::open(name, multi_queue)?);
        }
        let mut tap = Tap {
            name: name.to_owned(),
            queues,
            features: 0,
            log: LogLimit::default(),
        };
        if offload {
            tap.features = tap.probe();
        }
        // an interface that has gone again is found missing by whoever uses it
        let _ = tap.set_offload(0);
        tap.use_queues(1);
        Ok(tap)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A queue, for what is asked of all of them.
    pub fn any_queue(&self) -> Option<&TapQueue> {
        self.queues.first()
    }

    /// The queue of a pair.
    pub fn queue(&self, pair: u16) -> Option<&TapQueue> {
        self.queues.get(usize::from(pair))
    }

    /// Asks the kernel for everything, and then for less.
    fn probe(&self) -> u64 {
        let plain = net::SENT | net::RECEIVED;
        let all = plain | net::GUEST_USO4 | net::GUEST_USO6;
        let tries = [(all, all | net::HOST_USO), (plain, plain)];
        let mut known = tries.into_iter();
        known
            .find(|(received, _)| self.try_offload(*received).is_ok())
            .map_or(0, |(_, features)| features)
    }

    /// What may be left open in frames for the guest, as its features say; false
    /// if the interface was removed.
    pub fn set_offload(&self, features: u64) -> bool {
        let Err(error) = self.try_offload(features) else {
            return true;
        };
        if let Some(Trouble::Gone) = Errno::from_io_error(&error).map(trouble) {
            return false;
        }
        // it was possible when the tap was opened
        if let Some(withheld) = self.log.due() {
            tracing::warn!(tap = self.name, %error, withheld, "offloads cannot be set");
        }
        true
    }

    fn try_offload(&self, features: u64) -> io::Result<()> {
        match self.queues.first() {
            Some(TapQueue(queue)) => sys::set_offload(queue.as_fd(), offloads(features)),
            None => Ok(()),
        }
    }

    /// Has frames come by the first `pairs` queues alone.
    pub fn use_queues(&self, pairs: u16) {
        if self.queues.len() < 2 {
            return;
        }
        for (TapQueue(queue), number) in self.queues.iter().zip(0..) {
            // EINVAL: it is so already
            if let Err(error) = sys::use_queue(queue.as_fd(), number < pairs)
                && error.raw_os_error() != Some(libc::EINVAL)
                && let Some(withheld) = self.log.due()
            {
                tracing::warn!(tap = self.name, queue = number, %error, withheld, "a queue cannot be switched");
            }
        }
    }
}

/// The kernel's bits for a guest's features.
fn offloads(features: u64) -> u32 {
    [
        (net::GUEST_CSUM, TUN_F_CSUM),
        (net::GUEST_TSO4, TUN_F_TSO4),
        (net::GUEST_TSO6, TUN_F_TSO6),
        (net::GUEST_ECN, TUN_F_TSO_ECN),
        (net::GUEST_USO4, TUN_F_USO4),
        (net::GUEST_USO6, TUN_F_USO6),
    ]
    .into_iter()
    .filter(|(feature, _)| features & feature != 0)
    // the others build on open checksums
    .filter(|_| features & net::GUEST_CSUM != 0)
    .fold(0, |all, (_, bit)| all | bit)
}

impl TapQueue {
    fn open(name: &str, multi_queue: bool) -> Result<Self, TapError> {
        let tun = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(Path::new("/dev/net/tun"))
            .map_err(TapError::Open)?;
        let attached = match sys::attach(tun.as_fd(), name, multi_queue) {
            // it was made for several queues, and takes one as well
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !multi_queue => {
                sys::attach(tun.as_fd(), name, true)
            }
            other => other,
        };
        attached.map_err(|source| TapError::Attach {
            name: name.to_owned(),
            source,
        })?;
        let len = libc::c_int::try_from(HEADER_LEN).unwrap_or(libc::c_int::MAX);
        sys::set_header_len(tun.as_fd(), len).map_err(|source| TapError::Header {
            name: name.to_owned(),
            source,
        })?;
        Ok(TapQueue(tun.into()))
    }

    /// Reads a header and a frame.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn read(&self, bytes: &mut [u8]) -> Result<usize, Trouble> {
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut *bytes)) {
            Ok(count) => Ok(count),
            Err(errno) => Err(trouble(errno)),
        }
    }

    /// Whether the interface was removed.
    pub fn has_ended(&self) -> bool {
        let mut polled = [PollFd::new(&self.0, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut polled, Some(&now)).is_ok()
            && polled
                .iter()
                .any(|fd| fd.revents().contains(PollFlags::ERR))
    }

    /// Writes a header and a frame.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn write(&self, frame: &[u8]) -> Result<(), Trouble> {
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.0, frame)) {
            Ok(_) => Ok(()),
            Err(errno) => Err(trouble(errno)),
        }
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn trouble(errno: Errno) -> Trouble {
    match errno {
        Errno::AGAIN => Trouble::Wait,
        Errno::INVAL | Errno::MSGSIZE => Trouble::Bad,
        // the interface was removed. Linux drivers/net/tun.c
        Errno::BADFD | Errno::NODEV => Trouble::Gone,
        // it is down, or the host has no memory
        _ => Trouble::Lost,
    }
}
