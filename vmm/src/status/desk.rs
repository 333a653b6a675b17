//! Where the control thread hears of requests and leaves its answers.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::model::Status;
use super::server::{PATIENCE, Server};
use super::socket;

/// What the control thread and the status thread have in common.
#[derive(Debug)]
pub(super) struct Link {
    /// Rung by the status thread: a status is wanted.
    asked: EventFd,
    /// Rung for the status thread: there is one, or it is to end.
    pub(super) wake: EventFd,
    end: AtomicBool,
    status: Mutex<Option<Status>>,
}

impl Link {
    fn new() -> io::Result<Link> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        Ok(Link {
            asked: event()?,
            wake: event()?,
            end: AtomicBool::new(false),
            status: Mutex::default(),
        })
    }

    /// Asks the control thread.
    pub(super) fn ask(&self) {
        ring(&self.asked);
    }

    /// Takes the control thread's answer.
    pub(super) fn take(&self) -> Option<Status> {
        // the counter is of no interest, an empty one neither
        let _ = self.wake.read();
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.take()
    }

    pub(super) fn is_over(&self) -> bool {
        self.end.load(Ordering::SeqCst)
    }
}

fn ring(event: &EventFd) {
    if let Err(error) = event.write(1)
        && error.kind() != io::ErrorKind::WouldBlock
    {
        tracing::error!(%error, "the status thread and the control thread lost each other");
    }
}

/// The control thread's end. Poll it for reading; when it is readable and
/// [`Desk::asked`], [`Desk::answer`].
///
/// Dropping it ends the status thread and removes the socket.
#[derive(Debug)]
pub struct Desk {
    link: Arc<Link>,
    thread: Option<(JoinHandle<()>, PathBuf)>,
}

impl Desk {
    /// Listens at `path`. A daemon that cannot is worth more than none: what
    /// fails is logged, and nobody will ask then.
    ///
    /// # Errors
    /// No event files.
    pub fn open(path: &Path) -> io::Result<Desk> {
        Self::open_with(path, PATIENCE)
    }

    /// As [`Desk::open`], with the time that a client has.
    pub(super) fn open_with(path: &Path, patience: Duration) -> io::Result<Desk> {
        let link = Arc::new(Link::new()?);
        let thread = match start(path, &link, patience) {
            Ok(thread) => Some((thread, path.to_owned())),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "no socket at {}: `xen-dm status` finds nobody to ask",
                    path.display()
                );
                None
            }
        };
        Ok(Desk { link, thread })
    }

    /// Whether a status was asked for since the last call.
    #[must_use]
    pub fn asked(&self) -> bool {
        self.link.asked.read().is_ok()
    }

    /// Hands it over.
    pub fn answer(&self, status: Status) {
        let mut place = self
            .link
            .status
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *place = Some(status);
        drop(place);
        ring(&self.link.wake);
    }
}

fn start(path: &Path, link: &Arc<Link>, patience: Duration) -> io::Result<JoinHandle<()>> {
    let listener = socket::listen_at(path)?;
    let server = Server::new(listener, Arc::clone(link), patience)?;
    std::thread::Builder::new()
        .name("status".into())
        .spawn(move || server.run())
}

impl AsRawFd for Desk {
    fn as_raw_fd(&self) -> RawFd {
        self.link.asked.as_raw_fd()
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let Some((thread, path)) = self.thread.take() else {
            return;
        };
        // first, so that whoever finds it finds somebody
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::debug!(%error, "{} could not be removed", path.display());
        }
        self.link.end.store(true, Ordering::SeqCst);
        ring(&self.link.wake);
        if thread.join().is_err() {
            tracing::error!("the status thread panicked");
        }
    }
}
