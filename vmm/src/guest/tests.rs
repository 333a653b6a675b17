//! One guest on the fake Xen, with devices that misbehave on purpose.
// tests build addresses out of small numbers
#![allow(clippy::cast_possible_truncation)]

mod endings;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use devices::virtio::mmio::Register;
use devices::virtio::mmio::register::MAGIC;
use devices::virtio::{
    ActiveQueue, Chain, Device, DeviceError, DeviceType, QueueError, QueueHandler, features,
};
use vm_memory::Bytes;
use xen::fake::{Call, Domain, DomainConfig, Machine, MachineConfig, Target, Vcpu};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const WINDOW: MmioWindow = MmioWindow::ARM;

/// What a test device does, and what it was asked.
#[derive(Default)]
struct Probe {
    /// Keeps `settle` from returning while it is set.
    held: Mutex<bool>,
    released: Condvar,
    settling: AtomicBool,
    resets: AtomicU32,
    panic_in_config: AtomicBool,
    panic_in_start: AtomicBool,
    panic_in_reset: AtomicBool,
}

impl Probe {
    fn hold(&self) {
        *self.held.lock().unwrap() = true;
    }

    fn release(&self) {
        *self.held.lock().unwrap() = false;
        self.released.notify_all();
    }
}

struct Odd(Arc<Probe>);

struct OddQueue(Arc<Probe>);

impl QueueHandler for OddQueue {
    fn serve(&mut self, _queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
        match chains.is_empty() {
            true => Ok(()),
            false => Err(QueueError::Request {
                head: 0,
                why: "the test says so".into(),
            }),
        }
    }

    fn settle(&mut self, _queue: &mut ActiveQueue) {
        self.0.settling.store(true, Ordering::SeqCst);
        let held = self.0.held.lock().unwrap();
        let _held = self
            .0
            .released
            .wait_timeout_while(held, PATIENCE, |held| *held)
            .unwrap();
    }
}

impl Device for Odd {
    fn device_type(&self) -> DeviceType {
        DeviceType(42)
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8, 8]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        assert!(!self.0.panic_in_config.load(Ordering::SeqCst), "asked to");
        data.fill(offset as u8);
    }

    fn start_queue(
        &mut self,
        _index: u16,
        _features: u64,
    ) -> Result<Box<dyn QueueHandler>, DeviceError> {
        assert!(!self.0.panic_in_start.load(Ordering::SeqCst), "asked to");
        Ok(Box::new(OddQueue(self.0.clone())))
    }

    fn reset(&mut self) {
        assert!(!self.0.panic_in_reset.load(Ordering::SeqCst), "asked to");
        self.0.resets.fetch_add(1, Ordering::SeqCst);
    }
}

struct Bench {
    machine: Machine,
    domain: Domain,
    guest: Guest,
    wake: EventFd,
    seen: Vec<GuestEvent>,
}

impl Bench {
    fn new() -> Self {
        Self::with(MachineConfig::default(), |_| {})
    }

    fn with(config: MachineConfig, change: impl FnOnce(&mut GuestConfig)) -> Self {
        let machine = Machine::with_config(config).unwrap();
        let memory = DomainConfig::with_memory(16 << 20).vcpus(2);
        let domain = machine.create_domain(memory).unwrap();
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut config = GuestConfig::new(domain.id(), "tested");
        change(&mut config);
        let host = Host::Fake(machine.clone());
        let guest = Guest::start(&host, config, wake.try_clone().unwrap()).unwrap();
        Bench {
            machine,
            domain,
            guest,
            wake,
            seen: Vec::new(),
        }
    }

    fn add(&self, number: u32) -> (Arc<Probe>, Registers) {
        let probe = Arc::new(Probe::default());
        self.guest.add(device(number, &probe)).unwrap();
        (probe, self.registers(number, 0))
    }

    fn registers(&self, number: u32, vcpu: u32) -> Registers {
        Registers {
            vcpu: self.domain.vcpu(vcpu),
            base: WINDOW.base + u64::from(number) * SLOT_SIZE,
        }
    }

    fn wait_event(&mut self, wanted: impl Fn(&GuestEvent) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.seen.extend(self.guest.events());
            if let Some(at) = self.seen.iter().position(&wanted) {
                self.seen.remove(at);
                return;
            }
            assert!(Instant::now() < deadline, "only {:?}", self.seen);
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn finish(self) {
        self.guest.stop().unwrap();
        let held = self.machine.census().remove(&self.domain.id());
        let held = held.unwrap_or_default();
        assert!(held.is_clean(), "{held:?}");
        assert!(!self.domain.is_crashed());
    }
}

fn key(number: u32) -> DeviceKey {
    DeviceKey::new("odd", number)
}

fn device(number: u32, probe: &Arc<Probe>) -> DeviceSlot {
    DeviceSlot {
        id: key(number),
        base: WINDOW.base + u64::from(number) * SLOT_SIZE,
        irq: 33 + number,
        grants: false,
        mapping: Mapping::of_a_dom_u(),
        device: Box::new(Odd(probe.clone())),
    }
}

#[derive(Clone)]
struct Registers {
    vcpu: Vcpu,
    base: u64,
}

impl Registers {
    fn get(&self, register: Register) -> u64 {
        self.vcpu.read(self.base + register as u64, 4).unwrap()
    }

    fn set(&self, register: Register, value: u64) {
        let at = self.base + register as u64;
        self.vcpu.write(at, 4, value).unwrap();
    }

    /// Up with queue 0, rings in the guest's first page.
    fn up(&self) {
        self.set(Register::Status, 3);
        for sel in [0, 1] {
            self.set(Register::DeviceFeaturesSel, sel);
            self.set(Register::DriverFeaturesSel, sel);
            let offered = self.get(Register::DeviceFeatures);
            self.set(Register::DriverFeatures, offered);
        }
        self.set(Register::Status, 11);
        self.queue(0, 0x4000_0000);
        self.set(Register::Status, 15);
    }

    fn queue(&self, index: u64, page: u64) {
        self.set(Register::QueueSel, index);
        self.set(Register::QueueSize, 8);
        self.set(Register::QueueDescLow, page);
        self.set(Register::QueueDriverLow, page + 0x400);
        self.set(Register::QueueDeviceLow, page + 0x800);
        self.set(Register::QueueReady, 1);
    }
}

/// Has a vCPU do something on a thread of its own; the receiver hears when it
/// is done.
fn on_vcpu(f: impl FnOnce() + Send + 'static) -> std::sync::mpsc::Receiver<()> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        f();
        let _ = sender.send(());
    });
    receiver
}

fn eventually(mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "it did not come about");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn slots_without_a_device_say_so() {
    let bench = Bench::new();
    let empty = bench.registers(3, 1);

    let answers = [
        empty.get(Register::MagicValue),
        empty.get(Register::Version),
        empty.get(Register::DeviceId),
    ];
    empty.set(Register::Status, 1);
    let last = bench.domain.vcpu(0).read(WINDOW.last().unwrap(), 1);

    assert_eq!(answers, [u64::from(MAGIC), 2, 0]);
    assert_eq!(last, Ok(0));
    let stats = bench.guest.snapshot();
    assert_eq!((stats.empty, stats.malformed), (5, 0));
    // the guest's first activity, as on Xen
    assert_eq!(stats.invalidations, 1);
    bench.finish();
}

#[test]
fn accesses_that_span_two_slots_are_answered_and_counted() {
    let bench = Bench::new();
    let (_probe, registers) = bench.add(0);

    let from_device = registers.vcpu.read(registers.base + 0x1fc, 8);
    let into_device = registers.vcpu.write(registers.base + 0x3fe, 4, 7);

    assert_eq!((from_device, into_device), (Ok(0), Ok(())));
    assert_eq!(bench.guest.snapshot().malformed, 2);
    bench.finish();
}

#[test]
fn memory_that_leaves_the_guest_is_let_go() {
    let mut bench = Bench::new();
    let (probe, registers) = bench.add(0);
    registers.up();
    bench.wait_event(|event| matches!(event, GuestEvent::DriverUp(_)));

    bench.domain.balloon_out(0x40100, 4).unwrap();

    assert_eq!(bench.guest.snapshot().invalidations, 2);
    // rings are mapped for themselves and stay
    assert_eq!(registers.get(Register::Status), 15);
    registers.set(Register::Status, 0);
    assert_eq!(probe.resets.load(Ordering::SeqCst), 1);
    bench.finish();
}

#[test]
fn a_reset_waits_for_its_queue_and_nobody_else_waits() {
    let mut bench = Bench::with(MachineConfig::default(), |guest| {
        guest.stop_warning = Duration::from_millis(20);
    });
    let (probe, registers) = bench.add(0);
    let (_other, neighbour) = bench.add(1);
    let (same, second) = (bench.registers(0, 1), bench.registers(1, 1));
    registers.up();
    probe.hold();

    let resetting = registers.clone();
    let reset = on_vcpu(move || resetting.set(Register::Status, 0));
    eventually(|| probe.settling.load(Ordering::SeqCst));
    // the other vCPU, on the same device and on another one
    let answers = [
        same.get(Register::DeviceId),
        second.get(Register::DeviceId),
        second.get(Register::Status),
    ];
    let early = reset.recv_timeout(Duration::from_millis(100));
    probe.release();
    let late = reset.recv_timeout(PATIENCE);

    assert_eq!(answers, [42, 42, 0]);
    assert!(early.is_err(), "the reset was answered too early");
    assert_eq!(late, Ok(()));
    assert_eq!(neighbour.get(Register::DeviceId), 42);
    assert_eq!(bench.guest.snapshot().deferred, 1);
    bench.wait_event(|event| matches!(event, GuestEvent::DriverReset(id) if *id == key(0)));
    bench.finish();
}

#[test]
fn two_vcpus_may_wait_for_the_same_reset() {
    let bench = Bench::new();
    let (probe, registers) = bench.add(0);
    registers.up();
    probe.hold();

    let (first, second) = (registers.clone(), bench.registers(0, 1));
    let first = on_vcpu(move || first.set(Register::Status, 0));
    eventually(|| probe.settling.load(Ordering::SeqCst));
    let second = on_vcpu(move || second.set(Register::Status, 0));
    eventually(|| bench.guest.snapshot().deferred == 2);
    probe.release();

    assert_eq!(first.recv_timeout(PATIENCE), Ok(()));
    assert_eq!(second.recv_timeout(PATIENCE), Ok(()));
    bench.finish();
}
