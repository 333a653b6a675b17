//! The network card under torture: each of its queues, with an other end that
//! takes all frames and sends frames without end.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use devices::net::{NetConfig, NetDevice};
use devices::virtio::Device;
use vmm::demo::guest::Pattern;

use crate::raw::Request;
use crate::stand::Stand;

/// Bytes of a header. virtio 1.3 §5.1.6
const HEADER: usize = 12;
/// Bytes of each frame of the other end.
const FRAME: usize = 100;
/// What these frames are full of.
const FILLING: u8 = b'f';

/// A card, connected to somebody who sends frames if `sends`.
fn make(stand: &Stand, number: u32, sends: bool) -> Box<dyn Device> {
    let path = stand.path(&format!("torture-{number}.net"));
    // one for all cards that are made there one after the other
    if let Ok(listener) = UnixListener::bind(&path) {
        std::thread::spawn(move || be_there_without_end(&listener, &path, sends));
    }
    let path = stand.path(&format!("torture-{number}.net"));
    let spec = NetConfig::socket(path).validate().unwrap();
    Box::new(NetDevice::open(spec).unwrap())
}

pub(super) fn make_with_reader(stand: &Stand, number: u32) -> Box<dyn Device> {
    make(stand, number, false)
}

pub(super) fn make_with_sender(stand: &Stand, number: u32) -> Box<dyn Device> {
    make(stand, number, true)
}

/// Ends with the directory.
fn be_there_without_end(listener: &UnixListener, path: &Path, sends: bool) {
    let frame = [&(FRAME as u32).to_be_bytes()[..], &[FILLING; FRAME]].concat();
    listener.set_nonblocking(true).unwrap();
    let mut streams: Vec<(UnixStream, usize)> = Vec::new();
    while path.exists() {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).unwrap();
            streams.push((stream, 0));
        }
        streams.retain_mut(|(stream, sent)| {
            while sends && let Ok(count) = stream.write(&frame[*sent % frame.len()..]) {
                *sent += count;
            }
            !matches!(stream.read(&mut [0; 65536]), Ok(0))
        });
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// A frame in one or two buffers, now and then one that is none.
pub(super) fn frame(pattern: &mut Pattern) -> Request {
    let mut header = vec![0; HEADER];
    if pattern.below(8) == 0 {
        // a way of segmentation that was not negotiated
        header[1] = pattern.below(256) as u8;
    }
    let len = pattern.below(2000) as usize;
    let mut readable = vec![header];
    readable.extend((len > 0).then(|| pattern.bytes(len)));
    Request {
        readable,
        writable: Vec::new(),
    }
}

pub(super) fn is_taken(_request: &Request, written: &[Vec<u8>]) -> bool {
    written.is_empty()
}

/// One or two buffers with room for a frame.
pub(super) fn buffers(pattern: &mut Pattern) -> Request {
    let first = HEADER + FRAME + pattern.below(2000) as usize;
    let second = 1 + pattern.below(2000) as usize;
    let count = 1 + pattern.below(2) as usize;
    Request {
        readable: Vec::new(),
        writable: [first, second].into_iter().take(count).collect(),
    }
}

/// A whole frame in one chain, and nothing behind it.
pub(super) fn is_frame(_request: &Request, written: &[Vec<u8>]) -> bool {
    let bytes = written.concat();
    let (header, rest) = bytes.split_at(HEADER);
    let (frame, rest) = rest.split_at(FRAME);
    header == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
        && frame.iter().all(|byte| *byte == FILLING)
        && rest.iter().all(|byte| *byte == 0)
}

/// A command, sensible or not. virtio 1.3 §5.1.6.5
pub(super) fn command(pattern: &mut Pattern) -> Request {
    let command = vec![pattern.below(6) as u8, pattern.below(6) as u8];
    let len = 1 + pattern.below(16) as usize;
    Request {
        readable: vec![command, pattern.bytes(len)],
        writable: vec![1],
    }
}

/// VIRTIO_NET_OK or VIRTIO_NET_ERR
pub(super) fn is_answer(_request: &Request, written: &[Vec<u8>]) -> bool {
    matches!(written, [answer] if answer == &[0] || answer == &[1])
}
