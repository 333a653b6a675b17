//! A guest's memory and rings, and the front end that shares them: messages by
//! the crate `vhost`, the rings by hand.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context, ensure};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Descriptors of a ring: each is a chain of its own.
pub const SIZE: u16 = 64;
/// Bytes of a buffer: the largest frame, with its header.
pub const BUFFER: u32 = 1 << 17;
/// Buffers.
pub const BUFFERS: u16 = 2 * SIZE;
/// Where the memory is.
const MEMORY: u64 = 0x1000_0000;
/// Bytes of a ring's parts, which are at its beginning.
const STRIDE: u64 = 0x4000;
/// Where the buffers are.
const DATA: u64 = MEMORY + 0x1_0000;
/// Bytes of it all.
const BYTES: usize = 0x1_0000 + BUFFERS as usize * BUFFER as usize;
/// How long a back end may take over a buffer, milliseconds.
const PATIENCE: i32 = 10_000;

/// VIRTIO_F_VERSION_1 and VHOST_USER_F_PROTOCOL_FEATURES
const FEATURES: u64 = 1 << 32 | 1 << 30;
/// VRING_DESC_F_WRITE
const WRITE: u16 = 2;
/// VRING_USED_F_NO_NOTIFY
const NO_NOTIFY: u16 = 1;

/// The guest's memory. A clone is the same memory.
#[derive(Clone)]
pub struct Memory(GuestMemoryMmap);

impl Memory {
    /// Memory with room for the buffers and four rings.
    ///
    /// # Errors
    /// None to be had.
    pub fn new() -> anyhow::Result<Self> {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, BYTES as u64)?;
        let file = FileOffset::new(file.into(), 0);
        let range = (GuestAddress(MEMORY), BYTES, Some(file));
        Ok(Memory(GuestMemoryMmap::from_ranges_with_files([range])?))
    }

    /// What is in a buffer, from `offset` on.
    ///
    /// # Errors
    /// No such bytes.
    pub fn read(&self, buffer: u16, offset: u64, bytes: &mut [u8]) -> anyhow::Result<()> {
        Ok(self
            .0
            .read_slice(bytes, GuestAddress(place(buffer) + offset))?)
    }

    /// Writes into a buffer, from `offset` on.
    ///
    /// # Errors
    /// No such bytes.
    pub fn write(&self, buffer: u16, offset: u64, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self
            .0
            .write_slice(bytes, GuestAddress(place(buffer) + offset))?)
    }
}

fn place(buffer: u16) -> u64 {
    DATA + u64::from(buffer) * u64::from(BUFFER)
}

/// A connected back end, with its rings in use. It stops when this goes.
pub struct Session {
    pub rings: Vec<Ring>,
    _frontend: Frontend,
}

impl Session {
    /// Connects, takes those of `features` that are offered and starts `rings`
    /// rings, whose places in the memory are from number `first` on.
    ///
    /// # Errors
    /// What the back end refuses.
    pub fn connect(
        socket: &Path,
        memory: &Memory,
        first: u16,
        rings: u16,
        features: u64,
    ) -> anyhow::Result<Self> {
        let mut frontend = Frontend::connect(socket, rings.into()).context("connecting")?;
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        let protocol = frontend.get_protocol_features()?;
        frontend.set_protocol_features(protocol)?;
        frontend.set_features(offered & (FEATURES | features))?;
        let region = memory.0.iter().next().context("memory without a region")?;
        let info = VhostUserMemoryRegionInfo::from_guest_region(region)?;
        frontend.set_mem_table(&[info])?;
        let user = |address| address - region.start_addr().0 + info.userspace_addr;
        let rings = (0..rings)
            .map(|index| {
                let ring = Ring::new(memory, MEMORY + STRIDE * u64::from(first + index))?;
                ring.start(&mut frontend, index.into(), user)?;
                Ok(ring)
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Session {
            rings,
            _frontend: frontend,
        })
    }
}

/// A ring, seen from its driver.
pub struct Ring {
    memory: Memory,
    start: u64,
    kick: EventFd,
    call: EventFd,
    available: u16,
    used: u16,
}

impl Ring {
    fn new(memory: &Memory, start: u64) -> anyhow::Result<Self> {
        Ok(Ring {
            memory: memory.clone(),
            start,
            kick: EventFd::new(EFD_NONBLOCK)?,
            call: EventFd::new(EFD_NONBLOCK)?,
            available: 0,
            used: 0,
        })
    }

    fn start(
        &self,
        frontend: &mut Frontend,
        index: usize,
        user: impl Fn(u64) -> u64,
    ) -> anyhow::Result<()> {
        frontend.set_vring_num(index, SIZE)?;
        frontend.set_vring_base(index, 0)?;
        let addresses = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: user(self.start),
            used_ring_addr: user(self.used_ring()),
            avail_ring_addr: user(self.available_ring()),
            log_addr: None,
        };
        frontend.set_vring_addr(index, &addresses)?;
        frontend.set_vring_call(index, &self.call)?;
        frontend.set_vring_kick(index, &self.kick)?;
        Ok(frontend.set_vring_enable(index, true)?)
    }

    fn available_ring(&self) -> u64 {
        self.start + 0x1000
    }

    fn used_ring(&self) -> u64 {
        self.start + 0x2000
    }

    /// Offers `len` bytes of a buffer, for the device to write or to read;
    /// nobody is told.
    ///
    /// # Errors
    /// A buffer or a length that there is not.
    pub fn offer(&mut self, buffer: u16, len: u32, writable: bool) -> anyhow::Result<()> {
        ensure!(
            buffer < BUFFERS && len <= BUFFER,
            "buffer {buffer} of {len} bytes"
        );
        let head = buffer % SIZE;
        let descriptor = self.start + 16 * u64::from(head);
        let flags = if writable { WRITE } else { 0 };
        let memory = &self.memory.0;
        memory.write_obj(place(buffer), GuestAddress(descriptor))?;
        memory.write_obj(len, GuestAddress(descriptor + 8))?;
        memory.write_obj(flags, GuestAddress(descriptor + 12))?;
        let slot = self.available_ring() + 4 + 2 * u64::from(self.available % SIZE);
        memory.write_obj(head, GuestAddress(slot))?;
        self.available = self.available.wrapping_add(1);
        let index = GuestAddress(self.available_ring() + 2);
        Ok(memory.store(self.available, index, Ordering::SeqCst)?)
    }

    /// Tells the back end, unless it says that it looks anyway.
    ///
    /// # Errors
    /// The event fails.
    pub fn kick(&self) -> anyhow::Result<()> {
        fence(Ordering::SeqCst);
        let flags: u16 = self
            .memory
            .0
            .load(GuestAddress(self.used_ring()), Ordering::SeqCst)?;
        if flags & NO_NOTIFY == 0 {
            self.kick.write(1)?;
        }
        Ok(())
    }

    /// Takes back a head, with the number of bytes that were written, if there
    /// is one.
    ///
    /// # Errors
    /// A ring that is none.
    pub fn take(&mut self) -> anyhow::Result<Option<(u16, u32)>> {
        let (memory, used) = (&self.memory.0, self.used_ring());
        let index: u16 = memory.load(GuestAddress(used + 2), Ordering::SeqCst)?;
        if index == self.used {
            return Ok(None);
        }
        let entry = used + 4 + 8 * u64::from(self.used % SIZE);
        let [head, written]: [u32; 2] = memory.read_obj(GuestAddress(entry))?;
        self.used = self.used.wrapping_add(1);
        Ok(Some((u16::try_from(head)?, written)))
    }
}

/// Waits for interrupts of rings.
pub struct Interrupts(Epoll);

impl Interrupts {
    /// Of these.
    ///
    /// # Errors
    /// The system gives none.
    pub fn of<'a>(rings: impl IntoIterator<Item = &'a Ring>) -> anyhow::Result<Self> {
        let epoll = Epoll::new()?;
        for ring in rings {
            // an edge: what is not read tells of the next all the same
            let interest = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
            epoll.ctl(ControlOperation::Add, ring.call.as_raw_fd(), interest)?;
        }
        Ok(Interrupts(epoll))
    }

    /// Waits for one; false if none comes in `milliseconds`.
    ///
    /// # Errors
    /// The system fails.
    pub fn wait(&self, milliseconds: i32) -> anyhow::Result<bool> {
        let mut events = [EpollEvent::default(); 4];
        Ok(self.0.wait(milliseconds, &mut events)? > 0)
    }

    /// Waits until a ring gives a head back.
    ///
    /// # Errors
    /// None comes.
    pub fn take(&self, ring: &mut Ring) -> anyhow::Result<(u16, u32)> {
        loop {
            if let Some(taken) = ring.take()? {
                return Ok(taken);
            }
            ensure!(self.wait(PATIENCE)?, "nothing was used");
        }
    }
}
