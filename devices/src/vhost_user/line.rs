//! A ring's interrupt: the call that the front end has given, which it may
//! replace at any time, and the error that tells of a broken ring.

use std::io;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

use vmm_sys_util::eventfd::EventFd;

use crate::virtio::{Interrupt, Notifier};

/// See the module. Raised by the ring's worker, changed by the thread that
/// reads messages.
#[derive(Debug, Default)]
pub(super) struct Line {
    call: RwLock<Option<EventFd>>,
    error: RwLock<Option<EventFd>>,
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
    pub(super) fn set_call(&self, event: Option<EventFd>) {
        *self.call.write().unwrap_or_else(PoisonError::into_inner) = event;
    }

    /// Has `event` rung when the ring is broken.
    pub(super) fn set_error(&self, event: Option<EventFd>) {
        *self.error.write().unwrap_or_else(PoisonError::into_inner) = event;
    }

    fn is_broken(&self) -> bool {
        let notifier = self.notifier.get().and_then(Weak::upgrade);
        notifier.is_some_and(|notifier| notifier.needs_reset())
    }
}

fn ring(event: &RwLock<Option<EventFd>>) -> io::Result<()> {
    let event = event.read().unwrap_or_else(PoisonError::into_inner);
    match event.as_ref().map(|event| event.write(1)) {
        // so often rung that once more says nothing
        Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
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
