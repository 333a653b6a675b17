//! irqfds: eventfds that raise an interrupt, as `drivers/xen/privcmd.c` has
//! them.
//!
//! Linux injects in the context of whoever signals the eventfd; here a
//! thread per privcmd file does, so an interrupt comes a little after its
//! signal.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::errno::Errno;
use super::ioeventfd::{duplicate, eventfd_id};
use super::state::Inner;
use crate::DomId;

/// The token of the descriptor that ends the thread.
const STOP: u64 = 0;

/// The irqfds of one privcmd file; dropped, they end and so does the thread.
pub(super) struct Irqfds {
    shared: Arc<Shared>,
    file: u64,
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    inner: Arc<Inner>,
    epoll: Epoll,
    entries: Mutex<BTreeMap<u64, Irqfd>>,
}

struct Irqfd {
    /// The kernel's identity of the eventfd.
    id: String,
    eventfd: File,
    dom: DomId,
    op: Vec<u8>,
}

impl Irqfds {
    /// Starts the thread.
    pub(super) fn start(inner: &Arc<Inner>, file: u64) -> io::Result<Irqfds> {
        let (stop, stopped) = UnixStream::pair()?;
        let shared = Arc::new(Shared {
            inner: Arc::clone(inner),
            epoll: Epoll::new()?,
            entries: Mutex::new(BTreeMap::new()),
        });
        shared.epoll.ctl(
            ControlOperation::Add,
            stopped.as_raw_fd(),
            EpollEvent::new(EventSet::IN, STOP),
        )?;
        let thread = std::thread::Builder::new()
            .name("fake-irqfd".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || {
                    shared.run();
                    drop(stopped);
                }
            })?;
        Ok(Irqfds {
            shared,
            file,
            stop,
            thread: Some(thread),
        })
    }

    /// `privcmd_irqfd_assign`.
    pub(super) fn assign(&self, dom: DomId, op: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
        let id = eventfd_id(fd)?;
        let eventfd = duplicate(fd)?;
        let token = self.shared.inner.call(|world| {
            if world.irqfds.contains_key(&id) {
                return Err(Errno(libc::EBUSY));
            }
            world.irqfds.insert(id.clone(), (dom, self.file));
            Ok(world.fresh_id())
        })?;
        let raw = eventfd.as_raw_fd();
        let irqfd = Irqfd {
            id: id.clone(),
            eventfd,
            dom,
            op: op.to_vec(),
        };
        self.shared.entries().insert(token, irqfd);
        let event = EpollEvent::new(EventSet::IN, token);
        self.shared
            .epoll
            .ctl(ControlOperation::Add, raw, event)
            .inspect_err(|_| self.forget(&id))
    }

    /// `privcmd_irqfd_deassign`: no interrupt comes after it; an eventfd that
    /// was not assigned is no error.
    pub(super) fn deassign(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.forget(&eventfd_id(fd)?);
        Ok(())
    }

    fn forget(&self, id: &str) {
        let mut entries = self.shared.entries();
        entries.retain(|_, irqfd| {
            if irqfd.id == id {
                // The duplicate closes now; its description may live on in
                // the caller's descriptor and has to leave the set by name.
                let _ = self.shared.epoll.ctl(
                    ControlOperation::Delete,
                    irqfd.eventfd.as_raw_fd(),
                    EpollEvent::default(),
                );
            }
            irqfd.id != id
        });
        drop(entries);
        self.shared.inner.with(|world| {
            if world
                .irqfds
                .get(id)
                .is_some_and(|(_, file)| *file == self.file)
            {
                world.irqfds.remove(id);
            }
        });
    }
}

impl Drop for Irqfds {
    fn drop(&mut self) {
        // The thread ends at the first byte; if it is gone already, fine.
        let _ = self.stop.write_all(&[1]);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.shared
            .inner
            .with(|world| world.irqfds.retain(|_, (_, file)| *file != self.file));
    }
}

impl Shared {
    fn run(&self) {
        let mut events = [EpollEvent::default(); 16];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "fake irqfd thread ends");
                    return;
                }
            };
            for event in events.iter().take(count) {
                if event.data() == STOP {
                    return;
                }
                self.inject(event.data());
            }
        }
    }

    // irqfd_inject
    fn inject(&self, token: u64) {
        let mut entries = self.entries();
        let Some(irqfd) = entries.get_mut(&token) else {
            return;
        };
        // Readable, so this does not wait; the count does not matter.
        let mut count = [0; 8];
        if irqfd.eventfd.read_exact(&mut count).is_err() {
            return;
        }
        let mut op = irqfd.op.clone();
        let dom = irqfd.dom;
        let result = self.inner.with(|world| world.dm_op(dom, &mut op));
        if let Err(errno) = result {
            tracing::debug!(domain = %dom, errno = errno.0, "irqfd");
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<u64, Irqfd>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
