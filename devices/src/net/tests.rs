//! Cards on a socket and on a tap, from a driver's chains to the other end and
//! back.

mod control;
mod frames;
mod link;
mod tap;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::features as net;
use super::frame::HEADER_LEN;
use super::{Cable, NetConfig, NetDevice, NetStatsSnapshot};
use crate::registry::DeviceSpec;
use crate::testing::{Buffer, GuestRam, PATIENCE, Side, read_more, readable};
use crate::virtio::histogram::timed;
use crate::virtio::{Device, QueueError};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const BROADCAST: [u8; 6] = [0xff; 6];

/// A guest, its card and the card's directory.
struct Rig {
    ram: GuestRam,
    receive: Side,
    transmit: Side,
    control: Side,
    device: NetDevice,
    directory: TempDir,
}

impl Rig {
    /// A card made of what `config` says, driven with everything but what is
    /// in `without`.
    fn new(config: impl FnOnce(&std::path::Path) -> NetConfig, without: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = NetConfig {
            mac: Some("02:00:00:00:00:01".into()),
            ..config(directory.path())
        };
        let mut device = NetDevice::open(config.validate().unwrap()).unwrap();
        let ram = GuestRam::new(2048);
        let features = device.features() & !without;
        let control = 2 * match features & net::MQ {
            0 => 1,
            _ => 2,
        };
        Rig {
            receive: Side::with(&ram, &mut device, 0, features),
            transmit: Side::with(&ram, &mut device, 1, features),
            control: Side::with(&ram, &mut device, control, features),
            ram,
            device,
            directory,
        }
    }

    /// A card that listens.
    fn listening() -> Self {
        Rig::new(listening, 0)
    }

    fn stats(&self) -> NetStatsSnapshot {
        self.device.handle().stats()
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("card")
    }

    /// Has everything served that can be.
    fn settle_down(&mut self) {
        self.receive.settle_down();
        self.transmit.settle_down();
        self.control.settle_down();
    }

    /// Has everything served until something is so.
    fn until(&mut self, what: &str, mut so: impl FnMut(&mut Rig) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !so(self) {
            assert!(Instant::now() < deadline, "{what}");
            self.settle_down();
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Connects to the card.
    fn connect(&mut self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_nonblocking(true).unwrap();
        self.until("the link stays down", |rig| rig.device.handle().is_up());
        stream
    }

    /// Offers a buffer for a frame.
    fn offer(&mut self, len: u32) -> Buffer {
        let address = self.ram.alloc(len.into());
        let buffer = Buffer::writable(GuestRam::granted(address), len);
        self.receive.ring.add(&[buffer]);
        self.receive.serve().unwrap();
        buffer
    }

    /// The guest sends a frame behind a header of zeroes.
    fn send(&mut self, frame: &[u8]) {
        self.send_packet(&[&[0; HEADER_LEN], frame].concat());
    }

    fn send_packet(&mut self, packet: &[u8]) {
        let address = self.ram.alloc_bytes(packet);
        let (first, rest) = (20, packet.len() as u32 - 20);
        self.transmit.ring.add(&[
            Buffer::readable(GuestRam::granted(address), first),
            Buffer::readable(address + u64::from(first), rest),
        ]);
        self.transmit.serve().unwrap();
    }

    /// The guest gives a command; the answer.
    fn command(&mut self, class: u8, number: u8, data: &[u8]) -> u8 {
        let head = self.ram.alloc_bytes(&[class, number]);
        let answer = self.ram.alloc_bytes(&[0xff]);
        let mut buffers = vec![Buffer::readable(head, 2)];
        if !data.is_empty() {
            let at = self.ram.alloc_bytes(data);
            buffers.push(Buffer::readable(at, data.len() as u32));
        }
        buffers.push(Buffer::writable(answer, 1));
        self.control.ring.add(&buffers);
        self.control.serve().unwrap();
        assert_eq!(self.control.ring.used().len(), 1);
        self.settle_down();
        self.ram.read(answer, 1)[0]
    }

    /// Reads a frame at the other end.
    fn read_frame(&mut self, other: &mut UnixStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.until("no frame comes", |_| {
            let length = bytes
                .first_chunk()
                .map(|length| u32::from_be_bytes(*length));
            let whole = 4 + length.unwrap_or(0) as usize;
            read_more(other, &mut bytes, whole) && length.is_some()
        });
        bytes.split_off(4)
    }

    /// The configuration space's status.
    fn status(&self) -> u16 {
        let mut status = [0; 2];
        self.device.read_config(6, &mut status);
        u16::from_le_bytes(status)
    }

    /// The configuration space's status as far as it is about the link.
    fn link(&self) -> u16 {
        self.status() & 1
    }

    /// The card's user plugs its cable in, or out.
    fn plug(&mut self, link: Cable) {
        let config = NetConfig {
            link,
            ..listening(self.directory.path())
        };
        let spec = DeviceSpec::Net(config.validate().unwrap());
        self.device.reconfigure(&spec);
    }
}

fn listening(directory: &std::path::Path) -> NetConfig {
    NetConfig {
        listen: true,
        ..NetConfig::socket(directory.join("card"))
    }
}

/// Writes a frame at the other end.
fn write_frame(other: &mut UnixStream, frame: &[u8]) {
    let length = (frame.len() as u32).to_be_bytes();
    other.write_all(&[&length, frame].concat()).unwrap();
}

/// A frame to an address, different from others of another number.
fn frame(to: [u8; 6], len: usize, number: u8) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend((6..len).map(|at| (at * 7 + at / 251) as u8 ^ number));
    // its type is none of those that are looked at
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}
