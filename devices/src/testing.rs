//! A driver's side for unit tests and fuzz targets: guest RAM and a ring in it.
//!
//! [`GuestRam`] is RAM that a [`Dma`] reaches by plain addresses and by
//! grants; [`DriverRing`] does what a guest's driver does to a queue, honestly
//! or, with [`DriverRing::set_descriptor`] and [`DriverRing::offer`], not.

// as in tests, which clippy does not take this module for
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[cfg(test)]
pub mod lines;
mod memory;
#[cfg(test)]
mod side;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use swiotlb::range::GRANT_BIT;
use swiotlb::{
    Dma, Fault, GrantAddress, GrantMode, GrantPolicy, Kind, Options, PAGE_SIZE, Range, RingMapping,
    Settings,
};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileSlice,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use zerocopy::IntoBytes;

use memory::{Granted, Plain, RingPart};
#[cfg(test)]
pub(crate) use side::{Nobody, PATIENCE, Side, read_more};

use crate::virtio::queue::{Descriptor, QueueStats};
use crate::virtio::{
    ActiveQueue, Interrupt, Notifier, QueueLayout, QueuePosition, SharedRegion, Sharing,
};

/// Bytes of a translated piece: a plain range over its end has two segments.
pub const CHUNK: u64 = 16 * PAGE_SIZE;

/// Guest RAM from address 0 on, shared by all clones.
#[derive(Clone)]
pub struct GuestRam {
    inner: Arc<Inner>,
}

struct Inner {
    memory: GuestMemoryMmap<()>,
    file: Arc<File>,
    size: u64,
    next: AtomicU64,
    lent: AtomicUsize,
    revoked: std::sync::Mutex<HashSet<u32>>,
    bounce: std::sync::Mutex<Option<(Options, GrantMode)>>,
}

impl GuestRam {
    /// RAM of `pages` pages. The first is never handed out by `alloc`.
    pub fn new(pages: u64) -> Self {
        let size = pages * PAGE_SIZE;
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, size).unwrap();
        let file = Arc::new(File::from(file));
        let whole = FileOffset::from_arc(Arc::clone(&file), 0);
        let regions = [(GuestAddress(0), size as usize, Some(whole))];
        GuestRam {
            inner: Arc::new(Inner {
                memory: GuestMemoryMmap::from_ranges_with_files(&regions).unwrap(),
                file,
                size,
                next: AtomicU64::new(PAGE_SIZE),
                lent: AtomicUsize::new(0),
                revoked: std::sync::Mutex::default(),
                bounce: std::sync::Mutex::default(),
            }),
        }
    }

    /// The RAM itself, for code that wants it so.
    pub fn memory(&self) -> &GuestMemoryMmap<()> {
        &self.inner.memory
    }

    /// All of it, for another process.
    pub fn region(&self, sharing: Sharing) -> SharedRegion {
        SharedRegion {
            address: 0,
            len: self.inner.size,
            file: self.inner.file.try_clone().unwrap().into(),
            offset: 0,
            sharing,
        }
    }

    /// Address of `len` fresh bytes, aligned to 16.
    pub fn alloc(&self, len: u64) -> u64 {
        let len = len.next_multiple_of(16);
        let address = self.inner.next.fetch_add(len, Ordering::SeqCst);
        assert!(address + len <= self.inner.size, "the RAM is used up");
        address
    }

    /// Address of fresh bytes that hold `bytes`.
    pub fn alloc_bytes(&self, bytes: &[u8]) -> u64 {
        let address = self.alloc(bytes.len() as u64);
        self.write(address, bytes);
        address
    }

    /// What the guest finds at `address`.
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.slice(address, len).copy_to(&mut bytes);
        bytes
    }

    /// The guest writes.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.slice(address, bytes.len()).copy_from(bytes);
    }

    /// The grant address of a plain one: reference = page number.
    pub fn granted(address: u64) -> u64 {
        address | GRANT_BIT
    }

    /// Takes a grant reference back: it is refused from now on.
    pub fn revoke(&self, reference: u32) {
        self.inner.revoked.lock().unwrap().insert(reference);
    }

    /// How many granted data ranges a device holds now.
    pub fn lent(&self) -> usize {
        self.inner.lent.load(Ordering::SeqCst)
    }

    /// Gives the data paths from now on pools with these options.
    pub fn bounce(&self, options: &str, mode: GrantMode) {
        let options = options.parse().unwrap();
        *self.inner.bounce.lock().unwrap() = Some((options, mode));
    }

    /// A data path to this RAM, by plain addresses and by grants.
    pub fn dma(&self) -> Dma {
        let dma = Dma::new(
            Kind::Translated,
            Some(Box::new(Plain(self.clone()))),
            Some(Box::new(Granted(self.clone()))),
            Arc::default(),
        );
        let Some((options, mode)) = *self.inner.bounce.lock().unwrap() else {
            return dma;
        };
        let settings = Settings {
            options,
            ..Settings::default()
        };
        dma.with_pool(settings, Arc::new(GrantPolicy::new(mode)))
    }

    fn slice(&self, address: u64, len: usize) -> VolatileSlice<'_> {
        let address = address & !GRANT_BIT;
        let (region, offset) = self
            .inner
            .memory
            .to_region_addr(GuestAddress(address))
            .unwrap();
        region.get_slice(offset, len).unwrap()
    }

    fn check(&self, range: Range) -> Result<(), Fault> {
        let end = range.address() + u64::from(range.len());
        if end > self.inner.size {
            return Err(Fault::NoTranslation {
                address: range.address(),
                frame: range.address().max(self.inner.size) / PAGE_SIZE,
            });
        }
        Ok(())
    }

    fn check_grant(&self, grant: GrantAddress) -> Result<u64, Fault> {
        let revoked = self.inner.revoked.lock().unwrap();
        let pages = self.inner.size / PAGE_SIZE;
        for reference in (0..grant.count).map(|i| grant.first + i) {
            if revoked.contains(&reference) || u64::from(reference) >= pages {
                return Err(Fault::GrantRefusedByXen {
                    reference,
                    reason: "no such reference".into(),
                });
            }
        }
        Ok(u64::from(grant.first) * PAGE_SIZE + u64::from(grant.offset))
    }

    fn ring(&self, address: u64, len: u32) -> RingMapping {
        RingMapping::new(Box::new(RingPart {
            ram: self.clone(),
            address,
            len: len as usize,
        }))
    }
}

/// An interrupt line that counts.
#[derive(Debug, Default)]
pub struct Line(AtomicU64);

impl Line {
    /// Edges so far.
    pub fn edges(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Interrupt for Line {
    fn raise(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Whether something becomes readable within `patience`.
pub fn readable(fd: BorrowedFd<'_>, patience: Duration) -> bool {
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll
        .ctl(ControlOperation::Add, fd.as_raw_fd(), event)
        .unwrap();
    let patience = i32::try_from(patience.as_millis()).unwrap();
    loop {
        match epoll.wait(patience, &mut [event]) {
            // what io_uring completes on this thread wakes it so
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            ready => return ready.unwrap() > 0,
        }
    }
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Plain or granted address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

impl Buffer {
    /// For the device to read.
    pub fn readable(address: u64, len: u32) -> Self {
        Buffer {
            address,
            len,
            writable: false,
        }
    }

    /// For the device to write.
    pub fn writable(address: u64, len: u32) -> Self {
        Buffer {
            address,
            len,
            writable: true,
        }
    }
}

/// A split virtqueue as its driver sees it. virtio 1.3 §2.7
pub struct DriverRing {
    /// The RAM that it lies in.
    pub ram: GuestRam,
    layout: QueueLayout,
    next_desc: u16,
    avail: u16,
    used: u16,
}

impl DriverRing {
    /// A zeroed ring of `size` descriptors, somewhere in `ram`.
    pub fn new(ram: &GuestRam, size: u16) -> Self {
        let mut layout = QueueLayout {
            size,
            ..QueueLayout::default()
        };
        layout.desc = ram.alloc(layout.desc_len().into());
        layout.avail = ram.alloc(layout.avail_len().into());
        layout.used = ram.alloc(layout.used_len().into());
        DriverRing {
            ram: ram.clone(),
            layout,
            next_desc: 0,
            avail: 0,
            used: 0,
        }
    }

    /// Where it lies.
    pub fn layout(&self) -> QueueLayout {
        self.layout
    }

    /// The device's side of it, with the features `negotiated`, and the line
    /// that its interrupts raise.
    pub fn activate(&self, negotiated: u64) -> (ActiveQueue, Arc<Line>) {
        let line = Arc::new(Line::default());
        let queue = ActiveQueue::activate(
            0,
            self.layout,
            QueuePosition::default(),
            negotiated,
            self.ram.dma(),
            Arc::new(Notifier::new(line.clone())),
            Arc::new(QueueStats::default()),
        );
        (queue.unwrap(), line)
    }

    /// Writes a descriptor as it is.
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        let at = self.layout.desc + 16 * u64::from(index);
        self.ram.write(at, descriptor.as_bytes());
    }

    /// Builds a chain in the ring's table and offers it; returns its head.
    /// Descriptors are used in turn; the caller has no more in use at once
    /// than the ring has.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_desc;
        for (i, buffer) in buffers.iter().enumerate() {
            let next = (self.next_desc + 1) % self.layout.size;
            let last = i + 1 == buffers.len();
            self.set_descriptor(self.next_desc, descriptor(buffer, next, last));
            self.next_desc = next;
        }
        self.offer(head);
        head
    }

    /// The same through an indirect table.
    pub fn add_indirect(&mut self, buffers: &[Buffer]) -> u16 {
        let count = buffers.len();
        let table: Vec<u8> = buffers
            .iter()
            .enumerate()
            .map(|(i, buffer)| descriptor(buffer, i as u16 + 1, i + 1 == count))
            .flat_map(|entry| entry.as_bytes().to_vec())
            .collect();
        let head = self.next_desc;
        self.next_desc = (head + 1) % self.layout.size;
        let entry = Descriptor {
            addr: self.ram.alloc_bytes(&table),
            len: table.len() as u32,
            flags: VRING_DESC_F_INDIRECT as u16,
            next: 0,
        };
        self.set_descriptor(head, entry);
        self.offer(head);
        head
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.avail % self.layout.size);
        let entry = self.layout.avail + 4 + 2 * slot;
        self.ram.write(entry, &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.set_avail_index(self.avail);
    }

    /// Writes the available index as it is.
    pub fn set_avail_index(&self, index: u16) {
        self.ram.write(self.layout.avail + 2, &index.to_le_bytes());
    }

    /// The used index, as the device has left it.
    pub fn used_index(&self) -> u16 {
        let bytes = self.ram.read(self.layout.used + 2, 2);
        u16::from_le_bytes(bytes.try_into().unwrap())
    }

    /// Head and length of every chain used since the last call.
    pub fn used(&mut self) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        while self.used != self.used_index() {
            let slot = u64::from(self.used % self.layout.size);
            let entry = self.ram.read(self.layout.used + 4 + 8 * slot, 8);
            let (id, len) = entry.split_at(4);
            let id = u32::from_le_bytes(id.try_into().unwrap());
            let len = u32::from_le_bytes(len.try_into().unwrap());
            used.push((u16::try_from(id).unwrap(), len));
            self.used = self.used.wrapping_add(1);
        }
        used
    }
}

fn descriptor(buffer: &Buffer, next: u16, last: bool) -> Descriptor {
    let write = VRING_DESC_F_WRITE * u32::from(buffer.writable);
    let chain = VRING_DESC_F_NEXT * u32::from(!last);
    Descriptor {
        addr: buffer.address,
        len: buffer.len,
        flags: (write | chain) as u16,
        next: if last { 0 } else { next },
    }
}
