//! A Xen in this process, below the crate's safe API.
//!
//! A [`Machine`] is a hypervisor with its dom0: it gives out the files that
//! `/dev/xen` has ([`Machine::open_privcmd`] and so on) and enforces the
//! rules that Xen and Linux enforce, with the errors they give. A [`Domain`]
//! is a guest: memory in a memfd, [`Vcpu`]s that access emulated registers,
//! a grant table, interrupts. Everything above the files is the same code as
//! on real Xen.
//!
//! What is not real: nobody but dom0 makes hypercalls; a domain's memory
//! belongs to the process, so a mistake of the device model can be seen
//! ([`Machine::census`], [`Domain::broken_grants`], [`GuestHeap::check_poison`])
//! instead of being paid for.
//!
//! Tests and the demonstration use it, from any number of threads.

mod census;
mod config;
mod copy;
mod dm_op;
mod domain;
mod errno;
mod events;
mod evtchn;
mod faults;
mod foreign;
mod gntdev;
mod grants;
mod guest;
mod interrupts;
mod ioeventfd;
mod ioreq;
mod irqfd;
mod machine;
mod privcmd;
mod ram;
mod rangeset;
mod slot;
mod state;
pub mod toolstack;
mod vcpu;
pub mod xenstored;

#[cfg(test)]
mod tests;

pub use census::Census;
pub use config::{DomainConfig, MachineConfig, PrivcmdEventfd};
pub use domain::Domain;
pub use evtchn::EvtchnFile;
pub use faults::{Call, DeviceFile, Target};
pub use foreign::Pin;
pub use gntdev::GntdevFile;
pub use grants::GrantError;
pub use guest::{GuestHeap, HeapError, PoisonBroken, Run};
pub use interrupts::Interrupts;
pub use machine::Machine;
pub use privcmd::PrivcmdFile;
pub use ram::Bank;
pub use vcpu::{AccessFault, Vcpu};
