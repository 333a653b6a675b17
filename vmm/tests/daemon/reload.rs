//! A configuration that is read anew while guests are served.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use vmm::config::Config;
use vmm::daemon::Options;
use xen::fake::toolstack::{Device, VirtioDevice};
use xen::xenstore::XenbusState;

use crate::bench::{Bench, Running, until};
use crate::status::status;

/// virtio 1.3 §5.2
const BLOCK: u32 = 2;
/// virtio 1.3 §5.1
const NETWORK: u32 = 1;
/// virtio 1.3 §5.4
const ENTROPY: u32 = 4;

/// A configuration file, and a daemon that was started with it.
struct Configured {
    bench: Bench,
    daemon: Running,
    file: PathBuf,
}

impl Configured {
    fn new() -> Self {
        let bench = Bench::new();
        let file = bench.path("xen-dm.toml");
        let state = bench.path("state");
        fs::write(&file, format!("state-dir = {state:?}\n")).unwrap();
        let daemon = bench.daemon_with(Options {
            config: Config::load(&file).unwrap(),
            config_file: Some(file.clone()),
            ..Options::default()
        });
        Configured {
            bench,
            daemon,
            file,
        }
    }

    /// Changes the file, and has it read.
    fn change(&self, text: &str) {
        let state = self.bench.path("state");
        fs::write(&self.file, format!("state-dir = {state:?}\n{text}")).unwrap();
        self.daemon.reload();
    }

    fn change_serial(&self, serial: &str) {
        self.change(&format!(
            "[guest.\"*\".disk.\"*\"]\nserial = \"{serial}\"\n"
        ));
        self.daemon.log.line(&["configuration was read anew"]);
    }
}

#[test]
fn a_device_that_was_refused_is_served_when_there_is_an_entry_for_it() {
    let configured = Configured::new();
    let bench = &configured.bench;
    let guest = bench.guest("web");
    let device = VirtioDevice::new(guest.id(), 0, 0, BLOCK);
    bench.toolstack.add(&device).unwrap();
    bench.error(&device);
    let image = bench.image("later.img", 1 << 20);

    configured.change(&format!(
        "[guest.web.virtio.device2.blk]\npath = {image:?}\n"
    ));
    bench.wait(&device, XenbusState::InitWait);

    assert_eq!(guest.device_id(device.base), u64::from(BLOCK));
    let path = Bench::error_path(&device.id());
    until("the error is gone", || !bench.machine.store().exists(&path));
}

#[test]
fn devices_to_come_are_different_and_those_there_stay_as_they_are() {
    let configured = Configured::new();
    let bench = &configured.bench;
    let guest = bench.guest("web");
    let (first, second) = (bench.disk(&guest, 0), bench.disk(&guest, 1));
    bench.attach(&first);

    configured.change_serial("new");
    bench.attach(&second);
    let serial_of = |disk| guest.with_driver(disk, |disk| disk.serial().unwrap());

    assert_eq!(serial_of(&first), "");
    assert_eq!(serial_of(&second), "new");
}

#[test]
fn a_disk_takes_the_size_that_its_image_has_by_now() {
    let configured = Configured::new();
    let bench = &configured.bench;
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);
    let before = guest.with_driver(&disk, |disk| disk.sectors());
    bench.image(&format!("{}-0.img", guest.id()), 3 << 20);

    configured.change("");
    let log = &configured.daemon.log;
    log.line(&["configuration was read anew"]);
    let after = guest.with_driver(&disk, |disk| disk.sectors());

    assert_eq!((before, after), (2048, 3 * 2048));
}

#[test]
fn a_card_has_its_cable_plugged_out_and_in_while_it_is_served() {
    let configured = Configured::new();
    let bench = &configured.bench;
    let guest = bench.guest("web");
    let path = bench.path("card");
    // a card connects as soon as it is made
    let _listener = UnixListener::bind(&path).unwrap();
    let link = |word: &str| {
        let link = format!("link = {word:?}");
        configured.change(&format!(
            "[guest.web.virtio.device1.net]\nsocket = {path:?}\n{link}\n"
        ));
    };
    let is_up = |up| {
        until("the link is as configured", || {
            let told = status(bench);
            let mut devices = told.guests.iter().flat_map(|guest| &guest.devices);
            devices.any(|device| device.statistics["link_up"] == up)
        });
    };
    link("up");
    let device = VirtioDevice::new(guest.id(), 0, 0, NETWORK);
    bench.toolstack.add(&device).unwrap();
    bench.wait(&device, XenbusState::InitWait);

    for (word, up) in [("up", 1), ("down", 0), ("up", 1)] {
        link(word);
        is_up(up);
    }

    assert_eq!(guest.device_id(device.base), u64::from(NETWORK));
}

#[test]
fn a_device_whose_entry_has_gone_stays_as_it_is_and_that_is_said() {
    let configured = Configured::new();
    let bench = &configured.bench;
    let guest = bench.guest("web");
    configured.change("[guest.web.virtio.device4.rng]\n");
    let device = VirtioDevice::new(guest.id(), 0, 0, ENTROPY);
    bench.toolstack.add(&device).unwrap();
    bench.wait(&device, XenbusState::InitWait);

    configured.change("");

    let log = &configured.daemon.log;
    log.line(&["WARN", "virtio/0", "stays as it is", "has no entry"]);
    assert_eq!(guest.device_id(device.base), u64::from(ENTROPY));
}

#[test]
fn a_configuration_that_is_wrong_is_told_with_its_place_and_the_old_one_stays() {
    let configured = Configured::new();
    let bench = &configured.bench;
    configured.change_serial("old");

    configured.change("[guest.web.disk.xvda]\nqueue-size = 3\n");
    let line = configured.daemon.log.line(&["ERROR", "stays as it was"]);
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);
    let serial = guest.with_driver(&disk, |disk| disk.serial().unwrap());

    assert!(
        line.contains("xen-dm.toml, line 3, key guest.web.disk.xvda.queue-size"),
        "{line}"
    );
    assert_eq!(serial, "old");
}

#[test]
fn what_is_read_at_start_only_is_told_where_it_changes() {
    let configured = Configured::new();

    configured.change("control-socket = \"/run/elsewhere.sock\"\n");

    configured
        .daemon
        .log
        .line(&["control-socket", "at start only"]);
}

#[test]
fn a_file_that_has_gone_is_told_and_the_old_configuration_stays() {
    let configured = Configured::new();
    fs::remove_file(&configured.file).unwrap();

    configured.daemon.reload();

    configured
        .daemon
        .log
        .line(&["ERROR", "stays as it was", "cannot be read"]);
    assert!(!configured.daemon.has_left());
}

#[test]
fn without_a_file_that_is_said_and_it_stays() {
    let bench = Bench::new();
    let daemon = bench.daemon();

    daemon.reload();

    daemon.log.line(&["WARN", "without a file"]);
    assert!(!daemon.has_left());
}
