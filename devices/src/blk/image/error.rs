//! Why an image cannot be served.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::blk::qcow2::HeaderError;

/// An image that cannot be served. Names the path.
#[derive(Debug, Error)]
pub enum ImageError {
    /// It cannot be opened: it is missing, or access is denied.
    #[error("image {path} cannot be opened for {purpose}")]
    Open {
        /// The image.
        path: PathBuf,
        /// Reading, or reading and writing.
        purpose: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("image {path} is {what}: an image file or a block device is needed")]
    Kind {
        /// The image.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Someone else has it.
    #[error("image {path} is in use by another process or guest")]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// The host could not say whether someone else has it.
    #[error("image {path} cannot be locked")]
    Lock {
        /// The image.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Its size or block size cannot be had.
    #[error("image {path}: its sizes cannot be read")]
    Sizes {
        /// The image.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// It has no bytes.
    #[error(
        "image {path} is empty: give it a size, for example with truncate --size=8G, or with \
         qemu-img resize if it is qcow2"
    )]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// Its size is no whole number of blocks.
    #[error(
        "image {path} has {size} bytes, no multiple of its block size of {block}; the next is {next}"
    )]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size, bytes.
        size: u64,
        /// Its block size, bytes.
        block: u32,
        /// The least multiple above, bytes.
        next: u64,
    },
    /// It cannot be read and written past the host's page cache.
    #[error("image {path} cannot be opened with direct = true: its file system has no direct I/O")]
    NoDirect {
        /// The image.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// It is no qcow2 image that can be served.
    #[error("image {path} cannot be served as qcow2")]
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: HeaderError,
    },
    /// Its tables are refused.
    #[error("image {path} cannot be served as qcow2")]
    Refused {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// What it stands on cannot be served.
    #[error("image {path} has a backing file that cannot be served")]
    Backing {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<ImageError>,
    },
    /// It stands on itself.
    #[error(
        "image {path} has backing file {name:?}, which stands on it: backing files in a circle"
    )]
    Loop {
        /// The image.
        path: PathBuf,
        /// Its backing file.
        name: String,
    },
    /// Too much is below it.
    #[error("image {path} is the last of {most} files on each other, and has a backing file still")]
    Deep {
        /// The image.
        path: PathBuf,
        /// The most files.
        most: usize,
    },
    /// Its backing file is none.
    #[error("image {path} has backing {name:?}, which is no file")]
    NoFile {
        /// The image.
        path: PathBuf,
        /// What it names.
        name: String,
    },
    /// The host forbids io_uring, or has none.
    #[error(
        "image {path}: engine = \"io-uring\" cannot be had here; leave the key out, or use sync"
    )]
    NoIoUring {
        /// The image.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Its physical block size is smaller than its logical one.
    #[error("image {path}: physical-block-size {physical} is below its logical {logical}")]
    Physical {
        /// The image.
        path: PathBuf,
        /// The physical block size, bytes.
        physical: u32,
        /// The logical block size, bytes.
        logical: u32,
    },
}
