//! One ring: what the front end has said of it, and its worker.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;

use vmm_sys_util::eventfd::EventFd;

use super::error::Refusal;
use super::inflight::{self, InflightRegion};
use super::line::Line;
use super::memory::Memory;
use crate::virtio::queue::inflight::Inflight;
use crate::virtio::queue::{QueueStats, check_layout};
use crate::virtio::worker::{ReturnPath, Returned, Worker};
use crate::virtio::{ActiveQueue, Device, DeviceError, Notifier, QueueLayout, QueuePosition};

/// Where a ring's parts are, in the front end's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingAddresses {
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
}

/// What starting a ring needs of its back end.
pub(super) struct RingContext<'a> {
    pub label: &'a str,
    pub features: u64,
    pub memory: &'a Memory,
    pub region: Option<&'a InflightRegion>,
    pub sender: &'a Sender<Returned>,
    pub returned: &'a EventFd,
}

/// See the module.
pub(super) struct Ring {
    index: u16,
    max: u16,
    size: u16,
    addresses: Option<RingAddresses>,
    base: u16,
    kick: Option<EventFd>,
    enabled: bool,
    /// It has run since its driver began.
    ran: bool,
    line: Arc<Line>,
    notifier: Arc<Notifier>,
    stats: Arc<QueueStats>,
    /// What it had in flight, if the front end keeps no region.
    private: Option<Inflight>,
    worker: Option<Worker>,
}

impl Ring {
    pub(super) fn new(index: u16, max: u16) -> Self {
        let (line, notifier) = Line::new();
        Ring {
            index,
            max,
            size: max,
            addresses: None,
            base: 0,
            kick: None,
            enabled: false,
            ran: false,
            line,
            notifier,
            stats: Arc::default(),
            private: None,
            worker: None,
        }
    }

    /// As the front end finds it, but for its counters.
    pub(super) fn forget(&mut self) {
        let stats = Arc::clone(&self.stats);
        *self = Ring {
            stats,
            ..Ring::new(self.index, self.max)
        };
    }

    pub(super) fn is_running(&self) -> bool {
        self.worker.is_some()
    }

    /// Chains given back so far.
    pub(super) fn served(&self) -> u64 {
        self.stats.pushed.load(Ordering::Relaxed)
    }

    pub(super) fn index(&self) -> u16 {
        self.index
    }

    pub(super) fn line(&self) -> &Line {
        &self.line
    }

    pub(super) fn set_size(&mut self, size: u32) -> Result<(), Refusal> {
        let fits = u16::try_from(size).ok();
        let fits = fits.filter(|size| size.is_power_of_two() && *size <= self.max);
        self.size = fits.ok_or(Refusal::Size {
            index: self.index,
            size,
            max: self.max,
        })?;
        Ok(())
    }

    pub(super) fn set_addresses(&mut self, addresses: RingAddresses) {
        if self.addresses.replace(addresses) != Some(addresses) {
            // other rings: what was in flight belonged to those before
            self.private = None;
        }
    }

    pub(super) fn set_base(&mut self, base: u32) -> Result<(), Refusal> {
        let index = self.index;
        let base = u16::try_from(base).map_err(|_| Refusal::Base { index, base })?;
        if base != self.base {
            self.private = None;
        }
        self.base = base;
        Ok(())
    }

    pub(super) fn set_kick(&mut self, kick: Option<EventFd>) {
        self.kick = kick;
    }

    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    pub(super) fn base(&self) -> u16 {
        self.base
    }

    /// Whether it would start now where somebody before us has left it.
    pub(super) fn goes_on(&self) -> bool {
        let starts = self.enabled && self.addresses.is_some() && self.kick.is_some();
        starts && !self.is_running() && !self.ran && self.base != 0
    }

    /// Starts its worker, if it is enabled and the front end has said all that
    /// is needed.
    pub(super) fn start(
        &mut self,
        device: &mut dyn Device,
        context: &RingContext<'_>,
    ) -> Result<(), Refusal> {
        let Some(addresses) = self
            .addresses
            .filter(|_| self.enabled && !self.is_running())
        else {
            return Ok(());
        };
        let Some(kick) = self.kick.take() else {
            return Ok(());
        };
        let layout = self.layout(addresses, context.memory)?;
        let inflight = self.inflight(context.region)?;
        self.notifier.reset();
        let worker = self.worker(layout, inflight, &kick, device, context);
        self.kick = Some(kick);
        let index = self.index;
        self.ran = true;
        self.worker = Some(worker.map_err(|source| Refusal::Start { index, source })?);
        tracing::debug!(
            ring = index,
            size = layout.size,
            base = self.base,
            "ring started"
        );
        Ok(())
    }

    fn worker(
        &self,
        layout: QueueLayout,
        inflight: Inflight,
        kick: &EventFd,
        device: &mut dyn Device,
        context: &RingContext<'_>,
    ) -> Result<Worker, DeviceError> {
        use crate::virtio::DmaProvider;
        check_layout(&layout)?;
        let position = QueuePosition {
            next_avail: self.base,
            // `track` reads it from the ring
            next_used: 0,
        };
        let queue = ActiveQueue::activate(
            self.index,
            layout,
            position,
            context.features,
            context.memory.open()?,
            Arc::clone(&self.notifier),
            Arc::clone(&self.stats),
        )?
        .track(inflight)?;
        let handler = device.start_queue(self.index, context.features)?;
        let returns = ReturnPath {
            sender: context.sender.clone(),
            event: context.returned.try_clone()?,
        };
        Ok(Worker::start(
            format!("{}/{}", context.label, self.index),
            queue,
            handler,
            kick,
            Arc::clone(&self.notifier),
            returns,
        )?)
    }

    fn layout(&self, addresses: RingAddresses, memory: &Memory) -> Result<QueueLayout, Refusal> {
        let guest = |part, address| {
            memory.guest_address(address).ok_or(Refusal::RingAddress {
                index: self.index,
                part,
                address,
            })
        };
        Ok(QueueLayout {
            size: self.size,
            desc: guest("descriptor table", addresses.desc)?,
            avail: guest("available ring", addresses.avail)?,
            used: guest("used ring", addresses.used)?,
        })
    }

    fn inflight(&mut self, region: Option<&InflightRegion>) -> Result<Inflight, Refusal> {
        if let Some(part) = region.and_then(|region| region.part(self.index, self.size)) {
            return Ok(part);
        }
        let kept = self.private.take().filter(|own| own.size() == self.size);
        let part = match kept {
            Some(part) => part,
            None => inflight::private(self.size)?,
        };
        self.private = Some(part.clone());
        Ok(part)
    }

    /// Asks its worker to give the queue back; false if there is none.
    pub(super) fn ask_to_stop(&self) -> bool {
        self.worker.as_ref().map(Worker::stop).is_some()
    }

    /// Its worker has given the queue back.
    pub(super) fn given_back(&mut self, position: Option<QueuePosition>) {
        if let Some(worker) = self.worker.take() {
            worker.join();
        }
        match position {
            Some(position) => self.base = position.next_avail,
            None => tracing::error!(ring = self.index, "the ring's worker died over it"),
        }
    }
}
