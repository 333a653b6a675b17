//! Events on their way from the reader thread to whoever waits for them.
//!
//! The reader thread pushes; the control-plane thread sees the queue's
//! descriptor become readable and pops until nothing is left.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::watch::WatchToken;

/// A watched node changed, or the watch has just been registered.
#[derive(Clone, Debug, Eq, PartialEq, Hash)]
pub struct WatchEvent {
    /// The node that changed: the watched one or one under it. Relative if
    /// the watch was. The change may be its removal.
    pub path: String,
    /// Which watch fired.
    pub token: WatchToken,
}

/// What [`super::Xenstore::next_event`] tells.
#[derive(Clone, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum Event {
    /// A watch fired.
    Watch(WatchEvent),
    /// The connection was lost. Requests fail until [`Event::Reconnected`].
    Disconnected,
    /// The connection was made anew and every watch registered again; each
    /// of them fires once after this. Changes since
    /// [`Event::Disconnected`] were not told: look again at everything.
    Reconnected,
    /// Reconnecting was given up; only [`super::Xenstore::reconnect`] tries
    /// again.
    GaveUp,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    /// The watch events in `events`: one that is still waiting is not queued
    /// again, so the queue cannot outgrow the number of watched nodes.
    waiting: HashSet<WatchEvent>,
}

/// The queue and its descriptor.
#[derive(Debug)]
pub(super) struct Events {
    queue: Mutex<Queue>,
    arrived: Condvar,
    /// Readable exactly while `queue` is not empty.
    fd: EventFd,
}

impl Events {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Mutex::default(),
            arrived: Condvar::new(),
            fd: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(super) fn push(&self, event: Event) {
        let mut queue = self.lock();
        if let Event::Watch(watch) = &event
            && !queue.waiting.insert(watch.clone())
        {
            return;
        }
        if queue.events.is_empty() {
            self.signal(true);
        }
        queue.events.push_back(event);
        self.arrived.notify_all();
    }

    pub(super) fn pop(&self) -> Option<Event> {
        self.take(&mut self.lock())
    }

    /// Pops, waiting for an event at most `timeout`.
    pub(super) fn pop_within(&self, timeout: Duration) -> Option<Event> {
        let deadline = Instant::now().checked_add(timeout)?;
        let mut queue = self.lock();
        loop {
            if let Some(event) = self.take(&mut queue) {
                return Some(event);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            queue = self
                .arrived
                .wait_timeout(queue, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Drops what is waiting for a watch that is gone.
    pub(super) fn forget(&self, token: WatchToken) {
        let mut queue = self.lock();
        let was_empty = queue.events.is_empty();
        queue.waiting.retain(|event| event.token != token);
        queue
            .events
            .retain(|event| !matches!(event, Event::Watch(watch) if watch.token == token));
        if !was_empty && queue.events.is_empty() {
            self.signal(false);
        }
    }

    fn take(&self, queue: &mut Queue) -> Option<Event> {
        let event = queue.events.pop_front()?;
        if let Event::Watch(watch) = &event {
            queue.waiting.remove(watch);
        }
        if queue.events.is_empty() {
            self.signal(false);
        }
        Some(event)
    }

    /// Makes the descriptor readable or not. Only called under the lock, on
    /// a change, so the counter is 0 or 1 and neither call can block or fail.
    fn signal(&self, readable: bool) {
        let done = if readable {
            self.fd.write(1)
        } else {
            self.fd.read().map(|_| ())
        };
        if let Err(error) = done {
            tracing::error!(%error, readable, "xenstore event descriptor");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
