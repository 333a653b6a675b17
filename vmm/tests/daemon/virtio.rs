//! Devices of `virtio = [ ... ]`: what is behind them the configuration says.

use xen::fake::toolstack::{Device, VirtioDevice};
use xen::xenstore::XenbusState;

use crate::bench::{Bench, LONG, Running, TestGuest, until};

/// virtio 1.3 §5
const NO_DEVICE: u64 = 0;
const NETWORK: u32 = 1;
const BLOCK: u32 = 2;
const CONSOLE: u32 = 3;
const ENTROPY: u32 = 4;

/// A guest `web`, with `toml` in force.
fn with(toml: impl FnOnce(&Bench) -> String) -> (Bench, Running, TestGuest) {
    let bench = Bench::new();
    let options = bench.options(&toml(&bench));
    let daemon = bench.daemon_with(options);
    let guest = bench.guest("web");
    (bench, daemon, guest)
}

fn disk_entry(bench: &Bench, entry: &str, image: &str) -> String {
    let path = bench.image(image, 1 << 20);
    format!("[guest.\"w*\".virtio.{entry}.blk]\npath = {path:?}\n")
}

#[test]
fn a_device_goes_through_its_states_from_creation_to_removal() {
    let (bench, daemon, guest) = with(|bench| disk_entry(bench, "device2", "generic.img"));
    let device = VirtioDevice::new(guest.id(), 0, 1, BLOCK);

    bench.toolstack.add(&device).unwrap();
    bench.wait(&device, XenbusState::InitWait);
    let offered = guest.device_id(device.base);
    let sectors = guest.with_driver(&device, |disk| disk.sectors());
    bench.wait(&device, XenbusState::Connected);
    bench.toolstack.remove(&device.id(), LONG).unwrap();

    assert_eq!((offered, sectors), (u64::from(BLOCK), 2048));
    assert_eq!(guest.device_id(device.base), NO_DEVICE);
    daemon
        .log
        .line(&["serving a device", "web", "virtio/0", "device2"]);
}

#[test]
fn cards_that_were_given_no_address_have_their_guests_own() {
    let (bench, _daemon, guest) = with(|bench| {
        let socket = bench.path("nobody.sock");
        format!("[guest.\"*\".virtio.device1.net]\nsocket = {socket:?}\n")
    });
    let other = bench.guest("web-2");
    let address = |guest: &TestGuest, devid, slot| {
        let card = VirtioDevice::new(guest.id(), devid, slot, NETWORK);
        bench.toolstack.add(&card).unwrap();
        bench.wait(&card, XenbusState::InitWait);
        let byte = |at| {
            guest
                .domain
                .vcpu(0)
                .read(card.base + 0x100 + at, 1)
                .unwrap()
        };
        let address: Vec<u64> = (0..6).map(byte).collect();
        bench.toolstack.remove(&card.id(), LONG).unwrap();
        address
    };

    let first = address(&guest, 0, 1);
    let again = address(&guest, 0, 2);
    let second = address(&guest, 1, 1);
    let others = address(&other, 0, 1);

    assert_eq!(first, again);
    assert!(first != second && first != others);
    // locally administered, and of one card
    assert_eq!(first[0] & 3, 2);
}

#[test]
fn a_device_without_an_entry_is_told_and_its_slot_answers_that_it_is_empty() {
    let (bench, daemon, guest) = with(|_| String::new());
    let device = VirtioDevice::new(guest.id(), 3, 0, ENTROPY);

    bench.toolstack.add(&device).unwrap();
    let error = bench.error(&device);
    let found = guest.device_id(device.base);

    daemon.log.line(&["ERROR", "not served", "web", "virtio/3"]);
    // ENOENT
    assert!(error.starts_with("2 guest web"), "{error}");
    assert!(
        error.contains("no entry") && error.contains("device4"),
        "{error}"
    );
    assert!(error.contains("[guest.\"web\".virtio.3.KIND]"), "{error}");
    assert_eq!(found, NO_DEVICE);
    assert_eq!(bench.state(&device).as_deref(), Some("1"));
}

#[test]
fn an_entry_of_another_kind_is_told_naming_both() {
    let (bench, _daemon, guest) = with(|bench| disk_entry(bench, "0", "generic.img"));
    let device = VirtioDevice::new(guest.id(), 0, 0, ENTROPY);

    bench.toolstack.add(&device).unwrap();
    let error = bench.error(&device);

    assert!(
        error.contains("device4") && error.contains("a blk, which is device2"),
        "{error}"
    );
    assert_eq!(guest.device_id(device.base), NO_DEVICE);
}

#[test]
fn a_refused_device_is_closed_when_asked_and_its_guest_freed() {
    let (bench, _daemon, guest) = with(|_| String::new());
    let device = VirtioDevice::new(guest.id(), 0, 0, ENTROPY);
    bench.toolstack.add(&device).unwrap();
    bench.error(&device);

    bench.toolstack.remove(&device.id(), LONG).unwrap();
    bench.destroy(&guest);

    bench.freed(&guest);
    let path = Bench::error_path(&device.id());
    until("the error is gone", || !bench.machine.store().exists(&path));
}

#[test]
fn devices_of_all_kinds_share_a_guest() {
    let (bench, _daemon, guest) =
        with(|bench| disk_entry(bench, "\"*\"", "any.img") + "[guest.\"w*\".virtio.1.rng]\n");
    let disk = bench.disk(&guest, 0);
    let devices = [
        VirtioDevice::new(guest.id(), 0, 1, BLOCK),
        VirtioDevice::new(guest.id(), 1, 2, ENTROPY),
    ];

    bench.attach(&disk);
    for device in &devices {
        bench.toolstack.add(device).unwrap();
        bench.wait(device, XenbusState::InitWait);
    }

    assert_eq!(guest.device_id(disk.base), u64::from(BLOCK));
    assert_eq!(guest.device_id(devices[0].base), u64::from(BLOCK));
    assert_eq!(guest.device_id(devices[1].base), u64::from(ENTROPY));
    assert_eq!(bench.census(&guest).ioreq_servers, 1);
}

#[test]
fn a_device_comes_and_goes_while_others_are_used() {
    let (bench, _daemon, guest) = with(|bench| disk_entry(bench, "device2", "generic.img"));
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);
    let device = VirtioDevice::new(guest.id(), 0, 1, BLOCK);
    let toolstack = xen::fake::toolstack::Toolstack::new(bench.machine.store()).unwrap();
    let coming = device.clone();

    guest.with_driver(&disk, move |disk| {
        for round in 0..3 {
            toolstack.add(&coming).unwrap();
            toolstack
                .wait_state(&coming.id(), XenbusState::InitWait, LONG)
                .unwrap();
            disk.write(round, vec![0x5a; 512]).unwrap();
            disk.drain().unwrap();
            toolstack.remove(&coming.id(), LONG).unwrap();
        }
    });

    assert_eq!(guest.device_id(device.base), NO_DEVICE);
    bench.wait(&disk, XenbusState::Connected);
}

#[test]
fn a_device_is_served_on_when_xenstored_is_restarted() {
    let (bench, daemon, guest) = with(|bench| disk_entry(bench, "device2", "generic.img"));
    let device = VirtioDevice::new(guest.id(), 0, 1, BLOCK);
    bench.toolstack.add(&device).unwrap();
    bench.wait(&device, XenbusState::InitWait);

    bench.machine.store().restart();
    daemon.log.line(&["xenstored is back"]);
    let sectors = guest.with_driver(&device, |disk| disk.sectors());

    assert_eq!(sectors, 2048);
    until("the toolstack is told", || {
        bench.state(&device).as_deref() == Some("4")
    });
}

#[test]
fn the_second_guest_of_a_pattern_is_told_which_one_has_what_it_names() {
    let bench = Bench::new();
    let (socket, image) = (bench.path("console"), bench.image("one.img", 1 << 20));
    let daemon = bench.daemon_with(bench.options(&format!(
        "[guest.\"web-*\".virtio.\"device*\".console]\nbackend = \"socket\"\npath = {socket:?}\n\
         [guest.\"db-*\".virtio.0.blk]\npath = {image:?}\n"
    )));
    let refused = |kind: u32, names: [&str; 2]| {
        let [first, second] = names.map(|name| bench.guest(name));
        let device = VirtioDevice::new(first.id(), 0, 0, kind);
        bench.toolstack.add(&device).unwrap();
        bench.wait(&device, XenbusState::InitWait);
        let device = VirtioDevice::new(second.id(), 0, 0, kind);
        bench.toolstack.add(&device).unwrap();
        bench.error(&device)
    };

    let console = refused(CONSOLE, ["web-1", "web-2"]);
    let disk = refused(BLOCK, ["db-1", "db-2"]);

    for (error, section, user, cause) in [
        (
            console,
            "[guest.\"web-*\".virtio.\"device*\".console]",
            "web-1",
            "somebody else listens on",
        ),
        (
            disk,
            "[guest.\"db-*\".virtio.0.blk]",
            "db-1",
            "is in use by",
        ),
    ] {
        let told = format!("{section} is for virtio/0 of guest {user} (domain ");
        assert!(error.contains(&told), "{error}");
        assert!(error.contains(cause), "{error}");
    }
    assert_eq!(daemon.log.count("not served"), 2);
}
