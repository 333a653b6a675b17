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
//! [`features`] answers which [`Kind`] of mapping a domain has; detection is
//! the only gate.

// tests build addresses out of small numbers
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

pub mod contiguity;
pub mod counters;
pub mod dma;
pub mod fault;
pub mod features;
pub mod range;
pub mod segment;
pub mod source;

pub use contiguity::{FrameTranslation, NoTranslation, OneToOne};
pub use counters::{Counters, CountersSnapshot};
pub use dma::{Dma, Done, InFlight, Job, Mapped, Rejected};
pub use fault::{BounceReason, Fault};
pub use features::{Arch, Detection, FeatureInputs, Kind, detect};
pub use range::{Access, GrantAddress, Need, PAGE_SIZE, Range};
pub use segment::{Segment, Segments};
pub use source::{
    GrantCopy, GrantLoan, Grants, HostRange, Keep, RingMapping, Transfer, TransferBytes,
    Translation,
};
