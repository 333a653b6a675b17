//! A file system: trees of files are read and written. virtio 1.3 §5.11

mod wire;

use std::collections::BTreeMap;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Port;
use crate::stand::{Place, Stand};
use wire::{
    AttributesOut, CreateIn, Created, Entry, GetattrIn, InHeader, InitIn, InitOut, MkdirIn, OpenIn,
    OpenOut, Operation, OutHeader, ReleaseIn, TransferIn, WriteOut, names,
};

/// The device's type.
const FILE_SYSTEM: u32 = 26;
/// High priority, and one for requests.
const QUEUES: u16 = 2;
const REQUESTS: u16 = 1;

/// The node of the root directory.
pub const ROOT: u64 = 1;
/// Bytes that one request reads or writes.
const PIECE: usize = 128 << 10;

const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
const O_RDWR: u32 = 2;

/// The content of every file of a tree, by its path.
pub type Tree = BTreeMap<String, Vec<u8>>;

/// An error number of the file system's.
#[derive(Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// The driver.
pub struct FileSystem {
    port: Port,
    unique: u64,
    piece: usize,
}

impl FileSystem {
    /// Brings it up at a place, on this thread, and agrees with it.
    pub fn mount(stand: &Stand, place: &Place) -> Self {
        let mut fs = FileSystem {
            port: Port::new(stand, place, FILE_SYSTEM, QUEUES),
            unique: 2,
            piece: 0,
        };
        let init = InitIn {
            major: wire::MAJOR,
            minor: wire::MINOR,
            max_readahead: 1 << 20,
            ..InitIn::default()
        };
        let agreed: InitOut = fs.ask(Operation::Init, 0, &init, &[]).unwrap();
        assert_eq!(agreed.major, wire::MAJOR);
        fs.piece = PIECE.min(agreed.max_write as usize);
        fs
    }

    /// What the device is called.
    pub fn tag(&self) -> String {
        let bytes: [u8; 36] = self.port.config(0);
        let len = bytes.iter().take_while(|byte| **byte != 0).count();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    }

    /// The queues that it has for requests.
    pub fn request_queues(&self) -> u32 {
        self.port.config(36)
    }

    /// The node of a name in a directory.
    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<u64, Errno> {
        let entry: Entry = self.ask(Operation::Lookup, parent, &(), &terminated(name))?;
        Ok(entry.node)
    }

    /// Bytes of a file.
    pub fn size(&mut self, node: u64) -> Result<usize, Errno> {
        let answer = self.attributes(node)?;
        Ok(answer.attributes.size as usize)
    }

    /// Reads a file.
    pub fn read(&mut self, node: u64) -> Result<Vec<u8>, Errno> {
        let size = self.size(node)?;
        let handle = self.open(Operation::Open, node)?;
        let mut content = Vec::new();
        while content.len() < size {
            let piece = self.piece.min(size - content.len());
            let bytes =
                self.transfer(Operation::Read, node, handle, content.len() as u64, piece)?;
            assert!(!bytes.is_empty(), "the file ends at {}", content.len());
            content.extend(bytes);
        }
        self.release(Operation::Release, node, handle)?;
        Ok(content)
    }

    /// Makes a file with that content.
    pub fn write(&mut self, parent: u64, name: &str, content: &[u8]) -> Result<(), Errno> {
        let create = CreateIn {
            flags: O_RDWR,
            mode: 0o100_644,
            umask: 0o022,
            open_flags: 0,
        };
        let created: Created = self.ask(Operation::Create, parent, &create, &terminated(name))?;
        let (node, handle) = (created.entry.node, created.open.handle);
        let mut at = 0;
        for bytes in content.chunks(self.piece) {
            let write = TransferIn {
                handle,
                offset: at,
                size: bytes.len() as u32,
                ..TransferIn::default()
            };
            let written: WriteOut = self.ask(Operation::Write, node, &write, bytes)?;
            assert_eq!(written.size as usize, bytes.len(), "a write falls short");
            at += bytes.len() as u64;
        }
        self.release(Operation::Release, node, handle)
    }

    /// Makes a directory; gives its node.
    pub fn make_directory(&mut self, parent: u64, name: &str) -> Result<u64, Errno> {
        let mkdir = MkdirIn {
            mode: 0o755,
            umask: 0o022,
        };
        let entry: Entry = self.ask(Operation::Mkdir, parent, &mkdir, &terminated(name))?;
        Ok(entry.node)
    }

    /// The names in a directory, without those of itself and its parent.
    pub fn list(&mut self, node: u64) -> Result<Vec<String>, Errno> {
        let handle = self.open(Operation::Opendir, node)?;
        let mut list = Vec::new();
        let mut offset = 0;
        loop {
            let bytes = self.transfer(Operation::Readdir, node, handle, offset, 4096)?;
            let found = names(&bytes);
            let Some((_, next)) = found.last() else {
                break;
            };
            offset = *next;
            list.extend(found.into_iter().map(|(name, _)| name));
        }
        self.release(Operation::Releasedir, node, handle)?;
        list.retain(|name| name != "." && name != "..");
        Ok(list)
    }

    /// Reads all files below a directory; `path` is what theirs begin with.
    pub fn load(&mut self, node: u64, path: &str) -> Result<Tree, Errno> {
        let mut tree = Tree::new();
        for name in self.list(node)? {
            let path = format!("{path}/{name}");
            let child = self.lookup(node, &name)?;
            let mode = self.attributes(child)?.attributes.mode;
            if mode & S_IFMT == S_IFDIR {
                tree.append(&mut self.load(child, &path)?);
            } else {
                tree.insert(path, self.read(child)?);
            }
        }
        Ok(tree)
    }

    /// Writes all files of a tree below a directory, which makes the
    /// directories that they are in.
    pub fn store(&mut self, node: u64, tree: &Tree) -> Result<(), Errno> {
        let mut directories = BTreeMap::from([(String::new(), node)]);
        for (path, content) in tree {
            let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
            let name = parts.pop().unwrap();
            let (mut walked, mut parent) = (String::new(), node);
            for part in parts {
                walked = format!("{walked}/{part}");
                parent = match directories.get(&walked) {
                    Some(known) => *known,
                    None => self.make_directory(parent, part)?,
                };
                directories.insert(walked.clone(), parent);
            }
            self.write(parent, name, content)?;
        }
        Ok(())
    }

    /// Tells it that nothing follows. virtiofsd gives that no answer.
    pub fn unmount(mut self) {
        let header = self.header(Operation::Destroy, 0, 0);
        let mut answer = OutHeader::default();
        let mut buffers = [answer.as_mut_bytes()];
        let written = self.port.ask(REQUESTS, &[header.as_bytes()], &mut buffers);
        assert!([0, size_of::<OutHeader>()].contains(&written));
        assert_eq!(answer.error, 0);
    }

    fn attributes(&mut self, node: u64) -> Result<AttributesOut, Errno> {
        self.ask(Operation::Getattr, node, &GetattrIn::default(), &[])
    }

    fn open(&mut self, operation: Operation, node: u64) -> Result<u64, Errno> {
        let open: OpenOut = self.ask(operation, node, &OpenIn::default(), &[])?;
        Ok(open.handle)
    }

    fn release(&mut self, operation: Operation, node: u64, handle: u64) -> Result<(), Errno> {
        let release = ReleaseIn {
            handle,
            ..ReleaseIn::default()
        };
        self.ask(operation, node, &release, &[])
    }

    /// Reads at most `size` bytes of a file or a directory.
    fn transfer(
        &mut self,
        operation: Operation,
        node: u64,
        handle: u64,
        offset: u64,
        size: usize,
    ) -> Result<Vec<u8>, Errno> {
        let read = TransferIn {
            handle,
            offset,
            size: size as u32,
            ..TransferIn::default()
        };
        let mut data = vec![0; size];
        let len = self.exchange(operation, node, &[read.as_bytes()], &mut data)?;
        data.truncate(len);
        Ok(data)
    }

    /// A request whose answer is of one kind.
    fn ask<I: IntoBytes + Immutable, O: FromBytes + IntoBytes>(
        &mut self,
        operation: Operation,
        node: u64,
        arguments: &I,
        data: &[u8],
    ) -> Result<O, Errno> {
        let mut answer = O::new_zeroed();
        let parts = [arguments.as_bytes(), data];
        let len = self.exchange(operation, node, &parts, answer.as_mut_bytes())?;
        assert_eq!(len, size_of::<O>(), "the answer to {operation:?}");
        Ok(answer)
    }

    /// What precedes a request of `len` bytes.
    fn header(&mut self, operation: Operation, node: u64, len: usize) -> InHeader {
        self.unique += 2;
        InHeader {
            len: (size_of::<InHeader>() + len) as u32,
            operation: operation as u32,
            unique: self.unique,
            node,
            uid: 0,
            gid: 0,
            pid: 1,
            extensions: 0,
            padding: 0,
        }
    }

    /// A request and its answer; gives the answer's bytes behind its header.
    fn exchange(
        &mut self,
        operation: Operation,
        node: u64,
        parts: &[&[u8]],
        answer: &mut [u8],
    ) -> Result<usize, Errno> {
        let len = parts.iter().map(|part| part.len()).sum();
        let header = self.header(operation, node, len);
        let mut told = OutHeader::default();
        let mut request = vec![header.as_bytes()];
        request.extend(parts.iter().filter(|part| !part.is_empty()));
        let mut buffers = vec![told.as_mut_bytes()];
        buffers.extend((!answer.is_empty()).then_some(answer));
        let written = self.port.ask(REQUESTS, &request, &mut buffers);
        assert_eq!(told.unique, self.unique, "an answer to something else");
        assert_eq!(told.len as usize, written, "the length of an answer");
        match told.error {
            0 => Ok(written - size_of::<OutHeader>()),
            error => Err(Errno(-error)),
        }
    }
}

/// A name as it stands in a request.
fn terminated(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}
