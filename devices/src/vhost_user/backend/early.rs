//! Rings that are enabled before any feature is acknowledged.
//!
//! SET_VRING_ENABLE may be said once PROTOCOL_FEATURES is negotiated, which
//! QEMU takes for done with SET_PROTOCOL_FEATURES: it enables the rings of a
//! network card before it says SET_FEATURES, and not once more. The crate
//! `vhost` waits for SET_FEATURES and drops what came before, so that until
//! then the message is taken from the socket before the crate reads it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, recv};
use vhost::vhost_user::{Error, Result, VhostUserBackendReqHandlerMut};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, LE, U32, U64};

use super::messages::Backend;

const SET_VRING_ENABLE: u32 = 18;
/// Version 1 and that it is an answer.
const ANSWER: u32 = 1 | 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// The header of each message.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    request: U32<LE>,
    flags: U32<LE>,
    /// Bytes that follow.
    size: U32<LE>,
}

/// SET_VRING_ENABLE as it is sent.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Enable {
    header: Header,
    index: U32<LE>,
    /// 0 or 1.
    enable: U32<LE>,
}

/// The answer to it, if one is wanted.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Answer {
    header: Header,
    /// 0: it is done.
    status: U64<LE>,
}

/// Waits for a message and tells whether it is SET_VRING_ENABLE; whatever it
/// is, it stays in the socket. A header in parts is not waited for: `vhost`
/// takes none, and it meets an error of the socket again.
pub(super) fn is_next(stream: &UnixStream) -> bool {
    let mut header = Header::new_zeroed();
    let bytes = header.as_mut_bytes();
    let peeked = rustix::io::retry_on_intr(|| recv(stream, &mut *bytes, RecvFlags::PEEK));
    let body = size_of::<Enable>() - size_of::<Header>();
    peeked.is_ok_and(|(_, len)| len == size_of::<Header>())
        && header.request.get() == SET_VRING_ENABLE
        && usize::try_from(header.size.get()) == Ok(body)
}

/// Takes that message and carries it out.
pub(super) fn take(mut stream: &UnixStream, backend: &mut Backend) -> Result<()> {
    let mut message = Enable::new_zeroed();
    stream
        .read_exact(message.as_mut_bytes())
        .map_err(Error::SocketBroken)?;
    let enable = match message.enable.get() {
        0 => false,
        1 => true,
        _ => return Err(Error::InvalidParam),
    };
    backend.set_vring_enable(message.index.get(), enable)?;
    if message.header.flags.get() & NEED_REPLY == 0 {
        return Ok(());
    }
    let answer = Answer {
        header: Header {
            flags: ANSWER.into(),
            size: 8.into(),
            ..message.header
        },
        status: 0.into(),
    };
    let written = stream.write_all(answer.as_bytes());
    written.map_err(Error::SocketBroken)
}
