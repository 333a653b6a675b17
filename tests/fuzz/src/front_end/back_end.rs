//! A back end's words: it answers each message as it should, but for those that
//! a story has something else for.

use std::cell::RefCell;
use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use devices::virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;
use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::SHADOW;
use super::hands::Hands;
use super::odd::{Odd, Spoken, may_go_on};

/// Bytes of a message's head: request, flags, size.
pub const HEAD: usize = 12;
pub const VERSION: u32 = 1;
pub const REPLY: u32 = 1 << 2 | VERSION;
const NEED_REPLY: u32 = 1 << 3;
/// VHOST_USER_F_PROTOCOL_FEATURES
const PROTOCOL_FEATURES: u64 = 1 << 30;
const REPLY_ACK: u64 = 1 << 3;
/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG, RESET_DEVICE
const PROTOCOL: u64 = 1 << 0 | REPLY_ACK | 1 << 5 | 1 << 9 | 1 << 13;
/// Features that a device type has to itself. virtio 1.3 §2.2
pub const DEVICE: u64 = 0x00ff_ffff | !((1 << 50) - 1);
/// The most that a message has here.
const MESSAGE_MAX: usize = HEAD + 300;

/// What it is.
#[derive(Clone, Copy, Debug)]
pub struct Character {
    pub features: u64,
    /// Protocol features that it has.
    pub protocol: u64,
    /// Each byte of its configuration space, and how many it has.
    pub config: u8,
    pub config_len: usize,
}

impl Character {
    /// One that lacks what `lacks` says.
    pub fn new(lacks: u8, protocol: u8) -> Self {
        let unless = |bit: u8, feature: u64| if lacks & bit == 0 { feature } else { 0 };
        let without = |bit: u8, feature: u64| if protocol & bit == 0 { 0 } else { feature };
        let lacking = without(1, 1) | without(2, REPLY_ACK) | without(4, 1 << 5);
        Character {
            features: VERSION_1
                | unless(1, RING_EVENT_IDX)
                | unless(2, RING_INDIRECT_DESC)
                | unless(4, PROTOCOL_FEATURES)
                | unless(8, 1 << 5)
                | 1 << 9
                | 1 << 55,
            protocol: PROTOCOL & !(lacking | without(8, 1 << 9) | without(16, 1 << 13)),
            config: 0x11,
            config_len: if lacks & 16 == 0 { 256 } else { 60 },
        }
    }
}

/// A connection.
struct Connection {
    stream: UnixStream,
    channel: Option<UnixStream>,
    /// What it has said its features are.
    offered: u64,
    protocol: u64,
    greeted: bool,
    memory: Option<Arc<(File, u64, u64, u64)>>,
    ring: [u64; 3],
    features: u64,
    call: Option<File>,
    /// It has said what ends a connection.
    wrong: Option<Odd>,
}

/// See the module.
pub struct BackEnd {
    _directory: TempDir,
    socket: PathBuf,
    listener: UnixListener,
    connection: Option<Connection>,
    pub character: Character,
    /// What it says instead of the right answers, and after how many of those.
    pub odd: Vec<(u8, Odd)>,
    /// What the guest's driver uses.
    pub guest: u64,
    hands: Option<Rc<RefCell<Hands>>>,
}

/// What the front end says.
pub struct Told {
    pub code: u32,
    pub flags: u32,
    pub body: Vec<u8>,
    pub files: Vec<OwnedFd>,
}

impl Told {
    pub fn is(&self, request: FrontendReq) -> bool {
        self.code == request as u32
    }

    fn long(&self, at: usize) -> u64 {
        let (longs, _) = self.body.as_chunks::<8>();
        longs.get(at).map_or(0, |long| u64::from_ne_bytes(*long))
    }
}

impl BackEnd {
    /// One that listens.
    pub fn new(character: Character) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let directory = directory.expect("a directory");
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("a socket");
        listener.set_nonblocking(true).expect("a socket");
        BackEnd {
            _directory: directory,
            socket,
            listener,
            connection: None,
            character,
            odd: Vec::new(),
            guest: 0,
            hands: None,
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The ring that it was given last.
    pub fn hands(&self) -> Option<Rc<RefCell<Hands>>> {
        self.hands.clone()
    }

    /// Ends the connection.
    pub fn end(&mut self) {
        self.connection = None;
    }

    /// Says something that nobody has asked for.
    pub fn say(&mut self, spoken: &Spoken) {
        if let Some(connection) = &self.connection {
            spoken.send(&connection.stream);
        }
    }

    /// Says something on its own channel; or closes that.
    pub fn ask(&mut self, spoken: Option<&Spoken>) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        match (spoken, &mut connection.channel) {
            (Some(spoken), Some(channel)) => {
                spoken.send(channel);
                // its answers
                let _ = channel.read(&mut [0; 64]);
            }
            _ => connection.channel = None,
        }
    }

    /// Hears what it was told, and answers.
    pub fn hear(&mut self) {
        let told = self.connection.as_ref();
        let told = told.and_then(|connection| receive(&connection.stream));
        let Some(mut told) = told.or_else(|| self.meet()) else {
            return;
        };
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        let wrong = &connection.wrong;
        assert!(wrong.is_none(), "{} goes on after {wrong:?}", told.code);
        if let Some(hands) = connection.note(&mut told, self.guest) {
            self.hands = Some(Rc::new(RefCell::new(hands)));
        }
        let answer = connection.answer(&self.character, &told);
        let odd = match answer {
            Some(_) => self.next_odd(),
            None => None,
        };
        let Some((body, odd)) = answer.map(|body| (body, odd.unwrap_or_default())) else {
            self.connection = Some(connection);
            return;
        };
        let said = odd.answer(&told, body);
        if !may_go_on(&told, &said, !connection.greeted) {
            connection.wrong = Some(odd);
        } else if !connection.greeted {
            let value = said[0].body[..].try_into();
            connection.offered = value.map_or(0, u64::from_ne_bytes);
            connection.greeted = true;
        }
        said.iter()
            .for_each(|spoken| spoken.send(&connection.stream));
        if odd.ends() {
            let _ = connection.stream.shutdown(Shutdown::Both);
        } else {
            self.connection = Some(connection);
        }
    }

    /// Takes the next connection, and hears its first words.
    fn meet(&mut self) -> Option<Told> {
        let (stream, _) = self.listener.accept().ok()?;
        stream.set_nonblocking(true).expect("a socket");
        let told = receive(&stream)?;
        self.connection = Some(Connection {
            stream,
            channel: None,
            offered: 0,
            protocol: 0,
            greeted: false,
            memory: None,
            ring: [0; 3],
            features: 0,
            call: None,
            wrong: None,
        });
        Some(told)
    }

    /// What the story has for this answer.
    fn next_odd(&mut self) -> Option<Odd> {
        let due = self.odd.iter().position(|(left, _)| *left == 0);
        let due = due.map(|at| self.odd.remove(at).1);
        for (left, _) in &mut self.odd {
            *left = left.saturating_sub(1);
        }
        due
    }
}

impl Connection {
    /// Takes what it is given, and looks whether it may be; a ring that it is to
    /// serve is the answer.
    fn note(&mut self, told: &mut Told, guest: u64) -> Option<Hands> {
        let file = told.files.pop().map(File::from);
        assert!(told.files.is_empty(), "one file and no other");
        if told.is(FrontendReq::SET_PROTOCOL_FEATURES) {
            self.protocol = told.long(0);
        } else if told.is(FrontendReq::SET_OWNER) {
            assert!(self.offered & VERSION_1 != 0, "it is of before virtio 1");
        } else if told.is(FrontendReq::SET_FEATURES) {
            self.features = told.long(0);
            let rings = VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC | PROTOCOL_FEATURES;
            let should = self.offered & (guest & DEVICE | rings);
            assert_eq!(self.features, should, "other features than were offered");
            assert_eq!(guest & DEVICE & !self.offered, 0, "the guest's are lacking");
        } else if told.is(FrontendReq::SET_MEM_TABLE) {
            assert_eq!((told.long(0), told.body.len()), (1, 40), "one region");
            let file = file.expect("its file");
            let (base, len, offset) = (told.long(1), told.long(2), told.long(4));
            self.memory = Some(Arc::new((file, offset, base, len)));
        } else if told.is(FrontendReq::SET_VRING_NUM) {
            let [queue, size] = [told.long(0) as u32, (told.long(0) >> 32) as u32];
            assert_eq!((queue, size), (0, SHADOW.into()), "the ring's size");
        } else if told.is(FrontendReq::SET_VRING_ADDR) {
            self.ring = [told.long(1), told.long(2), told.long(3)];
        } else if told.is(FrontendReq::SET_VRING_CALL) {
            self.call = file;
        } else if told.is(FrontendReq::SET_VRING_KICK) {
            let memory = self.memory.clone().expect("memory before a ring");
            let has = |feature| self.features & feature != 0;
            let features = [has(RING_EVENT_IDX), has(RING_INDIRECT_DESC)];
            let mut hands = Hands::new(memory, self.ring, features);
            (hands.kick, hands.call) = (file, self.call.take());
            return Some(hands);
        } else if told.is(FrontendReq::SET_BACKEND_REQ_FD) {
            let channel = file.map(OwnedFd::from).map(UnixStream::from);
            self.channel = channel;
        }
        None
    }

    /// The right answer, if one is wanted.
    fn answer(&self, character: &Character, told: &Told) -> Option<Vec<u8>> {
        let number = |value: u64| Some(value.to_ne_bytes().to_vec());
        if told.is(FrontendReq::GET_FEATURES) {
            number(character.features)
        } else if told.is(FrontendReq::GET_PROTOCOL_FEATURES) {
            number(character.protocol)
        } else if told.is(FrontendReq::GET_QUEUE_NUM) {
            number(1)
        } else if told.is(FrontendReq::GET_VRING_BASE) {
            Some([&told.body[..4], &[0; 4]].concat())
        } else if told.is(FrontendReq::GET_CONFIG) {
            let len = told.body.len() - HEAD;
            if len > character.config_len {
                return Some(Vec::new());
            }
            Some([&told.body[..HEAD], &vec![character.config; len]].concat())
        } else if told.flags & NEED_REPLY != 0 {
            assert!(self.protocol & REPLY_ACK != 0, "nothing was agreed upon");
            number(0)
        } else {
            None
        }
    }
}

impl Spoken {
    fn send(&self, to: &UnixStream) {
        let size = self.size.unwrap_or(self.body.len() as u32);
        let head = [self.code, self.flags, size].map(u32::to_ne_bytes).concat();
        let bytes = [head, self.body.clone()].concat();
        if self.files == 0 {
            let _ = (&*to).write(&bytes);
            return;
        }
        let file = File::open("/dev/null").expect("a file");
        let files: Vec<RawFd> = vec![file.as_raw_fd(); self.files.into()];
        let _ = to.send_with_fds(&[&bytes[..]], &files);
    }
}

/// The message that has come; `None` if the front end has gone.
fn receive(stream: &UnixStream) -> Option<Told> {
    let mut bytes = [0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut bytes)];
    let got = recvmsg(stream, parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let files = files.flatten().collect();
    let bytes = bytes.get(..got.bytes).filter(|bytes| !bytes.is_empty())?;
    let (head, body) = bytes.split_at(HEAD);
    let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().expect("four bytes"));
    assert_eq!(
        word(8) as usize,
        body.len(),
        "a message is as long as it says"
    );
    Some(Told {
        code: word(0),
        flags: word(4),
        body: body.to_vec(),
        files,
    })
}
