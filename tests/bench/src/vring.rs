//! A guest with one ring, and the front end that shares them: messages by the
//! crate `vhost`, the ring by hand.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Context, ensure};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Descriptors of the ring: each is a chain of its own, with a buffer of its own.
pub const SIZE: u16 = 64;
/// Most bytes of a buffer.
pub const BUFFER: u32 = 1 << 16;
/// Where the guest's memory is.
const MEMORY: u64 = 0x1000_0000;
/// Where its buffers are.
const BUFFERS: u64 = MEMORY + 0x1_0000;
/// Bytes of it.
const BYTES: usize = 0x1_0000 + SIZE as usize * BUFFER as usize;
/// The ring's parts.
const DESCRIPTORS: u64 = MEMORY;
const AVAILABLE: u64 = MEMORY + 0x1000;
const USED: u64 = MEMORY + 0x2000;
/// How long a back end may take over a buffer, milliseconds.
const PATIENCE: i32 = 10_000;

/// VIRTIO_F_VERSION_1 and VHOST_USER_F_PROTOCOL_FEATURES
const FEATURES: u64 = 1 << 32 | 1 << 30;
/// VRING_DESC_F_WRITE
const WRITE: u16 = 2;
/// VRING_USED_F_NO_NOTIFY
const NO_NOTIFY: u16 = 1;

/// The ring, in use. Buffers are for the device to write.
pub struct Driver {
    memory: GuestMemoryMmap,
    kick: EventFd,
    call: EventFd,
    epoll: Epoll,
    available: u16,
    used: u16,
    // its back end stops when it goes
    _frontend: Frontend,
}

impl Driver {
    /// Connects and starts the back end's first ring.
    ///
    /// # Errors
    /// What the back end refuses.
    pub fn connect(socket: &Path) -> anyhow::Result<Self> {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, BYTES as u64)?;
        let range = (
            GuestAddress(MEMORY),
            BYTES,
            Some(FileOffset::new(file.into(), 0)),
        );
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges_with_files([range])?;
        let mut frontend = Frontend::connect(socket, 1).context("connecting")?;
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        let protocol = frontend.get_protocol_features()?;
        frontend.set_protocol_features(protocol)?;
        frontend.set_features(offered & FEATURES)?;
        let event = || EventFd::new(EFD_NONBLOCK);
        let (kick, call) = (event()?, event()?);
        let epoll = Epoll::new()?;
        let interest = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, call.as_raw_fd(), interest)?;
        let region = memory.iter().next().context("memory without a region")?;
        let info = VhostUserMemoryRegionInfo::from_guest_region(region)?;
        frontend.set_mem_table(&[info])?;
        let user = |address| address - region.start_addr().0 + info.userspace_addr;
        frontend.set_vring_num(0, SIZE)?;
        frontend.set_vring_base(0, 0)?;
        let addresses = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: user(DESCRIPTORS),
            used_ring_addr: user(USED),
            avail_ring_addr: user(AVAILABLE),
            log_addr: None,
        };
        frontend.set_vring_addr(0, &addresses)?;
        frontend.set_vring_call(0, &call)?;
        frontend.set_vring_kick(0, &kick)?;
        frontend.set_vring_enable(0, true)?;
        Ok(Driver {
            memory,
            kick,
            call,
            epoll,
            available: 0,
            used: 0,
            _frontend: frontend,
        })
    }

    /// Offers buffer `head` with room for `len` bytes; nobody is told.
    ///
    /// # Errors
    /// A head or a length that there is not.
    pub fn offer(&mut self, head: u16, len: u32) -> anyhow::Result<()> {
        ensure!(head < SIZE && len <= BUFFER, "buffer {head} of {len} bytes");
        let buffer = BUFFERS + u64::from(head) * u64::from(BUFFER);
        let descriptor = DESCRIPTORS + 16 * u64::from(head);
        self.memory.write_obj(buffer, GuestAddress(descriptor))?;
        self.memory.write_obj(len, GuestAddress(descriptor + 8))?;
        self.memory
            .write_obj(WRITE, GuestAddress(descriptor + 12))?;
        let slot = AVAILABLE + 4 + 2 * u64::from(self.available % SIZE);
        self.memory.write_obj(head, GuestAddress(slot))?;
        self.available = self.available.wrapping_add(1);
        let index = GuestAddress(AVAILABLE + 2);
        Ok(self.memory.store(self.available, index, Ordering::SeqCst)?)
    }

    /// Tells the back end, unless it says that it looks anyway.
    ///
    /// # Errors
    /// The event fails.
    pub fn kick(&self) -> anyhow::Result<()> {
        std::sync::atomic::fence(Ordering::SeqCst);
        let flags: u16 = self.memory.load(GuestAddress(USED), Ordering::SeqCst)?;
        if flags & NO_NOTIFY == 0 {
            self.kick.write(1)?;
        }
        Ok(())
    }

    /// Takes a buffer back, with the number of bytes in it; waits for one.
    ///
    /// # Errors
    /// None comes.
    pub fn take(&mut self) -> anyhow::Result<(u16, u32)> {
        loop {
            let index: u16 = self.memory.load(GuestAddress(USED + 2), Ordering::SeqCst)?;
            if index != self.used {
                break;
            }
            let mut events = [EpollEvent::default()];
            let count = self.epoll.wait(PATIENCE, &mut events)?;
            ensure!(count > 0, "nothing was used");
            let _ = self.call.read();
        }
        let entry = USED + 4 + 8 * u64::from(self.used % SIZE);
        let [head, written]: [u32; 2] = self.memory.read_obj(GuestAddress(entry))?;
        self.used = self.used.wrapping_add(1);
        Ok((u16::try_from(head)?, written))
    }

    /// What is in a buffer.
    ///
    /// # Errors
    /// A buffer that there is not.
    pub fn read(&self, head: u16, bytes: &mut [u8]) -> anyhow::Result<()> {
        let buffer = BUFFERS + u64::from(head) * u64::from(BUFFER);
        Ok(self.memory.read_slice(bytes, GuestAddress(buffer))?)
    }
}
