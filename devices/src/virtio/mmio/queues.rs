//! The queues of a transport: their registers, doorbells and who serves them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::register::Register;
use crate::virtio::bell;
use crate::virtio::descriptor::borrow;
use crate::virtio::device::{Device, DeviceError, DmaProvider};
use crate::virtio::interrupt::Notifier;
use crate::virtio::queue::{ActiveQueue, QueueLayout, QueuePosition, QueueStats, check_layout};
use crate::virtio::ring::Ring;
use crate::virtio::worker::{ReturnGuard, ReturnPath, Returned, Worker};

/// What starting a queue needs of its transport.
pub(super) struct QueueContext<'a> {
    pub label: &'a str,
    pub features: u64,
    pub notifier: &'a Arc<Notifier>,
    pub provider: &'a dyn DmaProvider,
}

/// What a stopping queue will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopping {
    /// Not ready, its registers kept.
    Paused,
    /// Back at its defaults.
    Reset,
}

/// Who serves a queue.
enum Server {
    Worker(Worker),
    /// The device itself, which has its ring.
    Device,
}

struct Slot {
    max: u16,
    layout: QueueLayout,
    ready: bool,
    stopping: Option<Stopping>,
    doorbell: EventFd,
    server: Option<Server>,
    stats: Arc<QueueStats>,
}

impl Slot {
    fn stop(&mut self, stopping: Stopping) -> bool {
        self.ready = false;
        match &self.server {
            Some(server) => {
                // a device is told by its transport
                if let (Server::Worker(worker), None) = (server, self.stopping) {
                    worker.stop();
                }
                self.stopping = Some(stopping);
                true
            }
            None => {
                self.settle(stopping);
                false
            }
        }
    }

    fn settle(&mut self, stopping: Stopping) {
        self.stopping = None;
        self.ready = false;
        if stopping == Stopping::Reset {
            self.layout = QueueLayout::default();
        }
    }
}

/// All queues of one device.
pub(super) struct Queues {
    slots: Vec<Slot>,
    sender: Sender<Returned>,
    receiver: Receiver<Returned>,
    event: EventFd,
}

impl Queues {
    pub(super) fn new(sizes: &[u16], event: EventFd) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let slots = sizes
            .iter()
            .map(|&max| {
                Ok(Slot {
                    max,
                    layout: QueueLayout::default(),
                    ready: false,
                    stopping: None,
                    doorbell: EventFd::new(EFD_NONBLOCK)?,
                    server: None,
                    stats: Arc::default(),
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Queues {
            slots,
            sender,
            receiver,
            event,
        })
    }

    fn slot(&self, selected: u32) -> Option<&Slot> {
        self.slots.get(usize::try_from(selected).ok()?)
    }

    fn slot_mut(&mut self, selected: u32) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(selected).ok()?)
    }

    /// A queue whose registers may be written: neither in use nor stopping.
    fn idle(&mut self, selected: u32) -> Option<&mut Slot> {
        self.slot_mut(selected)
            .filter(|slot| !slot.ready && slot.stopping.is_none())
    }

    pub(super) fn doorbell(&self, queue: u16) -> Option<&EventFd> {
        self.slot(u32::from(queue)).map(|slot| &slot.doorbell)
    }

    pub(super) fn stats(&self, queue: u16) -> Option<&Arc<QueueStats>> {
        self.slot(u32::from(queue)).map(|slot| &slot.stats)
    }

    pub(super) fn max_size(&self, selected: u32) -> u32 {
        self.slot(selected).map_or(0, |slot| u32::from(slot.max))
    }

    pub(super) fn is_ready(&self, selected: u32) -> bool {
        self.slot(selected).is_some_and(|slot| slot.ready)
    }

    pub(super) fn is_resetting(&self, selected: u32) -> bool {
        self.slot(selected)
            .is_some_and(|slot| slot.stopping == Some(Stopping::Reset))
    }

    pub(super) fn set_size(&mut self, selected: u32, value: u32) -> bool {
        let Some(slot) = self.idle(selected) else {
            return false;
        };
        match u16::try_from(value) {
            Ok(size) if size.is_power_of_two() && size <= slot.max => {
                slot.layout.size = size;
                true
            }
            _ => false,
        }
    }

    pub(super) fn set_address(&mut self, selected: u32, register: Register, value: u32) -> bool {
        let Some(slot) = self.idle(selected) else {
            return false;
        };
        let layout = &mut slot.layout;
        let (address, half) = match register {
            Register::QueueDescLow => (&mut layout.desc, 0),
            Register::QueueDescHigh => (&mut layout.desc, 1),
            Register::QueueDriverLow => (&mut layout.avail, 0),
            Register::QueueDriverHigh => (&mut layout.avail, 1),
            Register::QueueDeviceLow => (&mut layout.used, 0),
            Register::QueueDeviceHigh => (&mut layout.used, 1),
            _ => return false,
        };
        super::access::set_half(address, half, value)
    }

    /// Marks a queue as in use, if its registers make sense.
    pub(super) fn make_ready(&mut self, selected: u32) -> Option<u16> {
        let slot = self.idle(selected)?;
        if let Err(error) = check_layout(&slot.layout) {
            tracing::debug!(queue = selected, %error, "queue does not become ready");
            return None;
        }
        slot.ready = true;
        u16::try_from(selected).ok()
    }

    /// The queues that are ready and not served yet.
    pub(super) fn ready(&self) -> Vec<u16> {
        (0..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.ready && slot.server.is_none())
            .map(|(index, _)| index)
            .collect()
    }

    pub(super) fn ring(&self, queue: u32) -> bool {
        match self.slot(queue) {
            Some(slot) if slot.server.is_some() && slot.stopping.is_none() => {
                if let Some(Server::Device) = slot.server {
                    // a worker counts them itself
                    slot.stats.kicks.fetch_add(1, Ordering::Relaxed);
                    // whoever serves the ring has the file, too
                    bell::make_room(borrow(&slot.doorbell));
                }
                if let Err(error) = slot.doorbell.write(1) {
                    tracing::error!(queue, %error, "doorbell cannot be rung");
                }
                true
            }
            _ => false,
        }
    }

    pub(super) fn start(
        &mut self,
        index: u16,
        device: &mut dyn Device,
        context: &QueueContext<'_>,
    ) -> Result<(), DeviceError> {
        let returns = ReturnPath {
            sender: self.sender.clone(),
            event: self.event.try_clone()?,
        };
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return Ok(());
        };
        if let Some(server) = device.ring_server() {
            let returned = ReturnGuard {
                index,
                position: None,
                returns,
            };
            // from here on it comes back, whatever becomes of it, and until then
            // it is out: a driver that is faster finds no queue to be started
            slot.server = Some(Server::Device);
            let started = slot.doorbell.try_clone().map_err(Into::into);
            let started = started.and_then(|doorbell| {
                server.start(Ring::new(
                    index,
                    slot.layout,
                    context.features,
                    doorbell,
                    Arc::clone(context.notifier),
                    returned,
                ))
            });
            if started.is_err() {
                slot.stop(Stopping::Paused);
            }
            return started;
        }
        let queue = ActiveQueue::activate(
            index,
            slot.layout,
            QueuePosition::default(),
            context.features,
            context.provider.open()?,
            Arc::clone(context.notifier),
            Arc::clone(&slot.stats),
        )?;
        let handler = device.start_queue(index, context.features)?;
        slot.server = Some(Server::Worker(Worker::start(
            format!("{}/{index}", context.label),
            queue,
            handler,
            &slot.doorbell,
            Arc::clone(context.notifier),
            returns,
        )?));
        Ok(())
    }

    /// Takes a queue out of use. `Some(true)`: its worker is being stopped.
    pub(super) fn stop(&mut self, selected: u32) -> Option<bool> {
        self.slot_mut(selected)
            .map(|slot| slot.stop(slot.stopping.unwrap_or(Stopping::Paused)))
    }

    /// Puts a queue back to its defaults, as [`Queues::stop`].
    pub(super) fn reset(&mut self, selected: u32) -> Option<bool> {
        self.slot_mut(selected)
            .map(|slot| slot.stop(Stopping::Reset))
    }

    pub(super) fn stop_all(&mut self) {
        for slot in &mut self.slots {
            slot.stop(Stopping::Reset);
        }
    }

    pub(super) fn all_stopped(&self) -> bool {
        self.slots.iter().all(|slot| slot.server.is_none())
    }

    pub(super) fn any_stopping(&self) -> bool {
        self.slots.iter().any(|slot| slot.stopping.is_some())
    }

    /// The queues that are being stopped.
    pub(super) fn stopping(&self) -> Vec<u16> {
        (0..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.stopping.is_some())
            .map(|(index, _)| index)
            .collect()
    }

    /// Forgets kicks of before the reset.
    pub(super) fn forget(&mut self) {
        for slot in &mut self.slots {
            // empty is as good as read, and whoever had the file may have made it wait
            bell::hear_at_once(borrow(&slot.doorbell));
        }
    }

    /// Takes returned queues; tells those that came back unasked.
    pub(super) fn collect(&mut self) -> Vec<u16> {
        let mut unasked = Vec::new();
        while let Ok(returned) = self.receiver.try_recv() {
            let Some(slot) = self.slots.get_mut(usize::from(returned.index)) else {
                continue;
            };
            match slot.server.take() {
                Some(Server::Worker(worker)) => worker.join(),
                Some(Server::Device) => {}
                // it was never taken up
                None => continue,
            }
            match slot.stopping {
                Some(stopping) => slot.settle(stopping),
                None => {
                    slot.ready = false;
                    unasked.push(returned.index);
                }
            }
        }
        unasked
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        // all at once, so that dropping them one by one waits but once
        for slot in &self.slots {
            if let Some(Server::Worker(worker)) = &slot.server {
                worker.stop();
            }
        }
    }
}
