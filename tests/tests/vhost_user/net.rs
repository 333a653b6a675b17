//! A network card: frames both ways, and what a front end that has a control
//! queue of its own, such as QEMU, leaves of its features.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use tempfile::TempDir;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use super::guest::{Buffer, DATA, Guest, PROTOCOL_FEATURES, Session, VERSION_1};
use super::nonsense::message;
use super::program::{PATIENCE, Program, eventually};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL: usize = 2;
/// Bytes of the header in front of each frame. virtio 1.3 §5.1.6
const HEADER: usize = 12;
/// Features of a card. virtio 1.3 §5.1.3
const CSUM: u64 = 1 << 0;
const MAC: u64 = 1 << 5;
const MRG_RXBUF: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;
const CTRL_VQ: u64 = 1 << 17;
const CTRL_RX: u64 = 1 << 18;
const CARD: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// A card that listens, and the directory of its socket.
struct Card {
    program: Program,
    directory: TempDir,
}

impl Card {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("card");
        let device = format!(
            "net,socket=\"{}\",listen=true,mac=\"52:54:00:12:34:56\",queue-size=128",
            socket.display()
        );
        Card {
            program: Program::serve(&[&device], 0),
            directory,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("card")
    }

    /// The other end of its cable.
    fn cable(&self) -> UnixStream {
        let cable = UnixStream::connect(self.path()).unwrap();
        cable.set_read_timeout(Some(PATIENCE)).unwrap();
        cable
    }
}

/// A frame for the card, of `len` bytes that tell its number.
fn frame(number: u8, len: usize) -> Vec<u8> {
    let mut frame = CARD.to_vec();
    frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.extend((frame.len()..len).map(|at| number.wrapping_mul(31).wrapping_add(at as u8)));
    frame
}

/// A frame on the cable stands behind its length.
fn send(cable: &mut UnixStream, frame: &[u8]) {
    let len = u32::try_from(frame.len()).unwrap();
    cable.write_all(&len.to_be_bytes()).unwrap();
    cable.write_all(frame).unwrap();
}

fn receive(cable: &mut UnixStream) -> Vec<u8> {
    let mut len = [0; 4];
    cable.read_exact(&mut len).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(len) as usize];
    cable.read_exact(&mut frame).unwrap();
    frame
}

/// Where the buffer of a head is.
fn buffer(ring: usize, head: u16, len: usize) -> Buffer {
    Buffer {
        address: DATA + (ring as u64 * 128 + u64::from(head)) * 4096,
        len: len as u32,
        writable: ring == RECEIVE,
    }
}

/// Offers buffers for frames.
fn offer(guest: &mut Guest, count: u16, len: usize) {
    for head in 0..count {
        guest.submit(RECEIVE, head, &[buffer(RECEIVE, head, len)]);
    }
    guest.kick(RECEIVE);
}

fn transmit(guest: &mut Guest, head: u16, frame: &[u8]) {
    let place = buffer(TRANSMIT, head, HEADER + frame.len());
    guest.write(place.address, &[&[0; HEADER][..], frame].concat());
    guest.submit(TRANSMIT, head, &[place]);
    guest.kick(TRANSMIT);
}

#[test]
fn frames_pass_both_ways() {
    let card = Card::new();
    let mut guest = Guest::new(2);
    let mut session = Session::connect(&card.program, 0);
    session.set_features(0);
    session.start(&guest);
    offer(&mut guest, 64, 2048);
    let mut cable = card.cable();

    for number in 0..64 {
        send(&mut cable, &frame(number, 60 + 20 * usize::from(number)));
    }
    for number in 0..64 {
        let used = guest.wait(RECEIVE);
        let bytes = guest.read(buffer(RECEIVE, used.head, 0).address, used.written as usize);
        let expected = frame(number, 60 + 20 * usize::from(number));
        assert!(bytes[HEADER..] == expected, "frame {number} to the guest");
    }
    for number in 0..64 {
        transmit(&mut guest, number.into(), &frame(number, 1514));
    }
    for number in 0..64 {
        let read = receive(&mut cable);
        assert!(read == frame(number, 1514), "frame {number} of the guest");
        assert_eq!(guest.wait(TRANSMIT).head, u16::from(number));
    }
}

#[test]
fn a_frame_fills_several_buffers_if_they_may_be_merged() {
    let card = Card::new();
    let mut guest = Guest::new(2);
    let mut session = Session::connect(&card.program, 0);
    session.set_features(MRG_RXBUF);
    session.start(&guest);
    offer(&mut guest, 8, 512);
    let mut cable = card.cable();

    send(&mut cable, &frame(7, 1400));
    let used: Vec<_> = (0..3).map(|_| guest.wait(RECEIVE)).collect();

    let bytes: Vec<u8> = used
        .iter()
        .flat_map(|used| {
            let at = buffer(RECEIVE, used.head, 0).address;
            guest.read(at, used.written as usize)
        })
        .collect();
    assert!(bytes[HEADER..] == frame(7, 1400));
    assert_eq!(bytes[10..HEADER], [3, 0], "how many buffers it fills");
}

#[test]
fn a_front_end_takes_as_many_features_as_it_likes() {
    let card = Card::new();
    let mut session = Session::connect(&card.program, 0);
    let mut mac = [0; 6];
    let queues = session.frontend.get_queue_num().unwrap();
    let flags = vhost::vhost_user::message::VhostUserConfigFlags::empty();
    let (_, config) = session.frontend.get_config(0, 6, flags, &[0; 6]).unwrap();
    mac.copy_from_slice(&config);

    let offered = session.offered & (MAC | MRG_RXBUF | STATUS | CTRL_VQ | CTRL_RX | CSUM);
    // what QEMU takes that serves the control queue itself
    session.set_features(MRG_RXBUF);
    session.set_features(MRG_RXBUF | CTRL_VQ);

    // a socket does no checksums
    assert_eq!(offered, MAC | MRG_RXBUF | STATUS | CTRL_VQ | CTRL_RX);
    assert_eq!(session.offered & VERSION_1, VERSION_1);
    assert_eq!(session.offered & PROTOCOL_FEATURES, PROTOCOL_FEATURES);
    assert_eq!((mac, queues), (CARD, 3));
}

#[test]
fn a_card_has_a_control_queue_for_a_front_end_that_wants_it() {
    let card = Card::new();
    let mut guest = Guest::new(3);
    let mut session = Session::connect(&card.program, 0);
    session.set_features(CTRL_VQ | CTRL_RX);
    session.start(&guest);

    // the guest hears everything. virtio 1.3 §5.1.6.5.1
    let command = DATA + 0x30_0000;
    guest.write(command, &[0, 0, 1, 0xff]);
    let part = |address, len, writable| Buffer {
        address,
        len,
        writable,
    };
    let chain = [part(command, 3, false), part(command + 3, 1, true)];
    guest.submit(CONTROL, 0, &chain);
    guest.kick(CONTROL);
    let answered = guest.wait(CONTROL);
    offer(&mut guest, 4, 2048);
    let mut cable = card.cable();
    let mut stranger = frame(1, 100);
    stranger[..6].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    send(&mut cable, &stranger);
    let used = guest.wait(RECEIVE);

    assert_eq!((answered.written, guest.read(command + 3, 1)), (1, vec![0]));
    assert_eq!(used.written as usize, HEADER + 100);
}

#[test]
fn rings_that_are_enabled_before_any_feature_is_taken_are_enabled() {
    let card = Card::new();
    let mut guest = Guest::new(2);
    let mut early = card.program.connect(0);
    // SET_VRING_ENABLE, for which the last one wants an answer
    early
        .write_all(&message(18, &[0, 0, 0, 0, 1, 0, 0, 0]))
        .unwrap();
    let mut last = message(18, &[1, 0, 0, 0, 1, 0, 0, 0]);
    last[4] |= 1 << 3;
    early.write_all(&last).unwrap();
    let mut answer = [0xff; 12 + 8];
    early.read_exact(&mut answer).unwrap();

    let mut session = Session::over(early);
    session.frontend.set_mem_table(&guest.regions()).unwrap();
    session.set_up_ring(&guest, RECEIVE, 0);
    session.set_up_ring(&guest, TRANSMIT, 0);
    offer(&mut guest, 4, 2048);
    let mut cable = card.cable();
    send(&mut cable, &frame(1, 200));
    let used = guest.wait(RECEIVE);
    transmit(&mut guest, 0, &frame(2, 300));

    assert_eq!(answer[..12], [18, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0]);
    assert_eq!(answer[12..], [0; 8]);
    assert_eq!(used.written as usize, HEADER + 200);
    assert!(receive(&mut cable) == frame(2, 300));
}

#[test]
fn a_ring_that_is_disabled_again_before_any_feature_is_taken_rests() {
    let card = Card::new();
    let mut guest = Guest::new(2);
    let mut early = card.program.connect(0);
    for enable in [1, 0] {
        let ring = [TRANSMIT as u8, 0, 0, 0, enable, 0, 0, 0];
        early.write_all(&message(18, &ring)).unwrap();
    }
    let mut session = Session::over(early);
    session.frontend.set_mem_table(&guest.regions()).unwrap();
    session.set_up_ring(&guest, TRANSMIT, 0);
    transmit(&mut guest, 0, &frame(2, 300));

    // answered when the ring has been stopped, if it ran
    let base = session.frontend.get_vring_base(TRANSMIT).unwrap();

    assert_eq!(base, 0);
}

#[test]
fn enabling_a_ring_that_there_is_not_ends_the_connection_however_early() {
    let card = Card::new();
    let mut early = card.program.connect(0);

    early
        .write_all(&message(18, &[9, 0, 0, 0, 1, 0, 0, 0]))
        .unwrap();

    assert_eq!(early.read(&mut [0]).unwrap(), 0);
    assert_eq!(card.program.count("there is no ring 9"), 1);
}

#[test]
fn an_end_that_goes_and_comes_hinders_nobody() {
    let card = Card::new();
    let mut guest = Guest::new(2);
    let mut session = Session::connect(&card.program, 0);
    session.start(&guest);
    offer(&mut guest, 8, 2048);

    let mut first = card.cable();
    send(&mut first, &frame(1, 200));
    let used = guest.wait(RECEIVE);
    drop(first);
    eventually("the end of the cable", || {
        card.program.count("has lost its other end") == 1
    });
    transmit(&mut guest, 0, &frame(2, 100));
    let dropped = guest.wait(TRANSMIT);
    let mut second = card.cable();
    send(&mut second, &frame(3, 300));
    let after = guest.wait(RECEIVE);

    assert_eq!(used.written as usize, HEADER + 200);
    assert_eq!(dropped.head, 0);
    assert_eq!(after.written as usize, HEADER + 300);
}
