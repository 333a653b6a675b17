//! The dirty log: which pages a device has written, for a front end that moves
//! its guest elsewhere.
//!
//! A bit a page, in memory that the front end shares. It is set once the page
//! has been written: set before, the front end might copy the page, clear the
//! bit and miss what is written then. [`Logged`] does it when it is dropped,
//! which is when a mapping is finished and before the driver hears of it.

use std::any::Any;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use swiotlb::Range;
use vm_memory::{MmapRegion, VolatileMemory};

use super::error::Refusal;
use super::memory::map_shared;

/// Bytes of a page of the log. Linux `include/uapi/linux/vhost.h`,
/// VHOST_PAGE_SIZE
const PAGE: u64 = 4096;

/// The log's memory.
#[derive(Debug)]
pub(super) struct DirtyLog(MmapRegion);

impl DirtyLog {
    pub(super) fn map(file: File, offset: u64, len: u64) -> Result<Self, Refusal> {
        map_shared("dirty log", file, offset, len).map(DirtyLog)
    }

    /// Marks the pages of `range`; those that the log has no bit for are not
    /// RAM that the front end moves.
    pub(super) fn mark(&self, range: Range) {
        let last = range.address().saturating_add(u64::from(range.len()) - 1);
        for page in range.address() / PAGE..=last / PAGE {
            let Ok(at) = usize::try_from(page / 8) else {
                return;
            };
            let Ok(bits) = self.0.get_atomic_ref::<AtomicU8>(at) else {
                return;
            };
            bits.fetch_or(1 << (page % 8), Ordering::SeqCst);
        }
    }
}

/// A range being written, and what keeps its memory mapped.
pub(super) struct Logged {
    log: Arc<DirtyLog>,
    range: Range,
    _memory: Arc<dyn Any + Send + Sync>,
}

impl Logged {
    pub(super) fn new(
        log: &Arc<DirtyLog>,
        range: Range,
        memory: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Logged {
            log: Arc::clone(log),
            range,
            _memory: memory,
        }
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        self.log.mark(self.range);
    }
}
