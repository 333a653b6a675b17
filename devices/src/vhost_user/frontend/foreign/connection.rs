//! What a connection does for the guest's rings: gives the back end the guest's
//! memory, starts the rings, and stops those that their driver takes back.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;

use super::super::config::AfterRestart;
use super::super::connection::Connection;
use super::super::error::SessionError;
use super::super::features;
use super::super::peer::{PROTOCOL_FEATURES, RingAddresses, until};
use super::restart::{self, Conditions};
use super::rings::GuestRing;
use super::table::description;
use super::watch::Watch;
use super::{Call, GuestMemory};
use crate::virtio::bell::Bell;
use crate::virtio::counters::add;
use crate::virtio::worker::with_causes;
use crate::virtio::{QueueLayout, Ring, Sharing};

/// Regions that a memory table has room for. VHOST_USER_MAX_RAM_SLOTS of most
/// back ends, and of the specification's messages
const REGIONS_MAX: usize = 8;

/// The guest's rings that this connection's back end serves.
#[derive(Debug, Default)]
pub(in super::super) struct Direct {
    rings: BTreeMap<u16, Held>,
    /// What the back end can reach: first address, bytes.
    regions: Vec<(u64, u64)>,
    /// Whether that is what the guest has.
    watch: Option<Watch>,
    has_record: bool,
}

#[derive(Debug)]
struct Held {
    number: u64,
    ring: Arc<Ring>,
    call: Call,
}

impl Direct {
    /// Whether the back end has no ring.
    pub(in super::super) fn is_empty(&self) -> bool {
        self.rings.is_empty()
    }

    /// Calls that have to be passed on.
    pub(in super::super) fn calls(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.rings.values().filter_map(|held| match &held.call {
            Call::Here(bell) => Some(bell.as_fd()),
            Call::Past(_) => None,
        })
    }

    /// How long the session may sleep at most, so that what the guest's memory
    /// becomes is seen.
    pub(in super::super) fn patience(&self) -> Option<Duration> {
        let watch = self.watch.as_ref().filter(|_| !self.is_empty());
        watch.map(Watch::patience)
    }

    /// The device was reset.
    pub(in super::super) fn reset(&mut self) {
        self.has_record = false;
    }

    /// Whether all parts of a ring are in what the back end can reach.
    fn reaches(&self, layout: &QueueLayout) -> bool {
        let parts = [
            (layout.desc, layout.desc_len()),
            (layout.avail, layout.avail_len()),
            (layout.used, layout.used_len()),
        ];
        parts.into_iter().all(|(address, len)| {
            self.regions.iter().any(|(first, bytes)| {
                let offset = address.checked_sub(*first);
                let end = offset.and_then(|offset| offset.checked_add(len.into()));
                end.is_some_and(|end| end <= *bytes)
            })
        })
    }
}

impl Connection<'_> {
    /// Passes on what calls there are.
    pub(in super::super) fn hear_calls(&self) {
        for held in self.direct.rings.values() {
            if let Call::Here(bell) = &held.call
                && bell.hear_at_once()
            {
                add(&self.shared.stats.calls, 1);
                held.ring.interrupt();
            }
        }
    }

    /// Stops the rings that their driver takes back, and gives them back; or all of
    /// them, because the guest's memory is not what it was.
    pub(in super::super) fn stop_guest_rings(&mut self) -> Result<(), SessionError> {
        let is_outdated = self.has_memory && self.is_memory_outdated();
        let state = self.shared.state();
        let leaving: Vec<(u16, u64)> = self
            .direct
            .rings
            .iter()
            .map(|(queue, held)| (*queue, held.number))
            .filter(|(queue, number)| is_outdated || state.guest_rings.is_leaving(*queue, *number))
            .collect();
        drop(state);
        let end = until(&self.shared.quit);
        for (queue, number) in leaving {
            if self.has_enable() {
                self.peer.enable_ring(queue, false, &end)?;
            }
            let next = self.peer.stop_ring(queue, &end)?;
            tracing::debug!(queue, next, "the back end has stopped a ring");
            self.direct.rings.remove(&queue);
            let base = u16::try_from(next).ok();
            let returned = self.shared.state().guest_rings.stopped(queue, number, base);
            drop(returned);
        }
        if is_outdated {
            self.has_memory = false;
        }
        Ok(())
    }

    fn is_memory_outdated(&mut self) -> bool {
        let left = self.shared.state().guest_rings.memory;
        let memory = self.shared.guest_memory.get();
        let pages = || memory.and_then(|memory| memory.0.pages());
        let watch = self.direct.watch.as_mut();
        watch.is_some_and(|watch| watch.is_outdated(left, pages))
    }

    /// Has the back end serve the rings that are wanted, once all of them are.
    pub(in super::super) fn start_guest_rings(&mut self) -> Result<(), SessionError> {
        let state = self.shared.state();
        if !state.expected.is_empty() {
            return Ok(());
        }
        let wanted = state.guest_rings.wanted();
        drop(state);
        for ring in wanted {
            self.start_guest_ring(&ring)?;
        }
        Ok(())
    }

    fn start_guest_ring(&mut self, wanted: &GuestRing) -> Result<(), SessionError> {
        let end = until(&self.shared.quit);
        let (ring, number) = (&wanted.ring, wanted.number);
        let (queue, layout) = (ring.index(), ring.layout());
        let offered = self.known.features;
        let missing = features::missing_foreign(offered, ring.features());
        if missing != 0 {
            return Err(SessionError::Features { offered, missing });
        }
        let own = features::negotiated_foreign(offered, ring.features(), self.shared.spec.refused);
        if self.features != Some(own) {
            self.peer.set_features(own, &end)?;
            self.features = Some(own);
        }
        let Some(memory) = self.shared.guest_memory.get() else {
            // a ring comes from a transport, which has said which memory it is
            return Ok(());
        };
        self.share_memory(memory)?;
        self.share_record()?;
        let Some(base) = self.base(memory, wanted) else {
            self.shared.state().guest_rings.refuse(queue, number);
            self.shared.need_reset();
            return Ok(());
        };
        let call = match ring.call() {
            Some(event) => Call::Past(event),
            None => {
                let failed = |source| SessionError::Host("event file", source);
                Call::Here(Bell::new().map_err(failed)?)
            }
        };
        if !self.shared.state().guest_rings.hold(queue, number) {
            return Ok(());
        }
        let addresses = RingAddresses {
            desc: layout.desc,
            used: layout.used,
            avail: layout.avail,
        };
        self.peer
            .set_ring(queue, layout.size, base, addresses, &end)?;
        self.peer
            .start_ring(queue, ring.doorbell(), call.as_fd(), &end)?;
        if self.has_enable() {
            self.peer.enable_ring(queue, true, &end)?;
        }
        // what was made available before, or a predecessor has left, and kicks that
        // came before it moved data: no other will come for that
        ring.kick();
        if wanted.served {
            // of what it has done it may not have told
            ring.interrupt();
        }
        let ring = Arc::clone(ring);
        self.direct.rings.insert(queue, Held { number, ring, call });
        Ok(())
    }

    /// Where a ring begins; `None` if it cannot be served.
    fn base(&self, memory: &GuestMemory, wanted: &GuestRing) -> Option<u16> {
        let ring = &wanted.ring;
        let queue = ring.index();
        if !self.direct.reaches(&ring.layout()) {
            // the driver can have it said again by each reset
            let notifier = self.shared.notifier.get();
            if notifier.is_some_and(|notifier| notifier.may_log()) {
                tracing::warn!(
                    queue,
                    layout = ?ring.layout(),
                    "the guest's ring is not in its memory; the device needs a reset"
                );
            }
            return None;
        }
        if !wanted.served {
            return Some(0);
        }
        if wanted.base.is_some() {
            return wanted.base;
        }
        let conditions = Conditions {
            tracked: wanted.tracked && self.peer.protocol.contains(Protocol::INFLIGHT_SHMFD),
            once: self.shared.spec.after_restart == AfterRestart::Reset,
        };
        match restart::base(&*memory.0, ring, conditions) {
            Ok(base) => {
                tracing::debug!(queue, base, "the ring goes on");
                Some(base)
            }
            Err(error) => {
                tracing::warn!(
                    queue,
                    error = with_causes(&*error),
                    "the ring cannot go on with another back end; the device needs a reset"
                );
                None
            }
        }
    }

    fn has_enable(&self) -> bool {
        self.features
            .is_some_and(|own| own & PROTOCOL_FEATURES != 0)
    }

    /// Gives it all of the guest's memory, as it is now.
    fn share_memory(&mut self, memory: &GuestMemory) -> Result<(), SessionError> {
        if self.has_memory {
            return Ok(());
        }
        if !can_map(Some(memory), self.peer.protocol) {
            // it came while nobody knew yet which memory it would be
            return Err(SessionError::NoXenMmap);
        }
        let GuestMemory(memory, _) = memory;
        let begun = Instant::now();
        // before it is looked at: what changes meanwhile is looked at again
        let left = self.shared.state().guest_rings.memory;
        let mut watch = Watch::begin(self.direct.watch.as_ref(), left, memory.pages());
        let regions = memory.share().map_err(SessionError::Share)?;
        if regions.is_empty() || regions.len() > REGIONS_MAX {
            let count = regions.len();
            return Err(SessionError::Regions { count });
        }
        let xen_mmap = self.peer.protocol.contains(Protocol::XEN_MMAP);
        let descriptions: Vec<Vec<u8>> = regions
            .iter()
            .map(|region| description(region, xen_mmap))
            .collect();
        let files: Vec<_> = regions.iter().map(|region| region.file.as_fd()).collect();
        let end = until(&self.shared.quit);
        self.peer.set_table(&descriptions, &files, &end)?;
        self.direct.regions = regions
            .iter()
            .map(|region| (region.address, region.len))
            .collect();
        watch.told(begun.elapsed());
        add(&self.shared.stats.memory_told, 1);
        self.direct.watch = Some(watch);
        // again each time that some of it leaves or comes
        tracing::debug!(regions = ?self.direct.regions, xen_mmap, "the back end has the guest's memory");
        self.has_memory = true;
        Ok(())
    }

    /// Gives it the record of what is in flight: its predecessor's, or a new one if
    /// that kept none.
    fn share_record(&mut self) -> Result<(), SessionError> {
        if self.direct.has_record {
            return Ok(());
        }
        if !self.peer.protocol.contains(Protocol::INFLIGHT_SHMFD) {
            // what it does its predecessor's record will not tell
            self.shared.state().guest_rings.record = None;
            return Ok(());
        }
        let end = until(&self.shared.quit);
        let kept = self.shared.state().guest_rings.record.clone();
        let record = match kept {
            Some(record) => record,
            None => {
                let spec = &self.shared.spec;
                let record = self.peer.record(spec.queues, spec.queue_size, &end)?;
                let record = Arc::new(record);
                self.shared.state().guest_rings.record = Some(Arc::clone(&record));
                record
            }
        };
        self.peer.set_record(&record, &end)?;
        self.direct.has_record = true;
        Ok(())
    }
}

/// Whether a back end can map a memory.
pub(in super::super) fn can_map(memory: Option<&GuestMemory>, protocol: Protocol) -> bool {
    let foreign = memory.is_some_and(|memory| matches!(memory.1, Sharing::Foreign { .. }));
    !foreign || protocol.contains(Protocol::XEN_MMAP)
}
