//! Front ends that break the protocol, or off: one line in the log, and the
//! next one is served.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;

use super::guest::{Guest, IN, Session, memory_file, request, rung, status};
use super::program::{Program, eventually};

const DISK: &str = "blk,path=DISK,queue-size=128";

/// A message's header: request, version 1, bytes that follow.
pub fn message(request: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    let header = [request, 1, len].map(u32::to_le_bytes).concat();
    [&header, payload].concat()
}

fn state(index: u32, number: u32) -> Vec<u8> {
    [index, number].map(u32::to_le_bytes).concat()
}

const SET_VRING_NUM: u32 = 8;
const SET_VRING_KICK: u32 = 12;

/// Sends a message with files.
fn send(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let parts = [IoSlice::new(bytes)];
    sendmsg(stream, &parts, &mut control, SendFlags::NOSIGNAL)
}

/// Serves a well-behaved front end.
fn is_served(program: &Program) {
    let mut guest = Guest::new(1);
    let mut session = Session::connect(program, 0);
    session.start(&guest);
    request(&mut guest, 0, 0, IN, 0);
    guest.kick(0);
    guest.wait(0);
    assert_eq!(status(&guest, 0, 0), 0);
}

/// Sends `bytes`; the program is to hang up and to say why in one line that
/// has `words`.
fn hangs_up(program: &Program, bytes: &[u8], words: &[&str]) {
    let warned = program.count("WARN");
    let mut stream = program.connect(0);
    stream.write_all(bytes).unwrap();
    ended(program, &mut stream, warned, words);
}

fn ended(program: &Program, stream: &mut UnixStream, warned: usize, words: &[&str]) {
    // a reset connection has ended, too
    let read = stream.read(&mut [0; 64]).unwrap_or(0);
    assert_eq!(read, 0);
    is_served(program);
    let lines = program.lines("WARN");
    assert_eq!(lines.len(), warned + 1, "{lines:?}");
    let socket = program.socket(0).to_str().unwrap();
    let named = [socket, "device=\"blk\""];
    for word in words.iter().chain(&named) {
        assert!(lines[warned].contains(word), "{word} in {}", lines[warned]);
    }
}

#[test]
fn a_front_end_that_goes_away_in_mid_message_is_told() {
    let program = Program::serve(&[DISK], 1 << 20);
    let half = &message(SET_VRING_NUM, &state(0, 64))[..7];

    program.connect(0).write_all(half).unwrap();
    program.wait_for("WARN", 1);
    is_served(&program);

    assert_eq!(program.count("WARN"), 1);
}

#[test]
fn bytes_that_are_no_message_end_the_connection() {
    let program = Program::serve(&[DISK], 1 << 20);

    hangs_up(&program, &[0xa5; 64], &["invalid message"]);
    hangs_up(&program, &message(7777, &[]), &["invalid message"]);
}

#[test]
fn a_message_that_cannot_be_carried_out_is_told_with_its_value() {
    let program = Program::serve(&[DISK], 1 << 20);

    let no_ring = message(SET_VRING_NUM, &state(5, 64));
    hangs_up(&program, &no_ring, &["no ring 5"]);
    let too_long = message(SET_VRING_NUM, &state(0, 256));
    hangs_up(&program, &too_long, &["size 256", "up to 128"]);
    let no_kick = message(SET_VRING_KICK, &0x100_u64.to_le_bytes());
    hangs_up(&program, &no_kick, &["without a kick"]);
}

#[test]
fn a_kick_that_is_no_eventfd_is_refused() {
    let program = Program::serve(&[DISK], 1 << 20);
    let mut stream = program.connect(0);
    let (pipe, _other): (OwnedFd, OwnedFd) = rustix::pipe::pipe().unwrap();

    let kick = message(SET_VRING_KICK, &0_u64.to_le_bytes());
    send(&stream, &kick, &[pipe.as_fd()]).unwrap();

    ended(&program, &mut stream, 0, &["kick is no eventfd"]);
}

#[test]
fn a_timer_is_no_eventfd_although_it_can_be_waited_for() {
    let program = Program::serve(&[DISK], 1 << 20);
    let mut stream = program.connect(0);
    let flags = TimerfdFlags::CLOEXEC;
    let timer = timerfd_create(TimerfdClockId::Monotonic, flags).unwrap();

    let kick = message(SET_VRING_KICK, &0_u64.to_le_bytes());
    send(&stream, &kick, &[timer.as_fd()]).unwrap();

    ended(&program, &mut stream, 0, &["kick is no eventfd"]);
}

#[test]
fn memory_that_ends_before_its_region_does_is_refused() {
    let program = Program::serve(&[DISK], 1 << 20);
    let mut stream = program.connect(0);
    let short = memory_file(0x1000);

    let words = [1, 0, 0x2000, 0, 0].map(u64::to_le_bytes).concat();
    send(&stream, &message(SET_MEM_TABLE, &words), &[short.as_fd()]).unwrap();

    ended(
        &program,
        &mut stream,
        0,
        &["8192 bytes", "cannot be mapped"],
    );
}

#[test]
fn rings_outside_of_memory_are_refused() {
    let program = Program::serve(&[DISK], 1 << 20);
    let guest = Guest::new(1);
    let mut session = Session::connect(&program, 0);
    let regions = guest.regions();

    session.frontend.set_mem_table(&regions[1..]).unwrap();
    let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        session.start_ring(&guest, 0, 0);
    }));

    assert!(started.is_err());
    program.wait_for("in no memory region", 1);
    is_served(&program);
}

#[test]
fn a_broken_ring_rings_its_error_and_is_mended_by_a_reset() {
    let program = Program::serve(&[DISK], 1 << 20);
    let mut guest = Guest::new(1);
    let mut session = Session::connect(&program, 0);
    session.start(&guest);

    // a head beyond the ring
    guest.submit(0, 500, &[]);
    guest.kick(0);
    let told = rung(&guest.rings[0].error);
    drop(session);

    assert!(told);
    is_served(&program);
}

#[test]
fn a_front_end_that_fills_its_own_call_holds_nothing_up() {
    let program = Program::serve(&[DISK], 1 << 20);
    let mut guest = Guest::new(1);
    guest.rings[0].call = EventFd::new(0).unwrap();
    let mut session = Session::connect(&program, 0);
    session.start(&guest);

    // the most that an eventfd counts: the next one who rings it waits
    guest.rings[0].call.write(u64::MAX - 1).unwrap();
    request(&mut guest, 0, 0, IN, 0);
    guest.kick(0);
    eventually("used chain", || guest.take(0).is_some());
    let base = session.frontend.get_vring_base(0).unwrap();
    drop(session);

    assert_eq!(base, 1);
    assert!(program.count("an event without room is emptied") > 0);
    is_served(&program);
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        // Knuth's MMIX generator; its high bits are good
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    /// A word that some message may have: a small number, two of them, an
    /// address, or anything.
    fn word(&mut self) -> u64 {
        match self.below(5) {
            0 => self.below(3),
            1 => self.below(2) | 1 << (32 + self.below(9)),
            2 => 0x100,
            3 => 0x1000 << self.below(6),
            _ => self.below(u64::MAX >> 1),
        }
    }

    /// A message that may be meant: a request that exists, mostly as long as
    /// it has to be, and perhaps a file.
    fn message(&mut self) -> (Vec<u8>, bool) {
        let request = REQUESTS[usize::try_from(self.below(REQUESTS.len() as u64)).unwrap()];
        let (request, words, file) = request;
        let words = match self.below(16) {
            0 => self.below(8),
            _ => words,
        };
        let payload = match request {
            // one region
            SET_MEM_TABLE => 1_u64.to_le_bytes().to_vec(),
            _ => Vec::new(),
        };
        let rest = (0..words).flat_map(|_| self.word().to_le_bytes());
        let payload: Vec<u8> = payload.into_iter().chain(rest).collect();
        (message(request, &payload), file != (self.below(16) == 0))
    }
}

/// Requests, the words that each has, and whether it has a file.
const REQUESTS: &[(u32, u64, bool)] = &[
    (SET_MEM_TABLE, 4, true),
    (2, 1, false),
    (4, 0, false),
    (6, 2, true),
    (SET_VRING_NUM, 1, false),
    (9, 5, false),
    (10, 1, false),
    (11, 1, false),
    (SET_VRING_KICK, 1, true),
    (13, 1, true),
    (14, 1, true),
    (17, 0, false),
    (18, 1, false),
    (24, 2, false),
    (25, 2, false),
    (31, 3, false),
    (32, 3, true),
    (34, 0, false),
    (36, 0, false),
    (37, 5, true),
    (38, 5, false),
    (44, 0, false),
];
const SET_MEM_TABLE: u32 = 5;

#[test]
fn whatever_messages_come_the_next_front_end_is_served() {
    let program = Program::serve(&[DISK], 1 << 20);
    let memory = OwnedFd::from(memory_file(1 << 16));
    let event = EventFd::new(0).unwrap();
    // SAFETY: the event owns the descriptor and outlives the borrow.
    let event = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let negotiated = [
        // what is offered: more messages are let through
        message(1, &[]),
        message(2, &(1_u64 << 32 | 1 << 30).to_le_bytes()),
        message(16, &0xb20b_u64.to_le_bytes()),
    ]
    .concat();
    let mut numbers = Numbers(1);

    for _ in 0..5000 {
        let mut stream = program.connect(0);
        stream.write_all(&negotiated).unwrap();
        for _ in 0..numbers.below(30) {
            let (bytes, with_file) = numbers.message();
            let files = [memory.as_fd(), event];
            let file = files[usize::try_from(numbers.below(2)).unwrap()];
            // the program may have hung up already
            let _ = send(&stream, &bytes, &[file][..usize::from(with_file)]);
        }
        let _ = stream.shutdown(Shutdown::Write);
        // until it has answered everything, or hangs up
        let _ = stream.read_to_end(&mut Vec::new());
    }
    is_served(&program);

    assert_eq!(program.count("panicked"), 0);
    assert_eq!(program.count("a front end has connected"), 5001);
}
