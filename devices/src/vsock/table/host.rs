//! The reader's side: packets to the guest, and clients of the host.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{FIRST_PORT, Id, Table};
use crate::unix::Stream;
use crate::vsock::connection::{Connection, State};
use crate::vsock::packet::{Header, Key, Op, SHUTDOWN_BOTH, SHUTDOWN_SEND};

/// How long the guest may take to answer a request.
pub(in crate::vsock) const REQUEST_LIMIT: Duration = Duration::from_secs(10);

impl Table {
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
}
