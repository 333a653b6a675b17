//! A software IO TLB in user space.
//!
//! A guest's driver writes addresses into a ring; whoever serves the guest has
//! to reach the memory behind them. This crate decides how and carries it
//! out. It knows neither Xen's device files nor virtio: the embedder states
//! how memory is reached by implementing [`Translation`] (plain addresses) and
//! [`Grants`] (granted pages), and every byte of guest DMA then takes one way:
//!
//! ```text
//! Job → Dma::map → Mapped → submit → InFlight → Dma::finish → Done
//!           └──── Rejected → Dma::reject ─────────────────────┘
//! ```
//!
//! The types carry the rules. [`Mapped`] owns what keeps its memory alive;
//! [`InFlight`] belongs to the engine until its completion; [`Done`] is made
//! by [`Dma::finish`] and [`Dma::reject`] alone, after everything that was
//! lent for the request has been given back.
//!
//! What a consumer cannot use where it is goes through a bounce buffer:
//!
//! ```text
//! Allocator ── pools, areas, slots        who has memory, and where it is on the bus
//!     └ Device ── DeviceConstraints       who may use it, and what it reaches
//!          └ Worker::map → Mapping        one thread's way in; any thread's way out
//! ```
//!
//! A [`Mapping`] is [`device::Direct`] or [`Bounced`] and owned: dropping it
//! frees its slots, once. A [`Lease`] is the buffer alone, for callers who move
//! the bytes in batches.
//!
//! [`features`] answers which [`Kind`] of mapping a domain has; detection is
//! the only gate.

// tests build addresses out of small numbers
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

pub mod allocator;
pub mod cache;
pub mod constraints;
pub mod contiguity;
pub mod counters;
pub mod device;
pub mod direction;
pub mod dma;
pub mod error;
pub mod exchange;
pub mod fault;
pub mod features;
pub mod foreign;
pub mod grant_dma;
pub mod memory;
pub mod options;
pub mod originals;
mod pool;
pub mod range;
pub mod reason;
pub mod restricted;
pub mod segment;
pub mod sizing;
pub mod source;
pub mod space;
pub mod split;
mod sync;

pub use allocator::{Allocator, Settings, Stats};
pub use constraints::{Consumer, DeviceConstraints};
pub use contiguity::{FrameTranslation, NoTranslation, OneToOne};
pub use counters::{Counters, CountersSnapshot};
pub use device::{
    Attrs, Bounced, Coherent, Device, Keeper, Lease, Mapping, SgElement, SgMapping, Worker,
};
pub use direction::{Direction, SyncFor};
pub use dma::{
    Carry, Dma, Done, GrantClass, GrantMode, GrantPolicy, GrantPolicySnapshot, InFlight, Job,
    JobRanges, Mapped, Rejected,
};
pub use error::Error;
pub use fault::{BounceReason, Fault};
pub use features::{Arch, Detection, FeatureInputs, Kind, detect};
pub use memory::{Anonymous, Base, Memfd, PoolMemory, PoolSource};
pub use options::Options;
pub use originals::{GuestRam, OrigFault, Originals, Window};
pub use pool::area::Policy;
pub use range::{Access, GrantAddress, Need, PAGE_SIZE, Range};
pub use reason::Reason;
pub use segment::{Segment, Segments};
pub use source::{
    CopyBytes, GrantCopy, GrantLoan, Grants, HostRange, Keep, RingMapping, Transfer, TransferBytes,
    Translation,
};
pub use space::AddressSpace;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
