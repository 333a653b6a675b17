//! Guest drivers for devices that virtio-drivers has none for, on its queues:
//! a [file system](fs) and a [SCSI host](scsi); and a [network card](net) that
//! takes frames in several buffers, as virtio-drivers' does not.
//!
//! As virtio-drivers' own they are made and used on one thread that plays a
//! vCPU. They wait for the device's interrupts, and for a bounded time.

pub mod fs;
pub mod net;
pub mod scsi;

use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::virtio::features::{
    RING_EVENT_IDX, RING_INDIRECT_DESC, STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK,
    STATUS_FEATURES_OK, VERSION_1,
};
use devices::virtio::mmio::Register;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;
use vmm::demo::guest::hal::enter;
use vmm::demo::guest::{GuestHal, Registers};
use xen::fake::Interrupts;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::stand::{PATIENCE, Place, Stand};

/// Entries of a queue.
pub const SIZE: usize = 64;

/// Longest wait before the queue is looked at without an interrupt.
const STEP: Duration = Duration::from_millis(50);

/// A device that is up, with its queues.
pub struct Port {
    registers: Registers,
    queues: Vec<VirtQueue<GuestHal, SIZE>>,
    interrupts: Arc<Interrupts>,
    irq: u32,
}

impl Port {
    /// Brings a device of type `id` up, with its first `queues` queues, on this
    /// thread. virtio 1.3 §3.1.1
    pub fn new(stand: &Stand, place: &Place, id: u32, queues: u16) -> Self {
        Port::with_features(stand, place, id, queues, 0)
    }

    /// The same for a driver that wants `needed` of the device.
    pub fn with_features(stand: &Stand, place: &Place, id: u32, queues: u16, needed: u64) -> Self {
        enter(stand.memory(place.addresses));
        let mut registers = Registers::probe_type(&stand.vcpu(0), place.base, id).unwrap();
        let status = |registers: &Registers, bits| registers.set(Register::Status, bits);
        let present = STATUS_ACKNOWLEDGE | STATUS_DRIVER;
        status(&registers, 0);
        status(&registers, present);
        let wanted = VERSION_1 | RING_INDIRECT_DESC | RING_EVENT_IDX | needed;
        let features = registers.read_device_features() & wanted;
        assert_eq!(features & needed, needed, "{features:#x} is all it has");
        registers.write_driver_features(features);
        status(&registers, present | STATUS_FEATURES_OK);
        let agreed = registers.get(Register::Status) & STATUS_FEATURES_OK;
        assert_ne!(agreed, 0, "features {features:#x} are refused");
        let indirect = features & RING_INDIRECT_DESC != 0;
        let event_idx = features & RING_EVENT_IDX != 0;
        let queues = (0..queues)
            .map(|index| VirtQueue::new(&mut registers, index, indirect, event_idx).unwrap())
            .collect();
        status(&registers, present | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
        Port {
            registers,
            queues,
            interrupts: stand.domain.interrupts().unwrap(),
            irq: place.irq,
        }
    }

    /// A field of the device's configuration space.
    pub fn config<T: FromBytes + IntoBytes>(&self, offset: usize) -> T {
        self.registers.read_config_space(offset).unwrap()
    }

    /// Writes a field of it.
    pub fn set_config<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) {
        self.registers.write_config_space(offset, value).unwrap();
    }

    /// Has a request answered: the device reads `request` and writes `answer`.
    /// Gives the bytes that it says it wrote.
    pub fn ask<'a>(
        &mut self,
        queue: u16,
        request: &'a [&'a [u8]],
        answer: &'a mut [&'a mut [u8]],
    ) -> usize {
        let deadline = Instant::now() + PATIENCE;
        let ring = &mut self.queues[usize::from(queue)];
        // SAFETY: this function is left when the buffers were popped, or by a
        // panic that ends the test.
        let token = unsafe { ring.add(request, answer) }.unwrap();
        if ring.should_notify() {
            self.registers.notify(queue);
        }
        loop {
            let seen = self.interrupts.count(self.irq);
            if ring.can_pop() {
                break;
            }
            assert!(Instant::now() < deadline, "queue {queue} gives no answer");
            let _ = self.interrupts.wait_past(self.irq, seen, STEP);
            self.registers.ack_interrupt();
        }
        // SAFETY: these are the buffers of the request.
        let written = unsafe { ring.pop_used(token, request, answer) }.unwrap();
        written as usize
    }
}
