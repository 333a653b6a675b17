//! A machine, a guest, and whoever serves it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use devices::blk::BlkConfig;
use devices::virtio::Device;
use tempfile::TempDir;
use vmm::demo::guest::hal::enter;
use vmm::demo::guest::{Addresses, Disk, DriverMemory, Pattern, Registers};
use vmm::guest::{
    DeviceKey, DeviceSlot, EventMode, Guest, GuestConfig, GuestEvent, Mapping, MmioWindow,
    SLOT_SIZE,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use xen::Host;
use xen::fake::{Domain, DomainConfig, GuestHeap, Machine, MachineConfig, Vcpu};

use crate::raw::RawDriver;

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Frames of the driver's heap.
const HEAP: u64 = 8192;

/// Where a device was put.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its name.
    pub id: DeviceKey,
    /// Its registers.
    pub base: u64,
    /// Its interrupt.
    pub irq: u32,
    /// How its driver names memory.
    pub addresses: Addresses,
}

/// A served guest. Ends with [`Stand::finish`], which looks for leaks.
pub struct Stand {
    pub machine: Machine,
    pub domain: Domain,
    pub heap: GuestHeap,
    guest: Option<Guest>,
    wake: EventFd,
    directory: TempDir,
    seen: Vec<GuestEvent>,
}

/// How a stand differs from the usual one.
pub struct Setup {
    pub machine: MachineConfig,
    pub domain: DomainConfig,
    /// First frame of the driver's heap.
    pub heap: u64,
    /// How events pass.
    pub events: EventMode,
    /// Whatever else.
    pub guest: fn(&mut GuestConfig),
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            machine: MachineConfig::default(),
            domain: DomainConfig::with_memory(64 << 20).vcpus(2),
            heap: 0x40000,
            events: EventMode::Auto,
            guest: |_| {},
        }
    }
}

impl Default for Stand {
    fn default() -> Self {
        Stand::with(Setup::default())
    }
}

impl Stand {
    /// A guest of two vCPUs that is being served and has no devices.
    pub fn new() -> Self {
        Stand::default()
    }

    /// A stand of a given make.
    pub fn with(setup: Setup) -> Self {
        let machine = Machine::with_config(setup.machine).unwrap();
        let domain = machine.create_domain(setup.domain).unwrap();
        let heap = GuestHeap::new(&domain, setup.heap, HEAP).unwrap();
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut config = GuestConfig::new(domain.id(), "tested");
        config.events = setup.events;
        (setup.guest)(&mut config);
        let host = Host::Fake(machine.clone());
        let guest = Guest::start(&host, config, wake.try_clone().unwrap()).unwrap();
        Stand {
            machine,
            domain,
            heap,
            guest: Some(guest),
            wake,
            directory: tempfile::tempdir().unwrap(),
            seen: Vec::new(),
        }
    }

    pub fn guest(&self) -> &Guest {
        self.guest.as_ref().expect("the guest is being served")
    }

    pub fn vcpu(&self, number: u32) -> Vcpu {
        self.domain.vcpu(number)
    }

    /// Where the device of a number goes.
    pub fn place(&self, number: u32, addresses: Addresses) -> Place {
        Place {
            id: DeviceKey::new("virtio_disk", number),
            base: MmioWindow::ARM.base + u64::from(number) * SLOT_SIZE,
            irq: 33 + number,
            addresses,
        }
    }

    /// Has a device served.
    pub fn add(&self, number: u32, addresses: Addresses, device: Box<dyn Device>) -> Place {
        let place = self.place(number, addresses);
        self.guest().add(slot(&place, device)).unwrap();
        place
    }

    /// A file for the stand's life.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// An image of `bytes` of a pattern.
    pub fn image(&self, name: &str, bytes: usize) -> (PathBuf, Vec<u8>) {
        let path = self.path(name);
        let content = Pattern::new(bytes as u64).bytes(bytes);
        File::create(&path).unwrap().write_all(&content).unwrap();
        (path, content)
    }

    /// Has a disk on an image of `bytes` served.
    pub fn add_disk(&self, number: u32, addresses: Addresses, bytes: usize) -> (Place, PathBuf) {
        let (path, _) = self.image(&format!("{number}.img"), bytes);
        (self.add(number, addresses, disk(&path)), path)
    }

    /// The driver's memory, for a device's kind of addresses.
    pub fn memory(&self, addresses: Addresses) -> DriverMemory {
        DriverMemory::new(&self.domain, &self.heap, addresses)
    }

    /// virtio-drivers' disk at a place, on this thread.
    pub fn drive(&self, place: &Place) -> Disk {
        enter(self.memory(place.addresses));
        let registers = Registers::probe(&self.vcpu(0), place.base).unwrap();
        Disk::new(registers, self.domain.interrupts().unwrap(), place.irq).unwrap()
    }

    /// A driver without manners, on a vCPU.
    pub fn raw(&self, place: &Place, vcpu: u32) -> RawDriver {
        RawDriver::new(
            self.vcpu(vcpu),
            place.base,
            place.irq,
            self.domain.interrupts().unwrap(),
            self.memory(place.addresses),
        )
    }

    /// Waits until an event has come that `wanted` takes; each event is taken
    /// once.
    pub fn wait_event(&mut self, wanted: impl Fn(&GuestEvent) -> bool) -> GuestEvent {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.seen.extend(self.guest().events());
            if let Some(at) = self.seen.iter().position(&wanted) {
                return self.seen.remove(at);
            }
            assert!(
                Instant::now() < deadline,
                "no such event; there are {:?}",
                self.seen
            );
            let _ = self.wake.read();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Removes a device and waits until it is gone.
    pub fn remove(&mut self, place: &Place) {
        self.guest().remove(&place.id).unwrap();
        self.wait_event(|event| matches!(event, GuestEvent::Removed(id) if *id == place.id));
    }

    /// What has to be true at any time.
    pub fn check(&self) {
        assert_eq!(
            self.domain.broken_grants().unwrap(),
            0,
            "the guest found grants still in use"
        );
        self.heap.check_poison().unwrap();
        assert!(!self.domain.is_crashed());
    }

    /// Ends the guest and looks for what was left behind.
    pub fn finish(mut self) {
        self.check();
        let guest = self.guest.take().unwrap();
        guest.stop().unwrap();
        self.check();
        let held = self
            .machine
            .census()
            .remove(&self.domain.id())
            .unwrap_or_default();
        assert!(held.is_clean(), "something is still held: {held:?}");
    }
}

/// A device for a place.
pub fn slot(place: &Place, device: Box<dyn Device>) -> DeviceSlot {
    DeviceSlot {
        id: place.id.clone(),
        base: place.base,
        irq: place.irq,
        grants: place.addresses == Addresses::Grants,
        mapping: Mapping::of_a_dom_u(),
        device,
    }
}

/// A disk with everything at its default.
pub fn disk(path: &Path) -> Box<dyn Device> {
    configured(BlkConfig::new(path))
}

/// A disk as configured.
pub fn configured(config: BlkConfig) -> Box<dyn Device> {
    let spec = devices::registry::DeviceSpec::Blk(config.validate().unwrap());
    spec.open().unwrap()
}

/// Waits until something is so.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(1));
    }
}
