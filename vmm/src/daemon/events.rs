//! What the control thread is woken for.

use std::collections::BTreeSet;

use xen::DomId;
use xen::xenstore::{Error as XenstoreError, Event, WatchEvent};

use super::served::ServedDevice;
use super::{Daemon, RETRY};
use crate::discovery::{Place, Touched};
use crate::guest::{DeviceKey, GuestError, GuestEvent};
use crate::logs::report;

/// What is to be looked at after some events.
#[derive(Default)]
struct Todo {
    places: BTreeSet<Place>,
    /// Devices may have come or gone, or become possible to serve.
    list: bool,
    /// Any device may have changed.
    everything: bool,
    /// Guests may have ended.
    ends: bool,
}

impl Daemon {
    /// xenstored has something to say.
    pub(super) fn on_xenstore(&mut self) {
        let mut todo = Todo::default();
        while let Some(event) = self.store.next_event() {
            self.note(event, &mut todo);
        }
        self.work(todo);
    }

    fn note(&mut self, event: Event, todo: &mut Todo) {
        match event {
            Event::Watch(watch) => self.note_watch(&watch, todo),
            Event::Disconnected => {
                tracing::warn!("xenstored is gone; guests are served on, changes wait for it");
            }
            Event::Reconnected => {
                tracing::info!("xenstored is back; looking at everything again");
                self.lost = false;
                todo.everything = true;
                todo.ends = true;
            }
            Event::GaveUp => {
                tracing::error!(
                    "xenstored does not come back: start it; guests are served on meanwhile"
                );
                self.lost = true;
                self.look_again(RETRY);
            }
            _ => {}
        }
    }

    fn note_watch(&self, event: &WatchEvent, todo: &mut Todo) {
        let domains = self.watches.domains.as_ref();
        if domains.is_some_and(|watches| event.token == watches.released.token()) {
            todo.ends = true;
            return;
        }
        if domains.is_some_and(|watches| event.token == watches.introduced.token()) {
            todo.list = true;
            return;
        }
        match self.root.touched(&event.path) {
            Touched::Device(place) if self.served.includes(&place) => {
                todo.places.insert(place);
            }
            Touched::List => {
                todo.list = true;
                // nothing else tells
                todo.ends = todo.ends || domains.is_none();
            }
            Touched::Device(_) => {}
            Touched::Nothing => tracing::debug!(path = event.path, "not a device's node"),
        }
    }

    fn work(&mut self, todo: Todo) {
        let outcome = self.look_at(todo);
        self.settle(outcome);
    }

    fn look_at(&mut self, todo: Todo) -> Result<(), XenstoreError> {
        if todo.ends {
            self.end_dead_guests()?;
        }
        let mut places = todo.places;
        if todo.list || todo.everything {
            let listed = self.served.places(&self.store, &self.root)?;
            let known = self.known();
            match todo.everything {
                true => places.extend(known.union(&listed).cloned()),
                false => places.extend(known.symmetric_difference(&listed).cloned()),
            }
        }
        places.iter().try_for_each(|place| self.look(place))
    }

    /// Devices that are served, and those that are refused.
    fn known(&self) -> BTreeSet<Place> {
        let refused = self.refused.keys().cloned();
        let served = self.guests.iter().flat_map(|(&domid, served)| {
            let keys = served.devices.keys().cloned();
            keys.map(move |key| Place { domid, key })
        });
        refused.chain(served).collect()
    }

    /// Lets a failure of xenstored be made up for later.
    fn settle(&mut self, outcome: Result<(), XenstoreError>) {
        match outcome {
            Ok(()) => {}
            // what comes with the reconnection makes up for it
            Err(error) if error.is_disconnected() => {
                tracing::debug!("{}", report(&error));
            }
            Err(error) => {
                tracing::warn!("{}; looking again in a moment", report(&error));
                self.look_again(RETRY);
            }
        }
    }

    /// Time to try again.
    pub(super) fn on_timer(&mut self) {
        // only says how often it ran out
        let _ = self.timer.wait();
        if self.lost && self.store.reconnect().is_err() {
            self.look_again(RETRY);
            return;
        }
        self.lost = false;
        self.work(Todo {
            everything: true,
            ends: true,
            ..Todo::default()
        });
        if self.must_poll() {
            self.look_again(RETRY);
        }
    }

    /// Guests' threads have something to say, or a guest was stopped.
    pub(super) fn on_guests(&mut self) {
        // the counter only says how often it was rung
        let _ = self.wake.read();
        self.reap();
        let events: Vec<(DomId, GuestEvent)> = self
            .guests
            .iter()
            .flat_map(|(domid, served)| {
                served
                    .guest
                    .events()
                    .into_iter()
                    .map(|event| (*domid, event))
            })
            .collect();
        for (domid, event) in events {
            let outcome = self.on_guest(domid, event);
            self.settle(outcome);
        }
    }

    fn on_guest(&mut self, domid: DomId, event: GuestEvent) -> Result<(), XenstoreError> {
        let Some(served) = self.guests.get_mut(&domid) else {
            return Ok(());
        };
        let name = served.info.name.clone();
        let span = tracing::info_span!("guest", %domid, %name);
        let _entered = span.enter();
        let mut device = |key: &DeviceKey, count: fn(&mut ServedDevice)| {
            served.devices.get_mut(key).map(|device| {
                count(device);
                (device.starts, device.failures)
            })
        };
        match event {
            GuestEvent::DriverUp(key) => {
                if let Some((1, _)) = device(&key, |device| device.starts += 1) {
                    tracing::info!(device = %key, "the driver is up");
                }
                self.tell_connected(&Place { domid, key })?;
            }
            GuestEvent::Usable(key) => return self.usable(&Place { domid, key }),
            GuestEvent::Unusable(key, why) => return self.unusable(&Place { domid, key }, why),
            GuestEvent::DriverReset(key) => tracing::debug!(device = %key, "the driver left"),
            GuestEvent::NeedsReset(key) => {
                if let Some((_, 1)) = device(&key, |device| device.failures += 1) {
                    tracing::warn!(device = %key, "the device is broken until its driver resets it");
                }
            }
            GuestEvent::Removed(key) => return self.removed(&Place { domid, key }),
            GuestEvent::Failed(error) => {
                tracing::error!("{}", report(&error));
                if matches!(error, GuestError::Panic { .. } | GuestError::Host { .. }) {
                    // served anew when what is left of it has been stopped:
                    // a claimed window is better than one whose accesses fault
                    self.stop(domid, "its thread has ended");
                }
            }
        }
        Ok(())
    }
}
