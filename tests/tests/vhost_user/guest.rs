//! A guest with memory in files and split rings in it, and the front end that
//! shares them: messages by the crate `vhost`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
    MmapRegion,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::program::{PATIENCE, Program};

/// Descriptors of a ring.
pub const SIZE: u16 = 128;
/// Where rings are.
pub const RINGS: u64 = 0x1000_0000;
/// Where data is; in a file of its own.
pub const DATA: u64 = 0x4000_0000;
/// Bytes of each of the two.
pub const REGION: usize = 4 << 20;
/// Bytes that a ring's parts take.
const STRIDE: u64 = 0x4000;

/// VHOST_USER_F_PROTOCOL_FEATURES
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// VHOST_F_LOG_ALL
pub const LOG_ALL: u64 = 1 << 26;
/// VIRTIO_F_VERSION_1
pub const VERSION_1: u64 = 1 << 32;

/// VRING_DESC_F_NEXT
const NEXT: u16 = 1;
/// VRING_DESC_F_WRITE
const WRITE: u16 = 2;

/// A part of a chain.
#[derive(Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub len: u32,
    pub writable: bool,
}

/// What the device says of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    pub head: u16,
    pub written: u32,
}

/// A memory file of `bytes`.
pub fn memory_file(bytes: usize) -> File {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, bytes as u64).unwrap();
    file.into()
}

/// One ring, seen from its driver.
pub struct Ring {
    index: u16,
    pub kick: EventFd,
    pub call: EventFd,
    pub error: EventFd,
    available: u16,
    used: u16,
}

impl Ring {
    fn new(index: u16) -> Ring {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Ring {
            index,
            kick: event(),
            call: event(),
            error: event(),
            available: 0,
            used: 0,
        }
    }

    /// Guest-physical addresses of descriptors, available and used ring.
    pub fn parts(&self) -> [u64; 3] {
        let start = RINGS + u64::from(self.index) * STRIDE;
        [start, start + 0x1000, start + 0x2000]
    }

    /// Chains made available so far, modulo 2^16.
    pub fn available(&self) -> u16 {
        self.available
    }

    /// Chains taken back so far, modulo 2^16.
    pub fn used(&self) -> u16 {
        self.used
    }
}

/// A guest; it outlives whoever serves it.
pub struct Guest {
    pub memory: GuestMemoryMmap,
    pub rings: Vec<Ring>,
}

impl Guest {
    pub fn new(rings: u16) -> Guest {
        let ranges = [RINGS, DATA].map(|start| {
            let file = FileOffset::new(memory_file(REGION), 0);
            (GuestAddress(start), REGION, Some(file))
        });
        Guest {
            memory: GuestMemoryMmap::from_ranges_with_files(ranges).unwrap(),
            rings: (0..rings).map(Ring::new).collect(),
        }
    }

    /// As `vhost` wants them.
    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let info = |region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        self.memory.iter().map(info).collect()
    }

    /// Puts a chain at descriptor `head` and those behind it, and makes it
    /// available.
    pub fn submit(&mut self, ring: usize, head: u16, chain: &[Buffer]) {
        let ring = &mut self.rings[ring];
        let [descriptors, avail, _] = ring.parts();
        for (at, buffer) in (head..).zip(chain) {
            let last = usize::from(at - head) + 1 == chain.len();
            let next = if last { 0 } else { NEXT };
            let flags = next | if buffer.writable { WRITE } else { 0 };
            let descriptor = GuestAddress(descriptors + 16 * u64::from(at));
            self.memory.write_obj(buffer.address, descriptor).unwrap();
            let (len, rest) = (descriptor.0 + 8, descriptor.0 + 12);
            self.memory
                .write_obj(buffer.len, GuestAddress(len))
                .unwrap();
            self.memory.write_obj(flags, GuestAddress(rest)).unwrap();
            self.memory
                .write_obj(at + 1, GuestAddress(rest + 2))
                .unwrap();
        }
        let slot = u64::from(ring.available % SIZE);
        self.memory
            .write_obj(head, GuestAddress(avail + 4 + 2 * slot))
            .unwrap();
        ring.available = ring.available.wrapping_add(1);
        self.memory
            .store(ring.available, GuestAddress(avail + 2), Ordering::SeqCst)
            .unwrap();
    }

    /// Tells the device.
    pub fn kick(&self, ring: usize) {
        self.rings[ring].kick.write(1).unwrap();
    }

    /// Takes back one chain, if the device has used one.
    pub fn take(&mut self, ring: usize) -> Option<Used> {
        let ring = &mut self.rings[ring];
        let [_, _, used] = ring.parts();
        let index: u16 = self
            .memory
            .load(GuestAddress(used + 2), Ordering::SeqCst)
            .unwrap();
        if index == ring.used {
            return None;
        }
        let entry = GuestAddress(used + 4 + 8 * u64::from(ring.used % SIZE));
        let [head, written]: [u32; 2] = self.memory.read_obj(entry).unwrap();
        ring.used = ring.used.wrapping_add(1);
        Some(Used {
            head: u16::try_from(head).unwrap(),
            written,
        })
    }

    /// Waits for a chain to take back.
    pub fn wait(&mut self, ring: usize) -> Used {
        loop {
            if let Some(used) = self.take(ring) {
                return used;
            }
            assert!(rung(&self.rings[ring].call), "nothing was used");
        }
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }
}

/// Waits until an event is rung, and takes that; false if it never is.
pub fn rung(event: &EventFd) -> bool {
    let timeout = Timespec {
        tv_sec: PATIENCE.as_secs().try_into().unwrap(),
        tv_nsec: 0,
    };
    // SAFETY: the event owns the descriptor and outlives this call.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let ready = poll(&mut fds, Some(&timeout)).unwrap();
    ready > 0 && event.read().is_ok()
}

/// The region that a front end keeps for its back end.
pub struct Kept {
    pub told: VhostUserInflight,
    pub file: File,
}

impl Kept {
    /// How many heads of the first `rings` rings are noted as in flight.
    pub fn in_flight(&self, rings: usize) -> usize {
        let size = usize::try_from(self.told.mmap_size).unwrap();
        let file = FileOffset::new(self.file.try_clone().unwrap(), 0);
        let map = MmapRegion::<()>::from_file(file, size).unwrap();
        let map = GuestRegionMmap::new(map, GuestAddress(0)).unwrap();
        let memory = GuestMemoryMmap::from_regions(vec![map]).unwrap();
        let part = size / usize::from(self.told.num_queues);
        (0..rings)
            .flat_map(|ring| (0..usize::from(SIZE)).map(move |head| part * ring + 16 + 16 * head))
            .filter(|&at| memory.read_obj::<u8>(GuestAddress(at as u64)).unwrap() != 0)
            .count()
    }
}

/// A connected front end.
pub struct Session {
    pub frontend: Frontend,
    pub offered: u64,
}

impl Session {
    /// Connects and negotiates everything that is offered, logging aside.
    pub fn connect(program: &Program, device: usize) -> Session {
        Session::over(program.connect(device))
    }

    /// Negotiates the same over a connection that there is.
    pub fn over(stream: UnixStream) -> Session {
        let frontend = Frontend::from_stream(stream, 64);
        let mut session = Session {
            offered: 0,
            frontend,
        };
        session.frontend.set_owner().unwrap();
        session.offered = session.frontend.get_features().unwrap();
        session.set_features(0);
        let offered = session.frontend.get_protocol_features().unwrap();
        session.frontend.set_protocol_features(offered).unwrap();
        session
            .frontend
            .set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        session
    }

    /// Takes the features that this driver knows, and `more`.
    pub fn set_features(&self, more: u64) {
        let own = self.offered & (VERSION_1 | PROTOCOL_FEATURES);
        self.frontend.set_features(own | more).unwrap();
    }

    /// Shares all memory in one message and starts all rings where their used
    /// rings say.
    pub fn start(&mut self, guest: &Guest) {
        self.frontend.set_mem_table(&guest.regions()).unwrap();
        for ring in 0..guest.rings.len() {
            self.start_ring(guest, ring, guest.rings[ring].used());
        }
    }

    /// Starts a ring at `base`.
    pub fn start_ring(&mut self, guest: &Guest, index: usize, base: u16) {
        self.set_up_ring(guest, index, base);
        self.frontend.set_vring_enable(index, true).unwrap();
    }

    /// Says all of a ring but that it is enabled.
    pub fn set_up_ring(&mut self, guest: &Guest, index: usize, base: u16) {
        let ring = &guest.rings[index];
        let regions = guest.regions();
        let user = |address: u64| {
            let region = regions.iter().find(|region| {
                (region.guest_phys_addr..region.guest_phys_addr + region.memory_size)
                    .contains(&address)
            });
            let region = region.unwrap();
            address - region.guest_phys_addr + region.userspace_addr
        };
        let [desc, avail, used] = ring.parts().map(user);
        let frontend = &mut self.frontend;
        frontend.set_vring_num(index, SIZE).unwrap();
        frontend.set_vring_base(index, base).unwrap();
        let addresses = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: desc,
            used_ring_addr: used,
            avail_ring_addr: avail,
            log_addr: None,
        };
        frontend.set_vring_addr(index, &addresses).unwrap();
        frontend.set_vring_call(index, &ring.call).unwrap();
        frontend.set_vring_err(index, &ring.error).unwrap();
        frontend.set_vring_kick(index, &ring.kick).unwrap();
    }

    /// Has the back end make the region for its requests in flight.
    pub fn get_inflight(&mut self, rings: u16) -> Kept {
        let wanted = VhostUserInflight::new(0, 0, rings, SIZE);
        let (told, file) = self.frontend.get_inflight_fd(&wanted).unwrap();
        Kept { told, file }
    }

    /// Hands it back.
    pub fn set_inflight(&mut self, kept: &Kept) {
        self.frontend
            .set_inflight_fd(&kept.told, kept.file.as_raw_fd())
            .unwrap();
    }

    /// Has writes logged in `file`.
    pub fn log(&self, file: &File, bytes: usize) {
        let region = VhostUserDirtyLogRegion {
            mmap_size: bytes as u64,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        };
        self.frontend.set_log_base(0, Some(region)).unwrap();
    }

    /// The protocol features that were offered.
    pub fn protocol_features(&mut self) -> VhostUserProtocolFeatures {
        self.frontend.get_protocol_features().unwrap()
    }
}

/// VIRTIO_BLK_T_IN
pub const IN: u32 = 0;
/// VIRTIO_BLK_T_OUT
pub const OUT: u32 = 1;
/// Bytes of a request's data.
pub const BLOCK: u32 = 4096;

/// Where request `slot` of `ring` has header, data and status.
pub fn places(ring: usize, slot: u16) -> [u64; 3] {
    let number = ring as u64 * 32 + u64::from(slot);
    let headers = RINGS + 0x20_0000 + number * 64;
    [headers, DATA + number * u64::from(BLOCK), headers + 32]
}

/// Makes request `slot` of `ring` available: a block of the disk's.
pub fn request(guest: &mut Guest, ring: usize, slot: u16, kind: u32, block: u64) {
    let [header, data, status] = places(ring, slot);
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend((block * u64::from(BLOCK / 512)).to_le_bytes());
    guest.write(header, &bytes);
    guest.write(status, &[0xff]);
    let part = |address, len, writable| Buffer {
        address,
        len,
        writable,
    };
    let chain = [
        part(header, 16, false),
        part(data, BLOCK, kind == IN),
        part(status, 1, true),
    ];
    guest.submit(ring, 3 * slot, &chain);
}

/// The status of request `slot`.
pub fn status(guest: &Guest, ring: usize, slot: u16) -> u8 {
    guest.read(places(ring, slot)[2], 1)[0]
}
