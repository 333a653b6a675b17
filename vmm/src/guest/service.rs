//! What the guest's thread owns: the ioreq server, the devices on their bus,
//! and the guest's memory.
//!
//! Every method runs on the guest's thread; none of them waits.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::registry::DeviceSpec;
use devices::virtio::mmio::read_empty_slot;
use event_manager::{EventOps, Events, MutEventSubscriber};
use vm_device::bus::{MmioAddress, MmioBus, MmioRange};
use vmm_sys_util::eventfd::EventFd;
use xen::gntdev::Gntdev;
use xen::ioreq::{Drained, IoreqKind, IoreqServer, Pending};
use xen::memory::ForeignRam;
use xen::privcmd::{EventfdSupport, Privcmd};

use super::access::{Decoded, mask};
use super::config::{DeviceKey, GuestConfig, SLOT_SIZE};
use super::error::GuestError;
use super::event::{GuestEvent, Outbox};
use super::slot::{Rest, Slot};
use super::stats::GuestStats;
use crate::logs::report;

/// Longest pause after the event channels have failed again and again.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// What a guest is reached by.
pub(super) struct Means {
    pub privcmd: Privcmd,
    pub gntdev: Gntdev,
    pub ram: Arc<ForeignRam>,
    pub irqfd: EventfdSupport,
}

/// All of a guest.
pub(super) struct Service {
    /// Dropped first: if this thread dies, waiting vCPUs go on at once.
    server: IoreqServer,
    bus: MmioBus<Slot>,
    places: BTreeMap<DeviceKey, u64>,
    pub(super) config: GuestConfig,
    pub(super) means: Means,
    /// Rung when a worker has given a queue back or broken its device.
    returned: EventFd,
    outbox: Outbox,
    counts: GuestStats,
    /// Requests being taken from the page; empty between calls.
    batch: Vec<Pending>,
    look_again: Option<Duration>,
    failures: u32,
    ending: Option<Instant>,
}

impl Service {
    pub(super) fn new(
        config: GuestConfig,
        server: IoreqServer,
        means: Means,
        returned: EventFd,
        outbox: Outbox,
    ) -> Self {
        Service {
            server,
            bus: MmioBus::new(),
            places: BTreeMap::new(),
            config,
            means,
            returned,
            outbox,
            counts: GuestStats::default(),
            batch: Vec::new(),
            look_again: None,
            failures: 0,
            ending: None,
        }
    }

    pub(super) fn server(&self) -> &IoreqServer {
        &self.server
    }

    pub(super) fn returned(&self) -> &EventFd {
        &self.returned
    }

    /// The device in whose window `base` lies.
    pub(super) fn at(&self, base: u64) -> Option<&Slot> {
        self.bus.device(MmioAddress(base)).map(|(_, slot)| slot)
    }

    pub(super) fn has(&self, id: &DeviceKey) -> bool {
        self.places.contains_key(id)
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.places.values().filter_map(|base| self.at(*base))
    }

    /// Puts a device on the bus; the caller has checked its place.
    pub(super) fn insert(&mut self, base: u64, slot: Slot) -> Result<(), vm_device::bus::Error> {
        let id = slot.id().clone();
        let range = MmioRange::new(MmioAddress(base), SLOT_SIZE)?;
        self.bus.register(range, slot)?;
        self.places.insert(id, base);
        Ok(())
    }

    /// Has every device look again at what it stands on.
    pub(super) fn refresh(&mut self) {
        for base in self.places.values() {
            if let Some((_, slot)) = self.bus.device_mut(MmioAddress(*base)) {
                slot.refresh();
            }
        }
    }

    /// Has a device take what can change while it is served.
    pub(super) fn reconfigure(
        &mut self,
        id: &DeviceKey,
        spec: &DeviceSpec,
    ) -> Result<(), GuestError> {
        self.slot_mut(id)?.reconfigure(spec);
        Ok(())
    }

    fn slot_mut(&mut self, id: &DeviceKey) -> Result<&mut Slot, GuestError> {
        let base = self.places.get(id);
        let found = base.and_then(|base| self.bus.device_mut(MmioAddress(*base)));
        found
            .map(|(_, slot)| slot)
            .ok_or_else(|| GuestError::Unknown(id.clone()))
    }

    /// Begins to remove a device.
    pub(super) fn remove(&mut self, id: &DeviceKey) -> Result<(), GuestError> {
        let base = *self
            .places
            .get(id)
            .ok_or_else(|| GuestError::Unknown(id.clone()))?;
        let Some((_, slot)) = self.bus.device_mut(MmioAddress(base)) else {
            return Err(GuestError::Unknown(id.clone()));
        };
        let rest = slot.remove(&self.outbox);
        if rest == Rest::Done {
            self.forget(base);
        }
        Ok(())
    }

    /// Drops a device that holds nothing of the guest's any more.
    fn forget(&mut self, base: u64) {
        let Some((_, slot)) = self.bus.deregister(MmioAddress(base)) else {
            return;
        };
        let id = slot.id().clone();
        self.places.remove(&id);
        self.counts.panics += slot.panics();
        drop(slot);
        if self.places.is_empty() {
            // chunks are shared by all devices; now nobody needs them
            self.means.ram.invalidate();
        }
        tracing::info!(device = %id, "the device is gone");
        self.outbox.post(GuestEvent::Removed(id));
    }

    /// Begins to end: every device is removed, then [`Service::turn`] says so.
    pub(super) fn end(&mut self) {
        self.ending.get_or_insert_with(Instant::now);
        let all: Vec<DeviceKey> = self.places.keys().cloned().collect();
        for id in all {
            if let Err(error) = self.remove(&id) {
                tracing::error!(%error, "a device could not be removed");
            }
        }
    }

    /// Answers what waits on the ioreq page.
    fn drain(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        match self.server.pending(&mut batch) {
            Ok(Drained::Idle) => {
                self.look_again = None;
                self.failures = 0;
            }
            Ok(Drained::LookAgain(after)) => {
                self.look_again = Some(after);
                self.failures = 0;
            }
            Err(error) => self.failed(error),
        }
        for pending in batch.drain(..) {
            self.serve(pending);
        }
        self.batch = batch;
    }

    /// The event channels failed, which a later turn may find mended or not:
    /// neither end the guest nor turn without a pause, nor rely on their
    /// descriptor.
    fn failed(&mut self, source: xen::ioreq::Error) {
        let domid = self.config.domid;
        if self.failures == 0 {
            tracing::error!(error = %report(&source), "requests could not be taken");
            self.outbox
                .post(GuestEvent::Failed(GuestError::Serve { domid, source }));
        }
        self.failures = self.failures.saturating_add(1);
        let pause = Duration::from_millis(u64::from(self.failures)).min(LONGEST_PAUSE);
        self.look_again = Some(pause);
    }

    fn serve(&mut self, pending: Pending) {
        self.counts.ioreqs += 1;
        match pending.request().kind {
            IoreqKind::Copy => self.memory(pending),
            IoreqKind::Invalidate => {
                self.counts.invalidations += 1;
                self.invalidate();
                self.respond(pending, 0);
            }
            kind => {
                self.counts.malformed += 1;
                tracing::debug!(?kind, "a request of a kind that was not asked for");
                let nothing = pending.request().all_ones();
                self.respond(pending, nothing);
            }
        }
    }

    /// Memory has left the guest.
    fn invalidate(&mut self) {
        self.means.ram.invalidate();
        for base in self.places.values() {
            if let Some((_, slot)) = self.bus.device_mut(MmioAddress(*base)) {
                slot.memory_changed();
            }
        }
    }

    /// An access to memory: to a device's window, or to a slot without one.
    fn memory(&mut self, pending: Pending) {
        let Some(decoded) = Decoded::of(pending.request()) else {
            self.counts.malformed += 1;
            tracing::debug!(request = ?pending.request(), "a request that no register answers");
            self.respond(pending, 0);
            return;
        };
        let found = self.bus.device_mut(MmioAddress(decoded.address));
        let (base, slot) = match found {
            Some((range, slot)) => (range.base().0, Some(slot)),
            None => (decoded.address - decoded.address % SLOT_SIZE, None),
        };
        if decoded.last() - base >= SLOT_SIZE {
            // half here, half there: nobody's register
            self.counts.malformed += 1;
            self.respond(pending, 0);
            return;
        }
        let access = decoded.within(base);
        match slot {
            Some(slot) => match slot.access(access, pending, &self.outbox) {
                Some((pending, value)) => self.respond(pending, value & mask(decoded.size)),
                None => self.counts.deferred += 1,
            },
            None => {
                self.counts.empty += 1;
                self.respond(pending, read_empty_slot(access.offset, access.size));
            }
        }
    }

    fn respond(&mut self, pending: Pending, value: u64) {
        if let Err(error) = pending.respond(value) {
            self.counts.unanswered += 1;
            tracing::debug!(error = %report(&error), "an answer was not taken");
        }
    }

    /// Takes queues back, and answers whoever waited for them.
    fn collect(&mut self) {
        // the counter is of no interest, an empty one neither
        let _ = self.returned.read();
        let bases: Vec<u64> = self.places.values().copied().collect();
        for base in bases {
            let Some((_, slot)) = self.bus.device_mut(MmioAddress(base)) else {
                continue;
            };
            let (rest, answers) = slot.collect(&self.outbox);
            for pending in answers {
                self.respond(pending, 0);
            }
            if rest == Rest::Done {
                self.forget(base);
            }
        }
    }

    /// What time brings, after every wait. False once the guest has ended.
    pub(super) fn turn(&mut self) -> bool {
        if self.look_again.is_some() {
            self.drain();
        }
        if self.slots().any(Slot::is_stopping) {
            // who waits for another process does so for a time only
            self.collect();
        }
        let now = Instant::now();
        let bound = self.config.stop_warning;
        let bases: Vec<u64> = self.places.values().copied().collect();
        for base in bases {
            if let Some((_, slot)) = self.bus.device_mut(MmioAddress(base)) {
                slot.watch_stopping(bound, now);
                slot.watch_trial(&self.outbox);
            }
        }
        match self.ending {
            Some(since) => {
                !self.places.is_empty() && now.duration_since(since) < self.config.stop_limit()
            }
            None => true,
        }
    }

    /// How long the thread may sleep, in milliseconds; -1: until something
    /// comes.
    pub(super) fn patience(&self) -> i32 {
        if self.look_again.is_some() {
            return 0;
        }
        let waits = |slot: &Slot| slot.is_stopping() || slot.is_on_trial();
        if !self.slots().any(waits) {
            return -1;
        }
        // a coarse grid: these are warnings, and bounds that nobody should come to
        let grid = (self.config.stop_warning / 8)
            .clamp(Duration::from_millis(1), Duration::from_millis(250));
        i32::try_from(grid.as_millis()).unwrap_or(i32::MAX)
    }

    /// The pause before the ioreq page is looked at again unasked: the kernel
    /// holds a slot, or the event channels have failed.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.look_again
    }

    pub(super) fn stats(&self) -> GuestStats {
        let mut stats = self.counts.clone();
        let mut slots: Vec<&Slot> = self.slots().collect();
        stats.panics += slots.iter().map(|slot| slot.panics()).sum::<u64>();
        slots.sort_by_key(|slot| self.places.get(slot.id()).copied());
        stats.devices = slots.into_iter().map(Slot::stats).collect();
        stats
    }

    /// Ends: lets go of what is left, then of the ioreq server. Gives the
    /// devices that did not stop.
    pub(super) fn finish(mut self) -> Vec<DeviceKey> {
        let mut stuck = Vec::new();
        for base in std::mem::take(&mut self.places).into_values() {
            let Some((_, slot)) = self.bus.deregister(MmioAddress(base)) else {
                continue;
            };
            match slot.is_stopping() {
                true => stuck.push(slot.abandon()),
                false => drop(slot),
            }
        }
        let Service { server, .. } = self;
        if let Err(error) = server.destroy() {
            // usual when the domain has died first
            tracing::info!(error = %report(&error), "end of the ioreq server");
        }
        stuck
    }
}

impl MutEventSubscriber for Service {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        match events.fd() {
            fd if fd == self.server.as_raw_fd() => self.drain(),
            fd if fd == self.returned.as_raw_fd() => self.collect(),
            fd => tracing::error!(fd, "an event of nobody"),
        }
    }

    /// The descriptors are registered by whoever starts the thread, who can
    /// tell of a failure.
    fn init(&mut self, _ops: &mut EventOps<'_>) {}
}
