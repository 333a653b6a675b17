//! What carries out a disk's requests.
//!
//! An [`Engine`] belongs to the worker of one queue. It owns every request
//! from [`Engine::submit`] until [`Engine::reap`] gives it back with its
//! outcome noted in its token, so that memory is never returned to a guest
//! while something still writes to it. What an engine gets has passed all
//! checks: its part of the image exists.

mod extents;
mod moves;
mod null;
mod outcome;
mod overlapped;
mod ring;
mod sync;
mod threads;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use swiotlb::{Dma, InFlight, Mapped, Need};

use super::cache::Durability;
use super::config::EngineKind;
use super::medium::Medium;
use super::op::Op;
use super::stats::BlkStats;
use null::Null;
use overlapped::Overlapped;
use sync::Sync;

/// Most requests that a queue gives to its engine at once. A reset waits for
/// no more than these.
const BATCH: usize = 64;

/// An engine of any kind.
pub(super) enum Engine {
    /// System calls, one after the other.
    Sync(Sync, Need),
    /// io_uring or threads: many at a time.
    Overlapped(Box<Overlapped>, Need),
    /// Nothing is carried out.
    Null(Null, Need),
}

/// Whether the host lets this process use io_uring.
///
/// # Errors
/// What the host said: ENOSYS where it has none, EPERM where it is forbidden.
pub(super) fn probe_io_uring() -> io::Result<()> {
    ring::Ring::new(1).map(drop)
}

/// Which engine it will be.
///
/// # Errors
/// As [`probe_io_uring`], where nothing else will do.
pub(super) fn choose(wanted: EngineKind) -> io::Result<EngineKind> {
    match wanted {
        EngineKind::Sync | EngineKind::Threads => Ok(wanted),
        EngineKind::IoUring => probe_io_uring().map(|()| EngineKind::IoUring),
        EngineKind::Auto => Ok(match probe_io_uring() {
            Ok(()) => EngineKind::IoUring,
            Err(error) => {
                tracing::warn!(%error, "no io_uring on this host; threads stand in for it");
                EngineKind::Threads
            }
        }),
    }
}

impl Engine {
    /// An engine on `medium`, of the kind that [`choose`] said. `durability`
    /// says whether a write is durable before it completes, or with the next
    /// flush.
    ///
    /// # Errors
    /// No ring, or no event file.
    pub(super) fn new(
        kind: EngineKind,
        medium: &Medium,
        stats: Arc<BlkStats>,
        durability: Durability,
    ) -> io::Result<Self> {
        let need = medium.need();
        let image = match medium {
            Medium::Image(image) => Arc::clone(image),
            Medium::Null { .. } => return Ok(Engine::Null(Null::default(), need)),
        };
        Ok(match kind {
            EngineKind::IoUring => {
                let engine = Overlapped::on_ring(image, stats, durability)?;
                Engine::Overlapped(Box::new(engine), need)
            }
            EngineKind::Threads => {
                let engine = Overlapped::on_threads(image, stats, durability)?;
                Engine::Overlapped(Box::new(engine), need)
            }
            EngineKind::Auto | EngineKind::Sync => {
                Engine::Sync(Sync::new(image, stats, durability), need)
            }
        })
    }

    /// What it needs of a request's memory.
    pub(super) fn need(&self) -> Need {
        match self {
            Engine::Sync(_, need) | Engine::Overlapped(_, need) | Engine::Null(_, need) => *need,
        }
    }

    /// Before the first batch of a queue, on its worker: makes the pool of its
    /// data path known where that is of use.
    pub(super) fn prepare(&mut self, dma: &mut Dma) {
        match self {
            Engine::Overlapped(engine, need) if need.pinned => {
                engine.register(|| dma.pool_memory())
            }
            Engine::Sync(..) | Engine::Overlapped(..) | Engine::Null(..) => {}
        }
    }

    /// Takes a batch. A flush in it covers every write that completed before
    /// this call, and those of the batch if they complete first.
    pub(super) fn submit(&mut self, batch: Vec<Mapped<Op>>) {
        match self {
            Engine::Sync(engine, _) => engine.submit(batch),
            Engine::Overlapped(engine, _) => engine.submit(batch),
            Engine::Null(engine, _) => engine.submit(batch),
        }
    }

    /// Gives back what was completed since.
    pub(super) fn reap(&mut self) -> Vec<InFlight<Op>> {
        match self {
            Engine::Sync(engine, _) => engine.reap(),
            Engine::Overlapped(engine, _) => engine.reap(),
            Engine::Null(engine, _) => engine.reap(),
        }
    }

    /// How many more requests it takes now.
    pub(super) fn room(&self) -> usize {
        match self {
            // they have completed everything when `submit` returns
            Engine::Sync(..) | Engine::Null(..) => BATCH,
            Engine::Overlapped(engine, _) => BATCH.saturating_sub(engine.in_flight()),
        }
    }

    /// How many requests it has that it will complete later.
    pub(super) fn in_flight(&self) -> usize {
        match self {
            Engine::Sync(..) | Engine::Null(..) => 0,
            Engine::Overlapped(engine, _) => engine.in_flight(),
        }
    }

    /// Becomes readable when there is something to reap, if that can happen
    /// after [`Engine::submit`].
    pub(super) fn event(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Engine::Sync(..) | Engine::Null(..) => None,
            Engine::Overlapped(engine, _) => Some(engine.event()),
        }
    }

    /// Completes everything that it still has; [`Engine::reap`] then gives all
    /// of it back.
    pub(super) fn settle(&mut self) {
        match self {
            Engine::Sync(..) | Engine::Null(..) => {}
            Engine::Overlapped(engine, _) => engine.settle(),
        }
    }
}
