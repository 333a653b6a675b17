//! The handle that everything else in xen-dm uses.

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::connection::{Link, Shared, lock};
use super::error::Error;
use super::events::Event;
use super::path;
use super::reader::{Reader, Session};
use super::transaction::{self, Transaction};
use super::transport::{self, Connect, Transport, Way};
use super::tree::Tree;
use super::tree::sealed::Requester;
use super::watch::Watch;
use super::wire::{self, Kind};
use crate::DomId;

/// How to try to reconnect.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Backoff {
    /// The pause after the first failure; it doubles from one to the next.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
    /// Failures after which it is given up.
    pub attempts: u32,
}

/// About a minute and a half in all.
impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(50),
            longest: Duration::from_secs(5),
            attempts: 24,
        }
    }
}

/// How a connection behaves.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// How long a request may wait for its reply.
    pub timeout: Duration,
    /// How to reconnect when the connection is lost.
    pub reconnect: Backoff,
    /// How often a transaction is tried.
    pub transaction_attempts: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            reconnect: Backoff::default(),
            transaction_attempts: 64,
        }
    }
}

/// A connection to xenstored, and a thread that reads from it.
///
/// Clones share the connection. Any thread may make requests (see [`Tree`]);
/// events are for whoever polls [`Xenstore::watch_fd`]. The thread ends with
/// the last clone.
#[derive(Clone)]
pub struct Xenstore {
    inner: Arc<Inner>,
}

struct Inner {
    way: Way,
    shared: Arc<Shared>,
    reader: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.request_stop();
        if let Some(reader) = lock(&self.reader).take()
            && reader.thread().id() != std::thread::current().id()
            && reader.join().is_err()
        {
            tracing::error!("the xenstore thread panicked");
        }
    }
}

impl fmt::Debug for Xenstore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Xenstore")
            .field("shared", &self.inner.shared)
            .finish_non_exhaustive()
    }
}

impl Xenstore {
    /// Connects to the running xenstored: the socket that `XENSTORED_PATH`
    /// names, the usual sockets, the kernel's device, whichever is first.
    ///
    /// # Errors
    /// [`Error::Unavailable`] tells what was tried; [`Error::Setup`].
    pub fn open() -> Result<Self, Error> {
        Self::open_with(Options::default())
    }

    /// As [`Xenstore::open`], with options.
    ///
    /// # Errors
    /// As [`Xenstore::open`].
    pub fn open_with(options: Options) -> Result<Self, Error> {
        let (transport, path) = transport::find(options.timeout)?;
        let way = transport.way(&path);
        let connect = move || transport::open_path(&path, options.timeout);
        Self::start(transport, way, Some(Box::new(connect)), options)
    }

    /// Connects to the socket or device at `path`.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Setup`].
    pub fn open_path(path: &Path, options: Options) -> Result<Self, Error> {
        let path = path.to_owned();
        let transport =
            transport::open_path(&path, options.timeout).map_err(|error| Error::Unavailable {
                tried: vec![(path.clone(), error)],
            })?;
        let way = transport.way(&path);
        let connect = move || transport::open_path(&path, options.timeout);
        Self::start(transport, way, Some(Box::new(connect)), options)
    }

    /// Uses a connected stream. When it is lost it stays lost.
    ///
    /// # Errors
    /// [`Error::Setup`].
    pub fn from_stream(stream: UnixStream) -> Result<Self, Error> {
        Self::from_stream_with(stream, Options::default())
    }

    /// As [`Xenstore::from_stream`], with options.
    ///
    /// # Errors
    /// [`Error::Setup`].
    pub fn from_stream_with(stream: UnixStream, options: Options) -> Result<Self, Error> {
        let transport =
            Transport::socket(stream, options.timeout).map_err(|source| Error::Setup {
                what: "preparing the socket",
                source,
            })?;
        Self::start(transport, Way::Stream, None, options)
    }

    /// Connects, and reconnects, with `connect`, which runs on the reader
    /// thread for the latter.
    ///
    /// # Errors
    /// [`Error::Setup`] with what `connect` said.
    pub fn with_connector(
        connect: impl Fn() -> io::Result<UnixStream> + Send + 'static,
        options: Options,
    ) -> Result<Self, Error> {
        let connect = move || Transport::socket(connect()?, options.timeout);
        let transport = connect().map_err(|source| Error::Setup {
            what: "connecting",
            source,
        })?;
        Self::start(transport, Way::Stream, Some(Box::new(connect)), options)
    }

    fn start(
        transport: Transport,
        way: Way,
        connect: Option<Connect>,
        options: Options,
    ) -> Result<Self, Error> {
        let link = Arc::new(Link::new(transport));
        let shared = Arc::new(Shared::new(options, Arc::clone(&link))?);
        let session = Session::new(link, &shared).map_err(|source| Error::Setup {
            what: "making an epoll instance",
            source,
        })?;
        let reader = Reader::new(Arc::clone(&shared), connect);
        let reader = std::thread::Builder::new()
            .name("xenstore".to_owned())
            .spawn(move || reader.run(session))
            .map_err(|source| Error::Setup {
                what: "starting the reader thread",
                source,
            })?;
        Ok(Self {
            inner: Arc::new(Inner {
                way,
                shared,
                reader: Mutex::new(Some(reader)),
            }),
        })
    }

    /// By which way xenstored is reached.
    #[must_use]
    pub fn way(&self) -> &Way {
        &self.inner.way
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    /// A descriptor to poll for reading: readable exactly while
    /// [`Xenstore::next_event`] has something. It belongs to the connection;
    /// only poll it.
    #[must_use]
    pub fn watch_fd(&self) -> RawFd {
        self.shared().events.fd()
    }

    /// The next event, without waiting. A watch event equal to one that
    /// still waits here is told once.
    #[must_use]
    pub fn next_event(&self) -> Option<Event> {
        self.shared().events.pop()
    }

    /// The next event, waiting for it at most `timeout`.
    #[must_use]
    pub fn wait_event(&self, timeout: Duration) -> Option<Event> {
        self.shared().events.pop_within(timeout)
    }

    /// Watches a node and everything under it, or `@introduceDomain` and
    /// `@releaseDomain`. The watch fires once at once.
    ///
    /// # Errors
    /// As [`Tree`] says.
    pub fn watch(&self, path: &str) -> Result<Watch, Error> {
        path::check_watch(path)?;
        Watch::register(self.shared(), path)
    }

    /// Runs `body` in a transaction and commits it. When others' changes
    /// conflict with it, `body` runs again from the start, at most
    /// [`Options::transaction_attempts`] times in all. When `body` errs, the
    /// transaction is discarded.
    ///
    /// # Errors
    /// What `body` returns; [`Error::Conflict`]; else as [`Tree`] says.
    pub fn transaction<T, E: From<Error>>(
        &self,
        body: impl FnMut(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        transaction::run(self.shared(), body)
    }

    /// Whether xenstored is connected to a domain, which it is from the
    /// domain's creation until its end.
    ///
    /// # Errors
    /// As [`Tree`] says.
    pub fn is_domain_introduced(&self, domain: DomId) -> Result<bool, Error> {
        match self.ask_domain(Kind::IsDomainIntroduced, domain)?.as_str() {
            "T" => Ok(true),
            "F" => Ok(false),
            other => Err(Error::Malformed {
                request: Kind::IsDomainIntroduced,
                subject: domain.to_string(),
                problem: format!("{other:?} is neither T nor F"),
            }),
        }
    }

    /// The path under which a domain has its nodes.
    ///
    /// # Errors
    /// As [`Tree`] says.
    pub fn get_domain_path(&self, domain: DomId) -> Result<String, Error> {
        self.ask_domain(Kind::GetDomainPath, domain)
    }

    /// Makes a request about a domain that is answered with one string.
    fn ask_domain(&self, request: Kind, domain: DomId) -> Result<String, Error> {
        let text = domain.to_string();
        let payload = self
            .shared()
            .call(request, &text, &[text.as_bytes(), b"\0"])?;
        let answer = match wire::strings(&payload).as_deref() {
            Some([answer]) => std::str::from_utf8(answer).map(str::to_owned).ok(),
            _ => None,
        };
        answer.ok_or_else(|| Error::Malformed {
            request,
            subject: text,
            problem: format!("{:?} is not one string", String::from_utf8_lossy(&payload)),
        })
    }

    /// Tries to reconnect now if the connection is lost, instead of at the
    /// next attempt or never, and waits for it at most
    /// [`Options::timeout`].
    ///
    /// # Errors
    /// [`Error::Reconnect`].
    pub fn reconnect(&self) -> Result<(), Error> {
        self.shared().reconnect()
    }

    /// Whether the connection is up, as far as is known.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared().link().is_some()
    }
}

impl Requester for Xenstore {
    fn request(&self, kind: Kind, subject: &str, parts: &[&[u8]]) -> Result<Vec<u8>, Error> {
        self.shared().call(kind, subject, parts)
    }
}

impl Tree for Xenstore {}
