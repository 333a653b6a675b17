//! The source of entropy: a virtio entropy device on the host's random
//! numbers. virtio 1.3 §5.4
//!
//! ```text
//! RngConfig ─validate→ RngSpec ─open→ RngDevice ─start_queue→ handler
//!                                     └─ Source, TokenBucket ──┘
//! chain → tokens? → bytes of the source → copied to the guest → used
//!           │no          │none
//!           └─ timer ────┘  the chain waits, the queue rests
//! ```
//!
//! The transport owns the [`RngDevice`]; the handler belongs to the worker of
//! the one queue. A chain is answered with fresh bytes of the source or not at
//! all: while the source has none, the chain waits.

pub mod config;
mod device;
mod handler;
mod source;
mod stats;
#[cfg(test)]
mod tests;

pub use config::{ConfigError, RngConfig, RngSpec};
pub use device::RngDevice;
pub use source::SourceError;
pub use stats::{RngStats, RngStatsSnapshot};
