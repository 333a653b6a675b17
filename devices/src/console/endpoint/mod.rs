//! The host's end of a console.
//!
//! An [`Endpoint`] finds the stream to read from and the stream to write to.
//! The handlers keep what it gave them and come back when a stream fails or
//! their bell rings: there is no lock on the way of the data.

mod file;
mod pty;
mod socket;
mod stream;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

pub(super) use file::append_to;
pub(super) use stream::{Halt, Stream};

use super::config::Target;
use super::control::Place;
use super::size::Size;
use super::stats::ConsoleStats;
use super::waiter::Bell;
use crate::unix::ListenError;
use pty::Pty;
use socket::Socket;

/// How long a terminal or a file is left alone after it has failed.
pub(super) const RETRY: Duration = Duration::from_millis(250);

/// Why the host's end of a console cannot be made.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// No pseudo-terminal.
    #[error("no pseudo-terminal can be made")]
    Pty(#[source] io::Error),
    /// The link to the terminal cannot be made.
    #[error("{path} cannot be made a link to the terminal")]
    Link {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something else is where the link belongs.
    #[error("{path} exists and is no symbolic link: it is not replaced by one to the terminal")]
    NoLink {
        /// Where.
        path: PathBuf,
    },
    /// The socket cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The file cannot be opened.
    #[error("{path} cannot be opened for writing")]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another port writes it, of this console or of another one.
    #[error("the log {path} is another port's: give each a file of its own")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Neither a file nor a character device.
    #[error("{path} is neither a file nor a character device")]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// No event files, or no thread.
    #[error("the host has no descriptors or threads left")]
    Means(#[source] io::Error),
}

/// Who hears that an endpoint has changed. The bells outlive the handlers.
#[derive(Debug)]
pub(super) struct Bells {
    /// For the worker of the receive queue.
    pub input: Bell,
    /// For the worker of the transmit queue.
    pub output: Bell,
    /// Where the driver is told that somebody has come or gone; `None` for a
    /// console of one port.
    pub place: Option<Place>,
}

impl Bells {
    /// Somebody is there now, or nobody is.
    fn connected(&self, is_there: bool) {
        if let Some(place) = &self.place {
            place.connected(is_there);
        }
    }
}

enum Kind {
    Pty(Pty),
    Socket(Socket),
    File { stream: Arc<Stream>, path: PathBuf },
}

/// See the module.
pub(super) struct Endpoint {
    kind: Kind,
}

impl Endpoint {
    /// Makes what `target` says.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn open(
        target: &Target,
        size: Option<Size>,
        bells: &Arc<Bells>,
        stats: &Arc<ConsoleStats>,
    ) -> Result<Self, EndpointError> {
        // nobody can be seen to open a terminal that is kept open
        bells.connected(!matches!(target, Target::Socket { .. }));
        let kind = match target {
            Target::Pty { link } => Kind::Pty(Pty::open(link.as_deref(), size)?),
            Target::Socket { path } => Kind::Socket(Socket::listen(path, bells, stats)?),
            Target::File { path } => Kind::File {
                stream: file::open(path)?,
                path: path.clone(),
            },
        };
        Ok(Endpoint { kind })
    }

    /// Where a user finds it.
    pub fn path(&self) -> &Path {
        match &self.kind {
            Kind::Pty(pty) => pty.path(),
            Kind::Socket(socket) => socket.path(),
            Kind::File { path, .. } => path,
        }
    }

    /// What is written to now; `None` while nobody is there.
    pub fn output(&self) -> Option<Arc<Stream>> {
        match &self.kind {
            Kind::Pty(pty) => Some(pty.stream()),
            Kind::Socket(socket) => socket.output(),
            Kind::File { stream, .. } => Some(Arc::clone(stream)),
        }
    }

    /// What is read from now.
    pub fn input(&self) -> Option<Arc<Stream>> {
        match &self.kind {
            Kind::Pty(pty) => Some(pty.stream()),
            Kind::Socket(socket) => socket.input(),
            Kind::File { .. } => None,
        }
    }

    /// Nobody reads what is written to `stream` any more. The next stream is
    /// there after a while, or when the bell rings.
    pub fn output_gone(&self, stream: &Arc<Stream>) -> Option<Duration> {
        match &self.kind {
            Kind::Socket(socket) => {
                socket.output_gone(stream);
                None
            }
            Kind::Pty(_) | Kind::File { .. } => Some(RETRY),
        }
    }

    /// Nothing comes from `stream` any more; as [`Endpoint::output_gone`].
    pub fn input_gone(&self, stream: &Arc<Stream>) -> Option<Duration> {
        match &self.kind {
            Kind::Socket(socket) => {
                socket.input_gone(stream);
                None
            }
            Kind::Pty(_) | Kind::File { .. } => Some(RETRY),
        }
    }

    /// The size of the terminal, if this is one and its size is known.
    pub fn size(&self) -> Option<Size> {
        match &self.kind {
            Kind::Pty(pty) => pty.size(),
            Kind::Socket(_) | Kind::File { .. } => None,
        }
    }

    /// Gives the terminal a size, if this is one.
    pub fn set_size(&self, size: Size) {
        if let Kind::Pty(pty) = &self.kind {
            pty.set_size(size);
        }
    }

    /// Whether a write never waits, not even for a disk.
    pub fn is_prompt(&self) -> bool {
        !matches!(self.kind, Kind::File { .. })
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}
