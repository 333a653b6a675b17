//! Telling the guest: the interrupt status of a device and its line.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// A device's interrupt line, stated by whoever hosts the device. Called on
/// worker threads and on the thread that answers register accesses.
pub trait Interrupt: Send + Sync {
    /// Raises an edge.
    ///
    /// # Errors
    /// What the host said; the guest is then missing an interrupt.
    fn raise(&self) -> io::Result<()>;

    /// An eventfd that raises an edge when it is signalled, without anybody here
    /// having to look; none where the host has no such.
    fn event(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// The device has used buffers. virtio 1.3 §4.2.2, InterruptStatus bit 0
pub const USED_RING: u32 = 1;
/// The configuration has changed. virtio 1.3 §4.2.2, InterruptStatus bit 1
pub const CONFIG_CHANGE: u32 = 2;

/// Lines that a device's guest may bring into the log: it can repeat what they
/// tell of as often as it likes.
const LINES: u32 = 64;

/// What a device and its workers share with the register transport: interrupt
/// status, configuration generation, and whether the device is broken.
pub struct Notifier {
    status: AtomicU32,
    generation: AtomicU32,
    needs_reset: AtomicBool,
    /// Somebody else raises the line, too, for used buffers.
    bypassed: AtomicBool,
    interrupts: AtomicU64,
    lost: AtomicU64,
    /// Log lines that are left.
    lines: AtomicU32,
    line: Arc<dyn Interrupt>,
}

impl Notifier {
    /// A notifier on `line`, with nothing to tell.
    pub fn new(line: Arc<dyn Interrupt>) -> Self {
        Notifier {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            bypassed: AtomicBool::new(false),
            interrupts: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            lines: AtomicU32::new(LINES),
            line,
        }
    }

    /// Buffers were used and the driver wants to know.
    pub fn used_ring(&self) {
        self.raise(USED_RING);
    }

    /// The configuration space has changed.
    pub fn config_changed(&self) {
        // before the interrupt: a driver that reads in between must see it
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIG_CHANGE);
    }

    /// The device cannot go on until it is reset. virtio 1.3 §2.1.2: a
    /// configuration interrupt tells the driver.
    pub fn need_reset(&self) {
        if !self.needs_reset.swap(true, Ordering::SeqCst) {
            self.raise(CONFIG_CHANGE);
        }
    }

    /// Whether [`Notifier::need_reset`] was called since the last reset.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// The interrupt status register.
    pub fn status(&self) -> u32 {
        let status = self.status.load(Ordering::SeqCst);
        match self.bypassed.load(Ordering::SeqCst) {
            // which edges were somebody else's, nobody knows
            true => status | USED_RING,
            false => status,
        }
    }

    /// A file by which somebody else tells the driver of used buffers, past this
    /// process: the status has [`USED_RING`] from now on until the device is
    /// reset, and the other bits as ever. `None` if the host has no such file.
    pub fn bypass(&self) -> Option<OwnedFd> {
        let event = self.line.event()?.try_clone_to_owned();
        let event = event.inspect_err(|error| {
            tracing::debug!(%error, "interrupts are passed on, for want of a descriptor");
        });
        let event = event.ok()?;
        self.bypassed.store(true, Ordering::SeqCst);
        Some(event)
    }

    /// The configuration generation register.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The driver has handled these.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// The device was reset: nothing to tell any more.
    pub fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
        self.bypassed.store(false, Ordering::SeqCst);
    }

    /// Whether one more line about what the guest does may be logged. Says so
    /// when the last one was taken; a reset gives no new ones.
    pub fn may_log(&self) -> bool {
        let less = |left: u32| left.checked_sub(1);
        let taken = self
            .lines
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        if taken == Ok(1) {
            tracing::warn!("the guest's driver has been heard of often enough: no more about it");
        }
        taken.is_ok_and(|left| left > 1)
    }

    /// Interrupts raised so far, and those that the host failed to raise.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.interrupts.load(Ordering::Relaxed),
            self.lost.load(Ordering::Relaxed),
        )
    }

    fn raise(&self, bit: u32) {
        // the guest's handler reads the status: it is there before the edge
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.line.raise() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%error, "interrupt could not be raised");
        }
    }
}

impl std::fmt::Debug for Notifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notifier")
            .field("status", &self.status())
            .field("needs_reset", &self.needs_reset())
            .finish_non_exhaustive()
    }
}
