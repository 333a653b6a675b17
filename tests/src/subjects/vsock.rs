//! The socket device under torture: each of its queues, with a host that
//! listens, connects and breaks connections without end.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use devices::virtio::Device;
use devices::vsock::{VsockConfig, VsockDevice};
use vmm::demo::guest::Pattern;

use crate::raw::Request;
use crate::stand::Stand;

/// Bytes of a header. virtio 1.3 §5.10.6
const HEADER: usize = 44;
/// Operations of a header.
const REQUEST: u8 = 1;
const RESET: u8 = 3;
/// A port of the host where somebody listens.
const PORT: u32 = 52;

fn open(stand: &Stand, number: u32) -> VsockDevice {
    let path = stand.path(&format!("torture-{number}.vsock"));
    VsockDevice::open(VsockConfig::new(path).validate().unwrap()).unwrap()
}

/// A device with somebody there who takes all that the guest sends.
pub(super) fn make_with_listener(stand: &Stand, number: u32) -> Box<dyn Device> {
    let path = stand.path(&format!("torture-{number}.vsock_{PORT}"));
    // one for all devices that are made there one after the other
    if let Ok(listener) = UnixListener::bind(&path) {
        std::thread::spawn(move || take_without_end(&listener, &path));
    }
    Box::new(open(stand, number))
}

/// Ends with the directory.
fn take_without_end(listener: &UnixListener, path: &Path) {
    listener.set_nonblocking(true).unwrap();
    let mut streams: Vec<UnixStream> = Vec::new();
    while path.exists() {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true).unwrap();
            streams.push(stream);
        }
        streams.retain_mut(|stream| !matches!(stream.read(&mut [0; 65536]), Ok(0)));
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// A packet of any kind, of one of a few connections. virtio 1.3 §5.10.6
pub(super) fn packet(pattern: &mut Pattern) -> Request {
    let len = match pattern.below(2) {
        0 => 0,
        _ => pattern.below(2048),
    };
    let payload = pattern.bytes(len as usize);
    let operation = match len {
        0 => 1 + pattern.below(7) as u16,
        _ => 5,
    };
    let mut header = Vec::new();
    header.extend(3u64.to_le_bytes());
    header.extend(2u64.to_le_bytes());
    header.extend((1024 + pattern.below(8) as u32).to_le_bytes());
    header.extend((PORT + pattern.below(2) as u32).to_le_bytes());
    header.extend((len as u32).to_le_bytes());
    header.extend(1u16.to_le_bytes());
    header.extend(operation.to_le_bytes());
    header.extend((pattern.below(4) as u32).to_le_bytes());
    header.extend(0x10000u32.to_le_bytes());
    header.extend(0u32.to_le_bytes());
    assert_eq!(header.len(), HEADER);
    let mut readable = vec![header];
    readable.extend((!payload.is_empty()).then_some(payload));
    Request {
        readable,
        writable: Vec::new(),
    }
}

pub(super) fn is_taken(_request: &Request, written: &[Vec<u8>]) -> bool {
    written.is_empty()
}

/// A device with clients of the host who ask for the guest and do not wait for
/// its answer.
pub(super) fn make_with_clients(stand: &Stand, number: u32) -> Box<dyn Device> {
    let device = open(stand, number);
    let path = stand.path(&format!("torture-{number}.vsock"));
    if std::fs::File::create_new(path.with_extension("caller")).is_ok() {
        std::thread::spawn(move || call_without_end(&path));
    }
    Box::new(device)
}

/// Ends with the directory.
fn call_without_end(path: &Path) {
    while path.parent().is_some_and(Path::exists) {
        if let Ok(mut stream) = UnixStream::connect(path) {
            // whoever is not let in may find it broken
            let _ = stream.write_all(b"CONNECT 1024\n");
            std::thread::sleep(Duration::from_micros(200));
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// One or two buffers for a packet.
pub(super) fn buffers(pattern: &mut Pattern) -> Request {
    let first = 48 + pattern.below(2048) as usize;
    let second = 1 + pattern.below(2048) as usize;
    let count = 1 + pattern.below(2) as usize;
    Request {
        readable: Vec::new(),
        writable: [first, second].into_iter().take(count).collect(),
    }
}

/// A request of a client, or word that it is gone.
pub(super) fn is_call(_request: &Request, written: &[Vec<u8>]) -> bool {
    let bytes = written.concat();
    let (header, rest) = bytes.split_at(HEADER);
    let addresses = header[..16] == [2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
    let operation = header[30];
    addresses && (operation == REQUEST || operation == RESET) && rest.iter().all(|byte| *byte == 0)
}

/// A device whose host's side is lost again and again.
pub(super) fn make_with_losses(stand: &Stand, number: u32) -> Box<dyn Device> {
    let device = open(stand, number);
    let handle = device.handle();
    std::thread::spawn(move || {
        while handle.end_connections() {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    Box::new(device)
}

/// A buffer for an event.
pub(super) fn event_buffer(pattern: &mut Pattern) -> Request {
    Request {
        readable: Vec::new(),
        writable: vec![4 + pattern.below(64) as usize],
    }
}

/// A transport reset is all zeroes. virtio 1.3 §5.10.6.7
pub(super) fn is_transport_reset(_request: &Request, written: &[Vec<u8>]) -> bool {
    written.concat().iter().all(|byte| *byte == 0)
}
