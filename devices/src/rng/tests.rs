//! Requests for entropy, from a driver's chain to the used ring.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, mknodat};

use super::{RngConfig, RngDevice, RngStatsSnapshot};
use crate::testing::lines::lines_of;
use crate::testing::{Buffer, DriverRing, GuestRam, Line, readable};
use crate::virtio::features::{RING_INDIRECT_DESC, VERSION_1};
use crate::virtio::histogram::timed;
use crate::virtio::{ActiveQueue, Device, DeviceType, QueueError, QueueHandler};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A guest and its source of entropy.
struct Rig {
    ram: GuestRam,
    ring: DriverRing,
    queue: ActiveQueue,
    line: Arc<Line>,
    handler: Box<dyn QueueHandler>,
    device: RngDevice,
}

impl Rig {
    fn new(config: RngConfig) -> Self {
        let mut device = RngDevice::open(config.validate().unwrap()).unwrap();
        let ram = GuestRam::new(512);
        let ring = DriverRing::new(&ram, 256);
        let (queue, line) = ring.activate(VERSION_1 | RING_INDIRECT_DESC);
        let handler = device.start_queue(0, 0).unwrap();
        Rig {
            ram,
            ring,
            queue,
            line,
            handler,
            device,
        }
    }

    fn on(path: &Path) -> Self {
        Rig::new(RngConfig {
            path: Some(path.to_owned()),
            ..RngConfig::default()
        })
    }

    fn limited(bytes_per_second: u64, burst: u32) -> Self {
        Rig::new(RngConfig {
            bytes_per_second: Some(bytes_per_second),
            burst: Some(burst),
            ..RngConfig::default()
        })
    }

    /// Offers a chain of one buffer, and tells where it is.
    fn ask(&mut self, len: u32) -> Buffer {
        let buffer = Buffer::writable(self.ram.alloc(len.into()), len);
        self.ring.add(&[buffer]);
        buffer
    }

    /// Has the handler serve what it takes, as its worker does.
    fn serve(&mut self) -> Result<Vec<(u16, u32)>, QueueError> {
        loop {
            let chains = self.queue.take(self.handler.room())?;
            if chains.is_empty() {
                break;
            }
            self.handler.serve(&mut self.queue, chains)?;
        }
        self.queue.notify()?;
        Ok(self.ring.used())
    }

    /// Waits for the handler's event and serves it.
    fn advance(&mut self) -> Vec<(u16, u32)> {
        assert!(readable(self.handler.event().unwrap(), PATIENCE));
        self.handler.advance(&mut self.queue).unwrap();
        self.serve().unwrap()
    }

    fn read(&self, buffer: Buffer) -> Vec<u8> {
        self.ram.read(buffer.address, buffer.len as usize)
    }

    fn stats(&self) -> RngStatsSnapshot {
        self.device.stats()
    }
}

fn fifo(directory: &tempfile::TempDir) -> std::path::PathBuf {
    let path = directory.path().join("entropy");
    mknodat(CWD, &path, FileType::Fifo, 0o600.into(), 0).unwrap();
    path
}

#[test]
fn it_is_an_entropy_device_without_features_or_configuration() {
    let rig = Rig::new(RngConfig::default());
    let mut config = [0xff; 8];

    rig.device.read_config(0, &mut config);

    assert_eq!(rig.device.device_type(), DeviceType::ENTROPY);
    assert_eq!((rig.device.features(), config), (0, [0; 8]));
    assert_eq!(rig.device.queue_sizes(), [64]);
}

#[test]
fn a_second_queue_is_refused() {
    let mut device = RngDevice::open(RngConfig::default().validate().unwrap()).unwrap();

    let error = device.start_queue(1, 0).err().unwrap();

    assert!(error.to_string().contains("not a number 1"));
}

#[test]
fn chains_are_filled_with_bytes_that_differ() {
    let mut rig = Rig::new(RngConfig::default());
    let (first, second) = (rig.ask(64), rig.ask(64));
    let odd = rig.ask(1);

    let used = rig.serve().unwrap();

    let lens: Vec<u32> = used.iter().map(|(_, len)| *len).collect();
    assert_eq!(lens, [64, 64, 1]);
    assert_ne!(rig.read(first), [0; 64]);
    assert_ne!(rig.read(first), rig.read(second));
    assert_eq!(rig.read(odd).len(), 1);
    assert_eq!(rig.line.edges(), 1);
    assert_eq!((rig.stats().requests, rig.stats().bytes), (3, 129));
    assert!(rig.device.statistics().contains(&("bytes", 129)));
}

#[test]
fn a_chain_of_several_buffers_and_grants_is_filled_across_them() {
    let mut rig = Rig::new(RngConfig::default());
    let plain = Buffer::writable(rig.ram.alloc(100), 100);
    let page = rig.ram.alloc(8192).next_multiple_of(4096);
    let granted = Buffer::writable(GuestRam::granted(page), 100);
    rig.ring.add_indirect(&[plain, granted]);

    let used = rig.serve().unwrap();

    assert_eq!(used[0].1, 200);
    assert_ne!(rig.read(plain), [0; 100]);
    assert_ne!(rig.read(granted), [0; 100]);
    assert_eq!(rig.ram.lent(), 0);
}

#[test]
fn a_huge_chain_gets_a_part_and_its_used_length_says_how_much() {
    let mut rig = Rig::new(RngConfig::default());
    let buffer = rig.ask(1 << 20);

    let used = rig.serve().unwrap();

    assert_eq!(used[0].1, 16 << 10);
    assert_eq!(rig.read(buffer)[16 << 10..], [0; (1 << 20) - (16 << 10)]);
}

#[test]
fn a_chain_without_room_is_given_back_empty() {
    let mut rig = Rig::new(RngConfig::default());
    let readable = Buffer::readable(rig.ram.alloc(16), 16);
    rig.ring.add(&[readable]);

    let used = rig.serve().unwrap();

    assert_eq!(used[0].1, 0);
    assert_eq!(rig.stats().bad_requests, 1);
}

#[test]
fn a_buffer_that_is_not_there_breaks_the_queue_and_spares_its_batch() {
    let mut rig = Rig::new(RngConfig::default());
    let good = rig.ask(32);
    rig.ring.add(&[Buffer::writable(1 << 40, 32)]);

    let error = rig.serve().unwrap_err();

    assert!(matches!(error, QueueError::Request { head: 1, .. }));
    assert_eq!(rig.ring.used(), [(0, 32)]);
    assert_ne!(rig.read(good), [0; 32]);
}

#[test]
fn the_limit_bounds_what_a_guest_gets_in_the_time_that_has_passed() {
    const RATE: u64 = 8_000;
    const BURST: u32 = 256;
    let begin = Instant::now();
    let mut rig = Rig::limited(RATE, BURST);
    for _ in 0..20 {
        rig.ask(200);
    }

    let mut used = rig.serve().unwrap();
    while used.len() < 20 {
        let room = rig.handler.room();
        used.extend(rig.advance());
        assert_eq!(room, 0, "a queue that waits takes no more chains");
    }

    let allowed = u128::from(BURST) + begin.elapsed().as_nanos() * u128::from(RATE) / 1_000_000_000;
    assert!(u128::from(rig.stats().bytes) <= allowed + 1);
    assert_eq!(rig.stats().bytes, 20 * 200);
    assert!(rig.stats().limited >= 5, "{:?}", rig.stats());
    assert!(rig.stats().limited <= 40, "{:?}", rig.stats());
}

#[test]
fn a_request_that_waits_is_counted_with_its_wait() {
    let mut rig = Rig::limited(1000, 64);
    rig.ask(64);
    rig.ask(32);

    rig.serve().unwrap();
    let at_once = timed(&rig.device.statistics(), "request");
    while rig.ring.used_index() < 2 {
        rig.advance();
    }

    let listed = rig.device.statistics();
    assert_eq!((at_once, timed(&listed, "request")), (1, 2));
    let sum = listed
        .iter()
        .find(|(name, _)| *name == "request_latency_us");
    // 32 bytes at 1000 a second
    assert!(sum.unwrap().1 > 20_000, "{listed:?}");
}

#[test]
fn a_request_above_the_burst_gets_a_burst() {
    let mut rig = Rig::limited(1_000_000, 100);
    rig.ask(4096);

    let used = rig.serve().unwrap();

    assert_eq!(used[0].1, 100);
}

#[test]
fn a_reset_does_not_refill_the_limit() {
    let mut rig = Rig::limited(1, 64);
    rig.ask(64);
    let before = rig.serve().unwrap();

    rig.handler.settle(&mut rig.queue);
    rig.handler = rig.device.start_queue(0, 0).unwrap();
    rig.ask(64);
    let after = rig.serve().unwrap();

    assert_eq!((before.len(), after.len()), (1, 0));
    assert_eq!(rig.stats().limited, 1);
}

#[test]
fn chains_that_wait_are_dropped_and_not_pushed_when_the_queue_is_given_back() {
    let mut rig = Rig::limited(1, 1);
    rig.ask(1);
    rig.ask(1);
    rig.serve().unwrap();

    rig.handler.settle(&mut rig.queue);

    assert_eq!(rig.ring.used_index(), 1);
    assert!(!readable(rig.handler.event().unwrap(), Duration::ZERO));
}

#[test]
fn a_source_without_entropy_makes_chains_wait_until_it_has_some() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(&directory);
    let mut rig = Rig::on(&path);
    let buffer = rig.ask(8);
    rig.ask(8);

    let at_once = rig.serve().unwrap();
    let retried = rig.advance();
    let untouched = rig.read(buffer);
    let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
    writer.write_all(&(1..=16).collect::<Vec<u8>>()).unwrap();
    let mut used = Vec::new();
    while used.is_empty() {
        used = rig.advance();
    }

    assert_eq!((at_once.len(), retried.len()), (0, 0));
    assert_eq!(untouched, [0; 8]);
    assert_eq!(used[0], (0, 8));
    assert_eq!(rig.read(buffer), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(rig.stats().starved >= 2);
}

#[test]
fn a_source_of_zeroes_never_answers() {
    let mut rig = Rig::on(Path::new("/dev/zero"));
    let buffer = rig.ask(64);

    let used = rig.serve().unwrap();
    let later = [rig.advance(), rig.advance()].concat();

    assert_eq!((used.len(), later.len()), (0, 0));
    assert_eq!(rig.read(buffer), [0; 64]);
    assert_eq!((rig.stats().bytes, rig.stats().starved), (0, 3));
}

#[test]
fn a_guest_that_resets_again_and_again_fills_no_log() {
    let mut rig = Rig::on(Path::new("/dev/zero"));

    let lines = lines_of(|| {
        for _ in 0..10 {
            rig.ask(16);
            rig.serve().unwrap();
            rig.handler.settle(&mut rig.queue);
            rig.handler = rig.device.start_queue(0, 0).unwrap();
        }
    });

    assert_eq!(rig.stats().starved, 10);
    assert_eq!(lines, 1);
}
