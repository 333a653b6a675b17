//! virtio devices, without knowing who hosts them.
//!
//! [`virtio`] is what all devices share: the register transport, queues, the
//! worker that owns a queue. Each device has a folder of its own, all alike;
//! [`registry`] names them. [`vhost_user`] is the other way to a guest: it
//! serves the same devices to any VMM. Guest memory is reached through
//! [`swiotlb::Dma`] alone; interrupts and memory come from the embedder through
//! the traits in [`virtio::interrupt`] and [`virtio::device`].

// tests build addresses out of small numbers
#![cfg_attr(test, allow(clippy::cast_possible_truncation, clippy::cast_sign_loss))]

pub mod blk;
pub mod console;
pub mod net;
pub mod registry;
pub mod rng;
mod unix;
pub mod vhost_user;
pub mod virtio;
pub mod vsock;

#[cfg(any(test, fuzzing))]
pub mod testing;
