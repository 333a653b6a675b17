//! The back end: a thread that answers messages, mostly as it should, and hands
//! that change the memory that it was given.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use arbitrary::Arbitrary;
use devices::virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;
use vhost::vhost_user::message::FrontendReq;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Bytes of a message's head: request, flags, size.
const HEAD: usize = 12;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2 | VERSION;
const NEED_REPLY: u32 = 1 << 3;
/// VHOST_USER_F_PROTOCOL_FEATURES
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG, RESET_DEVICE
const PROTOCOL: u64 = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 13;
/// The longest message that is taken.
const BODY_MAX: u32 = 4096;
/// Connections before nobody is there any more.
const CONNECTIONS: usize = 3;
/// Files with a message: more than are ever taken.
const FILES: u8 = 10;

/// What it is, and where it does not answer as it should.
#[derive(Arbitrary, Debug)]
pub struct Character {
    event_idx: bool,
    indirect: bool,
    /// Protocol features that it does not have.
    lacks: u16,
    config: u8,
    /// What it says at messages of these numbers; most are beyond the last one.
    odd: Vec<(u8, Answer)>,
    /// Some come back when their connection has ended; each costs a while.
    returns: u8,
    /// With some the memory changes while it is read.
    races: u8,
}

impl Character {
    /// Whether it can only be served.
    pub fn is_honest(&self) -> bool {
        self.odd.is_empty() && !self.races()
    }

    /// Whether it is gone for good when its first connection has ended.
    fn ends(&self) -> bool {
        self.returns % 8 != 1
    }

    fn races(&self) -> bool {
        self.races % 8 == 1
    }

    fn features(&self) -> u64 {
        VERSION_1
            | PROTOCOL_FEATURES
            | if self.event_idx { RING_EVENT_IDX } else { 0 }
            | if self.indirect { RING_INDIRECT_DESC } else { 0 }
            | 1 << 5
    }
}

#[derive(Arbitrary, Clone, Debug)]
enum Answer {
    /// A number, in the form that is asked for.
    Number(u64),
    /// Anything, under the head that is asked for.
    Body(Vec<u8>),
    /// A configuration space.
    Config(u32, u32, Vec<u8>),
    Instead(Message),
    /// Something more, before or behind the answer.
    Before(Message),
    Behind(Message),
    /// A request on its own channel.
    Channel(Message),
    Bytes(Vec<u8>),
    Ends,
}

/// A message with anything in it.
#[derive(Arbitrary, Clone, Debug)]
pub struct Message {
    code: u8,
    flags: Option<u32>,
    size: Option<u32>,
    body: Vec<u8>,
    files: u8,
}

/// What it does by itself.
#[derive(Arbitrary, Debug)]
pub enum Deed {
    /// Says that requests are done, and calls.
    Use(Vec<(Id, Len)>),
    /// Writes the used index, and calls.
    Index(u16),
    /// Writes anywhere into its memory.
    Write(u32, Vec<u8>),
    /// Fills all of it behind the rings.
    Fill(u8),
    /// Says when it wants to be kicked.
    Event(u16),
    Call,
    /// Fills its kick.
    Kick(u64),
    Channel(Message),
    Unasked(Message),
    Ends,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Id {
    /// The request that came so many before the last one.
    Recent(u8),
    Any(u32),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Len {
    Some(u8),
    /// All that there is room for, and so much more.
    About(i8),
    Any(u32),
}

/// What it has been given.
#[derive(Default)]
struct Given {
    memory: Option<Arc<MmapRegion>>,
    /// Its address in messages and descriptors.
    base: u64,
    /// Descriptors, used ring, available ring.
    ring: [u64; 3],
    kick: Option<File>,
    call: Option<File>,
    channel: Option<UnixStream>,
    connection: Option<UnixStream>,
    used: u16,
    open: bool,
    over: bool,
}

/// See the module.
pub struct BackEnd {
    _directory: TempDir,
    socket: PathBuf,
    ends: bool,
    given: Arc<Mutex<Given>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl BackEnd {
    /// One that listens.
    pub fn new(character: Character) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let directory = directory.expect("a directory");
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let given = Arc::new(Mutex::new(Given::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let ends = character.ends();
        if character.races() {
            let seed = character.races.into();
            let (given, stop) = (Arc::clone(&given), Arc::clone(&stop));
            threads.push(std::thread::spawn(move || race(seed, &given, &stop)));
        }
        let (theirs, stopped) = (Arc::clone(&given), Arc::clone(&stop));
        threads.push(std::thread::spawn(move || {
            listen(&listener, &character, &theirs, &stopped);
        }));
        BackEnd {
            _directory: directory,
            socket,
            ends,
            given,
            stop,
            threads,
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether nobody is there, or nobody will serve any more.
    pub fn is_over(&self) -> bool {
        let given = self.given();
        given.over || self.ends && !given.open
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock().expect("nobody panics")
    }

    /// Does something; a back end that has not been given it cannot.
    pub fn act(&mut self, deed: Deed) {
        let mut given = self.given();
        match deed {
            Deed::Channel(message) => {
                if let Some(channel) = &given.channel {
                    message.send(channel);
                }
            }
            Deed::Unasked(message) => {
                if let Some(connection) = &given.connection {
                    message.send(connection);
                }
            }
            Deed::Ends => given.end(),
            Deed::Kick(count) => {
                if let Some(kick) = &mut given.kick {
                    let _ = kick.write(&count.to_ne_bytes());
                }
            }
            Deed::Call => given.call(),
            Deed::Use(entries) => given.use_requests(&entries),
            Deed::Index(index) => {
                given.write(given.ring[1] + 2, &index.to_le_bytes());
                given.call();
            }
            Deed::Write(at, bytes) => {
                let size = given.memory.as_ref().map_or(1, |memory| memory.size());
                let at = given.base + u64::from(at) % size as u64;
                given.write(at, &bytes);
            }
            Deed::Fill(byte) => given.fill(byte),
            Deed::Event(event) => {
                let at = given.ring[1] + 4 + 8 * u64::from(super::SHADOW);
                given.write(at, &event.to_le_bytes());
            }
        }
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.given().end();
        // nobody may listen any more
        let _ = UnixStream::connect(&self.socket);
        for thread in self.threads.drain(..) {
            thread.join().expect("the back end is as it should be");
        }
    }
}

impl Given {
    fn end(&mut self) {
        if let Some(connection) = self.connection.take() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn call(&mut self) {
        if let Some(call) = &mut self.call {
            let _ = call.write(&1u64.to_ne_bytes());
        }
    }

    fn offset(&self, address: u64) -> usize {
        usize::try_from(address.wrapping_sub(self.base)).unwrap_or(usize::MAX)
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let Some(memory) = &self.memory else { return };
        if let Ok(slice) = memory.get_slice(self.offset(address), bytes.len()) {
            slice.copy_from(bytes);
        }
    }

    fn read(&self, address: u64) -> u16 {
        let Some(memory) = &self.memory else { return 0 };
        let slice = memory.get_slice(self.offset(address), 2);
        let value = slice.and_then(|slice| slice.read_obj::<u16>(0));
        value.unwrap_or(0)
    }

    fn fill(&self, byte: u8) {
        let behind = self.ring[1] + 6 + 8 * u64::from(super::SHADOW);
        let len = self.memory.as_ref().map_or(0, |memory| memory.size());
        let len = len.saturating_sub(self.offset(behind));
        self.write(behind, &vec![byte; len]);
    }

    fn read_u32(&self, address: u64) -> u32 {
        u32::from(self.read(address)) | u32::from(self.read(address + 2)) << 16
    }

    /// Bytes that may be written for the request of a descriptor with a small
    /// table, or of the first descriptor of a chain.
    fn room(&self, id: u32) -> u32 {
        let of = |at: u64| {
            let writable = self.read(at + 12) & 2 != 0;
            if writable { self.read_u32(at + 8) } else { 0 }
        };
        let head = self.ring[0] + 16 * u64::from(id);
        if self.read(head + 12) & 4 == 0 {
            return of(head);
        }
        let table = u64::from(self.read_u32(head)) | u64::from(self.read_u32(head + 4)) << 32;
        let count = (self.read_u32(head + 8) / 16).min(12);
        let rooms = (0..count).map(|at| of(table + 16 * u64::from(at)));
        rooms.fold(0, u32::wrapping_add)
    }

    fn use_requests(&mut self, entries: &[(Id, Len)]) {
        let [_, used, avail] = self.ring;
        let size = super::SHADOW;
        let last = self.read(avail + 2);
        for (id, len) in entries {
            let id = match id {
                Id::Recent(back) => {
                    let at = last.wrapping_sub(1).wrapping_sub((*back).into()) % size;
                    self.read(avail + 4 + 2 * u64::from(at)).into()
                }
                Id::Any(id) => *id,
            };
            let len = match len {
                Len::Some(len) => (*len).into(),
                Len::About(less) => self.room(id).wrapping_add_signed((*less).into()),
                Len::Any(len) => *len,
            };
            let at = used + 4 + 8 * u64::from(self.used % size);
            self.write(at, &[id.to_le_bytes(), len.to_le_bytes()].concat());
            self.used = self.used.wrapping_add(1);
        }
        self.write(used + 2, &self.used.to_le_bytes());
        self.call();
    }
}

/// Changes memory while it is looked at, as far as there is any.
fn race(mut random: u64, given: &Mutex<Given>, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let given = given.lock().expect("nobody panics");
        let size = given.memory.as_ref().map_or(1, |memory| memory.size());
        // mostly the rings
        let most = if random & 3 == 0 { size as u64 } else { 1024 };
        let at = (random >> 8) % most;
        given.write(given.base + at, &[(random >> 56) as u8]);
        drop(given);
        std::thread::yield_now();
    }
}

fn listen(listener: &UnixListener, character: &Character, given: &Mutex<Given>, stop: &AtomicBool) {
    let mut number = 0;
    for stream in listener.incoming().take(CONNECTIONS) {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let stream = stream.expect("a connection");
        let mut now = given.lock().expect("nobody panics");
        *now = Given {
            connection: stream.try_clone().ok(),
            open: true,
            ..Given::default()
        };
        drop(now);
        converse(&stream, character, given, &mut number);
        let _ = stream.shutdown(Shutdown::Both);
        given.lock().expect("nobody panics").open = false;
        if character.ends() {
            break;
        }
    }
    given.lock().expect("nobody panics").over = true;
}

/// Takes messages until the connection ends.
fn converse(stream: &UnixStream, character: &Character, given: &Mutex<Given>, number: &mut usize) {
    while let Some(Told {
        code,
        flags,
        body,
        files,
    }) = receive(stream)
    {
        let answer = match answer(character, code, &body) {
            Some(body) => Some(body),
            None if flags & NEED_REPLY != 0 => Some(vec![0; 8]),
            None => None,
        };
        note(
            &mut given.lock().expect("nobody panics"),
            code,
            &body,
            files,
        );
        let odd = character.odd.iter().take(4);
        let now = *number;
        *number += 1;
        let odd = odd.filter(|(at, _)| usize::from(*at) == now);
        let mut honest = answer.map(|body| Message::answer(code, body));
        for (_, odd) in odd {
            match odd.clone() {
                Answer::Number(value) => {
                    let bytes = value.to_ne_bytes().to_vec();
                    honest = honest.map(|_| Message::answer(code, bytes));
                }
                Answer::Body(bytes) => honest = honest.map(|_| Message::answer(code, bytes)),
                Answer::Config(at, size, bytes) => {
                    let words = [at, size, 0].map(u32::to_ne_bytes).concat();
                    honest = honest.map(|_| Message::answer(code, [words, bytes].concat()));
                }
                Answer::Instead(message) => honest = Some(message),
                Answer::Before(message) => message.send(stream),
                Answer::Behind(message) => {
                    honest.take().inspect(|honest| honest.send(stream));
                    message.send(stream);
                }
                Answer::Channel(message) => {
                    let given = given.lock().expect("nobody panics");
                    given.channel.as_ref().inspect(|to| message.send(to));
                }
                Answer::Bytes(bytes) => {
                    let _ = (&*stream).write(&bytes);
                    let _ = stream.shutdown(Shutdown::Write);
                }
                Answer::Ends => return,
            }
        }
        honest.inspect(|honest| honest.send(stream));
    }
}

impl Message {
    fn answer(code: u32, body: Vec<u8>) -> Self {
        Message {
            code: u8::try_from(code).unwrap_or(0),
            flags: Some(REPLY),
            size: None,
            body,
            files: 0,
        }
    }

    /// Says it. Who then waits for bytes that do not come hears that there are
    /// none.
    fn send(&self, to: &UnixStream) {
        let len = self.body.len() as u32;
        let size = self.size.unwrap_or(len);
        let head = [self.code.into(), self.flags.unwrap_or(VERSION), size];
        let bytes = [head.map(u32::to_ne_bytes).concat(), self.body.clone()].concat();
        let files: Vec<File> = (0..self.files % FILES)
            .map_while(|_| File::open("/dev/null").ok())
            .collect();
        let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let _ = to.set_nonblocking(true);
        let _ = to.send_with_fds(&[&bytes[..]], &files);
        let _ = to.set_nonblocking(false);
        if size > len && size <= BODY_MAX {
            let _ = to.shutdown(Shutdown::Write);
        }
    }
}

/// What the front end says.
struct Told {
    code: u32,
    flags: u32,
    body: Vec<u8>,
    files: Vec<OwnedFd>,
}

fn receive(stream: &UnixStream) -> Option<Told> {
    let mut head = [0; HEAD];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut head)];
    let got = recvmsg(stream, parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let files = files.flatten().collect();
    if got.bytes == 0 {
        return None;
    }
    let mut stream = stream;
    stream.read_exact(head.get_mut(got.bytes..)?).ok()?;
    let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().expect("four bytes"));
    assert!(word(8) <= BODY_MAX, "the front end says too much");
    let mut body = vec![0; word(8) as usize];
    stream.read_exact(&mut body).ok()?;
    Some(Told {
        code: word(0),
        flags: word(4),
        body,
        files,
    })
}

fn answer(character: &Character, code: u32, body: &[u8]) -> Option<Vec<u8>> {
    let is = |request: FrontendReq| code == request as u32;
    let number = |value: u64| Some(value.to_ne_bytes().to_vec());
    if is(FrontendReq::GET_FEATURES) {
        number(character.features())
    } else if is(FrontendReq::GET_PROTOCOL_FEATURES) {
        number(PROTOCOL & !u64::from(character.lacks))
    } else if is(FrontendReq::GET_QUEUE_NUM) {
        number(1)
    } else if is(FrontendReq::GET_VRING_BASE) {
        Some([&body[..4], &[0; 4]].concat())
    } else if is(FrontendReq::GET_CONFIG) {
        Some([&body[..HEAD], &vec![character.config; body.len() - HEAD]].concat())
    } else {
        None
    }
}

fn note(given: &mut Given, code: u32, body: &[u8], files: Vec<OwnedFd>) {
    let is = |request: FrontendReq| code == request as u32;
    let (longs, _) = body.as_chunks::<8>();
    let long = |at: usize| longs.get(at).map_or(0, |long| u64::from_ne_bytes(*long));
    let file = files.into_iter().next();
    if is(FrontendReq::SET_MEM_TABLE) {
        assert_eq!((long(0), body.len()), (1, 40), "one region and no other");
        given.base = long(1);
        let file = FileOffset::new(file.expect("its file").into(), long(4));
        let len = usize::try_from(long(2)).expect("its length");
        given.memory = MmapRegion::from_file(file, len).ok().map(Arc::new);
    } else if is(FrontendReq::SET_VRING_ADDR) {
        given.ring = [long(1), long(2), long(3)];
        given.used = 0;
    } else if is(FrontendReq::SET_VRING_KICK) {
        given.kick = file.map(File::from);
    } else if is(FrontendReq::SET_VRING_CALL) {
        given.call = file.map(File::from);
    } else if is(FrontendReq::SET_BACKEND_REQ_FD) {
        given.channel = file.map(UnixStream::from);
    }
}
