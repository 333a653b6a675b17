//! The register transport: virtio-mmio version 2, as one state machine.
//!
//! A [`Transport`] belongs to the thread that answers its guest's register
//! accesses. It never touches a ring: it starts and stops the workers that do.
//!
//! ```text
//!            STATUS |= FEATURES_OK          STATUS |= DRIVER_OK
//!  ┌───────┐   (subset, checked)  ┌────────────┐        ┌─────────┐
//!  │ reset ├─────────────────────►│ negotiated ├───────►│ running │◄─┐ QUEUE_READY=1
//!  └───▲───┘                      └─────┬──────┘        └─┬──┬──┬─┘──┘ starts a queue
//!      │                                │                 │  │  │
//!      │      STATUS = 0                │                 │  │  │ QUEUE_READY=0, QUEUE_RESET
//!      │  nothing runs: at once         │                 │  │  ▼
//!      ├────────────────────────────────┴─────────────────┘  │ queue stopping ── given back ──► running
//!      │                                                     ▼
//!      └──────────── every queue given back ──────────── stopping
//! ```
//!
//! A driver frees its rings right after writing 0 to STATUS and does not poll.
//! So a write that stops queues is answered only when their workers have given
//! them back and nothing of the guest's memory is mapped: [`Answer::Later`],
//! with [`Transport::collect`] telling when. Other vCPUs and other devices go
//! on meanwhile.
//!
//! A device that does not know yet what it offers, because another process says
//! so, has its driver wait the same way with its first write to STATUS.
//!
//! And so does one that writes to a configuration space which another process
//! keeps: its next read is of what has become of that.
//!
//! A queue that breaks sets DEVICE_NEEDS_RESET in any state. An access that
//! makes no sense is counted and ignored; reads then return 0.

mod access;
mod queues;
pub mod register;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::device::{Device, DmaProvider};
use super::features::{self, STATUS_DRIVER_OK, STATUS_FEATURES_OK, STATUS_NEEDS_RESET};
use super::interrupt::{Interrupt, Notifier};
use super::queue::QueueStats;
use crate::registry::DeviceSpec;
use queues::{QueueContext, Queues};
pub use register::{Register, read_empty_slot};

/// Whether a write is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a vCPU waits for the answer"]
pub enum Answer {
    /// Answer the guest.
    Now,
    /// Answer it once [`Transport::collect`] says so: queues are being stopped,
    /// or another process has to take it first.
    Later,
}

/// How a transport presents its device.
#[derive(Clone, Debug)]
pub struct TransportOptions {
    /// Names its threads; short.
    pub label: String,
    /// Offer ACCESS_PLATFORM and insist on it: the guest's addresses are
    /// grants, and a driver that does not know would hand out plain ones.
    pub access_platform: bool,
}

/// The register file; plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// Device status, without DEVICE_NEEDS_RESET.
    pub status: u32,
    /// Which half of the device's features is read.
    pub device_features_sel: u32,
    /// Which half of the driver's features is written.
    pub driver_features_sel: u32,
    /// The features that the driver takes.
    pub driver_features: u64,
    /// Which queue the queue registers speak of.
    pub queue_sel: u32,
    /// Which shared-memory region its registers speak of.
    pub shm_sel: u32,
}

/// A device behind its registers.
pub struct Transport {
    device: Box<dyn Device>,
    options: TransportOptions,
    registers: Registers,
    queues: Queues,
    notifier: Arc<Notifier>,
    provider: Arc<dyn DmaProvider>,
    resetting: bool,
    /// What a driver has written to STATUS of a device that is not ready.
    held: Option<u32>,
    malformed: u64,
}

impl Transport {
    /// Puts `device` behind registers. `returned` rings when a worker has given
    /// a queue back; [`Transport::collect`] is to be called then.
    ///
    /// # Errors
    /// No event files, or a device that cannot serve its rings in this memory.
    pub fn new(
        mut device: Box<dyn Device>,
        options: TransportOptions,
        line: Arc<dyn Interrupt>,
        provider: Arc<dyn DmaProvider>,
        returned: EventFd,
    ) -> io::Result<Self> {
        let attention = returned.try_clone()?;
        let queues = Queues::new(device.queue_sizes(), returned)?;
        let notifier = Arc::new(Notifier::new(line));
        device.attach(&notifier, attention);
        if let Some(server) = device.ring_server() {
            server.attach_memory(&provider).map_err(io::Error::other)?;
        }
        Ok(Transport {
            device,
            options,
            registers: Registers::default(),
            queues,
            notifier,
            provider,
            resetting: false,
            held: None,
            malformed: 0,
        })
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u64 {
        let platform = match self.options.access_platform {
            true => features::ACCESS_PLATFORM,
            false => 0,
        };
        let rings = match self.device.ring_server() {
            Some(server) => server.ring_features(),
            None => features::RING_INDIRECT_DESC | features::RING_EVENT_IDX,
        };
        self.device.features() | platform | features::VERSION_1 | rings | features::RING_RESET
    }

    /// The register file as it stands.
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// What the device tells its driver by.
    pub fn notifier(&self) -> &Arc<Notifier> {
        &self.notifier
    }

    /// The device behind the registers.
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// Whether the driver is up.
    pub fn is_running(&self) -> bool {
        self.registers.status & STATUS_DRIVER_OK != 0
    }

    /// Accesses that made no sense, since the start.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// The doorbell of a queue, to be rung in place of writing QueueNotify.
    pub fn doorbell(&self, queue: u16) -> Option<&EventFd> {
        self.queues.doorbell(queue)
    }

    /// Counters of a queue.
    pub fn queue_stats(&self, queue: u16) -> Option<&Arc<QueueStats>> {
        self.queues.stats(queue)
    }

    /// The queues that are being stopped.
    pub fn stopping(&self) -> Vec<u16> {
        self.queues.stopping()
    }

    fn write_status(&mut self, value: u32) -> Answer {
        if value == 0 {
            return self.begin_reset();
        }
        if self.resetting {
            return self.ignore();
        }
        if !self.device.is_ready() {
            self.held = Some(self.held.unwrap_or(0) | value);
            return Answer::Later;
        }
        let mut status = self.registers.status;
        let added = value & !status & !STATUS_NEEDS_RESET;
        if status & !value != 0 {
            // virtio 1.3 §2.1.1: a driver clears no bit but by resetting
            self.malformed += 1;
        }
        status |= added;
        if added & STATUS_FEATURES_OK != 0 && !self.accepts(self.registers.driver_features) {
            if self.notifier.may_log() {
                tracing::info!(
                    driver = format_args!("{:#x}", self.registers.driver_features),
                    offered = format_args!("{:#x}", self.offered()),
                    "the guest's choice of features is refused"
                );
            }
            status &= !STATUS_FEATURES_OK;
        }
        if added & STATUS_DRIVER_OK != 0 && status & STATUS_FEATURES_OK == 0 {
            self.malformed += 1;
            status &= !STATUS_DRIVER_OK;
        }
        self.registers.status = status;
        if added & status & STATUS_DRIVER_OK != 0 {
            if self.notifier.may_log() {
                tracing::info!(
                    features = format_args!("{:#x}", self.registers.driver_features),
                    "the guest's driver is up"
                );
            }
            let ready = self.queues.ready();
            self.device.activate(&ready);
            for index in ready {
                self.start(index);
            }
        }
        Answer::Now
    }

    /// virtio 1.3 §2.2: a subset of what is offered, and never a legacy driver.
    fn accepts(&self, driver: u64) -> bool {
        let needed = match self.options.access_platform {
            true => features::VERSION_1 | features::ACCESS_PLATFORM,
            false => features::VERSION_1,
        };
        driver & !self.offered() == 0 && driver & needed == needed
    }

    fn write_queue_ready(&mut self, selected: u32, value: u32) -> Answer {
        match value {
            0 => {
                let stopping = self.queues.stop(selected);
                self.await_stop(stopping)
            }
            1 if self.registers.status & STATUS_FEATURES_OK != 0 => {
                let Some(index) = self.queues.make_ready(selected) else {
                    return self.ignore();
                };
                if self.is_running() {
                    self.start(index);
                }
                Answer::Now
            }
            _ => self.ignore(),
        }
    }

    /// virtio 1.3 §4.2.2.1 and §2.6.1
    fn write_queue_reset(&mut self, selected: u32, value: u32) -> Answer {
        let negotiated = self.registers.driver_features & features::RING_RESET != 0;
        if value != 1 || !negotiated || self.registers.status & STATUS_FEATURES_OK == 0 {
            return self.ignore();
        }
        let stopping = self.queues.reset(selected);
        self.await_stop(stopping)
    }

    /// What a write to a queue's registers comes to that stops its worker, has
    /// none to stop, or names no queue.
    fn await_stop(&mut self, stopping: Option<bool>) -> Answer {
        self.tell_stopping();
        match stopping {
            Some(true) => Answer::Later,
            Some(false) => Answer::Now,
            None => self.ignore(),
        }
    }

    fn tell_stopping(&mut self) {
        for queue in self.queues.stopping() {
            self.device.stopping(queue);
        }
    }

    /// Starts a queue; what hinders it is told to the guest as
    /// DEVICE_NEEDS_RESET and to the log.
    fn start(&mut self, index: u16) {
        let context = QueueContext {
            label: &self.options.label,
            features: self.registers.driver_features,
            notifier: &self.notifier,
            provider: &*self.provider,
        };
        if let Err(error) = self.queues.start(index, &mut *self.device, &context) {
            if self.notifier.may_log() {
                let error = super::worker::with_causes(&*error);
                tracing::warn!(
                    queue = index,
                    error,
                    "queue cannot be started; the device needs a reset"
                );
            }
            self.notifier.need_reset();
        }
    }

    /// Resets the device, as writing 0 to STATUS does.
    pub fn begin_reset(&mut self) -> Answer {
        self.resetting = true;
        self.held = None;
        self.queues.stop_all();
        self.tell_stopping();
        match self.finish_reset() {
            true => Answer::Now,
            false => Answer::Later,
        }
    }

    fn finish_reset(&mut self) -> bool {
        if !self.queues.all_stopped() {
            return false;
        }
        self.registers = Registers::default();
        self.queues.forget();
        self.notifier.reset();
        self.device.reset();
        self.resetting = false;
        true
    }

    /// Has the device look again at what it stands on, and tells the driver of
    /// what has changed.
    pub fn refresh(&mut self) {
        if self.device.refresh() {
            self.notifier.config_changed();
        }
    }

    /// Tells the device that its user describes it anew.
    pub fn reconfigure(&mut self, spec: &DeviceSpec) {
        self.device.reconfigure(spec);
    }

    /// Memory has left the guest.
    pub fn memory_changed(&mut self) {
        self.device.memory_changed();
    }

    /// Takes back the queues that workers have given back. True when nothing is
    /// being stopped or waited for any more: every write that was answered with
    /// [`Answer::Later`] is to be answered to the guest now.
    pub fn collect(&mut self) -> bool {
        for lost in self.queues.collect() {
            tracing::error!(
                queue = lost,
                "a queue's worker ended unasked; the device needs a reset"
            );
            self.notifier.need_reset();
        }
        if self.resetting {
            return self.finish_reset();
        }
        if let Some(value) = self.held.take()
            && self.write_status(value) == Answer::Later
        {
            return false;
        }
        !self.queues.any_stopping() && self.device.is_settled()
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("device", &self.device.device_type())
            .field("registers", &self.registers)
            .field("resetting", &self.resetting)
            .finish_non_exhaustive()
    }
}
