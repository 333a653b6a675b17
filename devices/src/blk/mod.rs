//! The disk: a virtio block device on an image (raw or qcow2, in a file or on a
//! block device), or on nothing.
//! virtio 1.3 §5.2
//!
//! ```text
//! BlkConfig ─validate→ BlkSpec ─open→ BlkDevice ─start_queue→ handler, one a queue
//!                                     └─ Medium: opened and locked once ┘
//! chains → Frame → Parsed → Request → Op through Dma and Engine → status, used
//! ```
//!
//! The transport owns the [`BlkDevice`]; each handler belongs to the worker of
//! its queue. What they share is the medium, which never changes, and counters.

mod cache;
pub mod config;
mod device;
mod engine;
mod handler;
mod image;
mod latency;
mod limit;
mod medium;
mod op;
mod qcow2;
mod request;
mod stats;
mod sys;
#[cfg(test)]
mod tests;
mod zeroes;

pub use config::{BlkConfig, BlkSpec, ConfigError, EngineKind, Format};
pub use device::BlkDevice;
pub use image::ImageError;
pub use qcow2::HeaderError;
#[cfg(fuzzing)]
pub use qcow2::hostile;
pub use stats::{BlkStats, BlkStatsSnapshot};
