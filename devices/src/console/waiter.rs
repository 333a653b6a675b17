//! What a handler waits for, as the one event that its worker knows: its
//! stream, a bell, a timer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::Timespec;

use super::endpoint::Stream;
pub(super) use crate::virtio::bell::Bell;
use crate::virtio::timer::Timer;

/// What has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Happened {
    /// The bell was rung.
    pub bell: bool,
    /// The timer has rung.
    pub timer: bool,
    /// The stream's other end is gone.
    pub hung_up: bool,
}

const BELL: u64 = 0;
const TIMER: u64 = 1;
const STREAM: u64 = 2;

/// Belongs to one handler, on its worker's thread.
#[derive(Debug)]
pub(super) struct Waiter {
    epoll: OwnedFd,
    timer: Timer,
    /// Registered now; kept so that its descriptor is no other one's.
    watched: Option<(Arc<Stream>, EventFlags)>,
}

impl Waiter {
    /// Waits for `bell`, which outlives it.
    pub fn new(bell: &Bell) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer = Timer::new()?;
        epoll::add(&epoll, bell, EventData::new_u64(BELL), EventFlags::IN)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        Ok(Waiter {
            epoll,
            timer,
            watched: None,
        })
    }

    /// Waits until `stream` can be read or written, and not for what it waited
    /// for before. A hang-up cannot be masked, so what nobody wants is not
    /// registered at all.
    ///
    /// # Errors
    /// A stream that cannot be waited for, such as a file.
    pub fn watch(&mut self, stream: &Arc<Stream>, flags: EventFlags) -> io::Result<()> {
        if let Some((watched, known)) = &self.watched
            && Arc::ptr_eq(watched, stream)
            && *known == flags
        {
            return Ok(());
        }
        self.unwatch();
        epoll::add(&self.epoll, &**stream, EventData::new_u64(STREAM), flags)?;
        self.watched = Some((Arc::clone(stream), flags));
        Ok(())
    }

    /// Does not wait for a stream any more.
    pub fn unwatch(&mut self) {
        if let Some((stream, _)) = self.watched.take()
            && let Err(error) = epoll::delete(&self.epoll, &*stream)
        {
            tracing::error!(%error, "a stream cannot be let go");
        }
    }

    /// Rings after `delay`, and not at the time that was set before.
    pub fn ring_in(&self, delay: Duration) {
        self.timer.arm(delay);
    }

    /// What has happened; does not wait for it.
    pub fn take(&self, bell: &Bell) -> Happened {
        let empty = Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        };
        let mut events = [empty; 3];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let count = epoll::wait(&self.epoll, &mut events, Some(&now)).unwrap_or(0);
        let gone = EventFlags::HUP | EventFlags::ERR;
        Happened {
            bell: bell.hear(),
            timer: self.timer.take(),
            hung_up: events
                .iter()
                .take(count)
                .any(|event| event.data.u64() == STREAM && { event.flags }.intersects(gone)),
        }
    }
}

impl AsFd for Waiter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
