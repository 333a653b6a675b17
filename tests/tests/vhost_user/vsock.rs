//! A socket device: connections from both sides, and bytes both ways.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use tempfile::TempDir;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use super::guest::{Buffer, DATA, Guest, Session};
use super::program::{PATIENCE, Program};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;
/// Where the buffer for an event is.
const EVENT_BUFFER: Buffer = Buffer {
    address: DATA + 0x3f_0000,
    len: 4,
    writable: true,
};
/// Bytes of a header. virtio 1.3 §5.10.6
const HEADER: usize = 44;
const BUFFER: usize = 4096;
/// Receive buffers; each has a head of its own.
const BUFFERS: u16 = 16;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RW: u16 = 5;
/// The guest's address, and ports of both sides.
const CID: u64 = 7;
const HOST: u64 = 2;
const HOST_PORT: u32 = 52;
const GUEST_PORT: u32 = 1024;
/// What the guest says that it has room for.
const ROOM: u32 = 1 << 20;

/// A packet as the guest finds it.
#[derive(Debug, PartialEq, Eq)]
struct Packet {
    from: (u64, u32),
    to: (u64, u32),
    operation: u16,
    payload: Vec<u8>,
}

/// A guest with a socket device, and the host's directory of sockets.
struct Sockets {
    guest: Guest,
    session: Session,
    program: Program,
    directory: TempDir,
    sent: u16,
    /// Bytes that the guest has taken.
    taken: u32,
}

impl Sockets {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v");
        let device = format!("vsock,path=\"{}\",cid={CID},queue-size=128", path.display());
        let program = Program::serve(&[&device], 0);
        let mut guest = Guest::new(3);
        guest.submit(EVENT, 0, &[EVENT_BUFFER]);
        guest.write(EVENT_BUFFER.address, &[0xff; 4]);
        let mut session = Session::connect(&program, 0);
        session.start(&guest);
        for head in 0..BUFFERS {
            guest.submit(RECEIVE, head, &[receive_buffer(head)]);
        }
        guest.kick(RECEIVE);
        Sockets {
            guest,
            session,
            program,
            directory,
            sent: 0,
            taken: 0,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The guest sends a packet, and waits until it is taken.
    fn send(&mut self, ports: (u32, u32), operation: u16, payload: &[u8]) {
        let head = self.sent % 32;
        self.sent += 1;
        let address = DATA + 0x10_0000 + u64::from(head) * 0x1_0000;
        let mut header = [CID, HOST].map(u64::to_le_bytes).concat();
        header.extend(
            [ports.0, ports.1, payload.len() as u32]
                .map(u32::to_le_bytes)
                .concat(),
        );
        header.extend([1, operation].map(u16::to_le_bytes).concat());
        header.extend([0, ROOM, self.taken].map(u32::to_le_bytes).concat());
        self.guest.write(address, &[&header[..], payload].concat());
        let packet = Buffer {
            address,
            len: (HEADER + payload.len()) as u32,
            writable: false,
        };
        self.guest.submit(TRANSMIT, head, &[packet]);
        self.guest.kick(TRANSMIT);
        self.guest.wait(TRANSMIT);
    }

    /// The next packet for the guest that is not about credit alone.
    fn receive(&mut self) -> Packet {
        loop {
            let used = self.guest.wait(RECEIVE);
            let place = receive_buffer(used.head);
            let bytes = self.guest.read(place.address, used.written as usize);
            self.guest.submit(RECEIVE, used.head, &[place]);
            self.guest.kick(RECEIVE);
            let packet = packet(&bytes);
            if packet.operation <= RW {
                self.taken += packet.payload.len() as u32;
                return packet;
            }
        }
    }
}

fn receive_buffer(head: u16) -> Buffer {
    Buffer {
        address: DATA + u64::from(head) * BUFFER as u64,
        len: BUFFER as u32,
        writable: true,
    }
}

fn packet(bytes: &[u8]) -> Packet {
    let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(word(24) as usize, bytes.len() - HEADER);
    Packet {
        from: (long(0), word(16)),
        to: (long(8), word(20)),
        operation: u16::from_le_bytes([bytes[30], bytes[31]]),
        payload: bytes[HEADER..].to_vec(),
    }
}

fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[test]
fn the_guest_connects_to_a_listener_of_the_host_and_bytes_pass_both_ways() {
    let mut sockets = Sockets::new();
    let listener = UnixListener::bind(sockets.path("v_52")).unwrap();
    let ports = (GUEST_PORT, HOST_PORT);
    let bytes = pattern(200_000);

    sockets.send(ports, REQUEST, &[]);
    let accepted = sockets.receive();
    let mut host = patient(listener.accept().unwrap().0);
    let mut read = Vec::new();
    for piece in bytes.chunks(0x8000) {
        sockets.send(ports, RW, piece);
        let mut part = vec![0; piece.len()];
        host.read_exact(&mut part).unwrap();
        read.extend(part);
    }
    let written = bytes.clone();
    let writer = std::thread::spawn(move || {
        host.write_all(&written).unwrap();
        host
    });
    let mut received = Vec::new();
    while received.len() < bytes.len() {
        let packet = sockets.receive();
        assert_eq!(packet.operation, RW);
        received.extend(packet.payload);
    }

    assert_eq!(
        accepted,
        Packet {
            from: (HOST, HOST_PORT),
            to: (CID, GUEST_PORT),
            operation: RESPONSE,
            payload: Vec::new(),
        }
    );
    assert!(read == bytes, "what the guest sent differs");
    assert!(received == bytes, "what the host sent differs");
    drop(writer.join().unwrap());
}

#[test]
fn the_host_connects_to_a_port_of_the_guest() {
    let mut sockets = Sockets::new();
    let mut host = patient(UnixStream::connect(sockets.path("v")).unwrap());

    host.write_all(b"CONNECT 1024\n").unwrap();
    let asked = sockets.receive();
    let ports = (GUEST_PORT, asked.from.1);
    sockets.send(ports, RESPONSE, &[]);
    sockets.send(ports, RW, b"welcome");
    let expected = format!("OK {}\nwelcome", asked.from.1);
    let mut read = vec![0; expected.len()];
    host.read_exact(&mut read).unwrap();

    assert_eq!((asked.operation, asked.to), (REQUEST, (CID, GUEST_PORT)));
    assert_eq!(String::from_utf8(read).unwrap(), expected);
}

/// What the guest was told by the event queue: how many bytes, and which.
fn event(sockets: &mut Sockets) -> (u32, Vec<u8>) {
    let used = sockets.guest.wait(EVENT);
    (used.written, sockets.guest.read(EVENT_BUFFER.address, 4))
}

#[test]
fn a_guest_is_told_that_its_connections_have_ended_with_the_process_that_had_them() {
    let mut sockets = Sockets::new();
    let listener = UnixListener::bind(sockets.path("v_52")).unwrap();
    sockets.send((GUEST_PORT, HOST_PORT), REQUEST, &[]);
    let accepted = sockets.receive().operation;
    let mut host = patient(listener.accept().unwrap().0);

    sockets.program.kill();
    let end = host.read(&mut [0]).unwrap();
    sockets.program.start();
    sockets.session = Session::connect(&sockets.program, 0);
    sockets.session.start(&sockets.guest);
    let told = event(&mut sockets);
    // and it opens another one
    sockets.send((GUEST_PORT + 1, HOST_PORT), REQUEST, &[]);
    let again = sockets.receive();

    assert_eq!((accepted, end), (RESPONSE, 0));
    assert_eq!(told, (4, vec![0; 4]));
    assert_eq!((again.operation, again.to.1), (RESPONSE, GUEST_PORT + 1));
}

#[test]
fn a_guest_whose_rings_were_stopped_for_a_while_keeps_its_connections() {
    let mut sockets = Sockets::new();
    let listener = UnixListener::bind(sockets.path("v_52")).unwrap();
    let ports = (GUEST_PORT, HOST_PORT);
    sockets.send(ports, REQUEST, &[]);
    sockets.receive();
    let mut host = patient(listener.accept().unwrap().0);

    for ring in [RECEIVE, TRANSMIT, EVENT] {
        let base = sockets.session.frontend.get_vring_base(ring).unwrap();
        let base = u16::try_from(base).unwrap();
        sockets.session.start_ring(&sockets.guest, ring, base);
    }
    sockets.send(ports, RW, b"still here");
    let mut read = [0; 10];
    host.read_exact(&mut read).unwrap();

    assert_eq!(&read, b"still here");
    assert!(sockets.guest.take(EVENT).is_none());
}

#[test]
fn the_guests_address_is_in_the_configuration() {
    let sockets = Sockets::new();
    // the one that is being served is let go
    let Sockets {
        program, session, ..
    } = sockets;
    drop(session);
    let mut session = Session::connect(&program, 0);
    let flags = vhost::vhost_user::message::VhostUserConfigFlags::empty();

    let (_, config) = session.frontend.get_config(0, 8, flags, &[0; 8]).unwrap();
    session.frontend.set_owner().unwrap();

    assert_eq!(config, CID.to_le_bytes());
    assert_eq!(session.frontend.get_queue_num().unwrap(), 3);
}
