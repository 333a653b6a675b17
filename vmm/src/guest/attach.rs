//! Bringing a device into a guest: its place checked, its line, its memory
//! and its kicks set up.
//!
//! Runs on the guest's thread; nothing of a device that is refused is left.

use std::sync::Arc;

use devices::virtio::{Interrupt, Transport, TransportOptions};
use swiotlb::Kind;
use xen::privcmd::{Ioeventfd, IoeventfdRequest};

use super::config::{DeviceKey, DeviceSlot, EventMode, MmioWindow};
use super::error::GuestError;
use super::service::Service;
use super::slot::{Parts, Slot, Watch};
use super::stats::Wiring;
use crate::adapt::{DeviceMemory, Line, borrow};
use crate::logs::report;

/// SPIs of a GIC: Arm GIC architecture specification, INTID 32 to 1019.
const SPIS: std::ops::RangeInclusive<u32> = 32..=1019;

impl Service {
    /// Serves a further device; whether it is on trial.
    pub(super) fn add(&mut self, slot: DeviceSlot) -> Result<bool, GuestError> {
        self.check_place(&slot)?;
        self.check_irq(&slot.id, slot.irq)?;
        let DeviceSlot {
            id,
            base,
            irq,
            grants,
            mapping,
            device,
        } = slot;
        let span = tracing::info_span!("device", id = %id);
        let entered = span.clone().entered();
        let queues = u16::try_from(device.queue_sizes().len()).unwrap_or(u16::MAX);
        let line = self.line(&id, irq)?;
        let wiring = Wiring {
            base,
            irq,
            grants,
            plain: !grants || self.config.allow_foreign_with_grants,
            mapping,
            irqfd: matches!(line, Line::Irqfd { .. }),
            data: self.config.data,
        };
        let memory = self.memory_of(grants, mapping.kind());
        let (counters, policy) = (Arc::clone(memory.counters()), Arc::clone(memory.policy()));
        let failed = |what| {
            let device = id.clone();
            move |source| GuestError::Device {
                device,
                what,
                source,
            }
        };
        let attention = self
            .returned()
            .try_clone()
            .map_err(failed("no event file"))?;
        let returned = self
            .returned()
            .try_clone()
            .map_err(failed("no event file"))?;
        let watch = Arc::new(Watch::new(line, attention));
        let options = TransportOptions {
            label: format!("{}:{}", self.config.domid, id.devid),
            access_platform: grants,
        };
        let transport = Transport::new(
            device,
            options,
            Arc::clone(&watch) as Arc<dyn Interrupt>,
            Arc::new(memory),
            returned,
        )
        .map_err(failed("it cannot be put behind registers"))?;
        watch.watch(transport.notifier());
        let ioeventfds = self.ioeventfds(&id, base, &transport, queues)?;
        drop(entered);
        let parts = Parts {
            id: id.clone(),
            wiring,
            transport,
            counters,
            policy,
            queues,
            ioeventfds,
            span,
        };
        let slot = Slot::new(parts);
        let on_trial = slot.is_on_trial();
        self.insert(base, slot).map_err(|_| GuestError::Base {
            device: id.clone(),
            base,
            windows: MmioWindow::list(&self.config.windows),
        })?;
        tracing::info!(device = %id, base = format_args!("{base:#x}"), irq, grants, queues, "device added");
        Ok(on_trial)
    }

    fn check_place(&self, slot: &DeviceSlot) -> Result<(), GuestError> {
        let device = || slot.id.clone();
        if self.has(&slot.id) {
            return Err(GuestError::Exists(device()));
        }
        let windows = &self.config.windows;
        if !windows.iter().any(|window| window.has_slot(slot.base)) {
            return Err(GuestError::Base {
                device: device(),
                base: slot.base,
                windows: MmioWindow::list(windows),
            });
        }
        match self.at(slot.base) {
            Some(other) => Err(GuestError::Overlap {
                device: device(),
                base: slot.base,
                other: other.id().clone(),
            }),
            None => Ok(()),
        }
    }

    fn check_irq(&self, device: &DeviceKey, irq: u32) -> Result<(), GuestError> {
        let refused = |why: String| {
            Err(GuestError::Irq {
                device: device.clone(),
                irq,
                why,
            })
        };
        if !SPIS.contains(&irq) {
            return refused("is no SPI (32 to 1019)".into());
        }
        if let Some(other) = self.slots().find(|slot| slot.irq() == irq) {
            return refused(format!("is {}'s", other.id()));
        }
        // a low level on an edge-triggered line does nothing; Xen says here
        // whether a device model may drive it at all
        match self
            .means
            .privcmd
            .set_irq_level(self.config.domid, irq, false)
        {
            Ok(()) => Ok(()),
            Err(error) => refused(format!("cannot be driven: {}", report(&error))),
        }
    }

    fn line(&self, device: &DeviceKey, irq: u32) -> Result<Line, GuestError> {
        let privcmd = &self.means.privcmd;
        let domid = self.config.domid;
        let available = self.means.irqfd.is_available();
        let wanted = match self.config.events {
            EventMode::Plain => false,
            EventMode::Auto => available,
            EventMode::Irqfd | EventMode::Ioeventfd => true,
        };
        if !wanted {
            return Ok(Line::hypercall(privcmd, domid, irq));
        }
        match Line::irqfd(privcmd, domid, irq) {
            Ok(line) => Ok(line),
            Err(error) if self.config.events == EventMode::Auto => {
                tracing::warn!(irq, error = %report(&error), "no irqfd; interrupts by hypercall");
                Ok(Line::hypercall(privcmd, domid, irq))
            }
            Err(source) => Err(GuestError::Events {
                device: device.clone(),
                what: "irqfd",
                source,
            }),
        }
    }

    fn memory_of(&self, grants: bool, kind: Kind) -> DeviceMemory {
        let ram = || Arc::clone(&self.means.ram);
        let memory = match grants {
            false => DeviceMemory::plain(ram()),
            true => {
                let plain = self.config.allow_foreign_with_grants.then(ram);
                DeviceMemory::granted(self.means.gntdev.clone(), self.config.domid, plain)
            }
        };
        memory.of_kind(kind).with_data_path(&self.config.data)
    }

    fn ioeventfds(
        &self,
        device: &DeviceKey,
        base: u64,
        transport: &Transport,
        queues: u16,
    ) -> Result<Vec<Ioeventfd>, GuestError> {
        if self.config.events != EventMode::Ioeventfd {
            return Ok(Vec::new());
        }
        let ports = self.server().ports();
        (0..queues)
            .filter_map(|queue| Some((queue, transport.doorbell(queue)?)))
            .map(|(queue, doorbell)| {
                self.means
                    .privcmd
                    .ioeventfd(&IoeventfdRequest {
                        dom: self.config.domid,
                        ioreq_page: self.server().page_address(),
                        ports: &ports,
                        address: base,
                        queue: u32::from(queue),
                        event_fd: borrow(doorbell),
                    })
                    .map_err(|source| GuestError::Events {
                        device: device.clone(),
                        what: "ioeventfd",
                        source,
                    })
            })
            .collect()
    }
}
