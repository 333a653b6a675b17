//! A disk's requests, from a driver's chain to the used ring.

/// Makes a test of each function for each engine, by page cache and past it, on
/// images of each format.
macro_rules! on_every_engine {
    ($($name:ident)*) => {
        on_every_raw_engine! { $($name)* }
        on_every_raw_engine! { @mod qcow2_sync, On::qcow2(EngineKind::Sync, false), $($name)* }
        on_every_raw_engine! { @mod qcow2_threads, On::qcow2(EngineKind::Threads, false), $($name)* }
        on_every_raw_engine! { @mod qcow2_direct, On::qcow2(EngineKind::Threads, true), $($name)* }
    };
}

/// The same for raw images alone.
macro_rules! on_every_raw_engine {
    ($($name:ident)*) => {
        on_every_raw_engine! { @mod cached_sync, On::new(EngineKind::Sync, false), $($name)* }
        on_every_raw_engine! { @io_uring cached_io_uring, On::new(EngineKind::IoUring, false), $($name)* }
        on_every_raw_engine! { @mod cached_threads, On::new(EngineKind::Threads, false), $($name)* }
        on_every_raw_engine! { @mod direct_threads, On::new(EngineKind::Threads, true), $($name)* }
        on_every_raw_engine! { @mod direct_sync, On::new(EngineKind::Sync, true), $($name)* }
        on_every_raw_engine! { @io_uring direct_io_uring, On::new(EngineKind::IoUring, true), $($name)* }
    };
    (@mod $module:ident, $on:expr, $($name:ident)*) => {
        mod $module {
            use super::*;
            $(
                #[test]
                fn $name() {
                    super::$name($on);
                }
            )*
        }
    };
    (@io_uring $module:ident, $on:expr, $($name:ident)*) => {
        mod $module {
            use super::*;
            $(
                #[test]
                #[ignore = "needs io_uring"]
                fn $name() {
                    super::$name($on);
                }
            )*
        }
    };
}

mod block_device;
mod bounced;
mod configuration;
mod limited;
mod long;
mod malformed;
mod null;
mod qcow2;
mod requests;
mod resized;
mod speed;
mod write_cache;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::Duration;

use swiotlb::GrantMode;
use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk as blk;
use zerocopy::IntoBytes;

use super::engine::probe_io_uring;
use super::qcow2::made::{self, Maker};
use super::request::{Header, WireExtent};
use super::{BlkConfig, BlkDevice, BlkStatsSnapshot, EngineKind, Format};
use crate::testing::{Buffer, CHUNK, DriverRing, GuestRam, Line, readable};
use crate::virtio::features::{RING_INDIRECT_DESC, VERSION_1};
use crate::virtio::{ActiveQueue, Device, QueueError, QueueHandler};

const OK: u8 = blk::VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = blk::VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = blk::VIRTIO_BLK_S_UNSUPP as u8;
/// What a status byte holds before the device writes it.
const UNTOUCHED: u8 = 0xee;
/// Bound of every wait.
const PATIENCE: Duration = Duration::from_secs(60);
/// Size of the image: 2048 sectors.
const SIZE: usize = 1 << 20;
const UNMAP: u32 = blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

/// Which engine a test is run on.
#[derive(Clone, Copy)]
struct On {
    engine: EngineKind,
    direct: bool,
    format: Format,
    /// Options of the bounce pool.
    pool: &'static str,
    grants: GrantMode,
}

impl On {
    /// With a pool of one segment.
    fn new(engine: EngineKind, direct: bool) -> Self {
        On {
            engine,
            direct,
            format: Format::Raw,
            pool: "128",
            grants: GrantMode::Map,
        }
    }

    /// The same on a qcow2 image.
    fn qcow2(engine: EngineKind, direct: bool) -> Self {
        On {
            format: Format::Qcow2,
            ..On::new(engine, direct)
        }
    }

    fn rig(self) -> Rig {
        self.with(|_| {})
    }

    fn with(self, configure: impl FnOnce(&mut BlkConfig)) -> Rig {
        self.negotiating(configure, u64::MAX)
    }

    /// A disk whose driver takes those of its features that are in `mask`.
    fn negotiating(self, configure: impl FnOnce(&mut BlkConfig), mask: u64) -> Rig {
        let image = match self.format {
            Format::Raw => new_image(),
            Format::Qcow2 => file_of(&Maker::full(&pattern(0, SIZE)).make()),
        };
        let config = BlkConfig {
            engine: self.engine,
            direct: self.direct,
            format: self.format,
            ..BlkConfig::new(image.path())
        };
        Rig::over(image, config, configure, mask, self)
    }
}

/// `./test` asks by it whether the others that need io_uring can be run.
#[test]
#[ignore = "needs io_uring"]
fn io_uring_is_to_be_had_here() {
    assert!(probe_io_uring().is_ok());
}

/// A guest, its disk and the disk's image.
struct Rig {
    ram: GuestRam,
    ring: DriverRing,
    queue: ActiveQueue,
    line: Arc<Line>,
    handler: Box<dyn QueueHandler>,
    device: BlkDevice,
    image: NamedTempFile,
}

impl Rig {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(configure: impl FnOnce(&mut BlkConfig)) -> Self {
        On::new(EngineKind::Auto, false).with(configure)
    }

    fn on(
        image: NamedTempFile,
        config: BlkConfig,
        configure: impl FnOnce(&mut BlkConfig),
        mask: u64,
    ) -> Self {
        let on = On::new(config.engine, config.direct);
        Self::over(image, config, configure, mask, on)
    }

    fn over(
        image: NamedTempFile,
        mut config: BlkConfig,
        configure: impl FnOnce(&mut BlkConfig),
        mask: u64,
        on: On,
    ) -> Self {
        configure(&mut config);
        let mut device = BlkDevice::open(config.validate().unwrap()).unwrap();
        let features = device.features() & mask | VERSION_1 | RING_INDIRECT_DESC;
        let ram = GuestRam::new(512);
        ram.bounce(on.pool, on.grants);
        let ring = DriverRing::new(&ram, 256);
        let (queue, line) = ring.activate(features);
        let handler = device.start_queue(0, features).unwrap();
        Rig {
            ram,
            ring,
            queue,
            line,
            handler,
            device,
            image,
        }
    }

    /// Has the device serve what is available, to its end; returns what it used.
    fn serve(&mut self) -> Result<Vec<(u16, u32)>, QueueError> {
        let chains = self.queue.take(64)?;
        let count = chains.len();
        self.handler.serve(&mut self.queue, chains)?;
        let mut used = self.ring.used();
        while used.len() < count {
            self.turn()?;
            used.extend(self.ring.used());
        }
        self.queue.notify()?;
        Ok(used)
    }

    /// What the worker does between two looks whether it is to stop.
    fn turn(&mut self) -> Result<(), QueueError> {
        if self.handler.rest()? {
            return self.handler.serve(&mut self.queue, Vec::new());
        }
        let event = self.handler.event().expect("a request is left lying");
        assert!(readable(event, PATIENCE), "a request is never completed");
        self.handler.advance(&mut self.queue)
    }

    /// One request with a plain frame and `data` in between: status and used
    /// length.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let (buffers, status) = self.frame(kind, sector, data);
        let head = self.ring.add(&buffers);
        let used = self.serve().unwrap();
        assert_eq!(used.len(), 1, "one request, one used entry");
        assert_eq!(used[0].0, head);
        (self.ram.read(status, 1)[0], used[0].1)
    }

    /// A request's buffers, and where its status goes.
    fn frame(&self, kind: u32, sector: u64, data: &[Buffer]) -> (Vec<Buffer>, u64) {
        let header = self.ram.alloc_bytes(header(kind, sector).as_bytes());
        let status = self.ram.alloc_bytes(&[UNTOUCHED]);
        let mut buffers = vec![Buffer::readable(header, 16)];
        buffers.extend_from_slice(data);
        buffers.push(Buffer::writable(status, 1));
        (buffers, status)
    }

    /// A buffer of `bytes` for the device to read.
    fn out(&self, bytes: &[u8]) -> Buffer {
        Buffer::readable(self.ram.alloc_bytes(bytes), bytes.len() as u32)
    }

    /// A buffer for the device to write.
    fn space(&self, len: u32) -> Buffer {
        Buffer::writable(self.ram.alloc(len.into()), len)
    }

    fn read_back(&self, buffer: Buffer) -> Vec<u8> {
        self.ram.read(buffer.address, buffer.len as usize)
    }

    /// What the disk's image has for its guest.
    fn image(&self) -> Vec<u8> {
        made::disk(self.image.path())
    }

    /// Blocks of 512 bytes that the image takes on its file system, which may
    /// add a few of its own for every hole.
    fn blocks(&self) -> u64 {
        self.image.as_file().sync_all().unwrap();
        self.image.as_file().metadata().unwrap().blocks()
    }

    fn stats(&self) -> BlkStatsSnapshot {
        self.device.stats().snapshot()
    }
}

/// An image of `SIZE` whose bytes are their sector's number, modulo 251.
fn new_image() -> NamedTempFile {
    file_of(&pattern(0, SIZE))
}

fn file_of(bytes: &[u8]) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().write_all_at(bytes, 0).unwrap();
    file
}

fn header(kind: u32, sector: u64) -> Header {
    Header {
        kind: kind.into(),
        reserved: 0.into(),
        sector: sector.into(),
    }
}

fn extent(sector: u64, sectors: u32, flags: u32) -> WireExtent {
    WireExtent {
        sector: sector.into(),
        sectors: sectors.into(),
        flags: flags.into(),
    }
}

/// What the image holds from `sector` on.
fn pattern(sector: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((sector + i / 512) % 251) as u8).collect()
}
