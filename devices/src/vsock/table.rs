//! The connections of one device: what each packet of the guest means, and
//! what the guest has to be told. Moves no bytes and touches no socket.
//!
//! The workers of both queues share it behind a lock, which they hold while
//! they look at it and never while they copy. One of them writes to the host's
//! sockets and the other reads from them; [`Table::receive`] and
//! [`Table::give_back`] are the writer's, [`Table::allowance`] and
//! [`Table::packet`] the reader's.

mod guest;
mod host;

use std::collections::{HashMap, HashSet, VecDeque};

use super::connection::{Connection, State};
use super::packet::{Key, Op};
pub(super) use guest::{Verdict, Writer};
#[cfg(test)]
pub(super) use host::REQUEST_LIMIT;

/// A connection, never used again when it is gone.
pub(super) type Id = u64;

/// Replies that wait for the guest, at most, before no more of its packets are
/// looked at. virtio 1.3 §5.10.6.1
pub(super) const REPLIES_MAX: usize = 256;
/// First of the host's ports for connections that the host opens.
const FIRST_PORT: u32 = 1 << 30;

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
