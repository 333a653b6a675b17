//! The connections of one device: what each packet of the guest means, and
//! what the guest has to be told. Moves no bytes and touches no socket.
//!
//! The workers of both queues share it behind a lock, which they hold while
//! they look at it and never while they copy. One of them writes to the host's
//! sockets and the other reads from them; [`Table::receive`] and
//! [`Table::give_back`] are the writer's, [`Table::allowance`] and
//! [`Table::packet`] the reader's.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::{Connection, Outbox, State};
use super::packet::{Header, Key, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use crate::unix::Stream;

/// A connection, never used again when it is gone.
pub(super) type Id = u64;

/// Replies that wait for the guest, at most, before no more of its packets are
/// looked at. virtio 1.3 §5.10.6.1.1
pub(super) const REPLIES_MAX: usize = 256;
/// First of the host's ports for connections that the host opens.
const FIRST_PORT: u32 = 1 << 30;
/// How long the guest may take to answer a request.
pub(super) const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Whoever writes to a connection's socket has its outbox meanwhile.
#[derive(Debug)]
pub(super) struct Writer {
    pub id: Id,
    pub stream: Arc<Stream>,
    pub outbox: Outbox,
}

/// What a packet of the guest asks the writer to do.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Nothing.
    Nothing,
    /// To connect to the host's port.
    Connect(Key),
    /// To tell the client that the guest has accepted it, which took so long.
    Accepted(Arc<Stream>, Key, Duration),
    /// To write the packet's bytes behind the outbox.
    Write(Writer),
    /// To end what it writes, if nothing is left in the outbox; and what is
    /// read, if the guest takes no more.
    Finish(Writer, bool),
    /// Nothing: there is no room for the connection that it wants.
    Refused,
    /// Nothing, but a rule is broken.
    Bad(&'static str),
}

/// What the writer does after it has given an outbox back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Next {
    /// Waits until the socket takes more.
    pub wait: bool,
    /// Ends what it writes: everything is written and nothing more comes.
    pub end_writes: bool,
}

/// What the guest is to be told.
#[derive(Clone, Copy, Debug)]
struct Reply {
    key: Key,
    op: Op,
    flags: u32,
    /// Whose credit goes with it.
    id: Option<Id>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Table {
    cid: u64,
    buffer: u32,
    limit: usize,
    connections: HashMap<Id, Connection>,
    keys: HashMap<Key, Id>,
    next_id: Id,
    next_port: u32,
    /// Those that the guest has not answered.
    requested: usize,
    /// Those that linger, the oldest first.
    lingering: VecDeque<Id>,
    replies: VecDeque<Reply>,
    /// The guest has given buffers for replies, or will.
    receiving: bool,
    /// New to the reader.
    news: Vec<Id>,
    /// Of these the reader may read again.
    fed: HashSet<Id>,
    /// The reader has something to do.
    stirred: bool,
    /// Bytes of the guest that nobody will read.
    dropped: usize,
    resets: usize,
}

impl Table {
    /// An empty one for the guest `cid`: at most `limit` connections, each
    /// with a buffer of `buffer` bytes.
    pub fn new(cid: u32, limit: usize, buffer: u32) -> Self {
        Table {
            cid: cid.into(),
            buffer,
            limit,
            connections: HashMap::new(),
            keys: HashMap::new(),
            next_id: 0,
            next_port: FIRST_PORT,
            requested: 0,
            lingering: VecDeque::new(),
            replies: VecDeque::new(),
            receiving: false,
            news: Vec::new(),
            fed: HashSet::new(),
            stirred: false,
            dropped: 0,
            resets: 0,
        }
    }

    /// Connections, those that linger too.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether another connection finds room.
    pub fn has_room(&self) -> bool {
        self.connections.len() - self.lingering.len() < self.limit
    }

    /// How many more packets of the guest can be answered.
    pub fn room_for_replies(&self) -> usize {
        REPLIES_MAX.saturating_sub(self.replies.len())
    }

    /// Whether the reader has something to do since the last call.
    pub fn take_stirred(&mut self) -> bool {
        std::mem::take(&mut self.stirred)
    }

    /// Bytes of the guest that were dropped, and resets of connections, since
    /// the last call.
    pub fn take_losses(&mut self) -> (usize, usize) {
        (
            std::mem::take(&mut self.dropped),
            std::mem::take(&mut self.resets),
        )
    }

    /// There is a reader from now on, or none any more. While there is none,
    /// nobody can be told anything.
    pub fn set_receiving(&mut self, receiving: bool) {
        self.receiving = receiving;
        if receiving {
            let all = self.connections.iter();
            let open = all.filter(|(_, connection)| connection.state != State::Lingering);
            self.news = open.map(|(id, _)| *id).collect();
        } else {
            self.replies.clear();
            for connection in self.connections.values_mut() {
                connection.update_queued = false;
            }
        }
    }

    /// All connections end, and nobody is told.
    pub fn clear(&mut self) {
        for (_, connection) in self.connections.drain() {
            self.dropped += connection.outbox.0.len();
        }
        self.keys.clear();
        self.requested = 0;
        self.lingering.clear();
        self.replies.clear();
        self.news.clear();
        self.fed.clear();
        self.stirred = true;
    }

    // ---- the writer's side: packets of the guest

    /// Takes a packet's header; `len` bytes stand behind it in its chain.
    pub fn receive(&mut self, header: &Header, len: usize) -> Verdict {
        if !header.is_addressed(self.cid) {
            // whoever that is, it is not this device's guest
            return Verdict::Bad("it is not from the guest to the host");
        }
        let key = header.key();
        let known = self.keys.get(&key).copied();
        let op = match Op::of(header.op.get()) {
            _ if header.kind.get() != TYPE_STREAM => Err("its type is not offered"),
            None => Err("there is no such operation"),
            Some(Op::ReadWrite) if usize::try_from(header.len.get()) != Ok(len) => {
                Err("it has fewer bytes than it says")
            }
            Some(op) => Ok(op),
        };
        match (op, known) {
            (Err(why), _) => {
                self.reset(key);
                Verdict::Bad(why)
            }
            (Ok(Op::Reset), known) => {
                if let Some(id) = known {
                    self.forget(id);
                }
                Verdict::Nothing
            }
            (Ok(Op::Request), None) => match self.make_room() {
                true => Verdict::Connect(key),
                false => {
                    self.refuse(key);
                    Verdict::Refused
                }
            },
            (Ok(op), Some(id)) => self.step(id, op, header),
            // of a connection that there is not
            (Ok(_), None) => {
                self.refuse(key);
                Verdict::Nothing
            }
        }
    }

    /// A packet of a connection that there is.
    fn step(&mut self, id: Id, op: Op, header: &Header) -> Verdict {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Verdict::Nothing;
        };
        connection.hear_credit(header);
        if connection.starved && connection.credit() > 0 && connection.state == State::Open {
            connection.starved = false;
            self.fed.insert(id);
            self.stirred = true;
        }
        let key = connection.key;
        match (op, connection.state) {
            (Op::CreditUpdate, _) => Verdict::Nothing,
            (Op::CreditRequest, _) => {
                self.queue_update(id);
                Verdict::Nothing
            }
            (Op::Response, State::Requested(since)) => {
                connection.state = State::Open;
                self.requested -= 1;
                // what the client has sent meanwhile has waited
                connection.starved = false;
                self.fed.insert(id);
                self.stirred = true;
                let stream = Arc::clone(&connection.stream);
                Verdict::Accepted(stream, key, since.elapsed())
            }
            (Op::ReadWrite, State::Open) if !connection.guest_ended => {
                match connection.receive(header.len.get()) {
                    true => self.writer(id).map_or(Verdict::Nothing, Verdict::Write),
                    false => {
                        self.reset(key);
                        Verdict::Bad("it has more bytes than there is credit for")
                    }
                }
            }
            (Op::Shutdown, State::Open) => self.shut_down(id, header.flags.get()),
            // out of turn
            _ => {
                self.reset(key);
                Verdict::Bad("it is out of turn")
            }
        }
    }

    /// The guest will not receive, or not send, any more.
    fn shut_down(&mut self, id: Id, flags: u32) -> Verdict {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Verdict::Nothing;
        };
        connection.guest_deaf |= flags & SHUTDOWN_RECEIVE != 0;
        connection.guest_ended |= flags & SHUTDOWN_SEND != 0;
        let deaf = connection.guest_deaf;
        if connection.guest_deaf && connection.guest_ended {
            // The guest waits for the reset, and may use its port again after
            // it; what it has sent must still get to the host.
            let key = connection.key;
            connection.state = State::Lingering;
            self.keys.remove(&key);
            self.lingering.push_back(id);
            self.answer(key, Op::Reset, 0, None);
        }
        let writer = self.writer(id);
        writer.map_or(Verdict::Nothing, |writer| Verdict::Finish(writer, deaf))
    }

    /// The host has accepted a connection of the guest; false if there is no
    /// room or place for it any more.
    pub fn connected(&mut self, header: &Header, stream: Stream) -> bool {
        let key = header.key();
        if !self.has_room() || self.keys.contains_key(&key) {
            self.refuse(key);
            return false;
        }
        let mut connection = Connection::new(key, State::Open, Arc::new(stream), self.buffer);
        connection.hear_credit(header);
        let id = self.insert(connection);
        self.answer(key, Op::Response, 0, Some(id));
        true
    }

    /// A connection that nobody wants, or that there is not.
    pub fn refuse(&mut self, key: Key) {
        self.answer(key, Op::Reset, 0, None);
    }

    /// Ends a connection at once, and tells the guest.
    pub fn reset(&mut self, key: Key) {
        if let Some(id) = self.keys.get(&key).copied() {
            self.forget(id);
        }
        self.answer(key, Op::Reset, 0, None);
    }

    /// Gives a connection's outbox to whoever writes it.
    pub fn writer(&mut self, id: Id) -> Option<Writer> {
        let connection = self.connections.get_mut(&id)?;
        Some(Writer {
            id,
            stream: Arc::clone(&connection.stream),
            outbox: std::mem::take(&mut connection.outbox),
        })
    }

    /// Those with something in their outbox.
    pub fn unwritten(&self) -> Vec<Id> {
        let all = self.connections.iter();
        let full = all.filter(|(_, connection)| !connection.outbox.0.is_empty());
        full.map(|(id, _)| *id).collect()
    }

    /// Takes an outbox back, of which `written` bytes were taken by the host.
    /// What is left of one that `failed` nobody will take.
    pub fn give_back(&mut self, writer: Writer, written: usize, failed: bool) -> Next {
        let Writer { id, mut outbox, .. } = writer;
        let Some(connection) = self.connections.get_mut(&id) else {
            // reset meanwhile
            self.dropped += outbox.0.len();
            return Next::default();
        };
        let mut done = written;
        if failed {
            done += outbox.0.len();
            self.dropped += outbox.0.len();
            outbox.0.clear();
        }
        let tell = connection.note_forwarded(u32::try_from(done).unwrap_or(u32::MAX));
        let empty = outbox.0.is_empty();
        connection.outbox = outbox;
        let next = Next {
            wait: !empty,
            end_writes: empty && connection.guest_ended,
        };
        match connection.state {
            State::Lingering if empty => self.forget(id),
            State::Open => {
                if failed {
                    self.tell_ended(id, SHUTDOWN_RECEIVE);
                }
                if tell {
                    self.queue_update(id);
                }
            }
            State::Lingering | State::Requested(_) => {}
        }
        next
    }

    // ---- the reader's side: packets to the guest, clients of the host

    /// Connections that the reader does not know yet.
    pub fn take_news(&mut self) -> Vec<(Id, Arc<Stream>)> {
        let news = std::mem::take(&mut self.news);
        let known = news.into_iter().filter_map(|id| {
            let connection = self.connections.get(&id)?;
            Some((id, Arc::clone(&connection.stream)))
        });
        known.collect()
    }

    /// Connections that may be read again.
    pub fn take_fed(&mut self) -> Vec<Id> {
        self.fed.drain().collect()
    }

    /// The next thing that the guest is to be told.
    pub fn next_reply(&mut self) -> Option<Header> {
        let reply = self.replies.pop_front()?;
        let mut header = Header::to_guest(self.cid, reply.key, reply.op);
        header.flags = reply.flags.into();
        if let Some(connection) = reply.id.and_then(|id| self.connections.get_mut(&id)) {
            connection.tell_credit(&mut header);
            if reply.op == Op::CreditUpdate {
                connection.update_queued = false;
            }
        }
        Some(header)
    }

    /// The socket to read and how many bytes the guest takes of it now; if
    /// none, the connection is fed later; and whether it begins to wait for the
    /// guest's credit. Nothing if it is not to be read.
    pub fn allowance(&mut self, id: Id) -> Option<(Arc<Stream>, u32, bool)> {
        let connection = self.connections.get_mut(&id)?;
        if connection.state == State::Lingering || connection.guest_deaf {
            return None;
        }
        let credit = match connection.state {
            State::Open => connection.credit(),
            State::Requested(_) | State::Lingering => 0,
        };
        let stream = Arc::clone(&connection.stream);
        let starves = credit == 0 && !connection.starved;
        connection.starved |= starves;
        let stalled = starves && connection.state == State::Open;
        if stalled {
            let key = connection.key;
            self.answer(key, Op::CreditRequest, 0, Some(id));
        }
        Some((stream, credit, stalled))
    }

    /// The header of a packet with `len` bytes for the guest; nothing if the
    /// connection has ended meanwhile.
    pub fn packet(&mut self, id: Id, len: u32) -> Option<Header> {
        let connection = self.connections.get_mut(&id)?;
        if connection.state != State::Open {
            return None;
        }
        connection.note_sent(len);
        let mut header = Header::to_guest(self.cid, connection.key, Op::ReadWrite);
        header.len = len.into();
        connection.tell_credit(&mut header);
        Some(header)
    }

    /// The host sends nothing more, and takes nothing more either if it has
    /// hung up.
    pub fn host_ended(&mut self, id: Id, hung_up: bool) {
        let flags = match hung_up {
            true => SHUTDOWN_BOTH,
            false => SHUTDOWN_SEND,
        };
        if self.is_open(id) {
            self.tell_ended(id, flags);
        }
    }

    /// A client has hung up; it is forgotten if it still waits for the guest's
    /// answer.
    pub fn client_gone(&mut self, id: Id) {
        if let Some(connection) = self.connections.get(&id)
            && matches!(connection.state, State::Requested(_))
        {
            self.reset(connection.key);
        }
    }

    /// A connection's socket has failed.
    pub fn fail(&mut self, id: Id) {
        match self.connections.get(&id) {
            Some(connection) if connection.state != State::Lingering => {
                self.reset(connection.key);
            }
            _ => self.forget(id),
        }
    }

    fn is_open(&self, id: Id) -> bool {
        let connection = self.connections.get(&id);
        connection.is_some_and(|connection| connection.state == State::Open)
    }

    /// A client of the host wants a connection to the guest's port; nothing if
    /// there is no room for it.
    pub fn request(&mut self, guest: u32, stream: Stream, now: Instant) -> Option<Id> {
        if !self.make_room() {
            return None;
        }
        let mut key = Key {
            host: self.next_port,
            guest,
        };
        // there are more ports than connections
        while self.keys.contains_key(&key) {
            key.host = key.host.checked_add(1).unwrap_or(FIRST_PORT);
        }
        self.next_port = key.host.checked_add(1).unwrap_or(FIRST_PORT);
        let state = State::Requested(now);
        self.requested += 1;
        let id = self.insert(Connection::new(key, state, Arc::new(stream), self.buffer));
        self.answer(key, Op::Request, 0, Some(id));
        Some(id)
    }

    /// Whether the guest has to answer a request.
    pub fn has_requests(&self) -> bool {
        self.requested > 0
    }

    /// Ends requests that the guest has not answered in time; tells how many.
    pub fn expire(&mut self, now: Instant) -> usize {
        let all = self.connections.values();
        let late = all.filter_map(|connection| match connection.state {
            State::Requested(since) if now.saturating_duration_since(since) >= REQUEST_LIMIT => {
                Some(connection.key)
            }
            _ => None,
        });
        let late: Vec<_> = late.collect();
        for key in &late {
            self.reset(*key);
        }
        late.len()
    }

    // ---- shared

    fn insert(&mut self, connection: Connection) -> Id {
        let id = self.next_id;
        self.next_id += 1;
        self.keys.insert(connection.key, id);
        self.connections.insert(id, connection);
        if self.receiving {
            self.news.push(id);
        }
        self.stirred = true;
        id
    }

    /// Makes sure that another connection finds room, if need be at the cost
    /// of those that linger: the oldest of them is left.
    fn make_room(&mut self) -> bool {
        if !self.has_room() {
            return false;
        }
        if self.connections.len() >= self.limit
            && let Some(oldest) = self.lingering.front().copied()
        {
            self.forget(oldest);
        }
        true
    }

    /// Drops a connection, and closes its socket when nobody uses it any more.
    fn forget(&mut self, id: Id) {
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        self.dropped += connection.outbox.0.len();
        match connection.state {
            State::Lingering => self.lingering.retain(|other| *other != id),
            State::Requested(_) => {
                self.requested -= 1;
                self.keys.remove(&connection.key);
            }
            State::Open => {
                self.keys.remove(&connection.key);
            }
        }
        self.fed.remove(&id);
        // the reader may let the next client in
        self.stirred = true;
    }

    fn tell_ended(&mut self, id: Id, flags: u32) {
        if let Some(connection) = self.connections.get_mut(&id)
            && connection.told & flags != flags
        {
            connection.told |= flags;
            let (key, told) = (connection.key, connection.told);
            self.answer(key, Op::Shutdown, told, Some(id));
        }
    }

    fn queue_update(&mut self, id: Id) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.update_queued
            && self.receiving
        {
            connection.update_queued = true;
            let key = connection.key;
            self.answer(key, Op::CreditUpdate, 0, Some(id));
        }
    }

    fn answer(&mut self, key: Key, op: Op, flags: u32, id: Option<Id>) {
        if op == Op::Reset {
            self.resets += 1;
        }
        if self.receiving {
            self.stirred = true;
            self.replies.push_back(Reply { key, op, flags, id });
        }
    }
}
