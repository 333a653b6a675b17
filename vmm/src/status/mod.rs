//! `xen-dm status`: what a running daemon serves, and what it has counted.
//!
//! ```text
//!  xen-dm status          status thread              control thread      guests' threads
//!  (client.rs)            (server.rs, desk.rs)       (daemon)
//!   connect ─────────────► accept
//!   request line ────────► parse ── Desk::asked ───► gather ──────────► counters
//!   print ◄─ answer line ─ write ◄─ Desk::answer ──┘
//! ```
//!
//! The daemon's control thread takes part in one step alone, with a request
//! that makes sense; everything that a client can do wrong ends on the status
//! thread, which never blocks on one, keeps few of them, and each for a
//! bounded time and memory.
//!
//! # Protocol
//!
//! A unix stream socket, mode 0600. A client sends one line of JSON
//! ([`Request`]), gets one line of JSON ([`Answer`]), and the connection ends:
//!
//! ```text
//! {"version":1,"command":"status"}
//! {"version":1,"status":{"version":1,"daemon":{...},"guests":[...],"refused":[...],"ending":[...]}}
//! ```
//!
//! or `{"version":1,"error":"why not"}`. `xen-dm status --json` prints the
//! [`Status`] in it. Keys are only ever added;
//! [`VERSION`] counts up when one changes its meaning or goes.

mod client;
mod desk;
mod model;
mod protocol;
mod server;
mod socket;
mod table;
#[cfg(test)]
mod tests;

pub use client::{ClientError, ask};
pub use desk::Desk;
pub use model::{
    Addresses, DaemonStatus, DeviceState, DeviceStatus, Dma, Ending, GrantedData, GrantedSize,
    GuestCounters, GuestStatus, InterruptsBy, KicksBy, Place, QueueStatus, Refused, Status,
};
pub use protocol::{Answer, REQUEST_MAX, Request, VERSION};
pub use table::print;
