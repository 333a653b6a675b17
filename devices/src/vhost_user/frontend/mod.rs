//! Any vhost-user back end as a device of a guest, without giving it the
//! guest's memory; or, where its user wants that ([`config::Memory::Foreign`]),
//! with it (`foreign`).
//!
//! ```text
//! guest's ring      worker, one a queue            memory file       back end
//! ┌──────────┐     ┌────────────────────┐      ┌────────────────┐   (a process)
//! │ chains   │────►│ Request            │      │                │
//! │          │     │  │ Dma::map: bounce├─────►│ slots          │◄──► data
//! │          │     │  ▼                 │      │                │
//! │          │     │ ShadowRing::add   ─┼─────►│ shadow ring    │──── kick ──►
//! │          │     │ take_used, judged ◄┼──────│                │◄─── call ───
//! │ used     │◄────│  │ Dma::finish     │      └────────────────┘
//! └──────────┘     └──┼─────────────────┘               ▲
//!                     ▼ copies back what was declared   │ SET_MEM_TABLE: this
//!                  Mailbox, Wish                        │ file and no other
//!                     ▲                                 │
//!                  Session, one thread a device ────────┴── messages ◄──► socket
//! ```
//!
//! [`VhostUserDevice`] is what the transport owns. Its session connects, finds
//! out what the back end is, and starts and stops rings as the guest's driver
//! wants them; each queue's worker then moves chains and used entries without
//! it and without a lock.
//!
//! # What the back end can do
//!
//! It sees one sealed memory file (`pool`), in which are the shadow rings and
//! the bounce buffers of this device's requests in flight. What the guest gives
//! it to read is copied there; what it may write is zeroed before, and copied
//! to the guest as far as the used entry declares it written. No page of the
//! guest and no other device's data can be reached from there, and what a back
//! end writes beyond what it declares is never read. A used entry that names no
//! request in flight, or more bytes than the request has room for, breaks the
//! device until it is reset; nothing else.
//!
//! Two words of a back end are taken less than literally, because back ends are
//! like that: a length declared for a request that it has nothing to write for
//! is taken for 0 (several count what they have read), and where the
//! configuration says `copy-back = "whole"` all of a buffer is copied back and
//! no length is believed.
//!
//! # When it goes away
//!
//! It may come late, hang, die and come back at any time. What it had done
//! still counts; what it had not is given to the next one, in its order, once:
//! this side keeps the rings and so knows which is which, whether or not a back
//! end tracks its requests (INFLIGHT_SHMFD is not negotiated). A request that it had done without
//! saying so is so done twice: idempotent requests, such as a disk's, do not
//! mind; for others there is `after-restart = "reset"`. What a type of device demands
//! besides is in `semantics`: a socket device's driver is told that its
//! connections are over.
//!
//! A connection has memory of its own, so that a back end that was given up
//! cannot write into its successor's. A guest's reset never waits for a back
//! end: the worker lets go of the guest's memory and leaves; the session stops
//! the ring afterwards, and gives the connection up if there is no answer.
//!
//! Nobody waits for it where the device is made either. Whether a back end that is
//! there can serve the device comes out by [`Device::trial`](crate::virtio::Device):
//! until then, and for a moment at most, the device is its guest's and its user tells
//! nobody of it. A driver's first word waits longer, as long as `start-wait` says:
//! what the back end offers cannot be taken back.
//!
//! A configuration space that is shorter than what a driver reads is zero from
//! its end on; `config-size` insists on a length.
//!
//! Specification: QEMU `docs/interop/vhost-user.rst`.

#[cfg(any(test, fuzzing))]
pub mod by_hand;
pub mod config;
mod connection;
mod device;
mod error;
mod features;
mod foreign;
mod greeting;
mod handler;
mod line;
mod pauses;
mod peer;
mod pool;
mod semantics;
mod session;
mod shadow;
mod shared;
mod slots;
mod stats;
#[cfg(test)]
mod tests;
mod wire;

pub use config::{ConfigError, VhostUserConfig, VhostUserSpec};
pub use device::{OpenError, VhostUserDevice};
pub use error::{SessionError, Violation};
pub use foreign::ForeignError;
pub use stats::{VhostUserStats, VhostUserStatsSnapshot};
