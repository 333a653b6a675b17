//! What can go wrong between a front end and its device.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a socket cannot be served.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Another process serves this socket.
    #[error("{} is being served by another process", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else has its name.
    #[error("{} is there already and is no socket", path.display())]
    NoSocket {
        /// The socket.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{}: cannot {what}", path.display())]
    System {
        /// What was to be done.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A message that cannot be carried out: the front end's fault, or a failure
/// of the host. It ends the connection.
#[derive(Debug, Error)]
pub enum Refusal {
    /// A ring that the device does not have.
    #[error("there is no ring {index}; the device has {rings}")]
    NoRing {
        /// The ring.
        index: u32,
        /// How many there are.
        rings: usize,
    },
    /// A size that a ring cannot have.
    #[error("ring {index}: size {size} is no power of two up to {max}")]
    Size {
        /// The ring.
        index: u16,
        /// Its size.
        size: u32,
        /// The largest possible.
        max: u16,
    },
    /// A position beyond 16 bits.
    #[error("ring {index}: base {base} is above 65535")]
    Base {
        /// The ring.
        index: u16,
        /// The base.
        base: u32,
    },
    /// Features that were not offered.
    #[error("features {features:#x} have bits that were not offered ({offered:#x})")]
    Features {
        /// What the front end takes.
        features: u64,
        /// What it was offered.
        offered: u64,
    },
    /// A ring without a kick would have to be polled.
    #[error("ring {index}: rings without a kick are not served")]
    NoKick {
        /// The ring.
        index: u16,
    },
    /// A kick, call or error file that is no eventfd.
    #[error("ring {index}: the file for its {role} is no eventfd")]
    NoEvent {
        /// The ring.
        index: u16,
        /// What it is for.
        role: &'static str,
    },
    /// A ring address in no region.
    #[error("ring {index}: {part} at {address:#x} of the front end is in no memory region")]
    RingAddress {
        /// The ring.
        index: u16,
        /// Which part.
        part: &'static str,
        /// The front end's address.
        address: u64,
    },
    /// A ring that cannot be served.
    #[error("ring {index} cannot be started")]
    Start {
        /// The ring.
        index: u16,
        /// Why.
        #[source]
        source: crate::virtio::DeviceError,
    },
    /// Memory that cannot be mapped.
    #[error("{what} of {len} bytes at offset {offset:#x} cannot be mapped")]
    Map {
        /// Which memory.
        what: &'static str,
        /// Bytes.
        len: u64,
        /// Where in its file it starts.
        offset: u64,
        /// Why.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// A region that cannot be.
    #[error("memory region of {len} bytes at {address:#x}: {why}")]
    Region {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        len: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A region for requests in flight that is too small.
    #[error("in-flight region of {bytes} bytes has no room for {rings} rings of {size}")]
    Inflight {
        /// Its bytes.
        bytes: u64,
        /// Rings asked for.
        rings: u16,
        /// Their size.
        size: u16,
    },
    /// The host has none left of something.
    #[error("the host has no {0}")]
    Host(&'static str, #[source] io::Error),
    /// What is not offered, and asked for nevertheless.
    #[error("{0} was not offered")]
    NotOffered(&'static str),
}
