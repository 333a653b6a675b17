//! A guest's side on the fake Xen, driven by the driver crate virtio-drivers.
//!
//! [`DriverMemory`] is the guest's pages, as grants or by plain address;
//! [`hal`] hands them to virtio-drivers; [`Registers`] is a device's register
//! window, read and written by a fake vCPU; [`Disk`] is the driver's disk with
//! bounded waits. Used by the demonstration and by the project's tests, on the
//! threads that play vCPUs.

mod disk;
pub mod hal;
mod memory;
mod pattern;
mod registers;

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

pub use disk::{Disk, DiskError, Outcome, SECTOR};
pub use hal::GuestHal;
pub use memory::{Addresses, DriverMemory, MemoryError};
pub use pattern::Pattern;
pub use registers::{ProbeError, Registers};

/// What a vCPU's thread did not finish in time.
#[derive(Debug, thiserror::Error)]
#[error("{what} did not end within {limit:?}")]
pub struct TimedOut {
    what: &'static str,
    limit: Duration,
}

/// Runs `f` on a thread of its own that plays a vCPU, for at most `limit`:
/// virtio-drivers spins for ever over a device that does not answer. A thread
/// that does not end is left behind; a panic of it is passed on.
///
/// # Errors
/// [`TimedOut`], also when no thread could be had.
pub fn within<R: Send + 'static>(
    what: &'static str,
    limit: Duration,
    f: impl FnOnce() -> R + Send + 'static,
) -> Result<R, TimedOut> {
    let timed_out = || TimedOut { what, limit };
    let (sender, receiver) = channel();
    let span = tracing::Span::current();
    let thread = thread::Builder::new()
        .name("vcpu".into())
        .spawn(move || {
            let _entered = span.enter();
            // whoever waited may have given up
            let _ = sender.send(f());
        })
        .map_err(|_| timed_out())?;
    match receiver.recv_timeout(limit) {
        Ok(result) => {
            // it has nothing left to do but to end
            let _ = thread.join();
            Ok(result)
        }
        Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => Err(timed_out()),
        },
        Err(RecvTimeoutError::Timeout) => Err(timed_out()),
    }
}
