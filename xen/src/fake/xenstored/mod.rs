//! A xenstored in this process, speaking the real wire over socket pairs.
//!
//! Tests and `xen-dm demo` use it in place of the daemon; the client above
//! it is the one that runs on Xen. Like the daemon it serves all clients
//! from one thread; [`Store`]'s own methods act as a toolstack in dom0 would,
//! from any thread, without a client.

mod request;
mod state;
mod tree;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::DomId;
use crate::xenstore::{Errno, Permission, path};

use state::State;

/// What epoll says of the wake-up descriptor; clients count from 1.
const WAKE: u64 = 0;
/// Descriptors looked at in one wait.
const BATCH: usize = 16;

/// The daemon. Clones are the same daemon; its thread ends with the last.
#[derive(Clone)]
pub struct Store {
    server: Arc<Server>,
}

struct Server {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    epoll: Epoll,
    wake: EventFd,
    stop: AtomicBool,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("state", &*self.lock())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut events = [EpollEvent::default(); BATCH];
        while !self.stop.load(Ordering::SeqCst) {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "fake xenstored: waiting for clients failed");
                    break;
                }
            };
            let mut state = self.lock();
            for event in events
                .iter()
                .take(count)
                .filter(|event| event.data() != WAKE)
            {
                state.serve(event.data());
            }
            state.flush(&self.epoll);
        }
        self.lock().disconnect_all();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // Fails only when the counter is full, and then the thread wakes too.
        let _ = self.shared.wake.write(1);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the fake xenstored's thread panicked");
        }
    }
}

impl Store {
    /// Starts a daemon with the nodes it has on a fresh dom0.
    ///
    /// # Errors
    /// The system's, when it gives no descriptor or thread.
    pub fn new() -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new()),
            epoll: Epoll::new()?,
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            stop: AtomicBool::new(false),
        });
        let event = EpollEvent::new(EventSet::IN, WAKE);
        shared
            .epoll
            .ctl(ControlOperation::Add, shared.wake.as_raw_fd(), event)?;
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("fake-xenstored".to_owned())
            .spawn(move || served.run())?;
        let store = Self {
            server: Arc::new(Server {
                shared,
                thread: Mutex::new(Some(thread)),
            }),
        };
        store
            .change(State::furnish)
            .map_err(|errno| io::Error::other(errno.to_string()))?;
        Ok(store)
    }

    /// A connection as `domain`; dom0 is privileged. The returned end speaks
    /// the wire protocol.
    ///
    /// # Errors
    /// `ConnectionRefused` while [`Store::set_accepting`] says so; else the
    /// system's.
    pub fn connect(&self, domain: DomId) -> io::Result<UnixStream> {
        self.lock().connect(domain, &self.server.shared.epoll)
    }

    /// The daemon connects to a new domain; `@introduceDomain` fires.
    pub fn introduce(&self, domain: DomId) {
        self.change(|state| state.introduce(domain));
    }

    /// The daemon parts with a domain that is gone; its connections are
    /// closed and `@releaseDomain` fires. Its nodes are the toolstack's to
    /// remove.
    pub fn release(&self, domain: DomId) {
        self.change(|state| state.release(domain));
    }

    /// The daemon dies and comes back: every connection is closed, with its
    /// watches and transactions; the nodes stay.
    pub fn restart(&self) {
        self.change(State::disconnect_all);
    }

    /// The daemon dies and another one is started in its place, as C
    /// xenstored is: it keeps nothing of what there was, neither nodes nor
    /// domains.
    ///
    /// # Errors
    /// As [`Store::write`]; none are to be expected.
    pub fn restart_empty(&self) -> Result<(), Errno> {
        self.change(State::begin_anew)
    }

    /// Whether new connections are let in; they are at first. With
    /// [`Store::restart`] this plays a daemon that is gone for a while.
    pub fn set_accepting(&self, accepting: bool) {
        self.lock().accepting = accepting;
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.lock().peers.len()
    }

    /// How many watches are registered, over all connections.
    #[must_use]
    pub fn watches(&self) -> usize {
        self.lock()
            .peers
            .values()
            .map(|peer| peer.watches.len())
            .sum()
    }

    /// How many transactions are open, over all connections.
    #[must_use]
    pub fn transactions(&self) -> usize {
        self.lock()
            .peers
            .values()
            .map(|peer| peer.transactions.len())
            .sum()
    }

    /// A node's value as text; nothing if it is not there.
    #[must_use]
    pub fn read(&self, path: &str) -> Option<String> {
        let state = self.lock();
        let node = state.nodes.get(path)?;
        Some(String::from_utf8_lossy(&node.value).into_owned())
    }

    /// Whether a node is there.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        self.lock().nodes.contains_key(path)
    }

    /// The names of a node's children, in the order of their creation; none
    /// if it is not there.
    #[must_use]
    pub fn list(&self, path: &str) -> Vec<String> {
        self.lock()
            .nodes
            .get(path)
            .map(|node| node.children.clone())
            .unwrap_or_default()
    }

    /// A node's permissions; nothing if it is not there.
    #[must_use]
    pub fn permissions(&self, path: &str) -> Option<Vec<Permission>> {
        self.lock()
            .nodes
            .get(path)
            .map(|node| node.permissions.clone())
    }

    /// Writes a node as dom0; `path` is absolute.
    ///
    /// # Errors
    /// `EINVAL` for what is no absolute path.
    pub fn write(&self, path: &str, value: impl AsRef<[u8]>) -> Result<(), Errno> {
        check_absolute(path)?;
        self.change(|state| state.privileged(|view| view.write(path, value.as_ref())))
    }

    /// Makes a node as dom0; `path` is absolute.
    ///
    /// # Errors
    /// `EINVAL` for what is no absolute path.
    pub fn mkdir(&self, path: &str) -> Result<(), Errno> {
        check_absolute(path)?;
        self.change(|state| state.privileged(|view| view.mkdir(path)))
    }

    /// Removes a node and everything under it as dom0; `path` is absolute.
    ///
    /// # Errors
    /// `EINVAL` for what is no absolute path or is the root; `ENOENT` when
    /// the node above is not there.
    pub fn rm(&self, path: &str) -> Result<(), Errno> {
        check_absolute(path)?;
        self.change(|state| state.privileged(|view| view.rm(path)))
    }

    /// Sets a node's permissions as dom0; `path` is absolute.
    ///
    /// # Errors
    /// `EINVAL` for what is no absolute path or for an empty list; `ENOENT`
    /// when the node is not there.
    pub fn set_permissions(&self, path: &str, list: &[Permission]) -> Result<(), Errno> {
        check_absolute(path)?;
        self.change(|state| state.privileged(|view| view.set_permissions(path, list.to_vec())))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.server.shared.lock()
    }

    /// Changes the state and sends the events of it.
    fn change<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let done = work(&mut state);
        state.flush(&self.server.shared.epoll);
        done
    }
}

fn check_absolute(path: &str) -> Result<(), Errno> {
    if !path.starts_with('/') {
        return Err(Errno::Invalid);
    }
    path::check(path).map_err(|_| Errno::Invalid)
}
