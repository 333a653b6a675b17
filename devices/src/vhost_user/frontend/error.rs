//! What can go wrong between this front end and its back end.

use std::io;

use thiserror::Error;

/// Why a connection cannot be made, or has ended. Whoever logs it names the
/// socket.
#[derive(Debug, Error)]
pub enum SessionError {
    /// Nobody listens.
    #[error("nobody serves the socket")]
    NotThere(#[source] io::Error),
    /// The back end has closed the connection.
    #[error("the back end has closed the connection")]
    Closed,
    /// The device is not wanted any more.
    #[error("the device is taken away")]
    Quit,
    /// The host has none left of something.
    #[error("the host has no {0}")]
    Host(&'static str, #[source] io::Error),
    /// The socket failed.
    #[error("{request}: the socket failed")]
    Socket {
        /// What was being said.
        request: &'static str,
        /// How.
        #[source]
        source: io::Error,
    },
    /// The back end does not answer.
    #[error("{request}: no answer within {seconds} s")]
    Silent {
        /// What was asked.
        request: &'static str,
        /// For how long.
        seconds: u64,
    },
    /// An answer that is none.
    #[error("{request}: {why}")]
    Answer {
        /// What was asked.
        request: &'static str,
        /// What is wrong with the answer.
        why: String,
    },
    /// The back end says no.
    #[error("{request}: the back end refuses (it says {code})")]
    Refused {
        /// What was asked.
        request: &'static str,
        /// Its word for it.
        code: u64,
    },
    /// A back end for drivers of before virtio 1.
    #[error("features {features:#x} lack VIRTIO_F_VERSION_1")]
    Legacy {
        /// What it offers.
        features: u64,
    },
    /// A back end with fewer queues than are configured.
    #[error("the back end has {offered} queues, and {wanted} are configured")]
    Queues {
        /// How many it has.
        offered: u64,
        /// How many there should be.
        wanted: u16,
    },
    /// A back end that cannot do what its guest relies on.
    #[error(
        "the back end offers features {offered:#x}; the guest's driver uses {missing:#x} besides"
    )]
    Features {
        /// What it offers.
        offered: u64,
        /// What it lacks.
        missing: u64,
    },
    /// A back end that is another device than its guest knows.
    #[error("the configuration space has changed from byte {at} on while the back end was away")]
    Config {
        /// The first byte that differs.
        at: usize,
    },
    /// A configuration space that is not there.
    #[error("the back end gives {len} bytes of configuration space, and {wanted} are configured")]
    ConfigSize {
        /// Bytes that it gives.
        len: usize,
        /// Bytes that are configured.
        wanted: usize,
    },
    /// A back end that cannot be given foreign memory.
    #[error(
        "the back end lacks the protocol feature XEN_MMAP, without which it cannot map a Xen \
         guest's memory: build it for Xen (rust-vmm's: with the feature \"xen\"), or say memory = \
         \"bounce\""
    )]
    NoXenMmap,
    /// The guest's memory cannot be had.
    #[error("the guest's memory cannot be shared with the back end")]
    Share(#[source] crate::virtio::DeviceError),
    /// The guest's memory lies in too many pieces, or nowhere.
    #[error("the guest's memory has {count} pieces, and a memory table 1 to 8")]
    Regions {
        /// How many.
        count: usize,
    },
    /// No pool.
    #[error("no memory for the back end's pool of {bytes} bytes")]
    Pool {
        /// Its bytes.
        bytes: u64,
        /// Why.
        #[source]
        source: swiotlb::Error,
    },
    /// The back end has broken the rules of a ring.
    #[error("queue {queue}: {violation}")]
    Violation {
        /// Which queue.
        queue: u16,
        /// What it did.
        violation: Violation,
    },
}

/// Which rule of a ring a back end has broken. Everything that it writes there
/// is taken for hostile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// More used entries than there are requests.
    #[error("used index {index} is {ahead} entries ahead, and {in_flight} requests are in flight")]
    Index {
        /// The index found.
        index: u16,
        /// How far ahead it is.
        ahead: u16,
        /// How many there could be.
        in_flight: usize,
    },
    /// A used entry of a request that is not in flight: never was, or was used
    /// already.
    #[error("used entry of descriptor {id}, which is not in flight")]
    NotInFlight {
        /// The entry's id.
        id: u32,
    },
    /// A used entry that declares more than there is room for.
    #[error("used entry of descriptor {id} declares {len} bytes, and its buffers have {room}")]
    Length {
        /// The entry's id.
        id: u32,
        /// Bytes declared.
        len: u32,
        /// Bytes that the device may write.
        room: u64,
    },
    /// The ring's memory cannot be reached.
    #[error("the ring's memory cannot be reached")]
    Memory,
}
