//! What a handler waits for, as the one event that its worker knows.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

/// Events taken at once; the others stay.
const EVENTS: usize = 64;

/// An epoll that names its descriptors by numbers. It does not wait: whoever
/// waits for it does. A descriptor that is closed is not waited for any more.
#[derive(Debug)]
pub(crate) struct Poller(OwnedFd);

impl Poller {
    /// One that waits for nothing.
    ///
    /// # Errors
    /// No descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Poller(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Waits for `fd` as long as it is readable.
    ///
    /// # Errors
    /// A descriptor that cannot be waited for, or no memory.
    pub fn add(&self, fd: impl AsFd, name: u64) -> io::Result<()> {
        Ok(epoll::add(
            &self.0,
            fd,
            EventData::new_u64(name),
            EventFlags::IN,
        )?)
    }

    /// Tells once that `fd` is readable or has ended, and again when more has
    /// come.
    ///
    /// # Errors
    /// As [`Poller::add`].
    pub fn add_arrivals(&self, fd: impl AsFd, name: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.0, fd, EventData::new_u64(name), flags)?)
    }

    /// Tells once that `fd` can be read, or has ended.
    ///
    /// # Errors
    /// As [`Poller::add`].
    pub fn await_input(&self, fd: impl AsFd, name: u64) -> io::Result<()> {
        self.await_once(fd, name, EventFlags::IN | EventFlags::RDHUP)
    }

    /// Tells once that `fd` has ended, on both of its sides.
    ///
    /// # Errors
    /// As [`Poller::add`].
    pub fn await_end(&self, fd: impl AsFd, name: u64) -> io::Result<()> {
        // an end is always told
        self.await_once(fd, name, EventFlags::empty())
    }

    /// Tells once that `fd` can be written.
    ///
    /// # Errors
    /// As [`Poller::add`].
    pub fn await_space(&self, fd: impl AsFd, name: u64) -> io::Result<()> {
        self.await_once(fd, name, EventFlags::OUT)
    }

    fn await_once(&self, fd: impl AsFd, name: u64, flags: EventFlags) -> io::Result<()> {
        let flags = flags | EventFlags::ONESHOT;
        let data = EventData::new_u64(name);
        match epoll::modify(&self.0, fd.as_fd(), data, flags) {
            Err(Errno::NOENT) => Ok(epoll::add(&self.0, fd, data, flags)?),
            other => Ok(other?),
        }
    }

    /// Does not wait for `fd` any more.
    pub fn remove(&self, fd: impl AsFd) {
        // it was added; there is nothing else that can go wrong
        let _ = epoll::delete(&self.0, fd);
    }

    /// Names of what has happened, at most 64.
    pub fn take(&self) -> Vec<u64> {
        let empty = Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        };
        let mut events = [empty; EVENTS];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let count = epoll::wait(&self.0, &mut events, Some(&now)).unwrap_or(0);
        let happened = events.iter().take(count);
        happened.map(|event| event.data.u64()).collect()
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
