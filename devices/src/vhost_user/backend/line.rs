//! A ring's interrupt: the call that the front end has given, which it may
//! replace at any time, and the error that tells of a broken ring.

use std::fs::File;
use std::io;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read, write};

use crate::virtio::{Interrupt, Notifier};

/// See the module. Raised by the ring's worker, changed by the thread that
/// reads messages.
#[derive(Debug, Default)]
pub(super) struct Line {
    call: RwLock<Option<Arc<File>>>,
    error: RwLock<Option<Arc<File>>>,
    notifier: OnceLock<Weak<Notifier>>,
}

impl Line {
    /// A line, and what a worker tells its driver by.
    pub(super) fn new() -> (Arc<Line>, Arc<Notifier>) {
        let line = Arc::new(Line::default());
        let notifier = Arc::new(Notifier::new(Arc::clone(&line) as Arc<dyn Interrupt>));
        // set once: the line is new
        let _ = line.notifier.set(Arc::downgrade(&notifier));
        (line, notifier)
    }

    /// Has `event` rung from now on; `None`: the front end polls.
    pub(super) fn set_call(&self, event: Option<File>) {
        *self.call.write().unwrap_or_else(PoisonError::into_inner) = event.map(Arc::new);
    }

    /// Has `event` rung when the ring is broken.
    pub(super) fn set_error(&self, event: Option<File>) {
        *self.error.write().unwrap_or_else(PoisonError::into_inner) = event.map(Arc::new);
    }

    /// Frees a worker that waits for the front end to take its interrupts.
    pub(super) fn unblock(&self) {
        unblock(&self.call);
        unblock(&self.error);
    }

    fn is_broken(&self) -> bool {
        let notifier = self.notifier.get().and_then(Weak::upgrade);
        notifier.is_some_and(|notifier| notifier.needs_reset())
    }
}

/// Which event is behind it now. The lock is not held while that is rung: it
/// may block.
fn current(event: &RwLock<Option<Arc<File>>>) -> Option<Arc<File>> {
    event.read().unwrap_or_else(PoisonError::into_inner).clone()
}

fn ring(event: &RwLock<Option<Arc<File>>>) -> io::Result<()> {
    match current(event).map(|event| write(&*event, &1_u64.to_ne_bytes())) {
        // so often rung that once more says nothing
        Some(Err(error)) if error != Errno::AGAIN => Err(error.into()),
        _ => Ok(()),
    }
}

/// Empties an event that has no room, so that whoever rings it goes on. Only a
/// front end that fills its own event can bring that about.
fn unblock(event: &RwLock<Option<Arc<File>>>) {
    let Some(event) = current(event) else { return };
    let mut room = [PollFd::new(&*event, PollFlags::OUT)];
    if let Ok(0) = poll(&mut room, Some(&Timespec::default())) {
        tracing::debug!("an event without room is emptied");
        // it is full, and therefore not waited for
        let _ = read(&*event, &mut [0; 8]);
    }
}

impl Interrupt for Line {
    fn raise(&self) -> io::Result<()> {
        match self.is_broken() {
            true => ring(&self.error),
            false => ring(&self.call),
        }
    }
}
