//! A vhost-user front end that says what a story likes, with whatever files.
//!
//! Messages are written byte by byte; what answers is the very handler that a
//! server has, called once for each message that is there as a whole.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use devices::rng::{RngConfig, RngDevice};
use devices::vhost_user::backend::messages::Backend;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
use vhost::vhost_user::BackendReqHandler;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Bytes of guest memory, and where the front end has it.
const BYTES: u64 = 0x8000;
const USER: u64 = 0x7f00_0000_0000;
/// Files with a message: more than are ever taken.
const FILES: usize = 9;
/// Bytes of a message's head: request, flags, size.
const HEAD: usize = 12;
/// This version, and its flag for an answer that is wanted.
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 1 << 3;

/// What a front end does.
#[derive(Arbitrary, Debug)]
pub struct Story {
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Message {
        request: u8,
        body: Body,
        files: Vec<Kind>,
        reply: bool,
        flags: Option<u32>,
        size: Option<u16>,
    },
    Bytes(Vec<u8>, Vec<Kind>),
    /// All that has a ring served, in order.
    Up {
        features: bool,
        size: u8,
        base: u16,
    },
    /// The guest writes to its memory.
    Write(u16, Vec<u8>),
    /// The guest offers a buffer.
    Offer {
        address: u16,
        len: u16,
        index: u16,
    },
    Kick,
    /// Another front end comes.
    Reconnect,
}

#[derive(Arbitrary, Debug)]
enum Body {
    Nothing,
    Number(u64),
    State(u8, u32),
    Addresses {
        ring: u8,
        parts: [Place; 3],
        log: u64,
    },
    Regions(Vec<Region>),
    Region(Region),
    Config {
        offset: u32,
        size: u32,
        bytes: Vec<u8>,
    },
    Pair(u64, u64),
    Inflight {
        size: u64,
        offset: u64,
        queues: u16,
        len: u16,
    },
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Clone, Debug)]
enum Place {
    User(u16),
    Anywhere(u64),
}

impl Place {
    fn address(&self) -> u64 {
        match self {
            Place::User(at) => USER + u64::from(*at),
            Place::Anywhere(address) => *address,
        }
    }
}

#[derive(Arbitrary, Clone, Debug)]
struct Region {
    guest: u16,
    pages: u8,
    user: Place,
    offset: u16,
    odd: Option<(u64, u64, u64)>,
}

impl Region {
    fn bytes(&self) -> Vec<u8> {
        let (guest, len, offset) = self.odd.unwrap_or((
            self.guest.into(),
            u64::from(self.pages) * 4096,
            self.offset.into(),
        ));
        let numbers = [guest, len, self.user.address(), offset];
        numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Guest,
    Memory,
    Empty,
    Event,
    Timer,
    Null,
    Socket,
}

/// A front end, its files, and the back end.
struct Peer {
    backend: Arc<Mutex<Backend>>,
    handler: BackendReqHandler<Mutex<Backend>>,
    stream: UnixStream,
    /// What was written and not taken.
    written: Vec<u8>,
    memory: File,
    kick: OwnedFd,
}

/// Plays a story; what it finds is a failed assertion, or an end that does not
/// come.
pub fn play(story: Story) {
    let device = RngDevice::open(RngConfig::default().validate().expect("a source"));
    let device = Box::new(device.expect("random numbers"));
    let backend = Arc::new(Mutex::new(Backend::new(device, "fuzz").expect("an event")));
    let mut peer = Peer::new(backend, memory(BYTES), event());
    for step in story.steps {
        peer.step(step);
    }
    peer.stream
        .shutdown(std::net::Shutdown::Write)
        .expect("a socket");
    while peer.answer() {}
    let mut backend = peer.backend.lock().expect("nobody panics");
    backend.disconnect();
    backend.take_refusal();
}

impl Peer {
    fn new(backend: Arc<Mutex<Backend>>, memory: File, kick: OwnedFd) -> Self {
        let (stream, theirs) = UnixStream::pair().expect("sockets");
        stream.set_nonblocking(true).expect("a socket");
        Peer {
            handler: BackendReqHandler::from_stream(theirs, Arc::clone(&backend)),
            written: Vec::new(),
            backend,
            stream,
            memory,
            kick,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Message {
                request,
                body,
                files,
                reply,
                flags,
                size,
            } => {
                let body = body.bytes();
                let want = if reply { NEED_REPLY } else { 0 };
                let head = [
                    u32::from(request % 50),
                    flags.unwrap_or(VERSION | want),
                    size.map_or(body.len() as u32, u32::from),
                ];
                let head = head.iter().flat_map(|n| n.to_le_bytes());
                let bytes: Vec<u8> = head.chain(body).collect();
                self.send(&bytes, &files);
            }
            Step::Bytes(bytes, files) => self.send(&bytes, &files),
            Step::Up {
                features,
                size,
                base,
            } => self.up(features, size, base),
            Step::Write(at, bytes) => self.write(at.into(), &bytes),
            Step::Offer {
                address,
                len,
                index,
            } => {
                let mut descriptor = u64::from(address).to_le_bytes().to_vec();
                descriptor.extend(u32::from(len).to_le_bytes());
                descriptor.extend([2, 0, 0, 0]);
                self.write(0, &descriptor);
                self.write(0x1002, &index.to_le_bytes());
            }
            Step::Kick => {
                let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
            }
            Step::Reconnect => self.reconnect(),
        }
    }

    fn reconnect(&mut self) {
        self.backend.lock().expect("nobody panics").disconnect();
        let memory = self.memory.try_clone().expect("a file");
        let kick = self.kick.try_clone().expect("a file");
        *self = Peer::new(Arc::clone(&self.backend), memory, kick);
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let len = bytes.len().min((BYTES - at % BYTES) as usize);
        let written = self.memory.write_all_at(&bytes[..len], at % BYTES);
        written.expect("memory");
    }

    /// Sends bytes, and has every message answered that is whole by then.
    fn send(&mut self, bytes: &[u8], kinds: &[Kind]) {
        let files: Vec<OwnedFd> = kinds
            .iter()
            .take(FILES)
            .map(|kind| self.file(*kind))
            .collect();
        let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        if bytes.is_empty() || self.stream.send_with_fds(&[bytes], &files).is_err() {
            return;
        }
        self.written.extend_from_slice(bytes);
        while self.written.len() >= HEAD {
            let size = self.written[8..HEAD].try_into().expect("four bytes");
            let size = u32::from_le_bytes(size) as usize;
            // what is longer than any message is not waited for
            let whole = HEAD + if size > 4096 { 0 } else { size };
            if self.written.len() < whole {
                break;
            }
            self.written.drain(..whole);
            if !self.answer() {
                self.reconnect();
                break;
            }
        }
    }

    /// Has a message answered; false if that ends the connection.
    fn answer(&mut self) -> bool {
        let answered = self.handler.handle_request();
        // nobody may have to wait for us to read
        while matches!(self.stream.read(&mut [0; 8192]), Ok(1..)) {}
        matches!(
            answered,
            Ok(()) | Err(vhost::vhost_user::Error::ReqHandlerError(_))
        )
    }

    fn file(&self, kind: Kind) -> OwnedFd {
        match kind {
            Kind::Guest => self.memory.try_clone().expect("a file").into(),
            Kind::Memory => memory(BYTES).into(),
            Kind::Empty => memory(0).into(),
            Kind::Event => event(),
            Kind::Timer => {
                timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).expect("a timer")
            }
            Kind::Null => File::open("/dev/null").expect("a file").into(),
            Kind::Socket => UnixStream::pair().expect("sockets").0.into(),
        }
    }

    fn up(&mut self, features: bool, size: u8, base: u16) {
        let region = Region {
            guest: 0,
            pages: (BYTES / 4096) as u8,
            user: Place::User(0),
            offset: 0,
            odd: None,
        };
        let parts = [Place::User(0), Place::User(0x2000), Place::User(0x1000)];
        // VERSION_1 and PROTOCOL_FEATURES
        let taken = 1 << 32 | u64::from(features) << 30;
        let kick = self.kick.try_clone().expect("a file");
        for (request, body, files) in [
            (2, Body::Number(taken), vec![]),
            (5, Body::Regions(vec![region]), vec![Kind::Guest]),
            (8, Body::State(0, 1 << (size % 7)), vec![]),
            (
                9,
                Body::Addresses {
                    ring: 0,
                    parts,
                    log: 0,
                },
                vec![],
            ),
            (10, Body::State(0, base.into()), vec![]),
            (13, Body::Number(0), vec![Kind::Event]),
        ] {
            self.step(Step::Message {
                request,
                body,
                files,
                reply: false,
                flags: None,
                size: None,
            });
        }
        let message = [&[12, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0][..], &[0; 8]].concat();
        let sent = self
            .stream
            .send_with_fds(&[&message[..]], &[kick.as_raw_fd()]);
        if sent.is_ok() && self.written.is_empty() {
            let _ = self.answer() || {
                self.reconnect();
                false
            };
        }
        let body = Body::State(0, 1);
        self.step(Step::Message {
            request: 18,
            body,
            files: vec![],
            reply: true,
            flags: None,
            size: None,
        });
    }
}

impl Body {
    fn bytes(self) -> Vec<u8> {
        let long = |numbers: &[u64]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let short = |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        match self {
            Body::Nothing => Vec::new(),
            Body::Number(number) => long(&[number]),
            Body::State(ring, number) => short(&[ring.into(), number]),
            Body::Addresses { ring, parts, log } => {
                let mut bytes: Vec<u8> = short(&[ring.into(), 0]);
                bytes.extend(parts.iter().flat_map(|part| part.address().to_le_bytes()));
                bytes.extend(log.to_le_bytes());
                bytes
            }
            Body::Regions(regions) => {
                let mut bytes: Vec<u8> = short(&[regions.len() as u32, 0]);
                bytes.extend(regions.iter().flat_map(Region::bytes));
                bytes
            }
            Body::Region(region) => [vec![0; 8], region.bytes()].concat(),
            Body::Config {
                offset,
                size,
                bytes,
            } => [short(&[offset, size, 0]), bytes].concat(),
            Body::Pair(one, other) => long(&[one, other]),
            Body::Inflight {
                size,
                offset,
                queues,
                len,
            } => {
                let mut bytes: Vec<u8> = long(&[size, offset]);
                bytes.extend(queues.to_le_bytes());
                bytes.extend(len.to_le_bytes());
                bytes.extend([0; 4]);
                bytes
            }
            Body::Bytes(bytes) => bytes,
        }
    }
}

fn memory(len: u64) -> File {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memory file");
    ftruncate(&file, len).expect("memory");
    File::from(file)
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an event")
}
