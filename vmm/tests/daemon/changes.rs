//! Guests that change while they are served: devices, numbers, pauses.

use xen::fake::toolstack::{Device, Toolstack, VirtioDisk};
use xen::xenstore::XenbusState;

use crate::bench::{Bench, LONG, until};

/// What a slot without a device answers. virtio 1.3 §4.2.2
const NO_DEVICE: u64 = 0;

#[test]
fn a_removed_disk_can_be_attached_again_on_another_image() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);
    guest.with_driver(&disk, |disk| disk.flush().unwrap());
    bench.toolstack.remove(&disk.id(), LONG).unwrap();
    let other = VirtioDisk {
        params: bench.image("other.img", 4 << 20),
        ..disk
    };

    bench.attach(&other);
    let sectors = guest.with_driver(&other, |disk| disk.sectors());

    assert_eq!(sectors, (4 << 20) / 512);
}

#[test]
fn a_disk_is_removed_while_its_driver_writes_and_the_other_goes_on() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("web");
    let (going, staying) = (bench.disk(&guest, 0), bench.disk(&guest, 1));
    bench.attach(&going);
    bench.attach(&staying);
    let toolstack = Toolstack::new(bench.machine.store()).unwrap();
    let id = going.id();

    guest.with_driver(&going, move |disk| {
        for sector in 0..8 {
            disk.write(sector * 8, vec![0x11; 4096]).unwrap();
        }
        toolstack.remove(&id, LONG).unwrap();
    });
    let sectors = guest.with_driver(&staying, |disk| disk.sectors());

    assert_eq!(sectors, 2048);
    assert_eq!(guest.device_id(going.base), NO_DEVICE);
}

#[test]
fn a_guest_that_reboots_is_served_under_its_new_number_and_the_old_one_freed() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let before = bench.guest("web");
    let disk = bench.disk(&before, 0);
    bench.attach(&disk);
    before.with_driver(&disk, |disk| {
        disk.write(0, vec![0x42; 512]).unwrap();
        disk.drain().unwrap();
        disk.flush().unwrap();
    });

    // xl reboots by destroying the domain and making another
    bench.destroy(&before);
    let after = bench.guest("web");
    let same = VirtioDisk::new(after.id(), 0, disk.params);
    bench.attach(&same);
    let data = after.with_driver(&same, |disk| {
        disk.read(0, 512).unwrap();
        disk.drain().unwrap().pop().unwrap().data
    });

    assert_ne!(before.id(), after.id());
    assert_eq!(data, [0x42; 512]);
    bench.freed(&before);
    until("one record is left", || bench.records().len() == 1);
}

#[test]
fn a_guest_that_is_paused_goes_on_when_it_is_unpaused() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);
    let domain = guest.domain.clone();

    let sectors = guest.with_driver(&disk, move |disk| {
        domain.pause().unwrap();
        let unpaused = domain.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            unpaused.unpause().unwrap();
        });
        disk.write(0, vec![0x42; 4096]).unwrap();
        disk.drain().unwrap();
        disk.flush().unwrap();
        thread.join().unwrap();
        disk.sectors()
    });

    assert_eq!(sectors, 2048);
    bench.wait(&disk, XenbusState::Connected);
}

#[test]
fn a_guest_that_is_destroyed_while_paused_is_freed() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);
    guest.domain.pause().unwrap();

    bench.destroy(&guest);

    bench.freed(&guest);
}
