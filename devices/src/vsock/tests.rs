//! Packets of a guest, from a driver's chains to the host's sockets and back.

mod connections;
mod credit;
mod host;
mod malformed;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Instant;

use tempfile::TempDir;
use zerocopy::{FromBytes, IntoBytes};

use super::packet::{HEADER_LEN, Header, Op, TYPE_STREAM};
use super::{VsockConfig, VsockDevice, VsockStatsSnapshot};
use crate::testing::{Buffer, GuestRam, Nobody, PATIENCE, Side, read_more};
use crate::virtio::histogram::timed;
use crate::virtio::{Device, QueueError};

const CID: u64 = 3;
/// Bytes of the guest's buffers.
const BUFFER: u32 = 4096;
/// A port of the host and one of the guest.
const HOST: u32 = 52;
const GUEST: u32 = 1024;

/// A packet as the guest has it.
type Packet = (Header, Vec<u8>);

/// A guest, its device and the device's directory.
struct Rig {
    ram: GuestRam,
    receive: Side,
    transmit: Side,
    event: Side,
    /// Buffers that wait for packets, the first first.
    buffers: std::collections::VecDeque<u64>,
    /// Those that can be given again.
    spare: Vec<u64>,
    /// One for packets to the host.
    out: u64,
    device: VsockDevice,
    directory: TempDir,
}

impl Rig {
    fn new(change: impl FnOnce(&mut VsockConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = VsockConfig::new(directory.path().join("v"));
        change(&mut config);
        let mut device = VsockDevice::open(config.validate().unwrap()).unwrap();
        let ram = GuestRam::new(1024);
        Rig {
            receive: Side::start(&ram, &mut device, 0),
            transmit: Side::start(&ram, &mut device, 1),
            event: Side::start(&ram, &mut device, 2),
            buffers: std::collections::VecDeque::new(),
            spare: (0..32).map(|_| ram.alloc(BUFFER.into())).collect(),
            out: ram.alloc(256 << 10),
            ram,
            device,
            directory,
        }
    }

    fn usual() -> Self {
        Rig::new(|_| {})
    }

    /// Ends the workers of both queues.
    fn stop(&mut self) {
        for side in [&mut self.receive, &mut self.transmit] {
            side.handler.settle(&mut side.queue);
            side.handler = Box::new(Nobody);
        }
        self.spare.extend(self.buffers.drain(..));
    }

    /// Starts them anew.
    fn start(&mut self) {
        self.receive = Side::start(&self.ram, &mut self.device, 0);
        self.transmit = Side::start(&self.ram, &mut self.device, 1);
    }

    fn stats(&self) -> VsockStatsSnapshot {
        self.device.handle().stats()
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("v")
    }

    /// Listens for the guest.
    fn listen(&self, port: u32) -> UnixListener {
        let listener = UnixListener::bind(self.directory.path().join(format!("v_{port}")));
        let listener = listener.unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    }

    /// A packet from the guest, with a good deal of credit.
    fn packet(op: Op) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: 2.into(),
            src_port: GUEST.into(),
            dst_port: HOST.into(),
            kind: TYPE_STREAM.into(),
            op: (op as u16).into(),
            buf_alloc: (1 << 20).into(),
            ..Header::default()
        }
    }

    /// The guest sends bytes.
    fn send_bytes(&mut self, bytes: &[u8]) {
        self.send(
            Header {
                len: u32::try_from(bytes.len()).unwrap().into(),
                ..Rig::packet(Op::ReadWrite)
            },
            bytes,
        );
    }

    /// The guest sends a packet, which has to be taken.
    fn send(&mut self, header: Header, bytes: &[u8]) {
        self.offer_packet(header, bytes);
        self.transmit.serve().unwrap();
        assert_eq!(
            self.transmit.ring.used().len(),
            1,
            "the packet is not taken"
        );
    }

    fn offer_packet(&mut self, header: Header, bytes: &[u8]) {
        let packet = [header.as_bytes(), bytes].concat();
        self.ram.write(self.out, &packet);
        let first = Buffer::readable(self.out, 20);
        let rest = Buffer::readable(self.out + 20, packet.len() as u32 - 20);
        self.transmit.ring.add(&[first, rest]);
    }

    /// Gives the device all buffers that the guest has.
    fn give_buffers(&mut self) {
        while let Some(buffer) = self.spare.pop() {
            let granted = GuestRam::granted(buffer);
            self.receive.ring.add(&[Buffer::writable(granted, BUFFER)]);
            self.buffers.push_back(buffer);
        }
        self.receive.serve().unwrap();
    }

    /// What has come for the guest, with everything served that can be.
    fn received(&mut self) -> Vec<Packet> {
        self.give_buffers();
        self.settle_down();
        let mut packets = Vec::new();
        for (_, len) in self.receive.ring.used() {
            let buffer = self.buffers.pop_front().unwrap();
            let bytes = self.ram.read(buffer, len as usize);
            let (header, payload) = Header::read_from_prefix(&bytes).unwrap();
            assert_eq!(header.len.get() as usize, payload.len());
            assert_eq!((header.src_cid.get(), header.dst_cid.get()), (2, CID));
            assert_eq!(header.kind.get(), TYPE_STREAM);
            packets.push((header, payload.to_vec()));
            self.spare.push(buffer);
        }
        packets
    }

    fn settle_down(&mut self) {
        while self.receive.rings() || self.transmit.rings() || self.event.rings() {
            self.receive.settle_down();
            self.transmit.settle_down();
            self.event.settle_down();
        }
    }

    /// The one packet that comes for the guest next.
    fn next(&mut self) -> Header {
        let mut packets = Vec::new();
        self.until("nothing has come for the guest", |rig| {
            packets = rig.received();
            !packets.is_empty()
        });
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets[0].0
    }

    /// Has everything served until something is so.
    fn until(&mut self, what: &str, mut so: impl FnMut(&mut Rig) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !so(self) {
            assert!(Instant::now() < deadline, "{what}");
            self.settle_down();
            std::thread::yield_now();
        }
    }

    /// A connection that the guest has opened, and its end on the host.
    fn connected(&mut self) -> UnixStream {
        let listener = self.listen(HOST);
        self.send(Rig::packet(Op::Request), &[]);
        assert_eq!(op(&self.next()), Op::Response);
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// A client of the host that has asked for the guest's port.
    fn client(&mut self) -> UnixStream {
        let mut stream = UnixStream::connect(self.path()).unwrap();
        stream.set_nonblocking(true).unwrap();
        writeln!(stream, "CONNECT {GUEST}").unwrap();
        stream
    }

    /// Reads `len` bytes at the host's end, having the device served.
    fn read_host(&mut self, host: &mut UnixStream, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.until("the host does not get its bytes", |_| {
            read_more(host, &mut bytes, len)
        });
        bytes
    }
}

fn op(header: &Header) -> Op {
    Op::of(header.op.get()).unwrap()
}

/// What is read at the host's end now.
fn read_now(host: &mut UnixStream) -> Result<usize, ErrorKind> {
    host.read(&mut [0; 4096]).map_err(|error| error.kind())
}

/// Bytes that differ from place to place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}
