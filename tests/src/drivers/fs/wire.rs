//! FUSE's messages as they lie in buffers. linux/include/uapi/linux/fuse.h

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The version that is spoken.
pub const MAJOR: u32 = 7;
pub const MINOR: u32 = 38;

/// Operations.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Operation {
    Lookup = 1,
    Getattr = 3,
    Mkdir = 9,
    Open = 14,
    Read = 15,
    Write = 16,
    Release = 18,
    Init = 26,
    Opendir = 27,
    Readdir = 28,
    Releasedir = 29,
    Create = 35,
    Destroy = 38,
}

/// Before every request.
#[derive(Debug, IntoBytes, Immutable)]
#[repr(C)]
pub struct InHeader {
    pub len: u32,
    pub operation: u32,
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    pub extensions: u16,
    pub padding: u16,
}

/// Before every answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct OutHeader {
    pub len: u32,
    pub error: i32,
    pub unique: u64,
}

#[derive(Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct InitIn {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    pub flags: u32,
    pub flags2: u32,
    pub unused: [u32; 11],
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct InitOut {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    pub flags: u32,
    pub max_background: u16,
    pub congestion_threshold: u16,
    pub max_write: u32,
    pub time_granularity: u32,
    pub max_pages: u16,
    pub map_alignment: u16,
    pub flags2: u32,
    pub unused: [u32; 7],
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Attributes {
    pub inode: u64,
    pub size: u64,
    pub blocks: u64,
    pub times: [u64; 3],
    pub times_ns: [u32; 3],
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub device: u32,
    pub block_size: u32,
    pub flags: u32,
}

/// A name's node.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Entry {
    pub node: u64,
    pub generation: u64,
    pub entry_valid: u64,
    pub attributes_valid: u64,
    pub entry_valid_ns: u32,
    pub attributes_valid_ns: u32,
    pub attributes: Attributes,
}

#[derive(Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct GetattrIn {
    pub flags: u32,
    pub padding: u32,
    pub handle: u64,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct AttributesOut {
    pub valid: u64,
    pub valid_ns: u32,
    pub padding: u32,
    pub attributes: Attributes,
}

#[derive(Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct MkdirIn {
    pub mode: u32,
    pub umask: u32,
}

#[derive(Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct OpenIn {
    pub flags: u32,
    pub open_flags: u32,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct OpenOut {
    pub handle: u64,
    pub flags: u32,
    pub padding: u32,
}

#[derive(Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct CreateIn {
    pub flags: u32,
    pub mode: u32,
    pub umask: u32,
    pub open_flags: u32,
}

/// The answer to a creation.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Created {
    pub entry: Entry,
    pub open: OpenOut,
}

/// A read of a file or a directory, or a write; the data follows.
#[derive(Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct TransferIn {
    pub handle: u64,
    pub offset: u64,
    pub size: u32,
    pub transfer_flags: u32,
    pub lock_owner: u64,
    pub flags: u32,
    pub padding: u32,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct WriteOut {
    pub size: u32,
    pub padding: u32,
}

#[derive(Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct ReleaseIn {
    pub handle: u64,
    pub flags: u32,
    pub release_flags: u32,
    pub lock_owner: u64,
}

/// Before each name of a directory.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct DirectoryEntry {
    inode: u64,
    next: u64,
    name_len: u32,
    kind: u32,
}

/// Names in what a read of a directory gave, each with the offset at which the
/// directory goes on behind it.
pub fn names(mut bytes: &[u8]) -> Vec<(String, u64)> {
    let mut names = Vec::new();
    while let Ok((entry, rest)) = DirectoryEntry::read_from_prefix(bytes) {
        let len = entry.name_len as usize;
        let name = String::from_utf8(rest[..len].to_vec()).unwrap();
        names.push((name, entry.next));
        bytes = &rest[len.next_multiple_of(8)..];
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_sizes_of_the_protocol() {
        let sizes = [
            size_of::<InHeader>(),
            size_of::<OutHeader>(),
            size_of::<InitIn>(),
            size_of::<InitOut>(),
            size_of::<Entry>(),
            size_of::<AttributesOut>(),
            size_of::<Created>(),
            size_of::<TransferIn>(),
            size_of::<ReleaseIn>(),
        ];

        assert_eq!(sizes, [40, 16, 64, 64, 128, 104, 144, 40, 24]);
    }

    #[test]
    fn names_of_a_directory_are_padded_to_eight_bytes() {
        let mut bytes = Vec::new();
        for (next, name) in [(7_u64, "a"), (9, "nine-char")] {
            bytes.extend([0; 8]);
            bytes.extend(next.to_le_bytes());
            bytes.extend((name.len() as u32).to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(name.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }

        let names = names(&bytes);

        assert_eq!(names, [("a".into(), 7), ("nine-char".into(), 9)]);
    }
}
