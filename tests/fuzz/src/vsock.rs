//! Packets of a socket device, and the host's sockets. virtio 1.3 §5.10.6

use std::os::unix::net::UnixListener;

use arbitrary::Arbitrary;
use devices::vsock::{VsockConfig, VsockDevice};

use crate::driver::{Driver, Piece};
use crate::host::{Act, Clients, directory};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// The guest's address, and the host's port that somebody listens on.
const CID: u64 = 3;
const PORT: u32 = 52;

/// What happens to a socket device.
#[derive(Arbitrary, Debug)]
pub struct Story {
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Packet(Packet),
    Buffers(Vec<Piece>),
    Chain(u8, Vec<Piece>),
    Host(Act),
    /// A client that asks for a port of the guest's.
    Ask(u8, u8),
    Accept,
    Lose,
    Advance,
    Reset,
}

/// `struct virtio_vsock_hdr` and what is behind it.
#[derive(Arbitrary, Debug)]
struct Packet {
    source: Option<u64>,
    destination: Option<u64>,
    guest_port: u8,
    host_port: Option<u32>,
    kind: Option<u16>,
    operation: u8,
    flags: u8,
    room: u32,
    forwarded: u32,
    payload: Vec<u8>,
    len: Option<u32>,
    more: Vec<Piece>,
}

impl Packet {
    fn pieces(self) -> Vec<Piece> {
        let len = self.len.unwrap_or(self.payload.len() as u32);
        let mut bytes = Vec::new();
        bytes.extend(self.source.unwrap_or(CID).to_le_bytes());
        bytes.extend(self.destination.unwrap_or(2).to_le_bytes());
        bytes.extend(u32::from(self.guest_port % 4).to_le_bytes());
        bytes.extend(self.host_port.unwrap_or(PORT).to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(self.kind.unwrap_or(1).to_le_bytes());
        bytes.extend(u16::from(self.operation % 10).to_le_bytes());
        bytes.extend(u32::from(self.flags).to_le_bytes());
        bytes.extend(self.room.to_le_bytes());
        bytes.extend(self.forwarded.to_le_bytes());
        let mut pieces = vec![Piece::Bytes(bytes)];
        if !self.payload.is_empty() {
            pieces.push(Piece::Bytes(self.payload));
        }
        pieces.extend(self.more);
        pieces
    }
}

/// Plays a story; what it finds is a failed assertion.
pub fn play(story: Story) {
    let directory = directory();
    let path = directory.path().join("v");
    let listener = UnixListener::bind(directory.path().join(format!("v_{PORT}")));
    let listener = listener.expect("a socket");
    listener.set_nonblocking(true).expect("a socket");
    let config = VsockConfig {
        connections: 4,
        buffer: 4096,
        ..VsockConfig::new(&path)
    };
    let device = VsockDevice::open(config.validate().expect("sockets")).expect("a socket");
    let handle = device.handle();
    let mut driver = Driver::new(Box::new(device), u64::MAX);
    let mut clients = Clients::default();
    for step in story.steps {
        match step {
            Step::Packet(packet) => driver.offer(TRANSMIT, &packet.pieces()),
            Step::Buffers(pieces) => driver.offer(RECEIVE, &pieces),
            Step::Chain(queue, pieces) => driver.offer(usize::from(queue % 3), &pieces),
            Step::Host(act) => clients.act(&path, act),
            Step::Ask(who, port) => {
                let request = format!("CONNECT {}\n", port % 4).into_bytes();
                clients.act(&path, Act::Say(who, request));
            }
            Step::Accept => clients.accept(&listener),
            Step::Lose => assert!(handle.end_connections(), "the device is there"),
            Step::Advance => driver.advance(),
            Step::Reset => driver.reset(u64::MAX),
        }
    }
    driver.advance();
    driver.finish();
}
