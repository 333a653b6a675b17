//! A disk, driven by virtio-drivers and by hand, through grants and through
//! plain addresses.

use std::fs;

use devices::blk::{BlkConfig, Format};
use devices::virtio::mmio::Register;
use tests::disk::{DISCARD, IOERR, OK, UNSUPP, WRITE_ZEROES, ask, extent, read, write};
use tests::stand::{Setup, configured, disk, eventually};
use tests::{Place, Stand, qcow2};
use virtio_drivers::device::blk::RespStatus;
use vmm::demo::guest::{Addresses, Disk, Pattern, SECTOR, within};
use vmm::guest::{EventMode, GuestError};
use xen::fake::{MachineConfig, PrivcmdEventfd};

const IMAGE: usize = 2 << 20;
const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

/// Runs a test on a thread that plays the guest: virtio-drivers may spin.
fn bounded(test: impl FnOnce() + Send + 'static) {
    within("the test", LIMIT, test).unwrap();
}

fn both(test: fn(Addresses)) {
    bounded(move || test(Addresses::Grants));
    bounded(move || test(Addresses::Plain));
}

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

/// Writes and reads in many lengths, then compares with the image.
fn every_byte(stand: &Stand, place: &Place, path: &std::path::Path) {
    let mut expected = fs::read(path).unwrap();
    let mut disk = stand.drive(place);
    assert_eq!(disk.sectors(), (IMAGE / SECTOR) as u64);
    assert_eq!(read_all(&mut disk, 0, 64 << 10), expected[..64 << 10]);
    let mut pattern = Pattern::new(1);
    let mut at = 0;
    for sectors in [1, 2, 7, 8, 9, 16, 31, 64, 127, 128, 255, 512, 1024] {
        let len = sectors * SECTOR;
        let data = pattern.bytes(len);
        write_all(&mut disk, at, &data);
        expected[at..at + len].copy_from_slice(&data);
        at += len;
    }
    for (at, len) in [(0, 512), (512, 1 << 20), (IMAGE - 512, 512), (4096, 4096)] {
        assert_eq!(read_all(&mut disk, at, len), expected[at..at + len]);
    }
    disk.flush().unwrap();
    drop(disk);
    assert!(fs::read(path).unwrap() == expected, "the image differs");
}

#[test]
fn every_byte_arrives_in_every_length() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, path) = stand.add_disk(0, addresses, IMAGE);

        every_byte(&stand, &place, &path);

        let stats = stand.guest().snapshot().devices.remove(0);
        let ways = (stats.dma.direct > 0, stats.dma.granted > 0);
        assert_eq!(
            ways,
            (
                addresses == Addresses::Plain,
                addresses == Addresses::Grants
            )
        );
        assert_eq!(stats.dma.rejected, 0);
        stand.finish();
    });
}

#[test]
fn many_requests_at_once_are_all_answered() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, path) = stand.add_disk(0, addresses, IMAGE);
        let content = fs::read(&path).unwrap();
        let mut disk = stand.drive(&place);
        let mut pattern = Pattern::new(2);
        let mut done = Vec::new();

        for _ in 0..400 {
            while !disk.has_room() {
                done.extend(disk.wait().unwrap());
            }
            let sectors = 1 + pattern.below(32) as usize;
            let sector = pattern.below((IMAGE / SECTOR - sectors) as u64) as usize;
            disk.read(sector, sectors * SECTOR).unwrap();
        }
        done.extend(disk.drain().unwrap());

        assert_eq!(done.len(), 400);
        for outcome in done {
            let at = outcome.sector * SECTOR;
            assert_eq!(outcome.data, content[at..at + outcome.data.len()]);
        }
        drop(disk);
        stand.finish();
    });
}

#[test]
fn a_qcow2_disk_on_a_backing_file_is_like_any_other() {
    both(|addresses| {
        let stand = Stand::new();
        let (below, mut expected) = stand.image("base.img", IMAGE / 2);
        expected.resize(IMAGE, 0);
        let path = stand.path("top.qcow2");
        qcow2::create(&path, IMAGE as u64, Some("base.img"));
        let device = configured(BlkConfig {
            format: Format::Qcow2,
            ..BlkConfig::new(&path)
        });
        let place = stand.add(0, addresses, device);
        let mut disk = stand.drive(&place);
        let mut pattern = Pattern::new(3);

        let before = read_all(&mut disk, 0, IMAGE / 2 + 4096);
        for (at, sectors) in [(3, 1), (100, 255), (2000, 400), (4095, 1)] {
            let data = pattern.bytes(sectors * SECTOR);
            write_all(&mut disk, at * SECTOR, &data);
            expected[at * SECTOR..][..data.len()].copy_from_slice(&data);
        }
        let after = read_all(&mut disk, 0, 1 << 20);
        disk.flush().unwrap();
        drop(disk);

        assert_eq!(before[..IMAGE / 2], fs::read(&below).unwrap());
        assert_eq!(before[IMAGE / 2..], [0; 4096]);
        assert!(
            after == expected[..1 << 20],
            "the guest reads something else"
        );
        assert!(qcow2::disk(&path) == expected, "the image differs");
        stand.finish();
    });
}

#[test]
fn a_read_only_disk_says_so_and_is_not_written() {
    both(|addresses| {
        let stand = Stand::new();
        let (path, content) = stand.image("ro.img", IMAGE);
        let device = configured(BlkConfig {
            readonly: true,
            ..BlkConfig::new(&path)
        });
        let place = stand.add(0, addresses, device);
        let mut disk = stand.drive(&place);

        disk.write(8, vec![0xff; 4096]).unwrap();
        let refused = disk.drain().unwrap();
        let still = read_all(&mut disk, 4096, 4096);

        assert!(disk.readonly());
        assert_eq!(refused[0].status, RespStatus::IO_ERR);
        assert_eq!(still, content[4096..8192]);
        drop(disk);
        assert!(fs::read(&path).unwrap() == content);
        stand.finish();
    });
}

#[test]
fn an_image_that_has_grown_is_told_by_an_interrupt() {
    bounded(|| {
        let stand = Stand::new();
        let (place, path) = stand.add_disk(0, Addresses::Grants, IMAGE);
        let driver = stand.raw(&place, 0);
        driver.negotiate();
        driver.go();
        let generation = driver.get(Register::ConfigGeneration);
        let grown = 2 * IMAGE as u64;
        let image = fs::File::options().write(true).open(&path).unwrap();
        image.set_len(grown).unwrap();

        stand.guest().refresh().unwrap();

        assert_ne!(driver.get(Register::ConfigGeneration), generation);
        assert_eq!(driver.peek(0x100, 4), grown / SECTOR as u64);
        assert_eq!(driver.get(Register::InterruptStatus), 2);
        // the kernel's half of it comes after the register's
        eventually("the interrupt", || driver.interrupts() == 1);
        stand.finish();
    });
}

#[test]
fn the_serial_number_is_the_configured_one() {
    bounded(|| {
        let stand = Stand::new();
        let (path, _) = stand.image("serial.img", IMAGE);
        let device = configured(BlkConfig {
            serial: Some("xen-dm 0123456789abc".into()),
            ..BlkConfig::new(&path)
        });
        let place = stand.add(0, Addresses::Grants, device);
        let mut disk = stand.drive(&place);

        let serial = disk.serial().unwrap();

        assert_eq!(serial, "xen-dm 0123456789abc");
        drop(disk);
        stand.finish();
    });
}

#[test]
fn requests_past_the_end_fail_alone() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, path) = stand.add_disk(0, addresses, IMAGE);
        let content = fs::read(&path).unwrap();
        let mut disk = stand.drive(&place);

        disk.read(IMAGE / SECTOR, 512).unwrap();
        disk.write(IMAGE / SECTOR - 1, vec![1; 1024]).unwrap();
        disk.read(usize::MAX / SECTOR, 512).unwrap();
        disk.read(0, 512).unwrap();
        let mut done = disk.drain().unwrap();
        done.sort_by_key(|outcome| outcome.id);

        let statuses: Vec<RespStatus> = done.iter().map(|outcome| outcome.status).collect();
        let (error, ok) = (RespStatus::IO_ERR, RespStatus::OK);
        assert_eq!(statuses, [error, error, error, ok]);
        assert_eq!(done[3].data, content[..512]);
        drop(disk);
        assert!(fs::read(&path).unwrap() == content);
        stand.finish();
    });
}

#[test]
fn discard_and_write_zeroes_make_zeroes_and_nothing_else() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, path) = stand.add_disk(0, addresses, IMAGE);
        let mut expected = fs::read(&path).unwrap();
        let driver = stand.raw(&place, 0);
        driver.negotiate();
        let mut queue = driver.queue(0, 16);
        driver.go();

        let zeroes = ask(&driver, &mut queue, &extent(WRITE_ZEROES, 3, 29, 0));
        let unmapped = ask(&driver, &mut queue, &extent(WRITE_ZEROES, 64, 64, 1));
        let discarded = ask(&driver, &mut queue, &extent(DISCARD, 1024, 1024, 0));
        let (after, _) = ask(&driver, &mut queue, &read(1024, 4096));
        let beyond = ask(&driver, &mut queue, &extent(WRITE_ZEROES, 4095, 2, 0));
        let unknown = ask(&driver, &mut queue, &extent(99, 0, 1, 0));

        for (sector, sectors) in [(3, 29), (64, 64), (1024, 1024)] {
            expected[sector * SECTOR..(sector + sectors) * SECTOR].fill(0);
        }
        assert_eq!((zeroes.1, unmapped.1, discarded.1), (OK, OK, OK));
        assert_eq!(after, [0; 4096]);
        assert_eq!((beyond.1, unknown.1), (IOERR, UNSUPP));
        driver.reset();
        queue.free(&driver.memory);
        assert!(fs::read(&path).unwrap() == expected, "the image differs");
        stand.finish();
    });
}

#[test]
fn a_plain_address_is_refused_to_a_driver_that_was_given_grants() {
    bounded(|| {
        let stand = Stand::new();
        let (place, _) = stand.add_disk(0, Addresses::Grants, IMAGE);
        let driver = stand.raw(&place, 0);
        let plain = stand.memory(Addresses::Plain);
        driver.negotiate();
        let mut queue = driver.queue(0, 16);
        driver.go();
        // header and status are granted, the data is not
        let secret = plain.share(0, 512, &[0x77; 512], false).unwrap();
        let request = read(0, 512).share(&driver.memory);
        let mut descriptors = request.descriptors(0);
        descriptors[1].addr = secret;
        for (at, descriptor) in (0..).zip(descriptors) {
            queue.describe(&driver.memory, at, descriptor);
        }
        queue.offer(&driver.memory, 0);
        driver.kick(&queue);

        driver.wait(&mut queue).unwrap();
        let written = request.take_back(&driver.memory);
        let mut kept = [0; 512];
        plain.read(secret, &mut kept).unwrap();

        assert_eq!(written[1], [IOERR]);
        assert_eq!(kept, [0x77; 512]);
        driver.reset();
        queue.free(&driver.memory);
        stand.finish();
    });
}

#[test]
fn a_plain_address_is_taken_where_that_is_allowed() {
    bounded(|| {
        let stand = Stand::with(Setup {
            guest: |guest| guest.allow_foreign_with_grants = true,
            ..Setup::default()
        });
        let (place, path) = stand.add_disk(0, Addresses::Grants, IMAGE);
        let content = fs::read(path).unwrap();
        let mut driver = stand.raw(&place, 0);
        driver.memory = stand.memory(Addresses::Plain);
        driver.negotiate();
        let mut queue = driver.queue(0, 16);
        driver.go();

        let (data, status) = ask(&driver, &mut queue, &read(4, 1024));

        assert_eq!((data.as_slice(), status), (&content[2048..3072], OK));
        driver.reset();
        queue.free(&driver.memory);
        stand.finish();
    });
}

#[test]
fn a_driver_that_does_not_take_access_platform_is_refused_where_there_are_grants() {
    bounded(|| {
        let stand = Stand::new();
        let (granted, _) = stand.add_disk(0, Addresses::Grants, IMAGE);
        let (plain, _) = stand.add_disk(1, Addresses::Plain, IMAGE);
        let platform = devices::virtio::features::ACCESS_PLATFORM;
        let granted = stand.raw(&granted, 0);
        let plain = stand.raw(&plain, 0);

        granted.set(devices::virtio::mmio::Register::Status, 3);
        granted.choose(granted.offered() & !platform);
        granted.set(devices::virtio::mmio::Register::Status, 3 | 8);
        let status = granted.get(devices::virtio::mmio::Register::Status);

        assert_eq!(status & 8, 0, "FEATURES_OK without ACCESS_PLATFORM");
        assert_eq!(plain.offered() & platform, 0);
        granted.reset();
        stand.finish();
    });
}

#[test]
fn two_disks_do_not_mix() {
    bounded(|| {
        let stand = Stand::new();
        let (first, first_path) = stand.add_disk(0, Addresses::Grants, IMAGE);
        let (second, second_path) = stand.add_disk(1, Addresses::Plain, IMAGE);
        let untouched = fs::read(&second_path).unwrap();
        let mut disk = stand.drive(&first);
        write_all(&mut disk, 0, &[1; 4096]);
        drop(disk);

        let mut disk = stand.drive(&second);
        let read = read_all(&mut disk, 0, 4096);
        write_all(&mut disk, 4096, &[2; 4096]);
        drop(disk);

        assert_eq!(read, untouched[..4096]);
        assert_eq!(fs::read(&first_path).unwrap()[..4096], [1; 4096]);
        assert_eq!(fs::read(&second_path).unwrap()[4096..8192], [2; 4096]);
        stand.finish();
    });
}

/// Serves a disk with events passing in a given way.
fn with_events(machine: PrivcmdEventfd, guest: fn(&mut vmm::guest::GuestConfig)) -> Stand {
    Stand::with(Setup {
        machine: MachineConfig {
            privcmd_eventfd: machine,
            ..MachineConfig::default()
        },
        guest,
        ..Setup::default()
    })
}

#[test]
fn interrupts_come_through_the_kernel_where_it_can() {
    bounded(|| {
        let stand = with_events(PrivcmdEventfd::Present, |_| {});
        let (place, path) = stand.add_disk(0, Addresses::Grants, IMAGE);
        let held = stand.machine.census()[&stand.domain.id()];

        every_byte(&stand, &place, &path);

        assert_eq!((held.irqfds, held.ioeventfds), (1, 0));
        stand.finish();
    });
}

#[test]
fn interrupts_come_by_hypercall_where_the_kernel_cannot_or_should_not() {
    bounded(|| {
        for stand in [
            with_events(PrivcmdEventfd::NotConfigured, |_| {}),
            with_events(PrivcmdEventfd::Unknown, |_| {}),
            with_events(PrivcmdEventfd::Present, |guest| {
                guest.events = EventMode::Plain;
            }),
        ] {
            let (place, path) = stand.add_disk(0, Addresses::Grants, IMAGE);
            let held = stand.machine.census()[&stand.domain.id()];

            every_byte(&stand, &place, &path);

            assert_eq!(held.irqfds, 0);
            stand.finish();
        }
    });
}

#[test]
fn kicks_come_through_the_kernel_if_asked_for() {
    bounded(|| {
        let stand = with_events(PrivcmdEventfd::Present, |guest| {
            guest.events = EventMode::Ioeventfd;
        });
        let (place, path) = stand.add_disk(0, Addresses::Grants, IMAGE);
        let held = stand.machine.census()[&stand.domain.id()];

        every_byte(&stand, &place, &path);

        assert_eq!((held.irqfds, held.ioeventfds), (1, 1));
        stand.finish();
    });
}

#[test]
fn events_that_are_asked_for_and_not_there_are_an_error_of_the_device() {
    let stand = with_events(PrivcmdEventfd::NotConfigured, |guest| {
        guest.events = EventMode::Irqfd;
    });
    let (path, _) = stand.image("disk.img", IMAGE);
    let place = stand.place(0, Addresses::Grants);

    let error = stand
        .guest()
        .add(tests::stand::slot(&place, disk(&path)))
        .unwrap_err();

    assert!(
        matches!(&error, GuestError::Events { what: "irqfd", .. }),
        "{error}"
    );
    stand.finish();
}

#[test]
fn a_write_is_in_the_image_when_it_is_answered() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, path) = stand.add_disk(0, addresses, IMAGE);
        let driver = stand.raw(&place, 0);
        driver.negotiate();
        let mut queue = driver.queue(0, 16);
        driver.go();

        let written = ask(&driver, &mut queue, &write(10, &[0xab; 8192]));
        let image = fs::read(&path).unwrap();

        assert_eq!(written.1, OK);
        assert_eq!(image[5120..5120 + 8192], [0xab; 8192]);
        driver.reset();
        queue.free(&driver.memory);
        stand.finish();
    });
}
