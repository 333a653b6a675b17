//! What a guest's thread tells the control plane.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::config::DeviceKey;
use super::error::GuestError;

/// Something happened to a guest or its device.
#[derive(Debug)]
pub enum GuestEvent {
    /// The driver has finished its set-up.
    DriverUp(DeviceKey),
    /// The driver, having been up, has reset the device.
    DriverReset(DeviceKey),
    /// A device that was to be removed is gone, and nothing of the guest's is
    /// held for it any more.
    Removed(DeviceKey),
    /// The device cannot go on until its driver resets it.
    NeedsReset(DeviceKey),
    /// The guest's thread met an error; it goes on unless the guest has ended.
    Failed(GuestError),
}

/// Most events that wait for a control plane that does not fetch them.
const LIMIT: usize = 4096;

/// Where events wait for the control plane. A guest can cause them at will
/// (a driver that resets again and again), so their number is bounded.
#[derive(Clone)]
pub(super) struct Outbox {
    events: Arc<Mutex<VecDeque<GuestEvent>>>,
    wake: Arc<EventFd>,
}

impl Outbox {
    pub(super) fn new(wake: EventFd) -> Self {
        Outbox {
            events: Arc::default(),
            wake: Arc::new(wake),
        }
    }

    /// Leaves an event and rings.
    pub(super) fn post(&self, event: GuestEvent) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        // what the control plane waits for is never dropped
        let dispensable = |event: &GuestEvent| !matches!(event, GuestEvent::Removed(_));
        if events.len() >= LIMIT && dispensable(&event) {
            match events.iter().position(dispensable) {
                Some(oldest) => drop(events.remove(oldest)),
                None => return,
            }
        }
        events.push_back(event);
        drop(events);
        if let Err(error) = self.wake.write(1) {
            tracing::error!(%error, "the control plane could not be woken");
        }
    }

    /// Takes all that has come.
    pub(super) fn drain(&self) -> Vec<GuestEvent> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn a_guest_cannot_fill_the_outbox_and_removals_are_kept() {
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        let outbox = Outbox::new(wake.try_clone().unwrap());
        let key = DeviceKey::new("virtio_disk", 1);

        outbox.post(GuestEvent::Removed(key.clone()));
        for _ in 0..2 * LIMIT {
            outbox.post(GuestEvent::DriverUp(key.clone()));
        }
        outbox.post(GuestEvent::Removed(key.clone()));
        let events = outbox.drain();

        assert!(wake.read().is_ok());
        assert_eq!(events.len(), LIMIT + 1);
        assert!(matches!(events.first(), Some(GuestEvent::Removed(_))));
        assert!(matches!(events.last(), Some(GuestEvent::Removed(_))));
    }
}
