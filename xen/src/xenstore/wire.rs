//! Messages as they stand on the wire to xenstored
//! (`xen/include/public/io/xs_wire.h`).
//!
//! Used by the connection on both its sides (the threads that send requests
//! and the one that reads), and by the fake daemon.

use std::fmt;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Most bytes of payload in a message, either way (`XENSTORE_PAYLOAD_MAX`).
pub const PAYLOAD_MAX: usize = 4096;
/// Bytes of a message's header.
pub const HEADER_LEN: usize = size_of::<Header>();

/// The header of a message (`struct xsd_sockmsg`), little-endian.
#[derive(
    Copy, Clone, Debug, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Header {
    /// What is asked or answered, a [`Kind`].
    pub kind: U32,
    /// The request's number, echoed in its reply; 0 in watch events.
    pub req_id: U32,
    /// The transaction, 0 for none.
    pub tx_id: U32,
    /// Bytes of payload that follow.
    pub len: U32,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// What a message asks, answers or tells (`enum xsd_sockmsg_type`).
        #[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
        #[repr(u32)]
        pub enum Kind {
            $($(#[$doc])* $name = $number,)*
        }

        impl Kind {
            /// The kind with this number on the wire.
            #[must_use]
            pub fn from_wire(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The number on the wire.
            #[must_use]
            pub fn number(self) -> u32 {
                match self {
                    $(Self::$name => $number,)*
                }
            }

            /// The name `docs/misc/xenstore.txt` gives it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

kinds! {
    /// A command to the daemon itself.
    Control = 0, "CONTROL";
    /// Names of a node's children.
    Directory = 1, "DIRECTORY";
    /// A node's value.
    Read = 2, "READ";
    /// A node's permissions.
    GetPerms = 3, "GET_PERMS";
    /// Registers a watch.
    Watch = 4, "WATCH";
    /// Removes a watch.
    Unwatch = 5, "UNWATCH";
    /// Starts a transaction.
    TransactionStart = 6, "TRANSACTION_START";
    /// Commits or discards a transaction.
    TransactionEnd = 7, "TRANSACTION_END";
    /// Tells the daemon of a new domain.
    Introduce = 8, "INTRODUCE";
    /// Disconnects the daemon from a domain.
    Release = 9, "RELEASE";
    /// The base path of a domain.
    GetDomainPath = 10, "GET_DOMAIN_PATH";
    /// Writes a node's value, making the node and those above it.
    Write = 11, "WRITE";
    /// Makes a node and those above it.
    Mkdir = 12, "MKDIR";
    /// Removes a node and those under it.
    Rm = 13, "RM";
    /// Sets a node's permissions.
    SetPerms = 14, "SET_PERMS";
    /// Told by the daemon: a watched node changed.
    WatchEvent = 15, "WATCH_EVENT";
    /// Answered by the daemon: the request is refused.
    Error = 16, "ERROR";
    /// Whether the daemon is connected to a domain.
    IsDomainIntroduced = 17, "IS_DOMAIN_INTRODUCED";
    /// Lets a domain's shutdown be told of again.
    Resume = 18, "RESUME";
    /// Gives a domain the rights of another.
    SetTarget = 19, "SET_TARGET";
    /// Drops all watches and transactions of the caller.
    ResetWatches = 21, "RESET_WATCHES";
    /// A part of a long list of children.
    DirectoryPart = 22, "DIRECTORY_PART";
    /// Reads a domain's feature bits.
    GetFeature = 23, "GET_FEATURE";
    /// Sets a domain's feature bits.
    SetFeature = 24, "SET_FEATURE";
    /// Reads a quota.
    GetQuota = 25, "GET_QUOTA";
    /// Sets a quota.
    SetQuota = 26, "SET_QUOTA";
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A whole message as it was received. Nothing in it has been checked but
/// the length.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    /// The kind's number; the peer may send any.
    pub kind: u32,
    /// The request's number.
    pub req_id: u32,
    /// The transaction, 0 for none.
    pub tx_id: u32,
    /// At most [`PAYLOAD_MAX`] bytes.
    pub payload: Vec<u8>,
}

/// A header that announces more payload than the protocol allows. The stream
/// cannot be followed past it.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("xenstore message announces {len} bytes of payload, at most {PAYLOAD_MAX} are allowed")]
pub struct FrameError {
    /// What the header says.
    pub len: u32,
}

/// Builds a message of the concatenated `parts`; nothing if they exceed
/// [`PAYLOAD_MAX`].
#[must_use]
pub fn encode(kind: u32, req_id: u32, tx_id: u32, parts: &[&[u8]]) -> Option<Vec<u8>> {
    let total: usize = parts.iter().map(|part| part.len()).sum();
    if total > PAYLOAD_MAX {
        return None;
    }
    let header = Header {
        kind: kind.into(),
        req_id: req_id.into(),
        tx_id: tx_id.into(),
        len: u32::try_from(total).ok()?.into(),
    };
    let mut bytes = Vec::with_capacity(HEADER_LEN.saturating_add(total));
    bytes.extend_from_slice(header.as_bytes());
    for part in parts {
        bytes.extend_from_slice(part);
    }
    Some(bytes)
}

/// Cuts a stream of bytes into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Takes bytes as they came.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if there is one.
    ///
    /// # Errors
    /// [`FrameError`] when the peer announces too long a payload; every later
    /// call says the same.
    pub fn next_message(&mut self) -> Result<Option<Message>, FrameError> {
        let Ok((header, rest)) = Header::read_from_prefix(&self.buffer) else {
            return Ok(None);
        };
        let announced = header.len.get();
        let len = match usize::try_from(announced) {
            Ok(len) if len <= PAYLOAD_MAX => len,
            _ => return Err(FrameError { len: announced }),
        };
        let Some(payload) = rest.get(..len) else {
            return Ok(None);
        };
        let message = Message {
            kind: header.kind.get(),
            req_id: header.req_id.get(),
            tx_id: header.tx_id.get(),
            payload: payload.to_vec(),
        };
        self.buffer.drain(..HEADER_LEN.saturating_add(len));
        Ok(Some(message))
    }
}

/// The strings of a payload in which each is followed by a NUL; nothing if
/// the last one is not.
#[must_use]
pub fn strings(payload: &[u8]) -> Option<Vec<&[u8]>> {
    let Some((&0, body)) = payload.split_last() else {
        return payload.is_empty().then(Vec::new);
    };
    Some(body.split(|&byte| byte == 0).collect())
}
