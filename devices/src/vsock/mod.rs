//! The socket device: a virtio vsock whose host side is unix sockets.
//! virtio 1.3 §5.10
//!
//! ```text
//! VsockConfig ─validate→ VsockSpec ─open→ VsockDevice ─start_queue→ handlers
//!                                         └─ Hub: listener, bells, Table ─┘
//! tx: headers, one copy → Table::receive → bytes, one copy → Stream::write
//!                             │                └ what it does not take: outbox
//! rx: replies of the Table ←──┘
//!     Stream::read, as far as chains and credit go → packets, one copy → used
//! ```
//!
//! # The host's side
//! It is the convention that Firecracker and Cloud Hypervisor share. A guest
//! that connects to the host's port 52 gets whoever listens on `<path>_52`. A
//! client of the host connects to `<path>`, writes `CONNECT 1024\n`, and reads
//! `OK <port>\n` when the guest has accepted; whatever else happens ends its
//! connection. Clients wait in the kernel's queue while no driver is up.
//!
//! # Who does what
//! The transport owns the [`VsockDevice`]; each handler belongs to the worker
//! of its queue. The transmit queue's writes the host's sockets, the receive
//! queue's reads them and lets clients in; each waits for all of its sockets in
//! one epoll, and no connection has a thread. What they share is the `Table`:
//! which connections there are, their credit, and what the guest has to be
//! told. Its lock is taken to look and to note; a socket is used, and bytes are
//! copied, without it. Whoever writes a connection's outbox has taken it out of
//! the table meanwhile.
//!
//! # Bounds
//! [`VsockConfig::connections`] at once, each with at most
//! [`VsockConfig::buffer`] bytes of the guest's that nobody has read. What the
//! host writes stays in its sockets until the guest has credit and chains for
//! it. A guest that takes no replies is not listened to when 256 wait.
//!
//! When the guest closes a connection it is told at once that it is over, and
//! what it had sent is still written as its reader reads; such remainders are
//! given up, the oldest first, where a new connection finds no room.
//!
//! # virtio-vsock
//! That crate's packet is a view of guest memory, through references to a
//! vm-memory `GuestMemory` that hold for as long as the packet lives. Here
//! guest memory is reached through [`swiotlb::Dma`] alone: by grant copies,
//! which have no such view, and for a batch at a time. So the header is one of
//! our own, and a test reads it with virtio-vsock.

pub mod config;
mod connection;
mod device;
mod door;
mod event;
mod hub;
mod packet;
mod receive;
mod stats;
mod table;
#[cfg(test)]
mod tests;
mod transmit;

pub use crate::unix::ListenError;
pub use config::{ConfigError, VsockConfig, VsockSpec};
pub use device::{VsockDevice, VsockHandle};
pub(crate) use event::TRANSPORT_RESET;
pub use stats::{VsockStats, VsockStatsSnapshot};
