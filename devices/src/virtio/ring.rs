//! Rings that their device serves itself, outside of this process.
//!
//! Most devices are served here: their transport maps a queue's ring and starts
//! a worker for it. A [`RingServer`] is given the ring as its driver has laid it
//! out instead, with the doorbell that the driver rings and a way to the
//! driver's interrupt, and has whoever it likes serve it; nothing of it is mapped
//! here. A [`Ring`] is given back by being dropped, which is when a driver that
//! stops its queue is answered.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::bell;
use super::descriptor::borrow;
use super::device::{DeviceError, DmaProvider};
use super::interrupt::Notifier;
use super::queue::QueueLayout;
use super::worker::ReturnGuard;

/// A device that serves its rings itself. Called on the thread that answers
/// register accesses: nothing here waits.
pub trait RingServer {
    /// The bits of the rings themselves (virtio 1.3 §6) that whoever serves them
    /// can deal with.
    fn ring_features(&self) -> u64;

    /// The device is put behind registers, once: `memory` is its guest's.
    ///
    /// # Errors
    /// The rings cannot be served in such a memory; says what would help.
    fn attach_memory(&self, memory: &Arc<dyn DmaProvider>) -> Result<(), DeviceError>;

    /// The driver uses `ring` from now on. It is given back soon after
    /// [`Device::stopping`](super::Device::stopping).
    ///
    /// # Errors
    /// A ring that cannot be served; it is given back already.
    fn start(&self, ring: Ring) -> Result<(), DeviceError>;
}

/// A ring, from the time that its driver is up until it is given back.
pub struct Ring {
    index: u16,
    layout: QueueLayout,
    features: u64,
    doorbell: EventFd,
    notifier: Arc<Notifier>,
    /// Held for its Drop.
    _returned: ReturnGuard,
}

impl Ring {
    /// Ring `index`, as the driver has laid it out for the negotiated
    /// `features`.
    pub(crate) fn new(
        index: u16,
        layout: QueueLayout,
        features: u64,
        doorbell: EventFd,
        notifier: Arc<Notifier>,
        returned: ReturnGuard,
    ) -> Self {
        Ring {
            index,
            layout,
            features,
            doorbell,
            notifier,
            _returned: returned,
        }
    }

    /// Its number in the device.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Where it is: addresses as the guest has them, of which nothing was checked
    /// but their alignment.
    #[must_use]
    pub fn layout(&self) -> QueueLayout {
        self.layout
    }

    /// All that the driver has negotiated.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// What the driver rings. Whoever serves the ring reads it.
    #[must_use]
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        borrow(&self.doorbell)
    }

    /// Rings in the driver's place.
    pub fn kick(&self) {
        // it is not this process's alone
        bell::make_room(self.doorbell());
        if let Err(error) = self.doorbell.write(1) {
            // so many kicks are still to come that one more says nothing
            tracing::debug!(queue = self.index, %error, "the doorbell is not rung");
        }
    }

    /// A file by which whoever has it interrupts the driver past this process, if
    /// the host has such. It can then not be told here which interrupts were
    /// meant: the interrupt status reads as "used buffers" until the device is
    /// reset. Without it, [`Ring::interrupt`].
    #[must_use]
    pub fn call(&self) -> Option<OwnedFd> {
        self.notifier.bypass()
    }

    /// Tells the driver of used buffers.
    pub fn interrupt(&self) {
        self.notifier.used_ring();
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("index", &self.index)
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}
