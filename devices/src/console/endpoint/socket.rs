//! A unix socket that clients connect to, one at a time.
//!
//! A thread accepts clients and notices that they go; it never reads or
//! writes. The next client waits in the kernel's queue until the one before
//! has gone. What that one has sent and the guest has not yet taken is read
//! first, then the next one's: nothing is lost and nothing is mixed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use rustix::time::Timespec;

use super::stream::{Nature, Stream};
use super::{Bells, EndpointError};
use crate::console::stats::ConsoleStats;
use crate::console::waiter::Bell;
use crate::unix::Listener;
use crate::virtio::counters::add;
use crate::virtio::log_limit::LogLimit;

/// Clients whose input the guest has not taken, at most: the next one is not
/// let in before.
const INPUTS_MAX: usize = 8;
/// Clients that wait in the kernel's queue.
const BACKLOG: i32 = 8;
/// How long to leave the socket alone when a client cannot be let in.
const PAUSE: Duration = Duration::from_secs(1);

/// Who is there.
#[derive(Default)]
struct State {
    /// Whom output goes to.
    output: Option<Arc<Stream>>,
    /// Whose input is taken, in the order that they came.
    inputs: VecDeque<Arc<Stream>>,
}

struct Clients {
    /// Locked when a client comes or goes, and not for a byte of its data.
    state: Mutex<State>,
    /// For the thread.
    bell: Bell,
    bells: Arc<Bells>,
    stop: AtomicBool,
    stats: Arc<ConsoleStats>,
}

/// See the module.
pub(super) struct Socket {
    clients: Arc<Clients>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Socket {
    /// Listens on `path`, for the owner alone.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn listen(
        path: &Path,
        bells: &Arc<Bells>,
        stats: &Arc<ConsoleStats>,
    ) -> Result<Self, EndpointError> {
        let clients = Arc::new(Clients {
            state: Mutex::default(),
            bell: Bell::new().map_err(EndpointError::Means)?,
            bells: Arc::clone(bells),
            stop: AtomicBool::new(false),
            stats: Arc::clone(stats),
        });
        let listener = Listener::new(path, BACKLOG)?;
        let mut socket = Socket {
            path: path.to_owned(),
            clients: Arc::clone(&clients),
            thread: None,
        };
        let door = Door::new(listener, clients).map_err(EndpointError::Means)?;
        let span = tracing::Span::current();
        let thread = std::thread::Builder::new()
            .name("console/door".into())
            .spawn(move || {
                let _entered = span.enter();
                door.run();
            })
            .map_err(EndpointError::Means)?;
        socket.thread = Some(thread);
        Ok(socket)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn output(&self) -> Option<Arc<Stream>> {
        self.clients.lock().output.clone()
    }

    pub fn input(&self) -> Option<Arc<Stream>> {
        self.clients.lock().inputs.front().cloned()
    }

    /// A client does not read any more.
    pub fn output_gone(&self, stream: &Arc<Stream>) {
        self.clients.output_gone(stream);
        // the thread lets the next one in
        self.clients.bell.ring();
    }

    /// A client has nothing more to say.
    pub fn input_gone(&self, stream: &Arc<Stream>) {
        let mut state = self.clients.lock();
        state.inputs.retain(|input| !Arc::ptr_eq(input, stream));
        self.clients.bell.ring();
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.clients.stop.store(true, Ordering::SeqCst);
        self.clients.bell.ring();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a console's thread died");
        }
    }
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets whom output goes to, if it is that one.
    fn output_gone(&self, stream: &Arc<Stream>) {
        let mut state = self.lock();
        if state
            .output
            .take_if(|output| Arc::ptr_eq(output, stream))
            .is_some()
        {
            // what it has sent can still be read, and then comes its end: a
            // half-closed client must not keep the next one waiting
            let _ = shutdown(&**stream, Shutdown::Read);
            // locked still: who comes next is told of next
            self.bells.connected(false);
            add(&self.stats.hangups, 1);
            tracing::info!("the console's client has gone");
        }
    }

    /// Lets a client in.
    fn arrive(&self, fd: OwnedFd) {
        let stream = Arc::new(Stream::new(fd, Nature::Socket));
        {
            let mut state = self.lock();
            state.output = Some(Arc::clone(&stream));
            state.inputs.push_back(stream);
            self.bells.connected(true);
        }
        add(&self.stats.clients, 1);
        tracing::info!("a client has come to the console");
        self.bells.output.ring();
        self.bells.input.ring();
    }
}

/// The thread's own.
struct Door {
    listener: Listener,
    epoll: OwnedFd,
    clients: Arc<Clients>,
    /// Whether the listener is registered.
    open: bool,
    /// The client whose end is waited for.
    watched: Option<Arc<Stream>>,
    log: LogLimit,
}

const BELL: u64 = 0;
const LISTENER: u64 = 1;
const CLIENT: u64 = 2;

impl Door {
    fn new(listener: Listener, clients: Arc<Clients>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let bell = EventData::new_u64(BELL);
        epoll::add(&epoll, &clients.bell, bell, EventFlags::IN)?;
        Ok(Door {
            listener,
            epoll,
            clients,
            open: false,
            watched: None,
            log: LogLimit::default(),
        })
    }

    fn run(mut self) {
        let mut pause = false;
        while !self.clients.stop.load(Ordering::SeqCst) {
            if let Err(errno) = self.watch(!pause) {
                tracing::error!(error = %errno, "a console lets no clients in any more");
                return;
            }
            let happened = match self.wait(pause) {
                Ok(happened) => happened,
                Err(errno) => {
                    tracing::error!(error = %errno, "a console lets no clients in any more");
                    return;
                }
            };
            pause = false;
            self.clients.bell.hear();
            if happened.contains(&Some(CLIENT))
                && let Some(client) = self.watched.take()
            {
                // a stream that is closed is registered no more
                let _ = epoll::delete(&self.epoll, &*client);
                self.clients.output_gone(&client);
                self.clients.bells.output.ring();
            }
            if happened.contains(&Some(LISTENER)) {
                pause = !self.accept();
            }
        }
    }

    /// Registers what is waited for now: a client's end, or the next client.
    fn watch(&mut self, may_open: bool) -> Result<(), Errno> {
        let (output, full) = {
            let state = self.clients.lock();
            (state.output.clone(), state.inputs.len() >= INPUTS_MAX)
        };
        let same = match (&self.watched, &output) {
            (Some(watched), Some(output)) => Arc::ptr_eq(watched, output),
            (None, None) => true,
            _ => false,
        };
        if !same {
            if let Some(client) = self.watched.take() {
                let _ = epoll::delete(&self.epoll, &*client);
            }
            if let Some(client) = &output {
                let data = EventData::new_u64(CLIENT);
                // nothing but its end, which is always reported
                epoll::add(&self.epoll, &**client, data, EventFlags::empty())?;
            }
            self.watched = output;
        }
        let open = may_open && self.watched.is_none() && !full;
        match (self.open, open) {
            (false, true) => {
                let data = EventData::new_u64(LISTENER);
                epoll::add(&self.epoll, &self.listener, data, EventFlags::IN)?;
            }
            (true, false) => epoll::delete(&self.epoll, &self.listener)?,
            _ => {}
        }
        self.open = open;
        Ok(())
    }

    fn wait(&self, pause: bool) -> Result<[Option<u64>; 3], Errno> {
        let empty = Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        };
        let mut events = [empty; 3];
        let limit = Timespec {
            tv_sec: i64::try_from(PAUSE.as_secs()).unwrap_or(1),
            tv_nsec: 0,
        };
        let limit = pause.then_some(&limit);
        let count = rustix::io::retry_on_intr(|| epoll::wait(&self.epoll, &mut events, limit))?;
        let mut happened = [None; 3];
        for (to, event) in happened.iter_mut().zip(events.iter().take(count)) {
            *to = Some(event.data.u64());
        }
        Ok(happened)
    }

    /// Lets the next client in; false if that has to wait.
    fn accept(&mut self) -> bool {
        match self.listener.accept() {
            Ok(Some(fd)) => self.clients.arrive(fd),
            Ok(None) => {}
            Err(error) => {
                add(&self.clients.stats.host_errors, 1);
                if let Some(withheld) = self.log.due() {
                    tracing::warn!(%error, withheld, "a console's client cannot be let in");
                }
                return false;
            }
        }
        true
    }
}
