//! The memory that one connection's back end sees: one sealed memory file, and
//! nothing else.
//!
//! ```text
//! BASE ┌─ queue 0: descriptors │ available │ used │ cells ────────┐ rings
//!      ├─ queue 1: …                                              ─┤
//!      ├─ queue 0: slots of the swiotlb ──────────────────────────┤ data
//!      ├─ queue 1: …                                              ─┤
//!      └──────────────────────────────────────────────────────────┘
//! ```
//!
//! A connection has a file of its own: a back end that was given up may still
//! write to the one that it has, and what it writes there is read by nobody.
//! Each queue has its own part of the slots, so that its worker shares no lock
//! and buffers that wait in one queue take no room from another.

use std::fs::File;

use swiotlb::allocator::BringUp;
use swiotlb::options::Bouncing;
use swiotlb::sizing::{SEGMENT_SIZE, SLOT_SIZE};
use swiotlb::{
    AddressSpace, Allocator, Base, Consumer, Device, DeviceConstraints, Error, Options, PAGE_SIZE,
    PoolMemory, Settings, Worker,
};

use super::config::{CopyBack, VhostUserSpec};
use super::error::SessionError;
use super::peer::{Region, RingAddresses};
use crate::virtio::queue::QueueLayout;

/// Where the back end finds its memory: an address that is neither the guest's
/// nor this process's, of which it so learns nothing.
const BASE: u64 = 0x1_0000_0000;
/// Descriptors of a small indirect table.
pub(super) const SMALL_TABLE: usize = 8;
/// Bytes of one.
pub(super) const SMALL_TABLE_BYTES: u64 = 16 * SMALL_TABLE as u64;
/// Bytes for short pieces behind it.
pub(super) const CELL_REST: usize = 384;
/// Bytes of a cell, of which each head has one.
pub(super) const CELL: u64 = SMALL_TABLE_BYTES + CELL_REST as u64;

/// Where a queue's parts are, from the beginning of its ring memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingLayout {
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub cells: u64,
    /// Bytes of all of it: whole pages.
    pub len: u64,
}

impl RingLayout {
    pub(super) fn of(size: u16) -> Self {
        let queue = QueueLayout {
            size,
            ..QueueLayout::default()
        };
        // a cache line for itself: one side writes it, the other reads it
        let after = |start: u64, len: u32| (start + u64::from(len)).next_multiple_of(64);
        let avail = after(0, queue.desc_len());
        let used = after(avail, queue.avail_len());
        let cells = after(used, queue.used_len());
        RingLayout {
            size,
            desc: 0,
            avail,
            used,
            cells,
            len: (cells + u64::from(size) * CELL).next_multiple_of(PAGE_SIZE),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pool {
    memory: PoolMemory,
    ring: RingLayout,
    /// Where the slots begin.
    data: u64,
    data_len: u64,
    name: String,
    copy_back_whole: bool,
}

/// A queue's part of a pool.
#[derive(Debug)]
pub(super) struct QueueMemory {
    pub layout: RingLayout,
    pub rings: PoolMemory,
    /// For what lies in no cell; whoever serves the queue takes it.
    pub worker: Option<Worker>,
    /// All that the back end sees.
    pub whole: PoolMemory,
}

impl Pool {
    /// Fresh memory for a back end.
    ///
    /// # Errors
    /// [`SessionError::Pool`].
    pub(super) fn new(spec: &VhostUserSpec) -> Result<Self, SessionError> {
        let ring = RingLayout::of(spec.queue_size);
        let queues = u64::from(spec.queues);
        // a segment's start is aligned to its size
        let data = (ring.len * queues).next_multiple_of(SEGMENT_SIZE);
        let bytes = data + spec.pool * queues;
        let memory = PoolMemory::memfd("vhost-user", bytes, Base::At(BASE))
            .map_err(|source| SessionError::Pool { bytes, source })?;
        Ok(Pool {
            memory,
            ring,
            data,
            data_len: spec.pool,
            name: spec.socket().display().to_string(),
            copy_back_whole: spec.copy_back == CopyBack::Whole,
        })
    }

    /// Its one region, for the back end.
    pub(super) fn region(&self) -> Region {
        Region {
            guest: BASE,
            user: BASE,
            len: self.memory.len(),
            offset: self.memory.file().map_or(0, |(_, offset)| offset),
        }
    }

    /// Its file, for the back end.
    pub(super) fn file(&self) -> Option<&File> {
        self.memory.file().map(|(file, _)| file)
    }

    /// Where the rings of `queue` are.
    pub(super) fn addresses(&self, queue: u16) -> RingAddresses {
        let start = BASE + self.ring.len * u64::from(queue);
        RingAddresses {
            desc: start + self.ring.desc,
            avail: start + self.ring.avail,
            used: start + self.ring.used,
        }
    }

    /// The part of `queue`, with nothing in it. Its earlier user is gone: the
    /// back end has stopped the ring, or never had it.
    ///
    /// # Errors
    /// [`SessionError::Pool`].
    pub(super) fn queue(&self, queue: u16) -> Result<QueueMemory, SessionError> {
        let failed = |source| SessionError::Pool {
            bytes: self.data_len,
            source,
        };
        let queue = u64::from(queue);
        let rings = self.memory.part(self.ring.len * queue, self.ring.len);
        let rings = rings.map_err(failed)?;
        if let Some(bytes) = rings.slice(0, self.ring.len) {
            for at in (0..bytes.len()).step_by(ZEROES.len()) {
                let rest = (bytes.len() - at).min(ZEROES.len());
                let zeroes = ZEROES.get(..rest).unwrap_or_default();
                if let Ok(part) = bytes.offset(at) {
                    part.copy_from(zeroes);
                }
            }
        }
        let slots = self.slots(queue).map_err(failed)?;
        let device = self.attach(&slots).map_err(failed)?;
        Ok(QueueMemory {
            layout: self.ring,
            rings,
            worker: Some(device.worker(0)),
            whole: self.memory.clone(),
        })
    }

    /// The slots of a queue.
    fn slots(&self, queue: u64) -> Result<PoolMemory, Error> {
        self.memory
            .part(self.data + self.data_len * queue, self.data_len)
    }

    fn attach(&self, slots: &PoolMemory) -> Result<std::sync::Arc<Device>, Error> {
        let mut options = Options::default().with_bouncing(Bouncing::Forced);
        let wanted = u32::try_from(slots.len() / SLOT_SIZE).unwrap_or(u32::MAX);
        options.adjust_size(wanted);
        let settings = Settings {
            name: self.name.clone(),
            options,
            workers: 1,
            ..Settings::default()
        };
        let allocator = Allocator::new(settings, AddressSpace::Plain);
        allocator.ensure_default_pool(BringUp {
            source: &mut |bytes, _limit| slots.part(0, bytes),
            limit: None,
            remap: None,
            probe: &mut || false,
            pv_pci: false,
        })?;
        let constraints = DeviceConstraints {
            name: self.name.clone(),
            consumer: Consumer::Untrusted {
                copy_back_whole: self.copy_back_whole,
            },
            ..DeviceConstraints::default()
        };
        Device::attach(&allocator, constraints)
    }
}

static ZEROES: [u8; 4096] = [0; 4096];

#[cfg(test)]
mod tests {
    use rustix::fs::{SealFlags, fcntl_get_seals};

    use super::*;
    use crate::vhost_user::frontend::VhostUserConfig;

    fn pool(queues: u16) -> Pool {
        let config = VhostUserConfig {
            queues,
            pool_mib: 1,
            ..VhostUserConfig::new("/s", 4)
        };
        Pool::new(&config.validate().unwrap()).unwrap()
    }

    #[test]
    fn queues_parts_do_not_overlap_and_fill_the_file() {
        let pool = pool(3);

        let rings = (0..3).map(|queue| pool.queue(queue).unwrap().rings);
        let slots = (0..3).map(|queue| pool.slots(queue).unwrap());

        let mut parts: Vec<(u64, u64)> = rings
            .chain(slots)
            .map(|memory| (memory.base(), memory.base() + memory.len()))
            .collect();
        parts.sort_unstable();
        assert!(parts.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        let region = pool.region();
        assert_eq!(parts[0].0, region.guest);
        assert_eq!(parts[5].1, region.guest + region.len);
        assert!(pool.queue(3).is_err());
    }

    #[test]
    fn rings_have_the_alignment_that_virtio_asks_for() {
        let pool = pool(2);

        let rings = pool.addresses(1);

        assert_eq!(
            (rings.desc % 16, rings.avail % 2, rings.used % 4),
            (0, 0, 0)
        );
    }

    #[test]
    fn a_ring_is_as_new_for_whoever_has_it_next() {
        let pool = pool(2);
        let first = pool.queue(1).unwrap();
        let bytes = first.rings.slice(0, first.layout.len).unwrap();
        bytes.copy_from(&vec![0xee_u8; bytes.len()]);

        let next = pool.queue(1).unwrap();
        let bytes = next.rings.slice(0, next.layout.len).unwrap();
        let mut found = vec![1_u8; bytes.len()];
        bytes.copy_to(&mut found);

        assert!(found.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn its_file_can_be_cut_by_nobody() {
        let pool = pool(1);
        let file = pool.file().unwrap();

        let seals = fcntl_get_seals(file).unwrap();

        assert_eq!(seals, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL);
        assert!(file.set_len(0).is_err());
    }
}
