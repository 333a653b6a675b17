//! The back end as a partner: what it is asked and told, one method a message.
//!
//! The order of a connection's life is the session's. Every answer is checked
//! for its form here; what it says is judged by whoever asked.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;
use vhost::vhost_user::message::{BackendReq, FrontendReq};

use super::error::SessionError;
use super::foreign::Record;
use super::wire::{Message, NEED_REPLY, Request, Until, Wire, answer};
use crate::virtio::bell::Bell;

/// VHOST_USER_F_PROTOCOL_FEATURES: of the features, and never the guest's.
pub(super) const PROTOCOL_FEATURES: u64 = 1 << 30;
/// The most of a configuration space that is asked for, bytes.
/// VHOST_USER_MAX_CONFIG_SIZE
pub(super) const CONFIG_MAX: u32 = 256;
/// Bytes of an answer that is one number.
const BODY_OF_A_U64: usize = 8;

/// Requests, by the names that the specification gives them.
macro_rules! request {
    ($name:ident) => {
        Request {
            code: FrontendReq::$name as u32,
            name: stringify!($name),
        }
    };
}

/// A region of memory that the back end may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    /// Its address in descriptors.
    pub guest: u64,
    /// Bytes.
    pub len: u64,
    /// Its address in messages.
    pub user: u64,
    /// Where it starts in its file.
    pub offset: u64,
}

impl Region {
    /// As messages have it: 32 bytes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        [self.guest, self.len, self.user, self.offset]
            .into_iter()
            .flat_map(u64::to_ne_bytes)
            .collect()
    }
}

/// Where the parts of a ring are, in the addresses of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingAddresses {
    pub desc: u64,
    pub used: u64,
    pub avail: u64,
}

/// A connected back end.
#[derive(Debug)]
pub(super) struct Peer {
    wire: Wire,
    /// What it says by itself, if it can.
    requests: Option<Wire>,
    patience: Duration,
    pub protocol: Protocol,
}

impl Peer {
    /// A back end on a connected socket that does not block. Each message may
    /// take `patience`.
    pub(super) fn new(socket: OwnedFd, patience: Duration) -> Self {
        Peer {
            wire: Wire::new(socket, patience),
            requests: None,
            patience,
            protocol: Protocol::empty(),
        }
    }

    /// Its socket.
    pub(super) fn wire(&self) -> &Wire {
        &self.wire
    }

    /// The channel of its own requests.
    pub(super) fn requests(&self) -> Option<&Wire> {
        self.requests.as_ref()
    }

    /// It says nothing by itself any more.
    pub(super) fn close_requests(&mut self) {
        self.requests = None;
    }

    fn ask(
        &self,
        request: Request,
        body: &[u8],
        until: &Until<'_>,
    ) -> Result<Message, SessionError> {
        self.wire.send(request, 0, body, &[], until)?;
        let message = self.wire.answer(request, until)?;
        match message.files.is_empty() {
            true => Ok(message),
            false => Err(answer(request, "answered with files".into())),
        }
    }

    fn ask_u64(&self, request: Request, until: &Until<'_>) -> Result<u64, SessionError> {
        let message = self.ask(request, &[], until)?;
        u64_of(request, &message)
    }

    /// Tells it something, and waits until it has taken it where it says so.
    fn tell(
        &self,
        request: Request,
        body: &[u8],
        files: &[BorrowedFd<'_>],
        until: &Until<'_>,
    ) -> Result<(), SessionError> {
        if !self.protocol.contains(Protocol::REPLY_ACK) {
            return self.wire.send(request, 0, body, files, until);
        }
        self.wire.send(request, NEED_REPLY, body, files, until)?;
        let message = self.wire.answer(request, until)?;
        match u64_of(request, &message)? {
            0 => Ok(()),
            code => Err(SessionError::Refused {
                request: request.name,
                code,
            }),
        }
    }

    fn tell_u64(
        &self,
        request: Request,
        value: u64,
        until: &Until<'_>,
    ) -> Result<(), SessionError> {
        self.tell(request, &value.to_ne_bytes(), &[], until)
    }

    pub(super) fn features(&self, until: &Until<'_>) -> Result<u64, SessionError> {
        self.ask_u64(request!(GET_FEATURES), until)
    }

    pub(super) fn set_features(
        &self,
        features: u64,
        until: &Until<'_>,
    ) -> Result<(), SessionError> {
        self.tell_u64(request!(SET_FEATURES), features, until)
    }

    pub(super) fn set_owner(&self, until: &Until<'_>) -> Result<(), SessionError> {
        self.tell(request!(SET_OWNER), &[], &[], until)
    }

    /// Takes of `wanted` what it has.
    pub(super) fn negotiate(
        &mut self,
        wanted: Protocol,
        until: &Until<'_>,
    ) -> Result<(), SessionError> {
        let offered = self.ask_u64(request!(GET_PROTOCOL_FEATURES), until)?;
        let taken = Protocol::from_bits_retain(offered & wanted.bits());
        // it is not known yet whether it answers
        self.tell_u64(request!(SET_PROTOCOL_FEATURES), taken.bits(), until)?;
        self.protocol = taken;
        Ok(())
    }

    /// How many queues it has; without MQ nobody says.
    pub(super) fn queues(&self, until: &Until<'_>) -> Result<Option<u64>, SessionError> {
        match self.protocol.contains(Protocol::MQ) {
            true => self.ask_u64(request!(GET_QUEUE_NUM), until).map(Some),
            false => Ok(None),
        }
    }

    /// Opens the channel on which it tells by itself.
    pub(super) fn open_requests(&mut self, until: &Until<'_>) -> Result<(), SessionError> {
        if !self.protocol.contains(Protocol::BACKEND_REQ) {
            return Ok(());
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (own, its) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|errno| SessionError::Host("socket pair", errno.into()))?;
        self.tell(request!(SET_BACKEND_REQ_FD), &[], &[its.as_fd()], until)?;
        self.requests = Some(Wire::new(own, self.patience));
        Ok(())
    }

    /// `len` bytes of its configuration space from `offset` on; `None` if it
    /// does not give as many.
    pub(super) fn config(
        &self,
        offset: u32,
        len: u32,
        until: &Until<'_>,
    ) -> Result<Option<Vec<u8>>, SessionError> {
        let request = request!(GET_CONFIG);
        let mut body: Vec<u8> = [offset, len, 0]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        let wanted = usize::try_from(len).unwrap_or(0);
        body.resize(body.len() + wanted, 0);
        let message = self.ask(request, &body, until)?;
        if message.body.is_empty() {
            // the specification's way of refusing
            return Ok(None);
        }
        let words = message.body.get(..12).unwrap_or_default();
        let (words, _) = words.as_chunks::<4>();
        let [at, size, _flags] = words else {
            return Err(answer(
                request,
                format!("{} bytes of answer", message.body.len()),
            ));
        };
        let size = u32::from_ne_bytes(*size);
        if size == 0 {
            // rust-vmm's
            return Ok(None);
        }
        let bytes = message.body.get(12..).unwrap_or_default();
        if u32::from_ne_bytes(*at) != offset || size != len || bytes.len() != wanted {
            let why = format!(
                "asked for {len} bytes at {offset}, answered with {} at {}",
                bytes.len(),
                u32::from_ne_bytes(*at)
            );
            return Err(answer(request, why));
        }
        Ok(Some(bytes.to_vec()))
    }

    /// Writes its configuration space.
    pub(super) fn set_config(
        &self,
        offset: u32,
        bytes: &[u8],
        until: &Until<'_>,
    ) -> Result<(), SessionError> {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut body: Vec<u8> = [offset, len, 0]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        body.extend_from_slice(bytes);
        self.tell(request!(SET_CONFIG), &body, &[], until)
    }

    /// All its memory.
    pub(super) fn set_memory(
        &self,
        regions: &[(Region, BorrowedFd<'_>)],
        until: &Until<'_>,
    ) -> Result<(), SessionError> {
        let descriptions: Vec<_> = regions.iter().map(|(region, _)| region.bytes()).collect();
        let files: Vec<_> = regions.iter().map(|(_, file)| *file).collect();
        self.set_table(&descriptions, &files, until)
    }

    /// The same, by descriptions of the regions and a file for each.
    pub(super) fn set_table(
        &self,
        descriptions: &[Vec<u8>],
        files: &[BorrowedFd<'_>],
        until: &Until<'_>,
    ) -> Result<(), SessionError> {
        let count = u32::try_from(descriptions.len()).unwrap_or(u32::MAX);
        let mut body: Vec<u8> = [count, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        body.extend(descriptions.iter().flatten());
        self.tell(request!(SET_MEM_TABLE), &body, files, until)
    }

    /// Has it make a record of what is in flight, for `queues` of `size`.
    pub(super) fn record(
        &self,
        queues: u16,
        size: u16,
        until: &Until<'_>,
    ) -> Result<Record, SessionError> {
        let request = request!(GET_INFLIGHT_FD);
        let body = Record::body(0, 0, queues, size);
        self.wire.send(request, 0, &body, &[], until)?;
        let mut message = self.wire.answer(request, until)?;
        let file = message.files.pop();
        let others = !message.files.is_empty();
        file.filter(|_| !others)
            .and_then(|file| Record::of(&message.body, file))
            .ok_or_else(|| answer(request, "no record of what is in flight".into()))
    }

    /// Gives it the record that it, or another back end before it, has made.
    pub(super) fn set_record(
        &self,
        record: &Record,
        until: &Until<'_>,
    ) -> Result<(), SessionError> {
        let body = Record::body(record.size, record.offset, record.queues, record.queue_size);
        self.tell(
            request!(SET_INFLIGHT_FD),
            &body,
            &[record.file.as_fd()],
            until,
        )
    }

    /// Where a ring is and from where on it is used.
    pub(super) fn set_ring(
        &self,
        queue: u16,
        size: u16,
        base: u16,
        addresses: RingAddresses,
        until: &Until<'_>,
    ) -> Result<(), SessionError> {
        self.tell(request!(SET_VRING_NUM), &state(queue, size), &[], until)?;
        self.tell(request!(SET_VRING_BASE), &state(queue, base), &[], until)?;
        let mut body = state(queue, 0); // no flags
        let RingAddresses { desc, used, avail } = addresses;
        // the last one is for a log, which is not asked for
        for address in [desc, used, avail, 0] {
            body.extend(address.to_ne_bytes());
        }
        self.tell(request!(SET_VRING_ADDR), &body, &[], until)
    }

    /// How a ring's two sides wake each other; with its kick a ring starts.
    pub(super) fn start_ring(
        &self,
        queue: u16,
        kick: BorrowedFd<'_>,
        call: BorrowedFd<'_>,
        until: &Until<'_>,
    ) -> Result<(), SessionError> {
        let index = u64::from(queue).to_ne_bytes();
        self.tell(request!(SET_VRING_CALL), &index, &[call], until)?;
        self.tell(request!(SET_VRING_KICK), &index, &[kick], until)
    }

    /// Waits until it has taken all that it was told.
    ///
    /// rust-vmm's back ends drop a kick of a ring that is not enabled yet, and
    /// vhost-device-rng 0.1.0 does not acknowledge that it is: a first kick on
    /// the heels of the message was lost, and the guest waited for ever.
    pub(super) fn settle(&self, until: &Until<'_>) -> Result<(), SessionError> {
        if !self.protocol.contains(Protocol::REPLY_ACK) {
            // every back end answers it, in the order of messages
            self.features(until)?;
        }
        Ok(())
    }

    /// Lets a ring move data, or not. Without protocol features rings always do.
    ///
    /// A back end whose ring is not enabled yet hears a kick and forgets it
    /// (rust-vmm's do), so whoever kicks has to know that it is: where nothing is
    /// acknowledged, a question is asked whose answer comes after it.
    pub(super) fn enable_ring(
        &self,
        queue: u16,
        on: bool,
        until: &Until<'_>,
    ) -> Result<(), SessionError> {
        let body = state(queue, on.into());
        self.tell(request!(SET_VRING_ENABLE), &body, &[], until)?;
        match self.protocol.contains(Protocol::REPLY_ACK) {
            true => Ok(()),
            false => self.features(until).map(drop),
        }
    }

    /// Stops a ring: its requests are finished, or dropped, when it answers.
    /// Returns the available entry that it would take next.
    pub(super) fn stop_ring(&self, queue: u16, until: &Until<'_>) -> Result<u32, SessionError> {
        let request = request!(GET_VRING_BASE);
        let message = self.ask(request, &state(queue, 0), until)?;
        match message.body.as_chunks::<4>() {
            ([index, base], []) if u32::from_ne_bytes(*index) == u32::from(queue) => {
                Ok(u32::from_ne_bytes(*base))
            }
            _ => Err(answer(request, "an answer about another ring".into())),
        }
    }

    /// Has the device reset, if it knows how. True if it does.
    pub(super) fn reset(&self, until: &Until<'_>) -> Result<bool, SessionError> {
        if !self.protocol.contains(Protocol::RESET_DEVICE) {
            return Ok(false);
        }
        self.tell(request!(RESET_DEVICE), &[], &[], until)?;
        Ok(true)
    }

    /// What it means that something came that nobody asked for.
    pub(super) fn unasked(&self, until: &Until<'_>) -> SessionError {
        let request = Request {
            code: 0,
            name: "nothing was asked",
        };
        match self.wire.take(request, until) {
            Ok(message) => answer(request, format!("message {} came", message.code)),
            Err(error) => error,
        }
    }

    /// Takes what it says by itself. True: its configuration space has changed.
    pub(super) fn hear(&self, until: &Until<'_>) -> Result<bool, SessionError> {
        let Some(wire) = &self.requests else {
            return Ok(false);
        };
        let request = Request {
            code: 0,
            name: "a request of the back end",
        };
        let message = wire.take(request, until)?;
        let is_change = message.code == BackendReq::CONFIG_CHANGE_MSG as u32;
        if !is_change {
            tracing::debug!(
                code = message.code,
                "the back end asks for what there is not"
            );
        }
        if message.flags & NEED_REPLY != 0 {
            wire.reply(&message, u64::from(!is_change), until)?;
        }
        Ok(is_change)
    }
}

/// What the wait for a message ends with.
pub(super) fn until(quit: &Bell) -> Until<'_> {
    Until { quit }
}

fn state(queue: u16, value: u16) -> Vec<u8> {
    [u32::from(queue), u32::from(value)]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect()
}

fn u64_of(request: Request, message: &Message) -> Result<u64, SessionError> {
    match message.body.as_chunks::<BODY_OF_A_U64>() {
        ([value], []) => Ok(u64::from_ne_bytes(*value)),
        _ => Err(answer(
            request,
            format!("{} bytes of answer", message.body.len()),
        )),
    }
}
