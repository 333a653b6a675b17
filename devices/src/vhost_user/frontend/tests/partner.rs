//! A back end made of raw bytes: it answers as it is told, and does to the
//! shared memory what it is told.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use tempfile::TempDir;
use vhost::vhost_user::message::FrontendReq;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::eventually;
use crate::virtio::features::{RING_INDIRECT_DESC, VERSION_1};
use crate::virtio::queue::Descriptor;

const REPLY: u32 = 4 | 1;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG, RESET_DEVICE, by their numbers.
pub const PROTOCOL: u64 = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 13;

/// Bytes of its record of what is in flight.
const INFLIGHT_BYTES: u64 = 0x240;

/// A message to the back end.
pub struct Said {
    pub code: u32,
    pub body: Vec<u8>,
    pub files: Vec<OwnedFd>,
}

/// What the back end is, and what it says in place of its usual answer.
pub struct Character {
    pub features: u64,
    pub protocol: u64,
    pub queues: u64,
    pub config: Vec<u8>,
    /// Gives less of its configuration space than it is asked for: refuses.
    pub exact: bool,
    /// Bytes in place of the answer to a request; none: no answer at all.
    pub instead: Option<(FrontendReq, Vec<u8>)>,
    /// A message that it leaves lying for now.
    pub left_lying: Option<FrontendReq>,
}

impl Default for Character {
    fn default() -> Self {
        Character {
            features: VERSION_1 | PROTOCOL_FEATURES | RING_INDIRECT_DESC | 1 << 5,
            protocol: PROTOCOL,
            queues: 1,
            config: vec![7; 60],
            exact: false,
            instead: None,
            left_lying: None,
        }
    }
}

/// What it has been given.
#[derive(Default)]
struct Seen {
    said: Vec<(u32, Vec<u8>)>,
    /// What is behind each file it was given, by message.
    files: Vec<(u32, String)>,
    memory: Option<Arc<MmapRegion>>,
    region: [u64; 4],
    /// Descriptors, used ring, available ring.
    ring: [u64; 3],
    size: u16,
    kick: Option<File>,
    call: Option<File>,
    requests: Option<UnixStream>,
    connection: Option<UnixStream>,
    connections: usize,
    /// How far the rings are.
    avail: u16,
    used: u16,
}

/// See the module.
pub struct Partner {
    _directory: TempDir,
    socket: PathBuf,
    pub character: Arc<Mutex<Character>>,
    seen: Arc<Mutex<Seen>>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Partner {
    pub fn new() -> Partner {
        Partner::with(Character::default())
    }

    pub fn with(character: Character) -> Partner {
        let mut partner = Partner::absent(character);
        partner.come();
        partner
    }

    /// One that nobody can connect to yet.
    pub fn absent(character: Character) -> Partner {
        let directory = tempfile::tempdir().unwrap();
        Partner {
            socket: directory.path().join("socket"),
            _directory: directory,
            character: Arc::new(Mutex::new(character)),
            seen: Arc::default(),
            stopped: Arc::default(),
            thread: None,
        }
    }

    /// Listens from now on.
    pub fn come(&mut self) {
        let listener = UnixListener::bind(&self.socket).unwrap();
        let (character, seen) = (Arc::clone(&self.character), Arc::clone(&self.seen));
        let stopped = Arc::clone(&self.stopped);
        self.thread = Some(std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                serve(stream.unwrap(), &character, &seen);
            }
        }));
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    pub fn change(&self, change: impl FnOnce(&mut Character)) {
        change(&mut self.character.lock().unwrap());
    }

    /// Ends the connection and forgets what it had.
    pub fn die(&self) {
        let mut seen = self.seen();
        let connection = seen.connection.take().unwrap();
        connection.shutdown(std::net::Shutdown::Both).unwrap();
        let connections = seen.connections;
        *seen = Seen {
            connections,
            ..Seen::default()
        };
    }

    pub fn connections(&self) -> usize {
        self.seen().connections
    }

    /// The bodies of all messages of a kind that have come on this connection.
    pub fn bodies(&self, request: FrontendReq) -> Vec<Vec<u8>> {
        let seen = self.seen();
        let of_kind = |(code, _): &&(u32, Vec<u8>)| *code == request as u32;
        let found = seen.said.iter().filter(of_kind);
        found.map(|(_, body)| body.clone()).collect()
    }

    /// The code of the last message.
    pub fn last(&self) -> u32 {
        self.seen().said.last().unwrap().0
    }

    /// Waits until a message of a kind has come.
    pub fn wait_for(&self, request: FrontendReq) {
        eventually("a message", || !self.bodies(request).is_empty());
    }

    /// What it was given files of, by message.
    pub fn files(&self) -> Vec<(u32, String)> {
        self.seen().files.clone()
    }

    /// All memory that it can reach.
    pub fn memory(&self) -> Arc<MmapRegion> {
        eventually("memory", || self.seen().memory.is_some());
        self.seen().memory.clone().unwrap()
    }

    /// Where in its memory an address is.
    pub fn offset(&self, address: u64) -> usize {
        let [guest, len, ..] = self.seen().region;
        let offset = address.checked_sub(guest).unwrap();
        assert!(offset < len);
        offset as usize
    }

    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let (memory, offset) = (self.memory(), self.offset(address));
        let mut bytes = vec![0; len];
        memory.get_slice(offset, len).unwrap().copy_to(&mut bytes);
        bytes
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        let (memory, offset) = (self.memory(), self.offset(address));
        memory
            .get_slice(offset, bytes.len())
            .unwrap()
            .copy_from(bytes);
    }

    fn u16_at(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.read(address, 2).try_into().unwrap())
    }

    /// Where its rings are: descriptors, used, available.
    pub fn rings(&self) -> [u64; 3] {
        eventually("a ring", || self.seen().kick.is_some());
        self.seen().ring
    }

    /// Waits for a chain and takes it: its head and its buffers.
    pub fn take(&self) -> (u16, Vec<Descriptor>) {
        let [desc, _, avail] = self.rings();
        let size = self.seen().size;
        let next = self.seen().avail;
        eventually("a chain", || self.u16_at(avail + 2) != next);
        let head = self.u16_at(avail + 4 + 2 * u64::from(next % size));
        self.seen().avail = next.wrapping_add(1);
        let first = self.descriptor(desc, head);
        let table = match first.flags & 4 {
            0 => desc,
            _ => first.addr,
        };
        let mut index = if table == desc { head } else { 0 };
        let mut chain = Vec::new();
        loop {
            let descriptor = self.descriptor(table, index);
            chain.push(descriptor);
            if descriptor.flags & 1 == 0 {
                return (head, chain);
            }
            index = descriptor.next;
        }
    }

    /// Whether a chain is there that was not taken.
    pub fn has_more(&self) -> bool {
        let [_, _, avail] = self.rings();
        self.u16_at(avail + 2) != self.seen().avail
    }

    fn descriptor(&self, table: u64, index: u16) -> Descriptor {
        let bytes = self.read(table + 16 * u64::from(index), 16);
        zerocopy::FromBytes::read_from_bytes(&bytes).unwrap()
    }

    /// Writes used entries and shows them.
    pub fn push_used(&self, entries: &[(u32, u32)]) {
        let [_, used, _] = self.rings();
        let size = self.seen().size;
        let mut next = self.seen().used;
        for (id, len) in entries {
            let at = used + 4 + 8 * u64::from(next % size);
            self.write(at, &[id.to_le_bytes(), len.to_le_bytes()].concat());
            next = next.wrapping_add(1);
        }
        self.seen().used = next;
        self.show_used(next);
    }

    /// Writes the used index as it is, and calls.
    pub fn show_used(&self, index: u16) {
        let [_, used, _] = self.rings();
        self.write(used + 2, &index.to_le_bytes());
        let mut call = self.seen().call.as_ref().unwrap().try_clone().unwrap();
        call.write_all(&1u64.to_ne_bytes()).unwrap();
    }

    /// Whether its driver has kicked since the last call.
    pub fn is_kicked(&self) -> bool {
        eventually("a kick", || self.seen().kick.is_some());
        let mut kick = self.seen().kick.as_ref().unwrap().try_clone().unwrap();
        kick.read(&mut [0; 8]).is_ok()
    }

    /// Fills its kick and has whoever rings it wait.
    pub fn block_kick(&self) {
        eventually("a kick", || self.seen().kick.is_some());
        let mut kick = self.seen().kick.as_ref().unwrap().try_clone().unwrap();
        let flags = rustix::fs::fcntl_getfl(&kick).unwrap();
        let waiting = flags & !rustix::fs::OFlags::NONBLOCK;
        let _ = kick.read(&mut [0; 8]);
        kick.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        rustix::fs::fcntl_setfl(&kick, waiting).unwrap();
    }

    /// Fills everything that it can reach behind its rings with a byte.
    pub fn scribble(&self, byte: u8) {
        let memory = self.memory();
        let [_, used, _] = self.rings();
        let used_len = 6 + 8 * usize::from(self.seen().size);
        let behind = self.offset(used) + used_len.next_multiple_of(64);
        let len = memory.size() - behind;
        let rest = memory.get_slice(behind, len).unwrap();
        rest.copy_from(&vec![byte; len]);
    }

    /// Says that its configuration space has changed, and waits for the answer.
    pub fn tell_config_change(&self) {
        eventually("its own channel", || self.seen().requests.is_some());
        let mut requests = self.seen().requests.as_ref().unwrap().try_clone().unwrap();
        let words = [2u32, 1 | 8, 0].map(u32::to_ne_bytes).concat();
        requests.write_all(&words).unwrap();
        let mut answer = [0; 20];
        requests.read_exact(&mut answer).unwrap();
        assert_eq!(answer[12..], [0; 8]);
    }

    /// Says nothing by itself from now on.
    pub fn close_requests(&self) {
        eventually("its own channel", || self.seen().requests.is_some());
        self.seen().requests = None;
    }

    /// Says something on the connection that nobody has asked for.
    pub fn interject(&self, bytes: &[u8]) {
        let seen = self.seen();
        let mut connection = seen.connection.as_ref().unwrap();
        connection.write_all(bytes).unwrap();
    }

    /// Says something on its own channel.
    pub fn say(&self, bytes: &[u8]) {
        eventually("its own channel", || self.seen().requests.is_some());
        let mut requests = self.seen().requests.as_ref().unwrap().try_clone().unwrap();
        requests.write_all(bytes).unwrap();
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        if let Some(connection) = self.seen().connection.take() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        let _ = UnixStream::connect(&self.socket);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn serve(mut stream: UnixStream, character: &Mutex<Character>, seen: &Mutex<Seen>) {
    {
        let mut seen = seen.lock().unwrap();
        seen.connection = Some(stream.try_clone().unwrap());
        let connections = seen.connections + 1;
        *seen = Seen {
            connection: seen.connection.take(),
            connections,
            ..Seen::default()
        };
    }
    while let Some((flags, said)) = receive(&stream) {
        eventually("a message is taken up", || {
            let lying = character.lock().unwrap().left_lying;
            lying.is_none_or(|request| request as u32 != said.code)
        });
        let answer = {
            let character = character.lock().unwrap();
            match &character.instead {
                Some((code, bytes)) if *code as u32 == said.code => bytes.clone(),
                _ => match answer(&character, &said) {
                    Some(body) => message(said.code, REPLY, &body),
                    None if flags & 8 != 0 => message(said.code, REPLY, &[0; 8]),
                    None => Vec::new(),
                },
            }
        };
        let tracks = said.code == FrontendReq::GET_INFLIGHT_FD as u32;
        note(&mut seen.lock().unwrap(), said);
        let sent = match tracks {
            true => {
                let file = tempfile::tempfile().unwrap();
                stream.send_with_fd(&answer[..], file.as_raw_fd()).is_ok()
            }
            false => stream.write_all(&answer).is_ok(),
        };
        if !sent {
            return;
        }
    }
}

/// A message of the protocol.
pub fn message(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let words = [code, flags, body.len() as u32].map(u32::to_ne_bytes);
    [&words.concat(), body].concat()
}

/// The next message: its flags, and what it says.
pub fn receive(stream: &UnixStream) -> Option<(u32, Said)> {
    let mut files = Vec::new();
    let header = exactly(stream, 12, &mut files)?;
    let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
    let body = exactly(stream, word(8) as usize, &mut files)?;
    let code = word(0);
    Some((word(4), Said { code, body, files }))
}

#[expect(unsafe_code, reason = "files come as numbers")]
fn exactly(stream: &UnixStream, len: usize, files: &mut Vec<OwnedFd>) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        let mut numbers = [-1; 8];
        let mut parts = [libc::iovec {
            iov_base: bytes[filled..].as_mut_ptr().cast(),
            iov_len: len - filled,
        }];
        // SAFETY: the one part is the rest of `bytes`.
        let got = unsafe { stream.recv_with_fds(&mut parts, &mut numbers) };
        let (count, given) = got.ok()?;
        for number in &numbers[..given] {
            // SAFETY: the kernel has just made it for this process.
            files.push(unsafe { OwnedFd::from_raw_fd(*number) });
        }
        if count == 0 {
            return None;
        }
        filled += count;
    }
    Some(bytes)
}

fn answer(character: &Character, said: &Said) -> Option<Vec<u8>> {
    let number = |value: u64| Some(value.to_ne_bytes().to_vec());
    let is = |request: FrontendReq| said.code == request as u32;
    if is(FrontendReq::GET_FEATURES) {
        number(character.features)
    } else if is(FrontendReq::GET_PROTOCOL_FEATURES) {
        number(character.protocol)
    } else if is(FrontendReq::GET_QUEUE_NUM) {
        number(character.queues)
    } else if is(FrontendReq::GET_VRING_BASE) {
        Some([&said.body[..4], &[0; 4]].concat())
    } else if is(FrontendReq::GET_INFLIGHT_FD) {
        Some([&INFLIGHT_BYTES.to_ne_bytes(), &said.body[8..]].concat())
    } else if is(FrontendReq::GET_CONFIG) {
        let asked = said.body.len() - 12;
        let has = character.config.len();
        if character.exact && asked > has {
            return Some([&said.body[..4], &[0; 8]].concat());
        }
        let mut config = character.config.clone();
        config.resize(asked, 0);
        Some([&said.body[..12], &config].concat())
    } else {
        None
    }
}

fn note(seen: &mut Seen, mut said: Said) {
    let is = |request: FrontendReq| said.code == request as u32;
    let longs = |body: &[u8]| -> Vec<u64> {
        let (longs, _) = body.as_chunks::<8>();
        longs.iter().map(|long| u64::from_ne_bytes(*long)).collect()
    };
    for file in &said.files {
        let link = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        let target = std::fs::read_link(link).unwrap();
        seen.files
            .push((said.code, target.to_string_lossy().into_owned()));
    }
    if is(FrontendReq::SET_MEM_TABLE) {
        let words = longs(&said.body);
        assert_eq!(words[0], 1, "one region");
        seen.region = words[1..5].try_into().unwrap();
        let file = FileOffset::new(said.files.remove(0).into(), seen.region[3]);
        let len = seen.region[1] as usize;
        seen.memory = Some(Arc::new(MmapRegion::from_file(file, len).unwrap()));
    } else if is(FrontendReq::SET_VRING_NUM) {
        seen.size = u16::from_ne_bytes(said.body[4..6].try_into().unwrap());
    } else if is(FrontendReq::SET_VRING_BASE) {
        let base = u16::from_ne_bytes(said.body[4..6].try_into().unwrap());
        (seen.avail, seen.used) = (base, base);
    } else if is(FrontendReq::SET_VRING_ADDR) {
        seen.ring = longs(&said.body)[1..4].try_into().unwrap();
    } else if is(FrontendReq::SET_VRING_KICK) {
        seen.kick = Some(said.files.remove(0).into());
    } else if is(FrontendReq::SET_VRING_CALL) {
        seen.call = Some(said.files.remove(0).into());
    } else if is(FrontendReq::SET_BACKEND_REQ_FD) {
        let socket = UnixStream::from(said.files.remove(0));
        socket.set_nonblocking(false).unwrap();
        seen.requests = Some(socket);
    }
    seen.said.push((said.code, said.body));
}
