//! One connection: its state, and the credit of both directions.
//!
//! All counters are modulo 2³², as on the wire. virtio 1.3 §5.10.6.3

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::packet::{Header, Key};
use crate::unix::Stream;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The host asks for it, since then; the guest has not answered.
    Requested(Instant),
    /// Bytes go both ways, as far as nobody has ended one.
    Open,
    /// The guest has forgotten it; what it had sent is still written.
    Lingering,
}

/// Bytes on their way to the host, of whoever writes them: nobody else has
/// them meanwhile.
#[derive(Debug, Default)]
pub(super) struct Outbox(pub VecDeque<u8>);

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    pub key: Key,
    pub state: State,
    pub stream: Arc<Stream>,
    /// Bytes that the host has not taken; elsewhere while they are written.
    pub outbox: Outbox,
    /// Bytes of the receive buffer that the guest is told of.
    buffer: u32,
    /// Bytes that came from the guest.
    received: u32,
    /// Of these, taken by the host.
    forwarded: u32,
    /// `forwarded`, as the guest was told last.
    announced: u32,
    /// A credit update stands in the queue of replies.
    pub update_queued: bool,
    /// Bytes that went to the guest.
    sent: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// The host's bytes wait until the guest takes some.
    pub starved: bool,
    /// The guest sends no more.
    pub guest_ended: bool,
    /// The guest takes no more.
    pub guest_deaf: bool,
    /// What the guest was told that the host will not do any more.
    pub told: u32,
}

impl Connection {
    /// A connection with a receive buffer of `buffer` bytes and no credit.
    pub fn new(key: Key, state: State, stream: Arc<Stream>, buffer: u32) -> Self {
        Connection {
            key,
            state,
            stream,
            outbox: Outbox::default(),
            buffer,
            received: 0,
            forwarded: 0,
            announced: 0,
            update_queued: false,
            sent: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            starved: false,
            guest_ended: false,
            guest_deaf: false,
            told: 0,
        }
    }

    /// The guest tells how much it takes: every packet of it does.
    pub fn hear_credit(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc.get();
        self.peer_fwd_cnt = header.fwd_cnt.get();
    }

    /// Bytes that may be sent to the guest now.
    pub fn credit(&self) -> u32 {
        // one that claims to have taken more than was sent gets nothing
        let unread = self.sent.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(unread)
    }

    /// Bytes were sent to the guest.
    pub fn note_sent(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }

    /// Bytes have come from the guest; false if it had no credit for them.
    pub fn receive(&mut self, len: u32) -> bool {
        let unforwarded = self.received.wrapping_sub(self.forwarded);
        let fits = self.buffer.saturating_sub(unforwarded) >= len;
        if fits {
            self.received = self.received.wrapping_add(len);
        }
        fits
    }

    /// The host has taken bytes, or nobody ever will; true if the guest has to
    /// be told.
    pub fn note_forwarded(&mut self, len: u32) -> bool {
        self.forwarded = self.forwarded.wrapping_add(len);
        // before the guest runs out of credit, and not for every byte
        let untold = self.forwarded.wrapping_sub(self.announced);
        untold >= self.buffer / 4 && !self.update_queued
    }

    /// Puts our credit into a packet for the guest.
    pub fn tell_credit(&mut self, header: &mut Header) {
        header.buf_alloc = self.buffer.into();
        header.fwd_cnt = self.forwarded.into();
        self.announced = self.forwarded;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::super::packet::Op;
    use super::*;

    fn connection() -> Connection {
        let (stream, _) = UnixStream::pair().unwrap();
        let key = Key { host: 1, guest: 2 };
        let stream = Arc::new(Stream::new(stream.into()));
        Connection::new(key, State::Open, stream, 4096)
    }

    fn credit(buf_alloc: u32, fwd_cnt: u32) -> Header {
        let key = Key { host: 1, guest: 2 };
        Header {
            buf_alloc: buf_alloc.into(),
            fwd_cnt: fwd_cnt.into(),
            ..Header::to_guest(3, key, Op::CreditUpdate)
        }
    }

    #[test]
    fn credit_is_what_the_guest_has_room_for_over_the_counters_end() {
        let mut connection = connection();
        let mut seen = vec![connection.credit()];

        connection.sent = u32::MAX - 9;
        connection.hear_credit(&credit(100, u32::MAX - 9));
        seen.push(connection.credit());
        connection.note_sent(60);
        seen.push(connection.credit());
        connection.hear_credit(&credit(100, 20));
        seen.push(connection.credit());
        connection.hear_credit(&credit(10, 20));
        seen.push(connection.credit());

        assert_eq!(seen, [0, 100, 40, 70, 0]);
    }

    #[test]
    fn a_guest_that_has_taken_more_than_there_was_gets_nothing() {
        let mut connection = connection();
        connection.note_sent(5);

        connection.hear_credit(&credit(u32::MAX / 2, 6));

        assert_eq!(connection.credit(), 0);
    }

    #[test]
    fn the_guest_sends_no_more_than_it_was_told() {
        let mut connection = connection();

        let taken = [
            connection.receive(4000),
            connection.receive(97),
            connection.receive(96),
            connection.receive(1),
        ];
        connection.note_forwarded(1);

        assert_eq!(taken, [true, false, true, false]);
        assert!(connection.receive(1) && !connection.receive(1));
    }

    #[test]
    fn the_guest_is_told_of_a_quarter_of_the_buffer_at_once() {
        let mut connection = connection();
        connection.receive(4096);
        let mut header = Header::default();

        let told = [
            connection.note_forwarded(1023),
            connection.note_forwarded(1),
        ];
        connection.tell_credit(&mut header);
        let again = connection.note_forwarded(1);

        assert_eq!((told, again), ([false, true], false));
        assert_eq!((header.buf_alloc.get(), header.fwd_cnt.get()), (4096, 1024));
    }
}
