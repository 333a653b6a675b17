//! Interrupts that the device model raised in a domain.
//!
//! Filled by `set_irq_level` and by irqfds, on the thread that raised them;
//! read by fake guests and tests, on theirs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A domain's shared peripheral interrupts, all edge-triggered as libxl
/// declares virtio-mmio's (`libxl_arm.c`).
#[derive(Default, Debug)]
pub struct Interrupts {
    lines: Mutex<Lines>,
    raised: Condvar,
}

#[derive(Default, Debug)]
struct Lines {
    counts: BTreeMap<u32, u64>,
    listeners: BTreeMap<u32, Vec<File>>,
}

impl Interrupts {
    /// Rising edges of `spi` since the domain was made.
    #[must_use]
    pub fn count(&self, spi: u32) -> u64 {
        self.lock().counts.get(&spi).copied().unwrap_or(0)
    }

    /// Waits until `spi` was raised more than `seen` times, and gives the new
    /// count, or `None` after `timeout`.
    #[must_use]
    pub fn wait_past(&self, spi: u32, seen: u64, timeout: Duration) -> Option<u64> {
        let deadline = Instant::now() + timeout;
        let mut lines = self.lock();
        loop {
            let count = lines.counts.get(&spi).copied().unwrap_or(0);
            if count > seen {
                return Some(count);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            lines = self
                .raised
                .wait_timeout(lines, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Has every later edge of `spi` signal the eventfd `fd`.
    ///
    /// # Errors
    /// What `dup` gives.
    pub fn listen(&self, spi: u32, fd: BorrowedFd<'_>) -> io::Result<()> {
        let file = File::from(fd.try_clone_to_owned()?);
        self.lock().listeners.entry(spi).or_default().push(file);
        Ok(())
    }

    /// One rising edge.
    pub(super) fn raise(&self, spi: u32) {
        let mut lines = self.lock();
        *lines.counts.entry(spi).or_default() += 1;
        for mut listener in lines.listeners.get(&spi).into_iter().flatten() {
            // A full or closed eventfd is the listener's affair.
            let _ = listener.write_all(&1u64.to_ne_bytes());
        }
        drop(lines);
        self.raised.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
