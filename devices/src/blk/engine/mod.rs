//! What carries out a disk's requests.
//!
//! An [`Engine`] belongs to the worker of one queue. It owns every request
//! from [`Engine::submit`] until [`Engine::reap`] gives it back with its
//! outcome noted in its token, so that memory is never returned to a guest
//! while something still writes to it. What an engine gets has passed all
//! checks: its part of the image exists.

mod buffered;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use swiotlb::{InFlight, Mapped};

use super::config::EngineKind;
use super::image::Image;
use super::op::Op;
use super::stats::BlkStats;
use buffered::Buffered;

/// Most requests that a queue gives to its engine at once. A reset waits for
/// no more than these.
const BATCH: usize = 64;

/// An engine of any kind.
pub(super) enum Engine {
    /// System calls through the page cache.
    Buffered(Buffered),
}

impl Engine {
    /// An engine on `image`. With `write_through` a write is durable before it
    /// completes; otherwise with the next flush.
    pub(super) fn new(
        kind: EngineKind,
        image: Arc<Image>,
        stats: Arc<BlkStats>,
        write_through: bool,
    ) -> Self {
        match kind {
            EngineKind::Buffered => Engine::Buffered(Buffered::new(image, stats, write_through)),
        }
    }

    /// Takes a batch. A flush in it covers every write that completed before
    /// this call, and those of the batch.
    pub(super) fn submit(&mut self, batch: Vec<Mapped<Op>>) {
        match self {
            Engine::Buffered(engine) => engine.submit(batch),
        }
    }

    /// Gives back what was completed since.
    pub(super) fn reap(&mut self) -> Vec<InFlight<Op>> {
        match self {
            Engine::Buffered(engine) => engine.reap(),
        }
    }

    /// How many more requests it takes now.
    pub(super) fn room(&self) -> usize {
        match self {
            // it has completed everything when `submit` returns
            Engine::Buffered(_) => BATCH,
        }
    }

    /// Becomes readable when there is something to reap, if that can happen
    /// after [`Engine::submit`].
    pub(super) fn event(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Engine::Buffered(_) => None,
        }
    }

    /// Completes everything that it still has; [`Engine::reap`] then gives all
    /// of it back.
    pub(super) fn settle(&mut self) {
        match self {
            Engine::Buffered(_) => {}
        }
    }
}
