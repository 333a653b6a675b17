//! What device and driver say to each other of the ports of a console that has
//! several. virtio 1.3 §5.3.6.2
//!
//! ```text
//! driver ── control transmitq ──► Receiver ─┐ DEVICE_READY, PORT_READY, PORT_OPEN
//!                                           ▼
//! host: a client comes or goes ─────────► Board ── bell ──► Sender ── control receiveq ──► driver
//! ```
//!
//! The [`Board`] keeps what is to be told and not what has happened: however
//! often a driver asks, or a client comes and goes, there is one note for each
//! thing.

mod board;
mod message;
mod receiver;
mod sender;

pub(super) use board::{Board, Next, Place};
pub(super) use receiver::Receiver;
pub(super) use sender::Sender;
