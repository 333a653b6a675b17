//! Whether a write may be complete before it is durable.
//! virtio 1.3 §5.2.5.1, VIRTIO_BLK_F_CONFIG_WCE

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A disk's write cache, as its driver has switched it. A clone is the same
/// cache.
#[derive(Clone, Debug)]
pub(super) struct WriteCache(Arc<AtomicBool>);

impl WriteCache {
    pub(super) fn new(on: bool) -> Self {
        WriteCache(Arc::new(AtomicBool::new(on)))
    }

    pub(super) fn switch(&self, on: bool) {
        // the kick of the first request after it orders the two
        self.0.store(on, Ordering::SeqCst);
    }

    pub(super) fn is_on(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// When a write is complete, for the engine of one queue.
#[derive(Clone, Debug)]
pub(super) struct Durability {
    /// The driver can say when it wants everything durable.
    pub can_flush: bool,
    /// What it has switched.
    pub cache: WriteCache,
}

impl Durability {
    /// Whether a write is durable before it completes.
    pub(super) fn write_through(&self) -> bool {
        !self.can_flush || !self.cache.is_on()
    }
}
