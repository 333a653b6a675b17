//! Serving any VMM: devices as vhost-user back ends.
//!
//! A [`Server`] is one device on one socket, on a thread of its own; the
//! command line makes it. Beside `virtio::mmio` this is the second front of the
//! same devices: it owns a [`Device`](crate::virtio::Device), maps the memory
//! that the front end shares, and starts a [worker](crate::virtio::worker) for
//! each ring that is enabled and has a kick.
//!
//! ```text
//!             socket                       kick, call: eventfds
//! front end ◄────────► Server ── Backend ── Ring ── worker ── handler
//!                      listens   messages   one a queue   │
//!                                   │                     │ Dma
//!                                   └── Memory ◄──────────┘ plain: the regions as they are mapped
//! ```
//!
//! Messages are the crate `vhost`'s: its `BackendReqHandler` reads and checks
//! them and calls [`messages::Backend`]. The crate `vhost-user-backend`, which
//! is the usual next layer, is not used. It fixes the type of guest memory,
//! where here all bytes go through [`swiotlb::Dma`]; it keeps queues behind
//! locks and calls devices with them, where here a worker owns its queue; it
//! has no in-flight tracking, which has to be written into the queue's own
//! taking and giving back; and it leaves it to the device to stop before a
//! queue's base is told. What is left of it is the table of regions.
//!
//! | protocol feature | |
//! |---|---|
//! | MQ, CONFIG, REPLY_ACK, CONFIGURE_MEM_SLOTS | as stated by the specification |
//! | INFLIGHT_SHMFD | the front end keeps the region; [`Inflight`](crate::virtio::queue::inflight::Inflight) writes it. If it is not negotiated, the region is private and serves a stop and a start |
//! | RESET_DEVICE | all rings stopped and disabled, the device reset; memory stays |
//! | LOG_SHMFD, VHOST_F_LOG_ALL | pages are marked once the device has written them and before the driver can see it; a used ring when its worker gives it back |
//!
//! A ring's base is told when its worker has given the queue back: what was in
//! flight is finished, and what was taken and not served is available again.
//!
//! BACKEND_REQ is not offered: `vhost` has no way to send the one message that
//! devices here would have for it, a changed configuration. The call is rung
//! in its place, and a driver that looks finds the new values.
//!
//! A message that makes no sense, or that cannot be carried out, is logged and
//! ends the connection; so does a front end that goes away. Rings are stopped,
//! the device is reset, the memory is unmapped, and the socket listens again.
//! A front end that shrinks a file whose pages it shares kills this process
//! (SIGBUS), as with every back end: it is trusted that far.
//!
//! Specification: QEMU `docs/interop/vhost-user.rst`.

mod early;
pub mod error;
mod fds;
mod inflight;
mod line;
mod log;
mod memory;
pub mod messages;
mod ring;
pub mod server;

pub use error::{Refusal, ServerError};
pub use server::{Server, Stop};
