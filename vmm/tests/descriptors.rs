//! How many descriptors guests and devices take, in a process of its own:
//! `xen-dm check` tells users how many devices their limit is enough for.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::sync::Arc;

use devices::blk::BlkConfig;
use devices::registry::DeviceConfig;
use vmm::check::{FILES_OF_DEVICE, FILES_OF_GUEST};
use vmm::demo::guest::{Addresses, Disk, DriverMemory, Registers, hal};
use vmm::guest::{DeviceKey, DeviceSlot, Guest, GuestConfig, Mapping};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use xen::Host;
use xen::fake::{DomainConfig, GuestHeap, Machine};

fn open_files() -> u64 {
    fs::read_dir("/proc/self/fd").unwrap().count() as u64
}

#[test]
fn guests_and_devices_take_no_more_descriptors_than_check_reckons_with() {
    let machine = Machine::new().unwrap();
    let memory = 4 << 20;
    let domain = machine
        .create_domain(DomainConfig::with_memory(memory))
        .unwrap();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let config = GuestConfig::new(domain.id(), "counted");
    let base = 0x0200_0000;

    let before = open_files();
    let wake = EventFd::new(EFD_NONBLOCK).unwrap();
    let guest = Guest::start(&Host::Fake(machine.clone()), config, wake).unwrap();
    let with_guest = open_files();
    let spec = DeviceConfig::Blk(BlkConfig::new(image.path())).validate();
    guest
        .add(DeviceSlot {
            id: DeviceKey::new("virtio_disk", 1),
            base,
            irq: 33,
            grants: true,
            mapping: Mapping::of_a_dom_u(),
            device: spec.unwrap().open().unwrap(),
        })
        .unwrap();
    let heap = Arc::new(GuestHeap::new(&domain, 0x4_0000, memory >> 12).unwrap());
    hal::enter(DriverMemory::new(&domain, &heap, Addresses::Grants));
    let registers = Registers::probe(&domain.vcpu(0), base).unwrap();
    let mut disk = Disk::new(registers, domain.interrupts().unwrap(), 33).unwrap();
    disk.flush().unwrap();
    let with_device = open_files();

    // the fake has no descriptors behind privcmd and gntdev
    let guest_takes = with_guest - before + 2;
    let device_takes = with_device - with_guest;
    assert!((3..=FILES_OF_GUEST).contains(&guest_takes), "{guest_takes}");
    assert!(
        (5..=FILES_OF_DEVICE).contains(&device_takes),
        "{device_takes}"
    );
}
