//! Our own devices behind the front end: what a driver sees is as if they were
//! served without it.

use std::fs;
use std::path::Path;

use devices::blk::BlkConfig;
use devices::console::{ConsoleConfig, ConsoleDevice};
use devices::registry::DeviceSpec;
use devices::rng::RngConfig;
use devices::vhost_user::frontend::VhostUserConfig;
use devices::virtio::{Device, DeviceType};
use tests::Stand;
use tests::back_end::{BackEnd, Way, in_front};
use tests::console::{Console, attach, read_host, write_host};
use tests::stand::{configured, disk};
use virtio_drivers::device::blk::RespStatus;
use virtio_drivers::device::rng::VirtIORng;
use vmm::demo::guest::hal::enter;
use vmm::demo::guest::{Disk, GuestHal, Pattern, Registers, SECTOR};

use super::{bounced, every};

const IMAGE: usize = 4 << 20;

fn write_all(disk: &mut Disk, at: usize, data: &[u8]) {
    disk.write(at / SECTOR, data.to_vec()).unwrap();
    let done = disk.drain().unwrap();
    assert_eq!(done[0].status, RespStatus::OK);
}

fn read_all(disk: &mut Disk, at: usize, len: usize) -> Vec<u8> {
    disk.read(at / SECTOR, len).unwrap();
    let mut done = disk.drain().unwrap();
    assert_eq!(done[0].status, RespStatus::OK);
    done.remove(0).data
}

/// Writes and reads in many lengths.
fn every_byte(disk: &mut Disk) -> Vec<u8> {
    let mut written = Vec::new();
    let mut pattern = Pattern::new(1);
    for sectors in [1, 2, 7, 8, 9, 16, 31, 64, 127, 128, 255, 512, 513, 1024] {
        let data = pattern.bytes(sectors * SECTOR);
        write_all(disk, written.len(), &data);
        written.extend(data);
    }
    for (at, len) in [(0, 512), (512, 1 << 20), (4096, 4096)] {
        assert!(read_all(disk, at, len) == written[at..at + len]);
    }
    disk.flush().unwrap();
    written
}

#[test]
fn a_disk_takes_and_gives_every_byte() {
    every(|way| {
        let stand = Stand::new();
        let (path, _) = stand.image("image", IMAGE);
        let socket = stand.path("socket");
        let _back_end = BackEnd::serve(&socket, disk(&path));
        let device = in_front(way.config(&socket, DeviceType::BLOCK.0));
        let place = stand.add(0, way.addresses, device);

        let mut driver = stand.drive(&place);
        let sectors = driver.sectors();
        let written = every_byte(&mut driver);
        let serial = driver.serial();
        drop(driver);

        let stats = stand.guest().snapshot().devices.remove(0);
        assert_eq!(sectors, (IMAGE / SECTOR) as u64);
        assert!(serial.is_ok());
        assert!(fs::read(&path).unwrap()[..written.len()] == written);
        assert_eq!((stats.dma.direct, stats.dma.granted), (0, 0));
        assert_eq!(stats.dma.rejected, 0);
        stand.finish();
    });
}

#[test]
fn many_requests_at_once_wait_for_a_small_pool_and_are_all_answered() {
    bounced(|addresses| {
        let stand = Stand::new();
        let (path, content) = stand.image("image", IMAGE);
        let socket = stand.path("socket");
        let _back_end = BackEnd::serve(&socket, disk(&path));
        let device = in_front(VhostUserConfig {
            pool_mib: 1,
            ..VhostUserConfig::new(&socket, DeviceType::BLOCK.0)
        });
        let place = stand.add(0, addresses, device);
        let mut driver = stand.drive(&place);

        // sixteen of 128 KiB are twice the pool
        for _ in 0..8 {
            for number in 0..16 {
                driver.read(number * 256, 128 << 10).unwrap();
            }
            for outcome in driver.drain().unwrap() {
                let at = outcome.sector * SECTOR;
                assert_eq!(outcome.status, RespStatus::OK);
                assert!(outcome.data == content[at..at + (128 << 10)]);
            }
        }

        drop(driver);
        stand.finish();
    });
}

#[test]
fn a_request_of_more_than_the_largest_mapping_goes_in_parts() {
    bounced(|addresses| {
        let stand = Stand::new();
        let (path, content) = stand.image("image", IMAGE);
        let socket = stand.path("socket");
        let _back_end = BackEnd::serve(
            &socket,
            configured(BlkConfig {
                direct: true,
                ..BlkConfig::new(&path)
            }),
        );
        let device = in_front(VhostUserConfig::new(&socket, DeviceType::BLOCK.0));
        let place = stand.add(0, addresses, device);
        let mut driver = stand.drive(&place);

        let read = read_all(&mut driver, 0, 1 << 20);

        assert!(read == content[..1 << 20]);
        drop(driver);
        stand.finish();
    });
}

fn entropy() -> Box<dyn Device> {
    let spec = RngConfig::default().validate().unwrap();
    DeviceSpec::Rng(spec).open().unwrap()
}

fn entropy_behind(way: Way, socket: &Path, start_wait: u32) -> Box<dyn Device> {
    in_front(VhostUserConfig {
        queue_size: 64,
        start_wait,
        ..way.config(socket, DeviceType::ENTROPY.0)
    })
}

fn ask(driver: &mut VirtIORng<GuestHal, Registers>) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    assert_eq!(driver.request_entropy(&mut bytes).unwrap(), 4096);
    bytes
}

#[test]
fn a_driver_that_does_not_wait_for_a_late_back_end_is_served_when_it_comes() {
    every(|way| {
        let stand = Stand::new();
        let socket = stand.path("socket");
        let place = stand.add(0, way.addresses, entropy_behind(way, &socket, 0));
        enter(stand.memory(place.addresses));
        let registers = Registers::probe(&stand.vcpu(0), place.base).unwrap();
        let mut driver = VirtIORng::new(registers).unwrap();

        let _back_end = BackEnd::serve(&socket, entropy());
        let bytes = ask(&mut driver);

        assert_ne!(bytes, [0; 4096]);
        drop(driver);
        stand.finish();
    });
}

#[test]
fn a_driver_that_is_there_first_waits_for_its_back_end_and_others_do_not() {
    every(|way| {
        let stand = Stand::new();
        let socket = stand.path("socket");
        let place = stand.add(0, way.addresses, entropy_behind(way, &socket, 3600));
        let (other, _) = stand.add_disk(1, way.addresses, 1 << 20);
        let (vcpu, memory) = (stand.vcpu(1), stand.memory(place.addresses));
        let first = std::thread::spawn(move || {
            enter(memory);
            let registers = Registers::probe(&vcpu, place.base).unwrap();
            let mut driver = VirtIORng::new(registers).unwrap();
            ask(&mut driver)
        });

        let mut disk = stand.drive(&other);
        let read = read_all(&mut disk, 0, 4096);
        let waits = !first.is_finished();
        let _back_end = BackEnd::serve(&socket, entropy());
        let bytes = first.join().unwrap();

        assert_eq!((read.len(), waits), (4096, true));
        assert_ne!(bytes, [0; 4096]);
        drop(disk);
        stand.finish();
    });
}

#[test]
fn a_guest_that_comes_back_finds_the_back_end_usable() {
    every(|way| {
        let stand = Stand::new();
        let (path, content) = stand.image("image", IMAGE);
        let socket = stand.path("socket");
        let _back_end = BackEnd::serve(&socket, disk(&path));
        let device = in_front(way.config(&socket, DeviceType::BLOCK.0));
        let place = stand.add(0, way.addresses, device);

        for _ in 0..20 {
            let mut driver = stand.drive(&place);
            assert!(read_all(&mut driver, 0, 8192) == content[..8192]);
        }

        let stats = stand.guest().snapshot().devices.remove(0);
        let connections = stats
            .statistics
            .iter()
            .find(|(name, _)| *name == "connections");
        assert_eq!(connections, Some(&("connections", 1)));
        stand.finish();
    });
}

#[test]
fn a_console_passes_every_byte_both_ways_over_two_queues() {
    every(|way| {
        const BYTES: usize = 64 << 10;
        let stand = Stand::new();
        let console = ConsoleDevice::open(
            ConsoleConfig::socket(stand.path("console"))
                .validate()
                .unwrap(),
        );
        let socket = stand.path("socket");
        let _back_end = BackEnd::serve(&socket, Box::new(console.unwrap()));
        let device = in_front(VhostUserConfig {
            queues: 2,
            ..way.config(&socket, DeviceType::CONSOLE.0)
        });
        let place = stand.add(0, way.addresses, device);
        let mut console = Console::new(&stand, &place);
        let mut pattern = Pattern::new(1);
        let (output, input) = (pattern.bytes(BYTES), pattern.bytes(BYTES));
        let (typed, path) = (input.clone(), stand.path("console"));

        let host = std::thread::spawn(move || {
            let mut end = attach(&path);
            write_host(&mut *end, &typed);
            read_host(&mut *end, BYTES)
        });
        for piece in output.chunks(5000) {
            console.send(piece);
        }
        let received = console.receive(BYTES);
        let read = host.join().unwrap();

        assert!(read == output, "output differs");
        assert!(received == input, "input differs");
        drop(console);
        stand.finish();
    });
}
