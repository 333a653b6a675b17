//! Consoles, from a driver's chains to the host's end and back.

mod device;
mod input;
mod output;
mod ports;
mod socket;
mod terminal;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tempfile::TempDir;

use super::{ConsoleConfig, ConsoleDevice, ConsoleStatsSnapshot};
use crate::testing::{Buffer, GuestRam, Nobody, PATIENCE, Side, read_more, readable};
use crate::virtio::histogram::timed;
use crate::virtio::{Device, QueueError};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// A guest, its console and the console's directory.
struct Rig {
    ram: GuestRam,
    receive: Side,
    transmit: Side,
    device: ConsoleDevice,
    directory: TempDir,
}

impl Rig {
    fn new(config: impl FnOnce(&Path) -> ConsoleConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let spec = config(directory.path()).validate().unwrap();
        let mut device = ConsoleDevice::open(spec).unwrap();
        let ram = GuestRam::new(1024);
        Rig {
            receive: Side::start(&ram, &mut device, RECEIVE),
            transmit: Side::start(&ram, &mut device, TRANSMIT),
            ram,
            device,
            directory,
        }
    }

    fn pty() -> Self {
        Rig::new(|_| ConsoleConfig::default())
    }

    fn socket() -> Self {
        Rig::new(|directory| ConsoleConfig::socket(directory.join("console")))
    }

    fn path(&self) -> PathBuf {
        self.device.handle().path().to_owned()
    }

    fn stats(&self) -> ConsoleStatsSnapshot {
        self.device.stats().snapshot()
    }

    /// Both queues are reset and set up again.
    fn reset(&mut self) {
        for side in [&mut self.receive, &mut self.transmit] {
            side.handler.settle(&mut side.queue);
        }
        // the old handlers are gone before the new ones are made
        self.receive.handler = Box::new(Nobody);
        self.transmit.handler = Box::new(Nobody);
        self.receive = Side::start(&self.ram, &mut self.device, RECEIVE);
        self.transmit = Side::start(&self.ram, &mut self.device, TRANSMIT);
    }

    /// The guest writes.
    fn write(&mut self, bytes: &[u8]) {
        let buffer = Buffer::readable(self.ram.alloc_bytes(bytes), bytes.len() as u32);
        self.transmit.ring.add(&[buffer]);
        self.transmit.serve().unwrap();
    }

    /// The guest offers a buffer for input.
    fn offer(&mut self, len: u32) -> Buffer {
        let buffer = Buffer::writable(self.ram.alloc(len.into()), len);
        self.receive.ring.add(&[buffer]);
        self.receive.serve().unwrap();
        buffer
    }

    /// Has both queues served until something is so.
    fn until(&mut self, what: &str, mut so: impl FnMut(&mut Rig) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !so(self) {
            assert!(Instant::now() < deadline, "{what}");
            self.receive.settle_down();
            self.transmit.settle_down();
            std::thread::yield_now();
        }
    }

    /// Sees both handlers rest. Whoever has just come or gone may ring once
    /// more, from a thread of its own.
    fn rests(&mut self) {
        self.until("a handler never rests", |rig| {
            !rig.receive.rings() && !rig.transmit.rings()
        });
    }

    /// Input that was used, in its order: those of `buffers` that are.
    fn received(&mut self, buffers: &[Buffer]) -> Vec<Vec<u8>> {
        let used = self.receive.ring.used();
        used.iter()
            .zip(buffers)
            .map(|((_, len), buffer)| self.ram.read(buffer.address, *len as usize))
            .collect()
    }

    /// Reads `len` bytes at the host's end, having the console served.
    fn read_host(&mut self, host: &mut impl Read, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.until("the host does not get its bytes", |_| {
            read_more(host, &mut bytes, len)
        });
        bytes
    }
}

/// Opens a terminal as a user does, without waiting for anything.
fn open_terminal(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .unwrap()
}

/// Connects to a socket, without waiting for anything from then on.
fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

/// Bytes that differ from place to place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}
