//! The thread that reads what xenstored sends.
//!
//! One per [`super::Xenstore`], named `xenstore`. It hands replies to the
//! threads that wait for them and queues watch events. When the connection
//! is lost it makes a new one and registers the watches again. It ends when
//! the last handle is dropped, or when a lost connection cannot be made
//! anew because it was given as a stream.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Link, Shared, read_reply};
use super::events::Event;
use super::transport::Connect;
use super::watch::WatchToken;
use super::wire::{self, Decoder, Kind, Message};

/// Bytes read at a time.
const READ_SIZE: usize = 4096;
/// What epoll says of the connection's descriptor.
const CONNECTION: u64 = 0;
/// What epoll says of the wake-up descriptor.
const WAKE: u64 = 1;

/// How the service of a link ended.
enum Ended {
    /// The last handle was dropped.
    Stopped,
    /// The connection is gone, for this reason.
    Lost(String),
}

/// What one wait brought.
enum Turn {
    Messages(Vec<Message>),
    /// Woken, or the time is over.
    Nothing,
}

/// A link and what is needed to read from it.
pub(super) struct Session {
    link: Arc<Link>,
    epoll: Epoll,
    decoder: Decoder,
}

impl Session {
    pub(super) fn new(link: Arc<Link>, shared: &Shared) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let watched = [
            (link.transport().as_raw_fd(), CONNECTION),
            (shared.wake.as_raw_fd(), WAKE),
        ];
        for (fd, tag) in watched {
            epoll.ctl(
                ControlOperation::Add,
                fd,
                EpollEvent::new(EventSet::IN, tag),
            )?;
        }
        Ok(Self {
            link,
            epoll,
            decoder: Decoder::default(),
        })
    }

    /// Waits once and reads what is there; the error says how the connection
    /// was lost.
    fn turn(&mut self, shared: &Shared, until: Option<Instant>) -> Result<Turn, String> {
        let mut events = [EpollEvent::default(); 2];
        let count = wait(&self.epoll, until, &mut events).map_err(|error| error.to_string())?;
        let mut messages = Vec::new();
        for event in events.iter().take(count) {
            if event.data() == WAKE {
                // Reset; what it was for is looked up by the caller.
                let _ = shared.wake.read();
            } else {
                self.receive(&mut messages)?;
            }
        }
        Ok(if messages.is_empty() {
            Turn::Nothing
        } else {
            Turn::Messages(messages)
        })
    }

    fn receive(&mut self, messages: &mut Vec<Message>) -> Result<(), String> {
        let mut buffer = [0; READ_SIZE];
        match self.link.transport().receive(&mut buffer) {
            Ok(0) => return Err("xenstored closed it".to_owned()),
            Ok(count) => self.decoder.feed(buffer.get(..count).unwrap_or_default()),
            Err(error) if is_passing(&error) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
        loop {
            match self.decoder.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// The reader thread's state.
pub(super) struct Reader {
    shared: Arc<Shared>,
    /// How to connect again; nothing if that is not possible.
    connect: Option<Connect>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, connect: Option<Connect>) -> Self {
        Self { shared, connect }
    }

    /// The thread's whole life.
    pub(super) fn run(self, mut session: Session) {
        loop {
            let ended = self.serve(&mut session);
            session.link.close();
            match ended {
                Ended::Stopped => break,
                Ended::Lost(why) => tracing::warn!(%why, "xenstore connection lost"),
            }
            // Down before the event: whoever acts on the event finds it so.
            match self.connect {
                Some(_) => self.shared.link_down(),
                None => self.shared.link_over(),
            }
            self.shared.events.push(Event::Disconnected);
            match self.reconnect() {
                Some(new) => session = new,
                None => break,
            }
        }
        self.shared.link_over();
    }

    fn serve(&self, session: &mut Session) -> Ended {
        loop {
            if self.shared.stopping() {
                return Ended::Stopped;
            }
            match session.turn(&self.shared, None) {
                Ok(Turn::Messages(messages)) => {
                    for message in messages {
                        self.dispatch(&session.link, message);
                    }
                }
                Ok(Turn::Nothing) => {}
                Err(_) if self.shared.stopping() => return Ended::Stopped,
                Err(why) => return Ended::Lost(why),
            }
        }
    }

    fn dispatch(&self, link: &Link, message: Message) {
        if message.kind == Kind::WatchEvent.number() {
            self.shared.take_watch_event(&message.payload);
            return;
        }
        let Some(unwanted) = link.hand_out(message) else {
            return;
        };
        if unwanted.kind == Kind::TransactionStart.number() {
            // Whoever asked has given up waiting; the transaction must not
            // stay open in the daemon.
            let id = wire::strings(&unwanted.payload)
                .and_then(|strings| std::str::from_utf8(strings.first()?).ok()?.parse().ok());
            if let Some(id) = id {
                self.shared
                    .send_unanswered(link, Kind::TransactionEnd, id, &[b"F\0"]);
            }
        }
    }

    /// Tries until there is a connection; nothing when the thread is to end.
    fn reconnect(&self) -> Option<Session> {
        let connect = self.connect.as_ref()?;
        let backoff = &self.shared.options.reconnect;
        let mut delay = backoff.first;
        let mut attempts = 0_u32;
        loop {
            if self.shared.stopping() {
                return None;
            }
            match self.attempt(connect) {
                Ok(session) => return Some(session),
                Err(why) => tracing::debug!(%why, attempts, "reconnecting to xenstored"),
            }
            attempts = attempts.saturating_add(1);
            if attempts == backoff.attempts {
                tracing::warn!(attempts, "reconnecting to xenstored given up");
                self.shared.events.push(Event::GaveUp);
            }
            let pause = (attempts < backoff.attempts).then_some(delay);
            if self.pause(pause) {
                // Asked to try now: as at the start.
                attempts = 0;
                delay = backoff.first;
            } else {
                delay = delay.saturating_mul(2).min(backoff.longest);
            }
        }
    }

    /// Waits; whether it was woken before the time was over.
    fn pause(&self, pause: Option<Duration>) -> bool {
        let until = pause.and_then(|pause| Instant::now().checked_add(pause));
        let woken = Epoll::new().and_then(|epoll| {
            let event = EpollEvent::new(EventSet::IN, WAKE);
            epoll.ctl(ControlOperation::Add, self.shared.wake.as_raw_fd(), event)?;
            wait(&epoll, until, &mut [EpollEvent::default()])
        });
        match woken {
            Ok(count) => {
                let _ = self.shared.wake.read();
                count > 0
            }
            Err(error) => {
                // Out of descriptors, most likely: wait without being woken.
                tracing::debug!(%error, "waiting to reconnect to xenstored");
                std::thread::sleep(self.shared.options.reconnect.first);
                false
            }
        }
    }

    /// Connects, registers every watch and puts the link into use.
    fn attempt(&self, connect: &Connect) -> Result<Session, String> {
        let text = |error: io::Error| error.to_string();
        let link = Arc::new(Link::new(connect().map_err(text)?));
        let mut session = Session::new(Arc::clone(&link), &self.shared).map_err(text)?;
        let watches = self.shared.watches();
        let mut fired = Vec::new();
        for (token, path) in &watches {
            self.register(&mut session, *token, path, &mut fired)?;
        }
        // Up before the event: whoever acts on the event can.
        self.shared.link_up(link);
        self.shared.events.push(Event::Reconnected);
        for payload in fired {
            self.shared.take_watch_event(&payload);
        }
        self.drop_stale(&watches);
        tracing::info!(watches = watches.len(), "reconnected to xenstored");
        Ok(session)
    }

    /// Registers one watch on a link that nobody else uses yet.
    fn register(
        &self,
        session: &mut Session,
        token: WatchToken,
        path: &str,
        fired: &mut Vec<Vec<u8>>,
    ) -> Result<(), String> {
        let req_id = self.shared.next_req_id();
        let text = token.to_string();
        let parts: [&[u8]; 4] = [path.as_bytes(), b"\0", text.as_bytes(), b"\0"];
        let message = wire::encode(Kind::Watch.number(), req_id, 0, &parts)
            .ok_or("a watch too long to register")?;
        session
            .link
            .send(&message)
            .map_err(|error| error.to_string())?;
        let deadline = Instant::now().checked_add(self.shared.options.timeout);
        let mut answered = false;
        while !answered {
            if self.shared.stopping() {
                return Err("stopping".to_owned());
            }
            let messages = match session.turn(&self.shared, deadline)? {
                Turn::Messages(messages) => messages,
                Turn::Nothing => Vec::new(),
            };
            if messages.is_empty() && deadline.is_some_and(|end| Instant::now() >= end) {
                return Err(format!("no reply to the watch on {path}"));
            }
            for message in messages {
                if message.kind == Kind::WatchEvent.number() {
                    fired.push(message.payload);
                } else if message.req_id == req_id {
                    answered = true;
                    if let Err(error) = read_reply(Kind::Watch, path, message) {
                        // The other watches are still worth having.
                        tracing::error!(%error, "watch lost on reconnection");
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes watches that were dropped while they were registered anew.
    fn drop_stale(&self, registered: &BTreeMap<WatchToken, String>) {
        let wanted = self.shared.watches();
        for (token, path) in registered {
            if !wanted.contains_key(token) {
                self.shared.unwatch_unanswered(path, *token);
            }
        }
    }
}

/// Waits until an event or `until`, whichever is first; for ever without it.
fn wait(epoll: &Epoll, until: Option<Instant>, events: &mut [EpollEvent]) -> io::Result<usize> {
    loop {
        let timeout = match until {
            None => -1,
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                // Rounded up, so as not to spin through the last millisecond.
                i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX)
            }
        };
        match epoll.wait(timeout, events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Whether a failed read means only that there was nothing.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
