//! What a guest's thread tells the control plane.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use devices::virtio::DeviceError;
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
    /// A device that was on trial ([`Guest::add`](super::Guest::add)) can be used.
    Usable(DeviceKey),
    /// It cannot, and is of no use: it is to be removed.
    Unusable(DeviceKey, DeviceError),
    /// The device cannot go on until its driver resets it.
    NeedsReset(DeviceKey),
    /// The guest's thread met an error; it goes on unless the guest has ended.
    Failed(GuestError),
}

impl GuestEvent {
    /// Whether `later`, of the same device, says all that this one says.
    fn is_outdone_by(&self, later: &GuestEvent) -> bool {
        match (self, later) {
            (GuestEvent::DriverUp(own), GuestEvent::DriverUp(key))
            | (GuestEvent::DriverReset(own), GuestEvent::DriverReset(key))
            | (GuestEvent::NeedsReset(own), GuestEvent::NeedsReset(key)) => own == key,
            _ => false,
        }
    }
}

/// Most events that wait for a control plane that does not fetch them.
const LIMIT: usize = 4096;

/// Where events wait for the control plane. A guest can cause them at will
/// (a driver that resets again and again), so there is one of a kind for each
/// device, the last, and their number is bounded.
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
        if let Some(older) = events.iter().position(|old| old.is_outdone_by(&event)) {
            // whoever is to take that one has been woken
            events.remove(older);
            events.push_back(event);
            return;
        }
        // what the control plane waits for is never dropped
        let dispensable = |event: &GuestEvent| {
            !matches!(
                event,
                GuestEvent::Removed(_) | GuestEvent::Usable(_) | GuestEvent::Unusable(..)
            )
        };
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
    use xen::DomId;

    #[test]
    fn of_a_driver_that_comes_and_goes_the_last_is_kept_for_each_device() {
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        let outbox = Outbox::new(wake.try_clone().unwrap());
        let [one, other] = [1, 2].map(|number| DeviceKey::new("virtio_disk", number));

        outbox.post(GuestEvent::DriverUp(other.clone()));
        for _ in 0..100 {
            outbox.post(GuestEvent::DriverUp(one.clone()));
            outbox.post(GuestEvent::NeedsReset(one.clone()));
            outbox.post(GuestEvent::DriverReset(one.clone()));
        }
        outbox.post(GuestEvent::DriverUp(one.clone()));
        let woken = wake.read().unwrap();
        let events = outbox.drain();
        outbox.post(GuestEvent::DriverUp(one.clone()));

        assert!(
            matches!(&events[..], [
                GuestEvent::DriverUp(first),
                GuestEvent::NeedsReset(broken),
                GuestEvent::DriverReset(left),
                GuestEvent::DriverUp(last),
            ] if *first == other && [broken, left, last] == [&one; 3]),
            "{events:?}"
        );
        assert_eq!(woken, 4);
        assert_eq!(wake.read().unwrap(), 1, "one that comes later rings again");
    }

    #[test]
    fn a_guest_cannot_fill_the_outbox_and_removals_are_kept() {
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        let outbox = Outbox::new(wake.try_clone().unwrap());
        let key = DeviceKey::new("virtio_disk", 1);

        outbox.post(GuestEvent::Removed(key.clone()));
        for _ in 0..2 * LIMIT {
            outbox.post(GuestEvent::Failed(GuestError::Ended(DomId(1))));
        }
        outbox.post(GuestEvent::Removed(key.clone()));
        let events = outbox.drain();

        assert!(wake.read().is_ok());
        assert_eq!(events.len(), LIMIT + 1);
        assert!(matches!(events.first(), Some(GuestEvent::Removed(_))));
        assert!(matches!(events.last(), Some(GuestEvent::Removed(_))));
    }
}
