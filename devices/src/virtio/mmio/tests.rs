mod queues;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::testing::{Buffer, DriverRing, GuestRam, Line};
use crate::virtio::device::{DeviceError, DeviceType, QueueHandler};
use crate::virtio::features::{
    ACCESS_PLATFORM, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_RESET, STATUS_ACKNOWLEDGE,
    STATUS_DRIVER, VERSION_1,
};
use crate::virtio::queue::{ActiveQueue, Chain, QueueError};

const UP_TO_FEATURES: u32 = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;

/// What the test device does, seen from the test.
#[derive(Default)]
struct Probe {
    served: AtomicUsize,
    dropped: AtomicUsize,
    resets: AtomicUsize,
    /// Keeps `serve` from returning.
    hold: AtomicBool,
    refuse_start: AtomicBool,
    panic: AtomicBool,
    /// The configuration space has changed.
    changed: AtomicBool,
}

/// A device of two queues that answers each chain with 0 bytes.
struct Echo(Arc<Probe>);

struct EchoHandler(Arc<Probe>);

impl Drop for EchoHandler {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

impl QueueHandler for EchoHandler {
    fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
        assert!(!self.0.panic.load(Ordering::SeqCst), "asked to");
        while self.0.hold.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let jobs = chains.into_iter().map(|chain| swiotlb::Job {
            token: chain.head,
            ranges: Default::default(),
        });
        let mapped = queue.dma().map(jobs, swiotlb::Need::COPY);
        let mut flights = mapped
            .into_iter()
            .map(|mapped| mapped.unwrap().submit())
            .collect();
        for done in queue.dma().finish(&mut flights) {
            queue.push(done, 0)?;
            self.0.served.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

impl Device for Echo {
    fn device_type(&self) -> DeviceType {
        DeviceType(42)
    }
    fn features(&self) -> u64 {
        0b101
    }
    fn queue_sizes(&self) -> &[u16] {
        &[8, 16]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = 0x10 + offset as u8 + i as u8;
        }
    }
    fn write_config(&mut self, offset: u64, _data: &[u8]) -> bool {
        offset == 0
    }
    fn start_queue(&mut self, _: u16, _: u64) -> Result<Box<dyn QueueHandler>, DeviceError> {
        match self.0.refuse_start.load(Ordering::SeqCst) {
            true => Err("no".into()),
            false => Ok(Box::new(EchoHandler(self.0.clone()))),
        }
    }
    fn refresh(&mut self) -> bool {
        self.0.changed.swap(false, Ordering::SeqCst)
    }
    fn reset(&mut self) {
        self.0.resets.fetch_add(1, Ordering::SeqCst);
    }
}

struct Provider(GuestRam);

impl DmaProvider for Provider {
    fn open(&self) -> Result<swiotlb::Dma, DeviceError> {
        Ok(self.0.dma())
    }
}

struct Bench {
    transport: Transport,
    probe: Arc<Probe>,
    ram: GuestRam,
    line: Arc<Line>,
    returned: EventFd,
}

impl Bench {
    fn new() -> Self {
        Self::with(false)
    }

    fn with(access_platform: bool) -> Self {
        Self::of(access_platform, |probe| Box::new(Echo(probe)))
    }

    fn of(access_platform: bool, device: impl FnOnce(Arc<Probe>) -> Box<dyn Device>) -> Self {
        let probe = Arc::new(Probe::default());
        let ram = GuestRam::new(64);
        let line = Arc::new(Line::default());
        let returned = EventFd::new(0).unwrap();
        let transport = Transport::new(
            device(probe.clone()),
            TransportOptions {
                label: "echo".into(),
                access_platform,
            },
            line.clone(),
            Arc::new(Provider(ram.clone())),
            returned.try_clone().unwrap(),
        )
        .unwrap();
        Bench {
            transport,
            probe,
            ram,
            line,
            returned,
        }
    }

    fn read(&mut self, register: Register) -> u32 {
        self.transport.read(register as u64, 4) as u32
    }

    fn write(&mut self, register: Register, value: u32) -> Answer {
        self.transport.write(register as u64, 4, u64::from(value))
    }

    fn now(&mut self, register: Register, value: u32) {
        assert_eq!(self.write(register, value), Answer::Now, "{register:?}");
    }

    fn negotiate(&mut self, features: u64) -> u32 {
        self.now(Register::Status, STATUS_ACKNOWLEDGE);
        self.now(Register::Status, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
        for (sel, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.now(Register::DriverFeaturesSel, sel);
            self.now(Register::DriverFeatures, half);
        }
        self.now(Register::Status, UP_TO_FEATURES);
        self.read(Register::Status)
    }

    fn place(&mut self, queue: u32, ring: &DriverRing) {
        let layout = ring.layout();
        self.now(Register::QueueSel, queue);
        self.now(Register::QueueSize, u32::from(layout.size));
        for (register, value) in [
            (Register::QueueDescLow, layout.desc),
            (Register::QueueDriverLow, layout.avail),
            (Register::QueueDeviceLow, layout.used),
        ] {
            self.now(register, value as u32);
        }
        self.now(Register::QueueReady, 1);
    }

    /// A running device with one ring on queue 0.
    fn running() -> (Self, DriverRing) {
        let mut bench = Self::new();
        let ring = DriverRing::new(&bench.ram, 8);
        bench.negotiate(VERSION_1 | RING_RESET);
        bench.place(0, &ring);
        bench.now(Register::Status, UP_TO_FEATURES | STATUS_DRIVER_OK);
        (bench, ring)
    }

    fn kick(&mut self, ring: &mut DriverRing) {
        let address = ring.ram.alloc(16);
        ring.add(&[Buffer::writable(address, 16)]);
        self.now(Register::QueueNotify, 0);
    }

    /// Waits for returned queues until nothing is being stopped.
    fn settle(&mut self) {
        loop {
            self.returned.read().unwrap();
            if self.transport.collect() {
                return;
            }
        }
    }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn identity_registers_read_as_specified() {
    let mut bench = Bench::new();
    assert_eq!(bench.read(Register::MagicValue).to_le_bytes(), *b"virt");
    assert_eq!(bench.read(Register::Version), 2);
    assert_eq!(bench.read(Register::DeviceId), 42);
    assert_eq!(bench.transport.malformed(), 0);
}

#[test]
fn an_empty_slot_is_no_device() {
    assert_eq!(read_empty_slot(0x000, 4) as u32, register::MAGIC);
    assert_eq!(read_empty_slot(0x004, 4), 2);
    assert_eq!(read_empty_slot(0x008, 4), 0);
    assert_eq!(read_empty_slot(0x100, 1), 0);
}

#[test]
fn features_are_offered_in_two_halves_and_no_more() {
    let mut bench = Bench::new();
    let mut offered = 0;
    for sel in [0, 1] {
        bench.now(Register::DeviceFeaturesSel, sel);
        offered |= u64::from(bench.read(Register::DeviceFeatures)) << (32 * sel);
    }
    for sel in [2, 7, u32::MAX] {
        bench.now(Register::DeviceFeaturesSel, sel);
        assert_eq!(bench.read(Register::DeviceFeatures), 0, "sel {sel}");
    }
    let expected = 0b101 | VERSION_1 | RING_INDIRECT_DESC | RING_EVENT_IDX | RING_RESET;
    assert_eq!(offered, expected);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let mut bench = Bench::new();
    let status = bench.negotiate(VERSION_1 | 0b10);
    assert_eq!(status & STATUS_FEATURES_OK, 0);
}

#[test]
fn a_legacy_driver_is_refused() {
    let mut bench = Bench::new();
    assert_eq!(bench.negotiate(0b1) & STATUS_FEATURES_OK, 0);
}

#[test]
fn a_driver_that_would_hand_out_plain_addresses_is_refused_on_grants() {
    let mut bench = Bench::with(true);
    assert_eq!(bench.negotiate(VERSION_1) & STATUS_FEATURES_OK, 0);
    let mut bench = Bench::with(true);
    let status = bench.negotiate(VERSION_1 | ACCESS_PLATFORM);
    assert_ne!(status & STATUS_FEATURES_OK, 0);
}

#[test]
fn driver_features_are_set_and_not_collected_and_fixed_once_agreed() {
    let mut bench = Bench::new();
    // high half first, then a change of mind about the low one
    bench.now(Register::DriverFeaturesSel, 1);
    bench.now(Register::DriverFeatures, (VERSION_1 >> 32) as u32);
    bench.now(Register::DriverFeaturesSel, 0);
    bench.now(Register::DriverFeatures, 0b10);
    bench.now(Register::DriverFeatures, 0b1);
    bench.now(Register::Status, UP_TO_FEATURES);
    let agreed = bench.read(Register::Status) & STATUS_FEATURES_OK;
    bench.now(Register::DriverFeatures, 0b100);
    assert_ne!(agreed, 0);
    assert_eq!(bench.transport.registers().driver_features, VERSION_1 | 0b1);
}

#[test]
fn a_queue_that_does_not_exist_has_size_zero_and_takes_no_write() {
    let mut bench = Bench::new();
    bench.negotiate(VERSION_1);
    for sel in [2, 3, 0xffff, u32::MAX] {
        bench.now(Register::QueueSel, sel);
        assert_eq!(bench.read(Register::QueueSizeMax), 0);
        bench.now(Register::QueueSize, 8);
        bench.now(Register::QueueDescLow, 0x1000);
        bench.now(Register::QueueReady, 1);
        assert_eq!(bench.read(Register::QueueReady), 0);
    }
    assert_eq!(bench.transport.malformed(), 12);
}

#[test]
fn queue_sizes_that_are_odd_or_too_big_are_ignored() {
    let mut bench = Bench::new();
    bench.negotiate(VERSION_1);
    for size in [0, 3, 16, 65536] {
        bench.now(Register::QueueSize, size);
        bench.now(Register::QueueReady, 1);
        assert_eq!(bench.read(Register::QueueReady), 0, "size {size}");
    }
}

#[test]
fn shared_memory_regions_read_as_none() {
    let mut bench = Bench::new();
    bench.now(Register::ShmSel, 3);
    for register in [
        Register::ShmLenLow,
        Register::ShmLenHigh,
        Register::ShmBaseLow,
        Register::ShmBaseHigh,
    ] {
        assert_eq!(bench.read(register), u32::MAX);
    }
}

#[test]
fn every_malformed_access_is_counted_and_answered() {
    let mut bench = Bench::new();
    let mut count = 0;
    for offset in 0..0x100u64 {
        for size in [0, 1, 2, 3, 8] {
            assert_eq!(bench.transport.read(offset, size), 0);
            assert_eq!(bench.transport.write(offset, size, 1), Answer::Now);
            count += 2;
        }
    }
    for offset in (0..0x100).filter(|offset| Register::at(*offset).is_none()) {
        assert_eq!(bench.transport.read(offset, 4), 0);
        assert_eq!(bench.transport.write(offset, 4, 0), Answer::Now);
        count += 2;
    }
    assert_eq!(bench.transport.malformed(), count);
}

#[test]
fn config_space_is_read_in_natural_sizes() {
    let mut bench = Bench::new();
    assert_eq!(bench.transport.read(0x100, 1), 0x10);
    assert_eq!(bench.transport.read(0x102, 2), 0x1312);
    assert_eq!(bench.transport.read(0x104, 4), 0x1716_1514);
    assert_eq!(bench.transport.read(0x108, 8), 0x1f1e_1d1c_1b1a_1918);
    assert_eq!(bench.transport.malformed(), 0);
    assert_eq!(bench.transport.read(0x101, 2), 0);
    assert_eq!(bench.transport.read(0x100, 3), 0);
    assert_eq!(bench.transport.read(0x100, 16), 0);
    assert_eq!(bench.transport.write(0x104, 4, 1), Answer::Now);
    assert_eq!(bench.transport.malformed(), 4);
}

#[test]
fn config_changes_move_the_generation_before_the_interrupt() {
    let mut bench = Bench::new();
    let before = bench.read(Register::ConfigGeneration);
    bench.transport.notifier().config_changed();
    assert_ne!(bench.read(Register::ConfigGeneration), before);
    assert_eq!(bench.read(Register::InterruptStatus), 2);
    assert_eq!(bench.line.edges(), 1);
}

#[test]
fn a_device_that_has_changed_tells_its_driver_once() {
    let mut bench = Bench::new();
    let before = bench.read(Register::ConfigGeneration);
    bench.transport.refresh();
    let unchanged = (bench.read(Register::ConfigGeneration), bench.line.edges());

    bench.probe.changed.store(true, Ordering::SeqCst);
    bench.transport.refresh();
    bench.transport.refresh();

    assert_eq!(unchanged, (before, 0));
    assert_ne!(bench.read(Register::ConfigGeneration), before);
    assert_eq!(bench.line.edges(), 1);
}

#[test]
fn interrupt_status_is_exact_and_cleared_by_acknowledging_alone() {
    let (mut bench, mut ring) = Bench::running();
    assert_eq!(bench.read(Register::InterruptStatus), 0);
    bench.kick(&mut ring);
    let line = bench.line.clone();
    eventually("an interrupt", || line.edges() == 1);
    assert_eq!(bench.read(Register::InterruptStatus), 1);
    assert_eq!(bench.read(Register::InterruptStatus), 1);
    bench.transport.notifier().config_changed();
    bench.now(Register::InterruptAck, 1);
    assert_eq!(bench.read(Register::InterruptStatus), 2);
    bench.now(Register::InterruptAck, 2);
    assert_eq!(bench.read(Register::InterruptStatus), 0);
}
