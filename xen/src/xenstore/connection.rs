//! Requests out, replies back to whoever asked.
//!
//! Any number of threads call [`Shared::call`]; each puts itself down as
//! waiting for its request's number, sends, and waits a bounded time. The
//! reader thread hands replies out by that number. A [`Link`] is one
//! connection; when it is lost all who wait on it are told so, and a new one
//! takes its place.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Options;
use super::error::{Errno, Error};
use super::events::{Event, Events, WatchEvent};
use super::transport::Transport;
use super::watch::WatchToken;
use super::wire::{self, Kind, Message};

/// One connection to xenstored, until it is lost.
#[derive(Debug)]
pub(super) struct Link {
    transport: Transport,
    /// Held while a message is written.
    sending: Mutex<()>,
    /// Who waits for which reply; nothing once the link is lost.
    waiting: Mutex<Option<HashMap<u32, SyncSender<Message>>>>,
}

/// How sending and waiting ended without a reply.
enum NoReply {
    Disconnected,
    Timeout,
    Send(io::Error),
}

impl Link {
    pub(super) fn new(transport: Transport) -> Self {
        Self {
            transport,
            sending: Mutex::default(),
            waiting: Mutex::new(Some(HashMap::new())),
        }
    }

    pub(super) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Sends without waiting for a reply.
    pub(super) fn send(&self, message: &[u8]) -> io::Result<()> {
        let sending = lock(&self.sending);
        let sent = self.transport.send(message);
        drop(sending);
        if sent.is_err() && self.transport.broken_by_failed_send() {
            self.close();
        }
        sent
    }

    /// Sends, and waits for the reply with the same number.
    fn exchange(&self, req_id: u32, message: &[u8], timeout: Duration) -> Result<Message, NoReply> {
        let (reply, replied) = sync_channel(1);
        match lock(&self.waiting).as_mut() {
            Some(waiting) => waiting.insert(req_id, reply),
            None => return Err(NoReply::Disconnected),
        };
        if let Err(error) = self.send(message) {
            return Err(match self.forget(req_id) {
                true => NoReply::Send(error),
                false => NoReply::Disconnected,
            });
        }
        match replied.recv_timeout(timeout) {
            Ok(message) => Ok(message),
            Err(RecvTimeoutError::Disconnected) => Err(NoReply::Disconnected),
            Err(RecvTimeoutError::Timeout) => {
                self.forget(req_id);
                // It may have come between the two.
                replied.try_recv().map_err(|_| NoReply::Timeout)
            }
        }
    }

    /// Stops waiting for a reply; whether the link is still up.
    fn forget(&self, req_id: u32) -> bool {
        lock(&self.waiting)
            .as_mut()
            .map(|waiting| waiting.remove(&req_id))
            .is_some()
    }

    /// Gives a reply to who waits for it; gives it back when nobody does.
    pub(super) fn hand_out(&self, reply: Message) -> Option<Message> {
        let waiting = lock(&self.waiting)
            .as_mut()
            .and_then(|map| map.remove(&reply.req_id));
        match waiting {
            // One place is reserved and one reply is sent: this neither
            // blocks nor fails unless the waiter has just left.
            Some(waiting) => waiting.try_send(reply).err().map(|error| match error {
                std::sync::mpsc::TrySendError::Full(reply)
                | std::sync::mpsc::TrySendError::Disconnected(reply) => reply,
            }),
            None => Some(reply),
        }
    }

    /// Ends the link: all who wait on it learn so.
    pub(super) fn close(&self) {
        lock(&self.waiting).take();
        self.transport.shut_down();
    }
}

/// What the handles, the watches and the reader thread of a connection have
/// in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) events: Events,
    /// Wakes the reader thread.
    pub(super) wake: EventFd,
    stop: AtomicBool,
    link: Mutex<LinkState>,
    link_changed: Condvar,
    /// The registered watches and their paths.
    watches: Mutex<BTreeMap<WatchToken, String>>,
    next_req_id: AtomicU32,
    next_token: AtomicU64,
}

#[derive(Debug)]
enum LinkState {
    Up(Arc<Link>),
    Down,
    /// Nothing will bring it up again.
    Over,
}

impl Shared {
    pub(super) fn new(options: Options, link: Arc<Link>) -> Result<Self, Error> {
        let setup = |source| Error::Setup {
            what: "making an eventfd",
            source,
        };
        Ok(Self {
            options,
            events: Events::new().map_err(setup)?,
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(setup)?,
            stop: AtomicBool::new(false),
            link: Mutex::new(LinkState::Up(link)),
            link_changed: Condvar::new(),
            watches: Mutex::default(),
            // 0 is the number of messages that answer nothing.
            next_req_id: AtomicU32::new(1),
            next_token: AtomicU64::new(1),
        })
    }

    /// The link that is up now.
    pub(super) fn link(&self) -> Option<Arc<Link>> {
        match &*lock(&self.link) {
            LinkState::Up(link) => Some(Arc::clone(link)),
            LinkState::Down | LinkState::Over => None,
        }
    }

    pub(super) fn link_up(&self, link: Arc<Link>) {
        *lock(&self.link) = LinkState::Up(link);
        self.link_changed.notify_all();
    }

    pub(super) fn link_down(&self) {
        *lock(&self.link) = LinkState::Down;
    }

    pub(super) fn link_over(&self) {
        *lock(&self.link) = LinkState::Over;
        self.link_changed.notify_all();
    }

    /// Has the reader thread try to reconnect now, and waits for it.
    pub(super) fn reconnect(&self) -> Result<(), Error> {
        let deadline = Instant::now().checked_add(self.options.timeout);
        self.wake_reader();
        let mut state = lock(&self.link);
        loop {
            match &*state {
                LinkState::Up(_) => return Ok(()),
                LinkState::Over => {
                    return Err(Error::Reconnect {
                        why: "the connection was given as a stream",
                    });
                }
                LinkState::Down => {}
            }
            let left = deadline.and_then(|end| end.checked_duration_since(Instant::now()));
            let Some(left) = left else {
                return Err(Error::Reconnect {
                    why: "the daemon was not there in time",
                });
            };
            state = self
                .link_changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Asks the reader thread to end.
    pub(super) fn request_stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake_reader();
        if let Some(link) = self.link() {
            link.close();
        }
    }

    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn wake_reader(&self) {
        // Fails only when the counter is full, and then it is readable.
        let _ = self.wake.write(1);
    }

    /// A number for a request; never 0.
    pub(super) fn next_req_id(&self) -> u32 {
        match self.next_req_id.fetch_add(1, Ordering::Relaxed) {
            0 => self.next_req_id.fetch_add(1, Ordering::Relaxed),
            id => id,
        }
    }

    /// Makes a request outside of transactions; its reply's payload.
    pub(super) fn call(
        &self,
        kind: Kind,
        subject: &str,
        parts: &[&[u8]],
    ) -> Result<Vec<u8>, Error> {
        match self.link() {
            Some(link) => self.call_on(&link, 0, kind, subject, parts),
            None => Err(Error::Disconnected {
                request: kind,
                subject: subject.to_owned(),
            }),
        }
    }

    /// Makes a request on this very link; its reply's payload. Transactions
    /// live and die with their link.
    pub(super) fn call_on(
        &self,
        link: &Link,
        tx_id: u32,
        request: Kind,
        subject: &str,
        parts: &[&[u8]],
    ) -> Result<Vec<u8>, Error> {
        let req_id = self.next_req_id();
        let Some(message) = wire::encode(request.number(), req_id, tx_id, parts) else {
            let len = parts.iter().map(|part| part.len()).sum();
            return Err(Error::TooLong {
                request,
                subject: subject.to_owned(),
                len,
            });
        };
        let after = self.options.timeout;
        let reply = link.exchange(req_id, &message, after).map_err(|how| {
            let subject = subject.to_owned();
            match how {
                NoReply::Disconnected => Error::Disconnected { request, subject },
                NoReply::Timeout => Error::Timeout {
                    request,
                    subject,
                    after,
                },
                NoReply::Send(source) => match source.raw_os_error().and_then(Errno::from_raw) {
                    Some(errno) => Error::Refused {
                        request,
                        subject,
                        errno,
                    },
                    None => Error::Send {
                        request,
                        subject,
                        source,
                    },
                },
            }
        })?;
        read_reply(request, subject, reply)
    }

    /// A new token for a watch on `path`.
    pub(super) fn add_watch(&self, path: &str) -> WatchToken {
        let token = WatchToken(self.next_token.fetch_add(1, Ordering::Relaxed));
        lock(&self.watches).insert(token, path.to_owned());
        token
    }

    /// Forgets a watch and what is queued for it.
    pub(super) fn remove_watch(&self, token: WatchToken) {
        let mut watches = lock(&self.watches);
        watches.remove(&token);
        self.events.forget(token);
    }

    pub(super) fn watches(&self) -> BTreeMap<WatchToken, String> {
        lock(&self.watches).clone()
    }

    /// Has the daemon drop a watch, without waiting for its answer.
    pub(super) fn unwatch_unanswered(&self, path: &str, token: WatchToken) {
        let Some(link) = self.link() else { return };
        let text = token.to_string();
        let parts: [&[u8]; 4] = [path.as_bytes(), b"\0", text.as_bytes(), b"\0"];
        self.send_unanswered(&link, Kind::Unwatch, 0, &parts);
    }

    /// Sends a request whose reply nobody waits for. A failure is a lost
    /// link, and a lost link has nothing left to undo.
    pub(super) fn send_unanswered(&self, link: &Link, kind: Kind, tx_id: u32, parts: &[&[u8]]) {
        if let Some(message) = wire::encode(kind.number(), self.next_req_id(), tx_id, parts)
            && let Err(error) = link.send(&message)
        {
            tracing::debug!(%error, request = %kind, "xenstore request not sent");
        }
    }

    /// Takes a watch event; one of a watch that is gone is dropped.
    pub(super) fn take_watch_event(&self, payload: &[u8]) {
        let parsed = wire::strings(payload).and_then(|strings| {
            let (path, token) = match strings.as_slice() {
                // More strings are left to later versions of the protocol.
                [path, token, ..] => (std::str::from_utf8(path).ok()?, WatchToken::parse(token)?),
                _ => return None,
            };
            Some(WatchEvent {
                path: path.to_owned(),
                token,
            })
        });
        let Some(event) = parsed else {
            tracing::warn!(
                payload = %String::from_utf8_lossy(payload),
                "malformed xenstore watch event ignored"
            );
            return;
        };
        // Held over the push: a watch that is removed has no event after it.
        let watches = lock(&self.watches);
        if watches.contains_key(&event.token) {
            self.events.push(Event::Watch(event));
        }
    }
}

/// The payload of a reply, or the error it is.
pub(super) fn read_reply(request: Kind, subject: &str, reply: Message) -> Result<Vec<u8>, Error> {
    let malformed = |problem| Error::Malformed {
        request,
        subject: subject.to_owned(),
        problem,
    };
    match Kind::from_wire(reply.kind) {
        Some(kind) if kind == request => Ok(reply.payload),
        Some(Kind::Error) => {
            let name = match wire::strings(&reply.payload).as_deref() {
                Some([name, ..]) => String::from_utf8_lossy(name).into_owned(),
                _ => return Err(malformed("an error without a name".to_owned())),
            };
            let errno = Errno::from_name(&name);
            Err(Error::Refused {
                request,
                subject: subject.to_owned(),
                errno,
            })
        }
        _ => Err(malformed(format!("its type is {}", reply.kind))),
    }
}

/// Locks; what a panicking thread left behind is still consistent here.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
