//! The network card: a virtio net device on a tap of the host, or on a unix
//! socket. virtio 1.3 §5.1
//!
//! ```text
//! NetConfig ─validate→ NetSpec ─open→ NetDevice ─start_queue→ handlers
//!                                     └─ Port: Wire, filter, link ─┘
//! receiveq:  Wire → filter → as many chains as the frame fills → one copy a
//!            batch → used, the chains of a frame together
//! transmitq: chains → one copy a batch → header checked → Wire
//! controlq:  command → another filter, other queues, other offloads → answer
//! ```
//!
//! The transport owns the [`NetDevice`]; each handler belongs to the worker of
//! its queue. Receive and transmit queues come in pairs, and each pair of a tap
//! has a queue of the tap to itself. What they share, the `Port`, is read with
//! atomics; a filter is taken when its number has changed.
//!
//! # The other end
//! A **tap** is read and written with virtio's header in front of each frame,
//! so that checksums and segmentation pass through as the guest and the kernel
//! agree on them; a header that uses what was not negotiated is refused, and
//! the rest of it is checked by the kernel, on a copy that the guest cannot
//! change. A **socket** needs no privilege: frames go over it as they do over
//! QEMU's `-netdev stream`, without offloads.
//!
//! A tap that is removed, and an other end that goes, take the link down, which
//! the guest is told. A socket is connected again; a tap stays lost until the
//! card is made anew. A tap whose interface is down on the host takes the link
//! down as long as it is, and so does `link = "down"`.
//!
//! A guest whose link has come up, or whose tap was put on another bridge, is
//! asked to announce itself a moment later: the switches between have forgotten
//! it, or look for it elsewhere.
//!
//! # Bounds
//! For each pair of queues: one frame that finds too few chains, what one read
//! of a socket brings, and a batch of the guest's frames, a few hundred KiB. A
//! flood waits in the tap or the socket, or is lost there. Frames for an other
//! end that takes none are dropped after a second.
//!
//! # The guest's address
//! It is configured, or made of the guest's identity by whoever knows it
//! ([`NetSpec::or_address_of`]), or else of the host's and the interface: the
//! same each time, and locally administered.

pub mod config;
mod control;
mod device;
mod features;
mod filter;
mod frame;
mod interface;
mod link;
mod mac;
mod port;
mod receive;
mod stats;
mod sys;
mod tap;
#[cfg(test)]
mod tests;
mod transmit;

pub use config::{Cable, ConfigError, NetConfig, NetSpec};
pub use device::{NetDevice, NetHandle};
pub use port::OpenError;
pub use stats::{NetStats, NetStatsSnapshot};
pub use tap::TapError;
