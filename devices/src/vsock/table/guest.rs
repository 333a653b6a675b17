//! The writer's side: packets of the guest, and what becomes of their bytes.

use std::sync::Arc;
use std::time::Duration;

use super::{Id, Table};
use crate::unix::Stream;
use crate::vsock::connection::{Connection, Outbox, State};
use crate::vsock::packet::{Header, Key, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};

/// Whoever writes to a connection's socket has its outbox meanwhile.
#[derive(Debug)]
pub(in crate::vsock) struct Writer {
    pub id: Id,
    pub stream: Arc<Stream>,
    pub outbox: Outbox,
}

/// What a packet of the guest asks the writer to do.
#[derive(Debug)]
pub(in crate::vsock) enum Verdict {
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
pub(in crate::vsock) struct Next {
    /// Waits until the socket takes more.
    pub wait: bool,
    /// Ends what it writes: everything is written and nothing more comes.
    pub end_writes: bool,
}

impl Table {
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
}
