//! The disk as its transport sees it: features, configuration space, queues.

use std::collections::VecDeque;
use std::mem::offset_of;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use thiserror::Error;
use virtio_bindings::virtio_blk as blk;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::cache::{Durability, WriteCache};
use super::config::{BlkSpec, SECTOR};
use super::engine::{self, Engine};
use super::handler::BlkHandler;
use super::image::{ImageError, Shape};
use super::limit::{Brake, Budget};
use super::medium::Medium;
use super::request::{DISCARD_EXTENTS, DISCARD_SECTORS, Limits, ZERO_EXTENTS, ZERO_SECTORS};
use super::stats::BlkStats;
use crate::virtio::{Device, DeviceError, DeviceType, QueueHandler};

/// virtio 1.3 §5.2.4, as far as the features below go.
#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
struct ConfigSpace {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    geometry: [u8; 4],
    blk_size: U32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: U16,
    opt_io_size: U32,
    writeback: u8,
    unused0: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

/// A queue that the disk does not have.
#[derive(Debug, Error)]
#[error("the disk has {queues} queues, not a number {index}")]
struct NoSuchQueue {
    index: u16,
    queues: u16,
}

/// A virtio disk. It holds its image, and the image's lock, until it and the handlers of its queues are dropped; resets do not matter.
#[derive(Debug)]
pub struct BlkDevice {
    spec: BlkSpec,
    medium: Medium,
    stats: Arc<BlkStats>,
    cache: WriteCache,
    /// What the guest may still ask for, where it is limited.
    budget: Option<Arc<Mutex<Budget>>>,
    queue_sizes: Vec<u16>,
    features: u64,
    config: ConfigSpace,
}

impl BlkDevice {
    /// Opens and locks the image of `spec`.
    ///
    /// # Errors
    /// An image that cannot be served.
    pub fn open(spec: BlkSpec) -> Result<Self, ImageError> {
        let medium = Medium::open(&spec)?;
        let engine = engine::choose(spec.engine).map_err(|source| ImageError::NoIoUring {
            path: medium.name(),
            source,
        })?;
        let spec = BlkSpec { engine, ..spec };
        let shape = medium.shape();
        tracing::info!(
            image = %medium.name().display(),
            format = spec.format().map(|format| format.name()),
            bytes = shape.size,
            readonly = spec.readonly,
            discard = shape.discard.is_some(),
            logical_block_size = shape.logical,
            physical_block_size = shape.physical,
            direct = spec.direct.then_some(medium.need().align),
            engine = ?engine,
            "disk opened"
        );
        Ok(BlkDevice {
            features: features(&spec, shape),
            config: config_space(&spec, shape),
            queue_sizes: vec![spec.queue_size; usize::from(spec.queues)],
            stats: Arc::default(),
            cache: WriteCache::new(spec.write_cache),
            budget: Budget::new(spec.rates, Instant::now()),
            medium,
            spec,
        })
    }

    /// What it has done so far.
    pub fn stats(&self) -> &Arc<BlkStats> {
        &self.stats
    }

    fn switch_cache(&mut self, on: bool) {
        self.cache.switch(on);
        self.config.writeback = u8::from(on);
    }

    /// Capacity in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.medium.sectors()
    }
}

fn features(spec: &BlkSpec, shape: &Shape) -> u64 {
    let mut bits = vec![
        blk::VIRTIO_BLK_F_SEG_MAX,
        blk::VIRTIO_BLK_F_BLK_SIZE,
        blk::VIRTIO_BLK_F_TOPOLOGY,
        blk::VIRTIO_BLK_F_FLUSH,
    ];
    if spec.queues > 1 {
        bits.push(blk::VIRTIO_BLK_F_MQ);
    }
    if spec.readonly {
        bits.push(blk::VIRTIO_BLK_F_RO);
    } else {
        bits.push(blk::VIRTIO_BLK_F_WRITE_ZEROES);
        bits.push(blk::VIRTIO_BLK_F_CONFIG_WCE);
    }
    if shape.discard.is_some() {
        bits.push(blk::VIRTIO_BLK_F_DISCARD);
    }
    bits.into_iter().fold(0, |all, bit| all | 1 << bit)
}

fn config_space(spec: &BlkSpec, shape: &Shape) -> ConfigSpace {
    let blocks = |bytes: u32| bytes / shape.logical.max(1);
    let discard = shape.discard.unwrap_or(0);
    let exponent = blocks(shape.physical).max(1).ilog2();
    let mut config = ConfigSpace {
        capacity: (shape.size / SECTOR).into(),
        // a header and a status byte are in every chain, too
        seg_max: u32::from(spec.queue_size.saturating_sub(2)).into(),
        blk_size: shape.logical.into(),
        physical_block_exp: u8::try_from(exponent).unwrap_or(0),
        alignment_offset: u8::try_from(blocks(shape.alignment)).unwrap_or(0),
        min_io_size: u16::try_from(blocks(shape.io_min)).unwrap_or(0).into(),
        opt_io_size: blocks(shape.io_opt).into(),
        num_queues: spec.queues.into(),
        writeback: u8::from(spec.write_cache),
        ..ConfigSpace::default()
    };
    if discard > 0 {
        config.max_discard_sectors = DISCARD_SECTORS.into();
        config.max_discard_seg = DISCARD_EXTENTS.into();
        config.discard_sector_alignment = (discard / 512).max(1).into();
    }
    if !spec.readonly {
        config.max_write_zeroes_sectors = ZERO_SECTORS.into();
        config.max_write_zeroes_seg = ZERO_EXTENTS.into();
        config.write_zeroes_may_unmap = u8::from(discard > 0);
    }
    config
}

impl Device for BlkDevice {
    fn device_type(&self) -> DeviceType {
        DeviceType::BLOCK
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config.as_bytes();
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = config.get(at..).unwrap_or_default();
        let count = rest.len().min(data.len());
        data.fill(0);
        for (to, from) in data.iter_mut().zip(rest.iter().take(count)) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) -> bool {
        let at = offset_of!(ConfigSpace, writeback) as u64;
        match data {
            // virtio 1.3 §5.2.5.1: the only field that a driver writes
            &[on @ (0 | 1)] if offset == at && !self.spec.readonly => {
                tracing::debug!(on, "the driver switches the write cache");
                self.switch_cache(on == 1);
                true
            }
            _ => false,
        }
    }

    fn reset(&mut self) {
        self.switch_cache(self.spec.write_cache);
    }

    fn refresh(&mut self) -> bool {
        if let Err(error) = self.medium.look_again() {
            tracing::warn!(
                image = %self.medium.name().display(),
                %error,
                "the image's size cannot be read; the disk keeps its own"
            );
        }
        let (before, sectors) = (self.config.capacity.get(), self.medium.sectors());
        if before == sectors {
            return false;
        }
        tracing::info!(
            image = %self.medium.name().display(),
            before = before * SECTOR,
            bytes = sectors * SECTOR,
            "the disk has the new size of its image"
        );
        self.config.capacity = sectors.into();
        true
    }

    fn start_queue(
        &mut self,
        index: u16,
        features: u64,
    ) -> Result<Box<dyn QueueHandler>, DeviceError> {
        let queues = self.spec.queues;
        if index >= queues {
            return Err(Box::new(NoSuchQueue { index, queues }));
        }
        let both = self.features & features;
        let negotiated = |bit: u32| both & 1 << bit != 0;
        let can_flush = negotiated(blk::VIRTIO_BLK_F_FLUSH);
        if !can_flush {
            // virtio 1.3 §5.2.5.2: writeback is 0 then
            self.switch_cache(false);
        }
        let durability = Durability {
            can_flush,
            cache: self.cache.clone(),
        };
        let engine = Engine::new(
            self.spec.engine,
            &self.medium,
            Arc::clone(&self.stats),
            durability,
        )?;
        let budget = self.budget.as_ref().map(Arc::clone);
        let brake = budget.map(|budget| Brake::new(budget, engine.event()));
        Ok(Box::new(BlkHandler {
            medium: self.medium.clone(),
            limits: Limits {
                sectors: self.medium.sectors(),
                readonly: self.spec.readonly,
                discard: negotiated(blk::VIRTIO_BLK_F_DISCARD),
                write_zeroes: negotiated(blk::VIRTIO_BLK_F_WRITE_ZEROES),
            },
            serial: self.spec.serial,
            brake: brake.transpose()?,
            engine,
            stats: Arc::clone(&self.stats),
            completed: Vec::new(),
            waiting: VecDeque::new(),
            under_way: 0,
            goes_on: false,
        }))
    }

    fn statistics(&self) -> Vec<(&'static str, u64)> {
        self.stats.list()
    }
}
