//! The console: a virtio console of one port or several, each on a terminal, a
//! socket or a file of the host. virtio 1.3 §5.3
//!
//! ```text
//! ConsoleConfig ─validate→ ConsoleSpec ─open→ ConsoleDevice ─start_queue→ handlers
//!                                             └─ Port: endpoint, size, ────┘
//!                                                what is parked over a reset
//! transmitq: chains → copied → Outbox, bounded → Stream::write, never blocking
//!                            → Log, if there is one
//! receiveq:  Stream::read, only while chains wait → copied → used
//! ```
//!
//! The transport owns the [`ConsoleDevice`]; each handler belongs to the worker
//! of its queue. The two of a port share a connection's descriptor, which one
//! of them reads and the other writes, and no lock but to find out which
//! connection it is after it has come or gone.
//!
//! # Several ports
//! The first port is the console. With a name for it or with further ports the
//! device offers VIRTIO_CONSOLE_F_MULTIPORT and has two queues more, for what is
//! said of ports. A driver that does not take the feature has the
//! console alone. Each port has a buffer, a reader and workers of its own; none
//! waits for another.
//!
//! A port whose host's end is a socket is open while somebody is connected to
//! it; a terminal and a file always are. What the host writes to a port that the
//! guest has not opened waits: Linux would throw it away.
//!
//! # Back pressure
//! What the guest writes is copied into a buffer of the host
//! ([`ConsoleConfig::buffer`] bytes) and then belongs to the console: it
//! survives resets, and readers that vanish. When the buffer is full, the
//! guest's chains are held until someone reads, or the oldest bytes are
//! dropped ([`WhenFull`]). Linux's hvc driver spins with a lock held while a
//! chain is held: a guest that shall never wait for its reader wants `drop`.
//! What the host writes is read only when the guest has room for it, so that
//! the host's writer is held back.
//!
//! A connection's own buffer in the kernel is its reader's: what a vanished
//! socket client had not read of it is gone. A terminal keeps it for the next
//! reader. When a console is removed, what is buffered still is written as far
//! as that does not block; the rest is counted and lost.

pub mod config;
mod control;
mod device;
mod endpoint;
mod input;
mod log;
mod outbox;
mod output;
mod port;
mod reach;
mod size;
mod stats;
#[cfg(test)]
mod tests;
mod waiter;

pub use config::{Backend, ConfigError, ConsoleConfig, ConsoleSpec, PortConfig, WhenFull};
pub use device::{ConsoleDevice, ConsoleHandle};
pub use endpoint::EndpointError;
pub use stats::{ConsoleStats, ConsoleStatsSnapshot, ControlStats, ControlStatsSnapshot};
