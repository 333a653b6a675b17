//! Frames over a unix socket: each behind its length, four bytes, big-endian.
//!
//! It is the protocol of QEMU's `-netdev stream` and of passt. A stream and not
//! datagrams, because both speak it without configuration, because a stream
//! tells when the other end is gone, and because it holds a sender back where
//! datagrams would be lost. Virtio's header does not go over it: nothing is
//! left open in a frame.
//!
//! The worker of the receive queue connects, or lets a client in, and finds out
//! that it has gone; both workers use the connection without a lock.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use super::frame::{FRAME_MAX, FRAME_MIN, HEADER_LEN};
use super::tap::Trouble;
use crate::unix::{self, Halt, ListenError, Listener, Stream};

/// Bytes of a length.
const LENGTH: usize = 4;
/// Bytes read at once.
const READ: usize = 64 << 10;

/// A client that waits in the kernel's queue.
const BACKLOG: i32 = 1;

/// How the connection comes about.
#[derive(Debug)]
enum Way {
    /// Somebody else listens on the path.
    Connect(PathBuf),
    /// The card listens.
    Listen(Listener),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    way: Way,
    /// Who is there. Locked when that changes and when it is looked up.
    stream: Mutex<Option<Arc<Stream>>>,
}

/// The other end sends nonsense.
#[derive(Debug, Error)]
#[error("a frame of {0} bytes")]
pub(super) struct BadLength(u32);

impl Link {
    /// Listens, or gets ready to connect: whoever listens there may come later.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn open(path: &Path, listen: bool) -> Result<Self, ListenError> {
        let way = match listen {
            true => Way::Listen(Listener::new(path, BACKLOG)?),
            false => Way::Connect(path.to_owned()),
        };
        Ok(Link {
            way,
            stream: Mutex::default(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        match &self.way {
            Way::Connect(path) => path,
            Way::Listen(listener) => listener.path(),
        }
    }

    /// The socket that clients come to, if they come.
    pub fn listener(&self) -> Option<&Listener> {
        match &self.way {
            Way::Connect(_) => None,
            Way::Listen(listener) => Some(listener),
        }
    }

    /// Who is there.
    pub fn stream(&self) -> Option<Arc<Stream>> {
        let stream = self.stream.lock();
        stream.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sees whether somebody is there.
    ///
    /// # Errors
    /// The host's: nobody listens, or nobody can be let in.
    pub fn meet(&self) -> std::io::Result<Option<Arc<Stream>>> {
        let socket = match &self.way {
            Way::Connect(path) => Some(unix::connect_to(path)?),
            Way::Listen(listener) => listener.accept()?,
        };
        let stream = socket.map(|socket| Arc::new(Stream::new(socket)));
        if let Some(stream) = &stream {
            self.set(Some(Arc::clone(stream)));
        }
        Ok(stream)
    }

    /// Nobody is there any more.
    pub fn part(&self) {
        self.set(None);
    }

    fn set(&self, stream: Option<Arc<Stream>>) {
        let mut current = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        *current = stream;
    }
}

/// Takes frames out of a stream of bytes. Holds at most one frame and what one
/// read brings.
#[derive(Debug, Default)]
pub(super) struct Deframer {
    bytes: Vec<u8>,
    /// Of these, used up.
    at: usize,
}

impl Deframer {
    /// Reads what comes next.
    ///
    /// # Errors
    /// [`Halt`].
    pub fn fill(&mut self, stream: &Stream) -> Result<(), Halt> {
        self.bytes.drain(..self.at.min(self.bytes.len()));
        self.at = 0;
        let len = self.bytes.len();
        self.bytes.resize(len + READ, 0);
        let read = stream.read(self.bytes.get_mut(len..).unwrap_or_default());
        let count = *read.as_ref().unwrap_or(&0);
        self.bytes.truncate(len + count);
        read.map(drop)
    }

    /// Puts the next frame into `room`, behind a header of zeroes, if it is
    /// there as a whole; its length with the header. `room` takes any frame.
    ///
    /// # Errors
    /// A length that no frame has; the stream is of no use any more.
    pub fn next(&mut self, room: &mut [u8]) -> Result<Option<usize>, BadLength> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let said = u32::from_be_bytes(*length);
        let length = usize::try_from(said).unwrap_or(usize::MAX);
        if !(FRAME_MIN..=FRAME_MAX - HEADER_LEN).contains(&length) {
            return Err(BadLength(said));
        }
        let whole = HEADER_LEN + length;
        let (Some(frame), Some(room)) = (rest.get(..length), room.get_mut(..whole)) else {
            return Ok(None);
        };
        let (header, to) = room.split_at_mut(HEADER_LEN);
        header.fill(0);
        to.copy_from_slice(frame);
        self.at += LENGTH + length;
        Ok(Some(whole))
    }

    /// Forgets a stream that has ended.
    pub fn clear(&mut self) {
        *self = Deframer::default();
    }
}

/// Puts frames into a stream of bytes. Holds at most the rest of one frame that
/// was begun.
#[derive(Debug, Default)]
pub(super) struct Framer {
    stream: Option<Arc<Stream>>,
    rest: Vec<u8>,
    /// Of these, written.
    at: usize,
}

impl Framer {
    /// Writes from here on to whoever is there.
    pub fn turn_to(&mut self, stream: Option<Arc<Stream>>) {
        let same = match (&self.stream, &stream) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        if !same {
            // the rest of a frame is nothing for the next one
            *self = Framer {
                stream,
                ..Framer::default()
            };
        }
    }

    /// Who is there.
    pub fn stream(&self) -> Option<&Arc<Stream>> {
        self.stream.as_ref()
    }

    /// Whether the rest of a frame is still to be written.
    pub fn is_unfinished(&self) -> bool {
        self.at < self.rest.len()
    }

    /// Writes a header's frame, or takes it over to be finished.
    ///
    /// # Errors
    /// [`Trouble`]: the frame is not taken.
    pub fn send(&mut self, packet: &[u8]) -> Result<(), Trouble> {
        self.finish()?;
        let frame = packet.get(HEADER_LEN..).unwrap_or_default();
        let length = u32::try_from(frame.len()).map_err(|_| Trouble::Bad)?;
        let mut bytes = Vec::with_capacity(LENGTH + frame.len());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(frame);
        let stream = self.stream.as_ref().ok_or(Trouble::Lost)?;
        let written = stream.write(&bytes).map_err(|halt| trouble(&halt))?;
        if written < bytes.len() {
            self.rest = bytes;
            self.at = written;
        }
        Ok(())
    }

    /// Writes the rest of what was begun.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn finish(&mut self) -> Result<(), Trouble> {
        while self.is_unfinished() {
            let stream = self.stream.as_ref().ok_or(Trouble::Lost)?;
            let rest = self.rest.get(self.at..).unwrap_or_default();
            self.at += stream.write(rest).map_err(|halt| trouble(&halt))?;
        }
        self.rest.clear();
        self.at = 0;
        Ok(())
    }
}

fn trouble(halt: &Halt) -> Trouble {
    match halt {
        Halt::Wait => Trouble::Wait,
        Halt::Gone => Trouble::Gone,
        Halt::Failed(_) => Trouble::Lost,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Stream::new(ours.into()), theirs)
    }

    fn framed(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes(), frame].concat()
    }

    #[test]
    fn frames_are_found_however_the_bytes_come() {
        let (stream, mut other) = pair();
        let frames = [vec![1; 14], vec![2; 1514], vec![3; 65553]];
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
        let mut deframer = Deframer::default();
        let mut found = Vec::new();

        for piece in bytes.chunks(1000) {
            other.write_all(piece).unwrap();
            deframer.fill(&stream).unwrap();
            let mut room = vec![0xff; FRAME_MAX];
            while let Some(len) = deframer.next(&mut room).unwrap() {
                assert_eq!(room[..HEADER_LEN], [0; HEADER_LEN]);
                found.push(room[HEADER_LEN..len].to_vec());
            }
        }

        assert!(found == frames);
        assert!(matches!(deframer.fill(&stream), Err(Halt::Wait)));
    }

    #[test]
    fn a_length_that_no_frame_has_is_told() {
        for length in [0u32, 13, 65554, u32::MAX] {
            let (stream, mut other) = pair();
            let mut deframer = Deframer::default();
            other.write_all(&length.to_be_bytes()).unwrap();

            deframer.fill(&stream).unwrap();
            let mut room = vec![0; FRAME_MAX];
            let error = deframer.next(&mut room).unwrap_err().to_string();

            assert!(error.contains(&length.to_string()));
        }
    }

    #[test]
    fn a_frame_that_was_begun_is_finished_before_the_next() {
        let (stream, other) = pair();
        let mut framer = Framer::default();
        framer.turn_to(Some(Arc::new(stream)));
        let packet = |byte: u8| [vec![0; HEADER_LEN], vec![byte; 60_000]].concat();

        let mut sent = 0u8;
        while framer.send(&packet(sent)).is_ok() {
            sent += 1;
        }
        let other = Stream::new({
            other.set_nonblocking(true).unwrap();
            other.into()
        });
        let (mut deframer, mut found) = (Deframer::default(), 0u8);
        let mut room = vec![0; FRAME_MAX];
        while found < sent {
            // whichever of both can go on
            let _ = framer.finish();
            let _ = deframer.fill(&other);
            while let Some(len) = deframer.next(&mut room).unwrap() {
                assert!(room[HEADER_LEN..len].iter().all(|byte| *byte == found));
                found += 1;
            }
        }

        assert!(sent > 1 && !framer.is_unfinished());
        assert!(matches!(deframer.fill(&other), Err(Halt::Wait)));
    }

    #[test]
    fn the_next_one_gets_no_rest_of_a_frame() {
        let (stream, _other) = pair();
        let mut framer = Framer::default();
        framer.turn_to(Some(Arc::new(stream)));
        let packet = [vec![0; HEADER_LEN], vec![7; 60_000]].concat();
        while framer.send(&packet).is_ok() {}
        let begun = framer.is_unfinished();

        let (next, _) = pair();
        framer.turn_to(Some(Arc::new(next)));

        assert!(begun && !framer.is_unfinished());
    }
}
