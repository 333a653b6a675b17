//! The status thread: clients come, say one line, get one line, and are gone.
//!
//! It never blocks on a client. There are at most [`CLIENTS`], each for at
//! most [`PATIENCE`]; one more takes the place of the one that has been there
//! longest. A client costs [`REQUEST_MAX`] bytes, and its share of an answer
//! that all who wait have in common.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::desk::Link;
use super::protocol::{Answer, REQUEST_MAX, Request};

/// Clients at a time.
pub(super) const CLIENTS: usize = 16;
/// How long a client may be there.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How long nobody is let in after the system had no descriptor for one.
const REST: Duration = Duration::from_millis(500);

const LISTENER: u64 = 0;
const WAKE: u64 = 1;
const FIRST_CLIENT: u64 = 2;

/// How far a client is.
enum Stage {
    /// Its request, as far as it has come.
    Reading(Vec<u8>),
    /// It waits for the answer to the question of this number.
    Waiting(u64),
    /// It is given its answer, from there on.
    Writing(Arc<[u8]>, usize),
}

struct Client {
    stream: UnixStream,
    stage: Stage,
    until: Instant,
}

/// What to do with a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Keep,
    Drop,
}

/// The thread's state.
pub(super) struct Server {
    epoll: Epoll,
    listener: UnixListener,
    link: Arc<Link>,
    /// How long a client may be there.
    patience: Duration,
    /// By number, so that the first has been there longest.
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    /// Questions asked, and answered.
    asked: u64,
    answered: u64,
    /// Until then nobody is let in.
    resting: Option<Instant>,
}

impl Server {
    pub(super) fn new(
        listener: UnixListener,
        link: Arc<Link>,
        patience: Duration,
    ) -> io::Result<Server> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let server = Server {
            epoll,
            listener,
            link,
            patience,
            clients: BTreeMap::new(),
            next_client: FIRST_CLIENT,
            asked: 0,
            answered: 0,
            resting: None,
        };
        let sources = [
            (server.listener.as_raw_fd(), LISTENER),
            (server.link.wake.as_raw_fd(), WAKE),
        ];
        for (fd, data) in sources {
            server.watch(ControlOperation::Add, fd, EventSet::IN, data)?;
        }
        Ok(server)
    }

    fn watch(
        &self,
        operation: ControlOperation,
        fd: RawFd,
        events: EventSet,
        data: u64,
    ) -> io::Result<()> {
        self.epoll.ctl(operation, fd, EpollEvent::new(events, data))
    }

    /// Serves clients until the desk is closed.
    pub(super) fn run(mut self) {
        let mut events = [EpollEvent::default(); 8];
        while !self.link.is_over() {
            let count = match self.epoll.wait(self.sleep(), &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "the status thread cannot wait; it ends");
                    return;
                }
            };
            for event in events.iter().take(count) {
                match event.data() {
                    LISTENER => self.accept(),
                    WAKE => self.deliver(),
                    client => self.serve(client),
                }
            }
            self.expire(Instant::now());
        }
    }

    /// How long to sleep, in milliseconds; -1: until something comes.
    fn sleep(&self) -> i32 {
        let ends = self.clients.values().map(|client| client.until);
        let Some(first) = ends.chain(self.resting).min() else {
            return -1;
        };
        let left = first.saturating_duration_since(Instant::now());
        // one more: not to wake just before
        i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX)
    }

    /// Lets clients in, as many as there can be.
    fn accept(&mut self) {
        for _ in 0..CLIENTS {
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // gone again already
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "nobody is let in to ask for the status for a while");
                    self.rest();
                    return;
                }
            }
        }
    }

    fn admit(&mut self, stream: UnixStream) {
        if self.clients.len() >= CLIENTS {
            drop(self.clients.pop_first());
        }
        let number = self.next_client;
        let watched = stream.set_nonblocking(true).and_then(|()| {
            let fd = stream.as_raw_fd();
            self.watch(ControlOperation::Add, fd, EventSet::IN, number)
        });
        if let Err(error) = watched {
            tracing::warn!(%error, "a client that asks for the status is turned away");
            return;
        }
        self.next_client = self.next_client.saturating_add(1);
        let client = Client {
            stream,
            stage: Stage::Reading(Vec::new()),
            until: Instant::now() + self.patience,
        };
        self.clients.insert(number, client);
    }

    /// A connection that cannot be taken would wake this thread at once again.
    fn rest(&mut self) {
        let fd = self.listener.as_raw_fd();
        let modify = ControlOperation::Modify;
        match self.watch(modify, fd, EventSet::empty(), LISTENER) {
            Ok(()) => self.resting = Some(Instant::now() + REST),
            Err(error) => tracing::error!(%error, "the status socket cannot rest"),
        }
    }

    /// Something has happened to a client.
    fn serve(&mut self, number: u64) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        let next = match &mut client.stage {
            Stage::Reading(request) => match read(&client.stream, request) {
                Heard::More => Next::Keep,
                Heard::Gone => Next::Drop,
                Heard::Refused(why) => self.reply(number, Answer::error(why).line().into()),
                Heard::Request => self.enqueue(number),
            },
            // it has hung up
            Stage::Waiting(_) => Next::Drop,
            Stage::Writing(..) => write(client),
        };
        if next == Next::Drop {
            self.clients.remove(&number);
        }
    }

    /// Has a client wait for a status that is gathered after it has asked.
    fn enqueue(&mut self, number: u64) -> Next {
        let idle = self.asked == self.answered;
        if idle {
            self.ask();
        }
        let Some(client) = self.clients.get_mut(&number) else {
            return Next::Drop;
        };
        client.stage = Stage::Waiting(match idle {
            true => self.asked,
            false => self.asked.saturating_add(1),
        });
        let fd = client.stream.as_raw_fd();
        // but for its hanging up, which is always told
        self.listen_to(fd, EventSet::empty(), number)
    }

    fn ask(&mut self) {
        self.asked = self.asked.saturating_add(1);
        self.link.ask();
    }

    fn listen_to(&self, fd: RawFd, events: EventSet, number: u64) -> Next {
        match self.watch(ControlOperation::Modify, fd, events, number) {
            Ok(()) => Next::Keep,
            Err(error) => {
                tracing::warn!(%error, "a client that asks for the status is let go");
                Next::Drop
            }
        }
    }

    /// Gives a client its answer, as far as it takes it.
    fn reply(&mut self, number: u64, line: Arc<[u8]>) -> Next {
        let Some(client) = self.clients.get_mut(&number) else {
            return Next::Drop;
        };
        client.stage = Stage::Writing(line, 0);
        match write(client) {
            Next::Drop => Next::Drop,
            Next::Keep => {
                let fd = client.stream.as_raw_fd();
                self.listen_to(fd, EventSet::OUT, number)
            }
        }
    }

    /// The control thread has answered.
    fn deliver(&mut self) {
        let Some(status) = self.link.take() else {
            return;
        };
        self.answered = self.asked;
        let line: Arc<[u8]> = Answer::status(status).line().into();
        let waiting = |client: &Client| match client.stage {
            Stage::Waiting(question) => Some(question),
            _ => None,
        };
        let due = |server: &Server| -> Vec<u64> {
            let clients = server.clients.iter();
            clients
                .filter(|(_, client)| waiting(client).is_some_and(|it| it <= server.answered))
                .map(|(number, _)| *number)
                .collect()
        };
        for number in due(self) {
            if self.reply(number, Arc::clone(&line)) == Next::Drop {
                self.clients.remove(&number);
            }
        }
        if self
            .clients
            .values()
            .any(|client| waiting(client).is_some())
        {
            self.ask();
        }
    }

    /// Lets go of clients whose time is over.
    fn expire(&mut self, now: Instant) {
        if self.resting.is_some_and(|until| until <= now) {
            self.resting = None;
            let fd = self.listener.as_raw_fd();
            let modify = ControlOperation::Modify;
            if let Err(error) = self.watch(modify, fd, EventSet::IN, LISTENER) {
                tracing::error!(%error, "nobody can ask for the status any more");
            }
        }
        let over: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, client)| client.until <= now)
            .map(|(number, _)| *number)
            .collect();
        for number in over {
            let waiting = self
                .clients
                .get(&number)
                .is_some_and(|client| matches!(client.stage, Stage::Waiting(_)));
            if waiting {
                let busy = Answer::error("the daemon is busy and did not answer in time");
                // as far as it goes at once: its time is over
                let _ = self.reply(number, busy.line().into());
            }
            self.clients.remove(&number);
        }
    }
}

/// What a client has said so far.
enum Heard {
    /// No whole request yet.
    More,
    Request,
    Refused(String),
    Gone,
}

fn read(mut stream: &UnixStream, request: &mut Vec<u8>) -> Heard {
    let mut bytes = [0; 1024];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Heard::Gone,
            Ok(count) => request.extend(bytes.iter().take(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Heard::More,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Heard::Gone,
        }
        let end = request.iter().position(|byte| *byte == b'\n');
        match end.map(|end| request.get(..end).unwrap_or_default()) {
            Some(line) => {
                return match Request::parse(line) {
                    Ok(_) => Heard::Request,
                    Err(why) => Heard::Refused(why),
                };
            }
            None if request.len() >= REQUEST_MAX => {
                let why = format!("a request has at most {REQUEST_MAX} bytes");
                return Heard::Refused(why);
            }
            None => {}
        }
    }
}

fn write(client: &mut Client) -> Next {
    let Stage::Writing(line, written) = &mut client.stage else {
        return Next::Drop;
    };
    loop {
        let rest = line.get(*written..).unwrap_or_default();
        if rest.is_empty() {
            return Next::Drop;
        }
        match (&client.stream).write(rest) {
            Ok(0) => return Next::Drop,
            Ok(count) => *written = written.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Next::Keep,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Next::Drop,
        }
    }
}
