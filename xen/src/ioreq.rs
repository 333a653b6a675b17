//! An ioreq server: how a guest's trapped accesses reach a device model.
//!
//! One [`IoreqServer`] serves one guest and is driven by one thread, the
//! guest's ioreq thread: it waits until the server's descriptor is readable
//! (or a short timer has run out), calls [`IoreqServer::pending`] and decides
//! about each [`Pending`] request, there or on another thread.
//!
//! A slot of the page, seen from here:
//!
//! ```text
//!          Xen: event            pending()               respond() or drop
//! NONE ──────────────▶ READY ───────────────▶ INPROCESS ───────────────────▶ IORESP_READY ──▶ NONE
//!                        │                        ▲                              ▲
//!                        └── the kernel's ────────┴── looked at again, until ────┘
//!                            ioeventfd            it is READY again or answered
//! ```
//!
//! A vCPU waits in Xen for every request, so each is answered, whatever
//! happens to its [`Pending`].

mod page;
mod request;
mod server;

use std::time::Duration;

use thiserror::Error;

pub use request::{Direction, Ioreq, IoreqKind, Pending};
pub use server::IoreqServer;

use crate::dm_op::{self, ServerId};
use crate::domid::DomId;
use crate::{evtchn, privcmd};

/// Why serving requests failed.
#[derive(Debug, Error)]
pub enum Error {
    /// A device-model operation was refused.
    #[error(transparent)]
    DmOp(#[from] dm_op::Error),
    /// The ioreq page could not be mapped.
    #[error("domain {dom}: the ioreq page of server {id} could not be mapped")]
    Page {
        /// The guest.
        dom: DomId,
        /// The server.
        id: ServerId,
        /// Why.
        source: privcmd::Error,
    },
    /// The domain has more vCPUs than the page that Xen gives out has slots,
    /// or none.
    #[error("domain {dom} has {vcpus} vCPUs; from 1 to 128 can be served")]
    Vcpus {
        /// The guest.
        dom: DomId,
        /// How many.
        vcpus: u32,
    },
    /// Xen named no event channel for a vCPU of an enabled server.
    #[error("domain {dom}: server {id} has no event channel for vCPU {vcpu}")]
    NoPort {
        /// The guest.
        dom: DomId,
        /// The server.
        id: ServerId,
        /// The vCPU.
        vcpu: u32,
    },
    /// Another call on the server than its state allows.
    #[error("domain {dom}: server {id} is {}", if *.enabled { "enabled already" } else { "not enabled" })]
    State {
        /// The guest.
        dom: DomId,
        /// The server.
        id: ServerId,
        /// Its state.
        enabled: bool,
    },
    /// An event channel could not be bound, read, or notified.
    #[error("domain {dom}: events of the ioreq server")]
    Events {
        /// The guest.
        dom: DomId,
        /// Why.
        source: evtchn::Error,
    },
    /// A request was no longer INPROCESS when it was to be answered: its slot
    /// was answered by someone else, or the server is gone.
    #[error("domain {dom}: vCPU {vcpu} no longer waits for this answer")]
    Stale {
        /// The guest.
        dom: DomId,
        /// The vCPU.
        vcpu: u32,
    },
}

/// Result of serving requests.
pub type Result<T> = std::result::Result<T, Error>;

/// What remains after [`IoreqServer::pending`].
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[must_use]
pub enum Drained {
    /// Nothing until the descriptor is readable.
    Idle,
    /// Some slot is held by the kernel's ioeventfd: call again after this
    /// time at most, even if the descriptor stays silent.
    LookAgain(Duration),
}

#[cfg(test)]
mod tests;
