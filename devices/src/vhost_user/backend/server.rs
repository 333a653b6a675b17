//! One device on one socket.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vhost::vhost_user::{BackendReqHandler, Error};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::early;
use super::error::ServerError;
use super::messages::Backend;
use crate::virtio::Device;
use crate::virtio::bell::Bell;
use crate::virtio::log_limit::LogLimit;
use crate::virtio::worker::with_causes;

/// Ends a [`Server`], from any thread.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    event: Bell,
    stopped: AtomicBool,
    /// The connection being served.
    connection: Mutex<Option<UnixStream>>,
}

impl Shared {
    fn connection(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stop {
    /// Has the server end: what is in flight is finished, the socket removed.
    pub fn stop(&self) {
        // before the connection is looked at: one that comes later finds it
        self.0.stopped.store(true, Ordering::SeqCst);
        self.0.event.ring();
        if let Some(connection) = &*self.0.connection() {
            // gone already is as good
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// Serves a device to one front end at a time, on the thread that runs it.
pub struct Server {
    path: PathBuf,
    listener: UnixListener,
    backend: Arc<Mutex<Backend>>,
    epoll: Epoll,
    shared: Arc<Shared>,
}

const LISTENER: u64 = 0;
const STOP: u64 = 1;
/// How long the listener is left alone when the host is short of something.
const PAUSE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// A connection, and what else it is held by.
struct Connection {
    /// For messages as they are in general.
    messages: UnixStream,
    /// For those that come before features are negotiated.
    early: UnixStream,
    /// For whoever stops the server.
    kept: UnixStream,
}

impl Connection {
    fn new(stream: UnixStream) -> io::Result<Self> {
        Ok(Connection {
            early: stream.try_clone()?,
            kept: stream.try_clone()?,
            messages: stream,
        })
    }
}

/// Nobody is there any more, or the call is to be made again.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    )
}

/// The host has no descriptor or no memory left, which passes. Linux accept(2)
fn is_shortage(error: &io::Error) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
    Errno::from_io_error(error).is_some_and(|errno| shortages.contains(&errno))
}

impl Server {
    /// Puts `device` on a socket at `path`; `label` names its threads, short.
    /// A socket that a dead process has left there is replaced.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn bind(path: &Path, device: Box<dyn Device>, label: &str) -> Result<Self, ServerError> {
        let failed = |what| {
            let path = path.to_owned();
            move |source| ServerError::System { what, path, source }
        };
        let backend = Backend::new(device, label).map_err(failed("make events for"))?;
        let event = Bell::new().map_err(failed("make events for"))?;
        let epoll = Epoll::new().map_err(failed("wait on"))?;
        make_way(path)?;
        let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
        for (fd, data) in [(listener.as_fd(), LISTENER), (event.as_fd(), STOP)] {
            epoll
                .ctl(
                    ControlOperation::Add,
                    fd.as_raw_fd(),
                    EpollEvent::new(EventSet::IN, data),
                )
                .map_err(failed("wait on"))?;
        }
        Ok(Server {
            path: path.to_owned(),
            listener,
            backend: Arc::new(Mutex::new(backend)),
            epoll,
            shared: Arc::new(Shared {
                event,
                stopped: AtomicBool::new(false),
                connection: Mutex::new(None),
            }),
        })
    }

    /// What ends it.
    #[must_use]
    pub fn stop_handle(&self) -> Stop {
        Stop(Arc::clone(&self.shared))
    }

    /// Serves front ends, one after the other, until it is told to stop. What
    /// the host is short of costs a connection and a while, not the socket.
    ///
    /// # Errors
    /// The socket failed.
    pub fn run(self) -> Result<(), ServerError> {
        let failed = |what| {
            let path = self.path.clone();
            move |source| ServerError::System { what, path, source }
        };
        let log = LogLimit::default();
        while !self.wait().map_err(failed("wait on"))? {
            let accepted = match self.listener.accept() {
                Ok((stream, _)) => Connection::new(stream),
                Err(error) => Err(error),
            };
            match accepted {
                Ok(connection) => self.serve(connection),
                Err(error) if is_passing(&error) => {}
                Err(error) if is_shortage(&error) => {
                    if let Some(withheld) = log.due() {
                        tracing::warn!(%error, withheld, "a front end cannot be let in");
                    }
                    self.rest().map_err(failed("wait on"))?;
                }
                Err(error) => return Err(failed("accept on")(error)),
            }
        }
        Ok(())
    }

    /// Leaves the listener alone for a while, or until it is told to stop.
    fn rest(&self) -> io::Result<()> {
        let mut stop = [PollFd::new(&self.shared.event, PollFlags::IN)];
        match poll(&mut stop, Some(&PAUSE)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits for a front end; true: it is told to stop.
    fn wait(&self) -> io::Result<bool> {
        let mut events = [EpollEvent::default(); 2];
        loop {
            match self.epoll.wait(-1, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    let ready = events.iter().take(result?);
                    return Ok(ready.map(EpollEvent::data).any(|data| data == STOP));
                }
            }
        }
    }

    /// Serves one connection to its end.
    fn serve(&self, connection: Connection) {
        let Connection {
            messages,
            early,
            kept,
        } = connection;
        *self.shared.connection() = Some(kept);
        if self.shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        tracing::info!("a front end has connected");
        let mut messages = BackendReqHandler::from_stream(messages, Arc::clone(&self.backend));
        let end = loop {
            let is_early = !self.backend().has_protocol_features();
            let handled = match is_early && early::is_next(&early) {
                true => early::take(&early, &mut self.backend()),
                false => messages.handle_request(),
            };
            match handled {
                // told to the front end, and nothing to it
                Ok(()) | Err(Error::ReqHandlerError(_) | Error::SocketRetry(_)) => {}
                Err(error) => break error,
            }
        };
        *self.shared.connection() = None;
        let mut backend = self.backend();
        let refusal = backend.take_refusal();
        match (&refusal, end) {
            (Some(refusal), _) => {
                let error = with_causes(refusal);
                tracing::warn!(error, "a message was refused; the connection is closed");
            }
            (None, Error::Disconnected) => tracing::info!("the front end has gone"),
            (None, error) => {
                tracing::warn!(%error, "the connection is closed");
            }
        }
        backend.disconnect();
        tracing::info!(chains = ?backend.served(), "served so far, by each ring");
    }

    fn backend(&self) -> MutexGuard<'_, Backend> {
        self.backend.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // somebody may have done it for us
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes a socket that nobody listens on.
fn make_way(path: &Path) -> Result<(), ServerError> {
    let Ok(found) = path.symlink_metadata() else {
        return Ok(());
    };
    let path = path.to_owned();
    if !found.file_type().is_socket() {
        return Err(ServerError::NoSocket { path });
    }
    match UnixStream::connect(&path) {
        Ok(_) => Err(ServerError::InUse { path }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(&path).map_err(|source| ServerError::System {
                what: "replace",
                path,
                source,
            })
        }
        Err(source) => Err(ServerError::System {
            what: "replace",
            path,
            source,
        }),
    }
}
