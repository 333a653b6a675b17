//! What is wrong with an image that says that it is a qcow2 one.

use std::io;

use thiserror::Error;

/// What is wrong with an image. Names the value.
#[derive(Debug, Error)]
pub enum HeaderError {
    /// The host cannot read it.
    #[error("its header and tables cannot be read")]
    Read(#[source] io::Error),
    /// It ends in its header.
    #[error("it has only {0} bytes: it is cut off, or no qcow2 image")]
    Short(u64),
    /// It does not begin like one.
    #[error("it does not begin as a qcow2 image does; a raw image has format = \"raw\"")]
    Magic,
    /// A version that is not known.
    #[error("qcow2 version {0} is neither 2 nor 3")]
    Version(u32),
    /// A size of clusters that no image has.
    #[error("clusters of 2^{0} bytes are not from 2^9 to 2^21")]
    ClusterBits(u32),
    /// A disk that is too large.
    #[error("a disk of {0} bytes is larger than 2^60")]
    Size(u64),
    /// Its data is encrypted.
    #[error("it is encrypted (method {0}), which is not served")]
    Encrypted(u32),
    /// It needs what is not there.
    #[error("it needs what is not served: {}", .0.join(", "))]
    Features(Vec<String>),
    /// The header's own length makes no sense.
    #[error("its header of {0} bytes is not from 104 to a cluster")]
    HeaderLen(u32),
    /// An extension of the header makes no sense.
    #[error("its header extension {kind:#x} of {len} bytes is cut off")]
    Extension {
        /// Its type.
        kind: u32,
        /// Its length, bytes.
        len: u32,
    },
    /// A width of refcounts that no image has.
    #[error("refcounts of 2^{0} bits are wider than 2^6")]
    RefcountOrder(u32),
    /// A table is misplaced.
    #[error(
        "its {table} of {len} bytes at offset {offset} does not lie in its {end} bytes, in whole \
         clusters: it is cut off or corrupt"
    )]
    Table {
        /// Which.
        table: &'static str,
        /// Where it is said to be.
        offset: u64,
        /// How long it is said to be.
        len: u64,
        /// Bytes of the file.
        end: u64,
    },
    /// A table is too large.
    #[error("its {table} of {len} bytes is larger than {most}")]
    TableLen {
        /// Which.
        table: &'static str,
        /// How long it is said to be.
        len: u64,
        /// The most.
        most: u64,
    },
    /// The disk is larger than what its first-level table covers.
    #[error("its L1 table has {entries} entries, and a disk of {size} bytes needs {needed}")]
    L1Short {
        /// How many there are.
        entries: u32,
        /// Size of the disk, bytes.
        size: u64,
        /// How many there should be.
        needed: u64,
    },
    /// An entry of the first-level table has bits that mean nothing.
    #[error("its L1 table is corrupt: entry {index} is {entry:#x}")]
    L1Entry {
        /// Which.
        index: u64,
        /// What it is.
        entry: u64,
    },
    /// An entry of the refcount table makes no sense.
    #[error("its refcount table is corrupt: entry {index} is {entry:#x}")]
    Refcounts {
        /// Which.
        index: u64,
        /// What it is.
        entry: u64,
    },
    /// The backing file's name is none.
    #[error("the name of its backing file, {len} bytes at {offset}, is no text in its header")]
    BackingName {
        /// Where it is said to be.
        offset: u64,
        /// How long it is said to be.
        len: u32,
    },
    /// The backing file's format would have to be guessed.
    #[error(
        "it does not say which format its backing file {0:?} has, and a guest may have written \
         what it looks like: qemu-img rebase -u -F raw (or qcow2) -b {0:?} tells it"
    )]
    BackingUnknown(String),
    /// The backing file has a format that is not known.
    #[error("its backing file {name:?} has format {format:?}, and raw and qcow2 are served")]
    BackingFormat {
        /// The backing file.
        name: String,
        /// Its format.
        format: String,
    },
}
