//! Messages as bytes on a socket, each with a bound on how long it may take.
//!
//! The crate `vhost` has a front end's messages, too. It waits for answers
//! without a bound (a timeout of the socket makes it turn on the spot), so that
//! a back end that hangs would take this side with it; its message codes and
//! protocol bits are used all the same.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

#[cfg(any(test, fuzzing))]
use super::by_hand;
use super::error::SessionError;
use crate::virtio::bell::Bell;

/// Bytes of a header: request, flags, size of what follows.
pub(super) const HEADER: usize = 12;
/// The longest body that is taken, bytes.
const BODY_MAX: usize = 4096;
/// Files of one message that are sent or taken.
const FILES_MAX: usize = 8;

const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
/// Whoever gets this is to answer, even if the request has no answer.
pub(super) const NEED_REPLY: u32 = 1 << 3;

/// What a message is about: its code and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub code: u32,
    pub name: &'static str,
}

/// A message that has come.
#[derive(Debug)]
pub(super) struct Message {
    pub code: u32,
    pub flags: u32,
    pub body: Vec<u8>,
    /// Closed unless somebody takes them.
    pub files: Vec<OwnedFd>,
}

/// One end of a connection. Belongs to one thread.
#[derive(Debug)]
pub(super) struct Wire {
    socket: OwnedFd,
    /// How long anything may take.
    patience: Duration,
}

/// What a wait ends with, besides by time.
pub(super) struct Until<'a> {
    pub quit: &'a Bell,
}

impl Wire {
    /// On a connected socket that does not block.
    pub(super) fn new(socket: OwnedFd, patience: Duration) -> Self {
        Wire { socket, patience }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The socket's, or that the back end does not take it in time.
    pub(super) fn send(
        &self,
        request: Request,
        flags: u32,
        body: &[u8],
        files: &[BorrowedFd<'_>],
        until: &Until<'_>,
    ) -> Result<(), SessionError> {
        let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let words = [request.code, flags | VERSION, size];
        let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        bytes.extend_from_slice(body);
        let mut space =
            [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
            let why = format!("{} files in a message", files.len());
            return Err(answer(request, why));
        }
        let end = Instant::now() + self.patience;
        let mut rest: &[u8] = &bytes;
        while !rest.is_empty() {
            match sendmsg(
                &self.socket,
                &[IoSlice::new(rest)],
                &mut control,
                SendFlags::NOSIGNAL,
            ) {
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    // they went with the first byte
                    control = SendAncillaryBuffer::new(&mut []);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(request, PollFlags::OUT, end, until)?,
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(SessionError::Closed),
                Err(errno) => return Err(failed(request, errno)),
            }
        }
        #[cfg(any(test, fuzzing))]
        by_hand::others(by_hand::Pause::Told);
        Ok(())
    }

    /// Waits for the answer to `request`.
    ///
    /// # Errors
    /// None in time, or one that is none.
    pub(super) fn answer(
        &self,
        request: Request,
        until: &Until<'_>,
    ) -> Result<Message, SessionError> {
        let end = Instant::now() + self.patience;
        let message = self.receive(request, end, until)?;
        if message.code != request.code || message.flags & (REPLY | 3) != REPLY | VERSION {
            let why = format!(
                "answered by message {} with flags {:#x}",
                message.code, message.flags
            );
            return Err(answer(request, why));
        }
        Ok(message)
    }

    /// Takes a message that has begun to arrive.
    ///
    /// # Errors
    /// As [`Wire::answer`].
    pub(super) fn take(
        &self,
        request: Request,
        until: &Until<'_>,
    ) -> Result<Message, SessionError> {
        self.receive(request, Instant::now() + self.patience, until)
    }

    /// Answers a message of the other end.
    ///
    /// # Errors
    /// As [`Wire::send`].
    pub(super) fn reply(
        &self,
        to: &Message,
        value: u64,
        until: &Until<'_>,
    ) -> Result<(), SessionError> {
        let request = Request {
            code: to.code,
            name: "answer",
        };
        self.send(request, REPLY, &value.to_ne_bytes(), &[], until)
    }

    fn receive(
        &self,
        request: Request,
        end: Instant,
        until: &Until<'_>,
    ) -> Result<Message, SessionError> {
        let mut files = Vec::new();
        let header = self.bytes(HEADER, &mut files, request, end, until)?;
        let (words, _) = header.as_chunks::<4>();
        let word = |at: usize| words.get(at).map_or(0, |word| u32::from_ne_bytes(*word));
        let size = usize::try_from(word(2)).unwrap_or(usize::MAX);
        if size > BODY_MAX {
            return Err(answer(request, format!("a message of {size} bytes")));
        }
        let body = self.bytes(size, &mut files, request, end, until)?;
        Ok(Message {
            code: word(0),
            flags: word(1),
            body,
            files,
        })
    }

    fn bytes(
        &self,
        count: usize,
        files: &mut Vec<OwnedFd>,
        request: Request,
        end: Instant,
        until: &Until<'_>,
    ) -> Result<Vec<u8>, SessionError> {
        let mut bytes = vec![0; count];
        let mut filled = 0;
        while filled < count {
            let mut space =
                [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let rest = bytes.get_mut(filled..).unwrap_or_default();
            let got = recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(rest)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            );
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(more) = message {
                    files.extend(more);
                }
            }
            match got {
                Ok(got) if got.flags.contains(ReturnFlags::CTRUNC) || files.len() > FILES_MAX => {
                    return Err(answer(request, "too many files".into()));
                }
                Ok(got) if got.bytes == 0 => return Err(SessionError::Closed),
                Ok(got) => filled += got.bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(request, PollFlags::IN, end, until)?,
                Err(Errno::CONNRESET) => return Err(SessionError::Closed),
                Err(errno) => return Err(failed(request, errno)),
            }
        }
        Ok(bytes)
    }

    fn wait(
        &self,
        request: Request,
        what: PollFlags,
        end: Instant,
        until: &Until<'_>,
    ) -> Result<(), SessionError> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(SessionError::Silent {
                request: request.name,
                seconds: self.patience.as_secs(),
            });
        }
        let mut polled = [
            PollFd::new(&self.socket, what),
            PollFd::new(until.quit, PollFlags::IN),
        ];
        match poll(&mut polled, Some(&timespec(left))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(request, errno)),
        }
        match polled.last().is_some_and(|quit| !quit.revents().is_empty()) {
            true => Err(SessionError::Quit),
            false => Ok(()),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A duration, as poll(2) has it.
pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

pub(super) fn answer(request: Request, why: String) -> SessionError {
    SessionError::Answer {
        request: request.name,
        why,
    }
}

fn failed(request: Request, errno: Errno) -> SessionError {
    SessionError::Socket {
        request: request.name,
        source: errno.into(),
    }
}
