//! A driver without manners: registers poked and rings built by hand.
//!
//! Every register access panics when the vCPU is not answered. What
//! virtio 1.3 says that a driver must not do is as easy here as what it must.

use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::virtio::features::{
    RING_EVENT_IDX, STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FEATURES_OK,
    STATUS_NEEDS_RESET,
};
use devices::virtio::mmio::Register;
use devices::virtio::queue::{Descriptor, QueueLayout};
use vmm::demo::guest::DriverMemory;
use xen::fake::{Interrupts, Vcpu};
use zerocopy::IntoBytes;

use crate::stand::PATIENCE;

/// The buffer goes on in another descriptor. virtio 1.3 §2.7.5
pub const NEXT: u16 = 1;
/// The device writes it.
pub const WRITE: u16 = 2;
/// It is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// A device's registers, and the memory to play with.
pub struct RawDriver {
    pub vcpu: Vcpu,
    pub base: u64,
    pub irq: u32,
    pub memory: DriverMemory,
    interrupts: Arc<Interrupts>,
}

/// Why a request did not come back.
#[derive(Debug, PartialEq, Eq)]
pub enum Broken {
    /// The device says DEVICE_NEEDS_RESET.
    NeedsReset,
}

impl RawDriver {
    pub fn new(
        vcpu: Vcpu,
        base: u64,
        irq: u32,
        interrupts: Arc<Interrupts>,
        memory: DriverMemory,
    ) -> Self {
        RawDriver {
            vcpu,
            base,
            irq,
            memory,
            interrupts,
        }
    }

    /// Reads a register.
    pub fn get(&self, register: Register) -> u32 {
        self.peek(register as u64, 4) as u32
    }

    /// Writes a register.
    pub fn set(&self, register: Register, value: u32) {
        self.poke(register as u64, 4, u64::from(value));
    }

    /// Reads at an offset, however odd.
    pub fn peek(&self, offset: u64, size: u32) -> u64 {
        self.vcpu
            .read(self.base + offset, size)
            .unwrap_or_else(|fault| panic!("read of {size} bytes at {offset:#x}: {fault}"))
    }

    /// Writes at an offset, however odd.
    pub fn poke(&self, offset: u64, size: u32, value: u64) {
        self.vcpu
            .write(self.base + offset, size, value)
            .unwrap_or_else(|fault| {
                panic!("write of {value:#x}, {size} bytes at {offset:#x}: {fault}")
            });
    }

    /// What the device offers.
    pub fn offered(&self) -> u64 {
        self.set(Register::DeviceFeaturesSel, 0);
        let low = self.get(Register::DeviceFeatures);
        self.set(Register::DeviceFeaturesSel, 1);
        u64::from(low) | u64::from(self.get(Register::DeviceFeatures)) << 32
    }

    /// Writes the driver's features.
    pub fn choose(&self, features: u64) {
        for (sel, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.set(Register::DriverFeaturesSel, sel);
            self.set(Register::DriverFeatures, half);
        }
    }

    /// Negotiates everything but EVENT_IDX, so that every completion
    /// interrupts. Gives the features.
    pub fn negotiate(&self) -> u64 {
        let features = self.offered() & !RING_EVENT_IDX;
        self.negotiate_exactly(features);
        features
    }

    /// Negotiates just these features.
    pub fn negotiate_exactly(&self, features: u64) {
        self.set(Register::Status, STATUS_ACKNOWLEDGE);
        self.set(Register::Status, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
        self.choose(features);
        let status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
        self.set(Register::Status, status);
        assert_eq!(self.get(Register::Status), status, "features are refused");
    }

    /// DRIVER_OK.
    pub fn go(&self) {
        let status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK;
        self.set(Register::Status, status);
    }

    /// Writes 0 to STATUS, and does not look whether it is 0, as Linux.
    pub fn reset(&self) {
        self.set(Register::Status, 0);
    }

    pub fn needs_reset(&self) -> bool {
        self.get(Register::Status) & STATUS_NEEDS_RESET != 0
    }

    /// Allocates rings for a queue and makes it ready.
    pub fn queue(&self, index: u16, size: u16) -> RawQueue {
        let queue = RawQueue::new(&self.memory, index, size);
        self.install(&queue);
        queue
    }

    /// Writes a queue's registers and makes it ready.
    pub fn install(&self, queue: &RawQueue) {
        let layout = queue.layout;
        self.set(Register::QueueSel, queue.index.into());
        self.set(Register::QueueSize, layout.size.into());
        self.set_address(Register::QueueDescLow, layout.desc);
        self.set_address(Register::QueueDriverLow, layout.avail);
        self.set_address(Register::QueueDeviceLow, layout.used);
        self.set(Register::QueueReady, 1);
    }

    /// Writes an address to a pair of registers.
    pub fn set_address(&self, low: Register, address: u64) {
        self.poke(low as u64, 4, address & 0xffff_ffff);
        self.poke(low as u64 + 4, 4, address >> 32);
    }

    pub fn kick(&self, queue: &RawQueue) {
        self.set(Register::QueueNotify, queue.index.into());
    }

    /// Interrupts so far.
    pub fn interrupts(&self) -> u64 {
        self.interrupts.count(self.irq)
    }

    /// Waits for an interrupt beyond those `seen`, for `patience` at most.
    pub fn wait_interrupt(&self, seen: u64, patience: Duration) {
        let _ = self.interrupts.wait_past(self.irq, seen, patience);
    }

    /// Waits until a request was used, or the device is broken.
    pub fn wait(&self, queue: &mut RawQueue) -> Result<(u32, u32), Broken> {
        self.wait_for(queue, PATIENCE)
            .expect("no request was completed")
    }

    /// The same, for as long as one likes; nothing if nothing happens.
    pub fn wait_for(
        &self,
        queue: &mut RawQueue,
        patience: Duration,
    ) -> Option<Result<(u32, u32), Broken>> {
        let deadline = Instant::now() + patience;
        loop {
            let seen = self.interrupts();
            if let Some(used) = queue.pop(&self.memory) {
                return Some(Ok(used));
            }
            if self.needs_reset() {
                return Some(Err(Broken::NeedsReset));
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let step = left.min(Duration::from_millis(50));
            let _ = self.interrupts.wait_past(self.irq, seen, step);
        }
    }
}

/// A queue's rings, built by hand.
#[derive(Clone)]
pub struct RawQueue {
    pub index: u16,
    pub layout: QueueLayout,
    /// What the driver has freed with the rings: pages as they were allocated.
    pages: Vec<u64>,
    next_avail: u16,
    next_used: u16,
}

impl RawQueue {
    /// Rings that follow each other in as few pages as they need.
    pub fn new(memory: &DriverMemory, index: u16, size: u16) -> Self {
        Self::at_offset(memory, index, size, 0)
    }

    /// The same, beginning some bytes into the first page.
    pub fn at_offset(memory: &DriverMemory, index: u16, size: u16, offset: u64) -> Self {
        let mut layout = QueueLayout {
            size,
            ..QueueLayout::default()
        };
        let (desc, avail, used) = (layout.desc_len(), layout.avail_len(), layout.used_len());
        let used_at = (u64::from(desc) + u64::from(avail)).next_multiple_of(4);
        let bytes = offset + used_at + u64::from(used);
        let first = memory.alloc(bytes.div_ceil(4096) as usize, false).unwrap();
        layout.desc = first + offset;
        layout.avail = layout.desc + u64::from(desc);
        layout.used = layout.desc + used_at;
        RawQueue {
            index,
            layout,
            pages: vec![first],
            next_avail: 0,
            next_used: 0,
        }
    }

    /// Frees the rings, whatever the device does.
    pub fn free(self, memory: &DriverMemory) {
        for page in self.pages {
            memory.free(page).unwrap();
        }
    }

    /// Writes a descriptor.
    pub fn describe(&self, memory: &DriverMemory, at: u16, descriptor: Descriptor) {
        let address = self.layout.desc + 16 * u64::from(at);
        memory.write(address, descriptor.as_bytes()).unwrap();
    }

    /// Puts a head into the available ring and shows it.
    pub fn offer(&mut self, memory: &DriverMemory, head: u16) {
        let slot = self.next_avail % self.layout.size;
        let entry = self.layout.avail + 4 + 2 * u64::from(slot);
        memory.write(entry, &head.to_le_bytes()).unwrap();
        self.next_avail = self.next_avail.wrapping_add(1);
        self.show(memory, self.next_avail);
    }

    /// Writes the available index.
    pub fn show(&self, memory: &DriverMemory, index: u16) {
        let at = self.layout.avail + 2;
        memory.write(at, &index.to_le_bytes()).unwrap();
    }

    /// The used index.
    pub fn used(&self, memory: &DriverMemory) -> u16 {
        let mut bytes = [0; 2];
        memory.read(self.layout.used + 2, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    /// Takes a used entry: head and bytes written.
    pub fn pop(&mut self, memory: &DriverMemory) -> Option<(u32, u32)> {
        if self.used(memory) == self.next_used {
            return None;
        }
        let slot = self.next_used % self.layout.size;
        let mut entry = [0; 8];
        memory
            .read(self.layout.used + 4 + 8 * u64::from(slot), &mut entry)
            .unwrap();
        self.next_used = self.next_used.wrapping_add(1);
        let [a, b, c, d, e, f, g, h] = entry;
        Some((
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, g, h]),
        ))
    }

    /// Starts over, as after a reset of the queue.
    pub fn rewind(&mut self) {
        self.next_avail = 0;
        self.next_used = 0;
    }
}

/// A well-formed request: what the device reads, and how much it writes.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub readable: Vec<Vec<u8>>,
    pub writable: Vec<usize>,
}

/// A request whose buffers are shared.
pub struct Shared {
    buffers: Vec<(u64, usize)>,
    writable_from: usize,
}

impl Request {
    /// Shares the buffers, each at an odd place in its page.
    pub fn share(&self, memory: &DriverMemory) -> Shared {
        let mut buffers = Vec::new();
        for (number, bytes) in self.readable.iter().enumerate() {
            let offset = 0x7e0 + 0x210 * number;
            let address = memory.share(offset, bytes.len(), bytes, true).unwrap();
            buffers.push((address, bytes.len()));
        }
        for (number, len) in self.writable.iter().enumerate() {
            let offset = 0xf00 + 0x330 * number;
            let address = memory.share(offset, *len, &[], false).unwrap();
            buffers.push((address, *len));
        }
        Shared {
            writable_from: self.readable.len(),
            buffers,
        }
    }
}

impl Shared {
    /// Descriptors that it takes.
    pub fn len(&self) -> u16 {
        self.buffers.len() as u16
    }

    pub fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Its descriptors, the first at `first`.
    pub fn descriptors(&self, first: u16) -> Vec<Descriptor> {
        let last = self.buffers.len().saturating_sub(1);
        (first..)
            .zip(self.buffers.iter().enumerate())
            .map(|(at, (number, &(addr, len)))| {
                let next = if number < last { NEXT } else { 0 };
                let write = if number < self.writable_from {
                    0
                } else {
                    WRITE
                };
                Descriptor {
                    addr,
                    len: len as u32,
                    flags: next | write,
                    next: if number < last { at + 1 } else { 0 },
                }
            })
            .collect()
    }

    /// Puts it into a queue, its descriptors from `first` on.
    pub fn submit(&self, memory: &DriverMemory, queue: &mut RawQueue, first: u16) {
        for (at, descriptor) in (first..).zip(self.descriptors(first)) {
            queue.describe(memory, at, descriptor);
        }
        queue.offer(memory, first);
    }

    /// Takes the buffers back; gives what the device wrote.
    pub fn take_back(self, memory: &DriverMemory) -> Vec<Vec<u8>> {
        let mut written = Vec::new();
        for (number, (address, len)) in self.buffers.into_iter().enumerate() {
            if number >= self.writable_from {
                let mut bytes = vec![0; len];
                memory.read(address, &mut bytes).unwrap();
                written.push(bytes);
            }
            memory.free(address).unwrap();
        }
        written
    }
}
