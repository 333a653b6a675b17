//! The region that a front end keeps for us, so that requests in flight
//! outlive this process.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::MmapRegion;

use super::error::Refusal;
use super::memory::map_shared;
use crate::virtio::queue::inflight::Inflight;

/// The region, one part a ring.
#[derive(Clone, Debug)]
pub(super) struct InflightRegion {
    memory: Arc<MmapRegion>,
    rings: u16,
    size: u16,
}

impl InflightRegion {
    /// A new one for `rings` rings of `size` descriptors, what to tell the
    /// front end of it, and its file.
    pub(super) fn create(
        rings: u16,
        size: u16,
    ) -> Result<(Self, VhostUserInflight, File), Refusal> {
        let bytes = bytes(rings, size);
        let failed = |error: rustix::io::Errno| Refusal::Host("memory file", error.into());
        let file = memfd_create("inflight", MemfdFlags::CLOEXEC).map_err(failed)?;
        ftruncate(&file, bytes).map_err(failed)?;
        let file = File::from(file);
        let told = VhostUserInflight::new(bytes, 0, rings, size);
        let own = file
            .try_clone()
            .map_err(|error| Refusal::Host("descriptor", error))?;
        Ok((Self::map(&told, own)?, told, file))
    }

    /// The one that the front end has kept.
    pub(super) fn map(told: &VhostUserInflight, file: File) -> Result<Self, Refusal> {
        let (rings, size) = (told.num_queues, told.queue_size);
        if told.mmap_size < bytes(rings, size) || size == 0 {
            return Err(Refusal::Inflight {
                bytes: told.mmap_size,
                rings,
                size,
            });
        }
        let memory = map_shared("in-flight region", file, told.mmap_offset, told.mmap_size)?;
        Ok(InflightRegion {
            memory: Arc::new(memory),
            rings,
            size,
        })
    }

    /// The part of ring `index`, if it has one with room for `size`
    /// descriptors.
    pub(super) fn part(&self, index: u16, size: u16) -> Option<Inflight> {
        if index >= self.rings || size > self.size {
            return None;
        }
        let start = usize::from(index).checked_mul(Inflight::bytes(self.size))?;
        Inflight::new(Arc::clone(&self.memory), start, self.size)
    }
}

/// A part that no front end keeps.
pub(super) fn private(size: u16) -> Result<Inflight, Refusal> {
    let bytes = Inflight::bytes(size);
    let memory = MmapRegion::new(bytes).map_err(|source| Refusal::Map {
        what: "in-flight region",
        len: bytes as u64,
        offset: 0,
        source,
    })?;
    Inflight::new(Arc::new(memory), 0, size).ok_or(Refusal::Inflight {
        bytes: bytes as u64,
        rings: 1,
        size,
    })
}

fn bytes(rings: u16, size: u16) -> u64 {
    u64::from(rings) * Inflight::bytes(size) as u64
}
