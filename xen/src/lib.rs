//! Xen from user space, without a C library: hypercalls and device-model
//! operations through `/dev/xen/privcmd`, grants through `/dev/xen/gntdev`,
//! event channels through `/dev/xen/evtchn`, the ioreq page, the xenstore
//! wire, guest memory, and in [`fake`] a Xen in this process that keeps the
//! same rules.
//!
//! Everything above [`Host`] is the same code on real Xen and on the fake:
//! each device file is an enum of the two.

pub mod dm_op;
mod domid;
pub mod evtchn;
pub mod fake;
pub mod features;
pub mod gntdev;
pub mod host;
pub mod ioreq;
pub mod memory;
pub mod privcmd;
mod sys;
pub mod xenstore;

pub use domid::DomId;
pub use host::Host;
pub use sys::abi;
pub use sys::mapping::Mapping;
