use std::time::Duration;

use super::{Device, Error, Toolstack, VirtioDevice, VirtioDisk, slot, vdev_number};
use crate::DomId;
use crate::fake::xenstored::Store;
use crate::xenstore::{Event, Tree, XenbusState, Xenstore};

const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(50);

fn dom0() -> (Store, Toolstack) {
    let daemon = Store::new().unwrap();
    let toolstack = Toolstack::new(&daemon).unwrap();
    toolstack.create_domain(DomId(1), "guest").unwrap();
    (daemon, toolstack)
}

fn nodes(daemon: &Store, path: &str) -> Vec<(String, String)> {
    let read = |key: &String| daemon.read(&format!("{path}/{key}")).unwrap();
    daemon
        .list(path)
        .into_iter()
        .map(|key| (key.clone(), read(&key)))
        .collect()
}

fn permissions(daemon: &Store, path: &str) -> String {
    let list: Vec<_> = daemon
        .permissions(path)
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    list.join(",")
}

#[test]
fn disk_has_the_nodes_of_libxl() {
    let (daemon, toolstack) = dom0();

    toolstack
        .add(&VirtioDisk::new(DomId(1), 0, "/dev/vg/disk"))
        .unwrap();

    let back = "/local/domain/0/backend/virtio_disk/1/51712";
    let expected = [
        ("frontend", "/local/domain/1/device/virtio_disk/51712"),
        ("params", "/dev/vg/disk"),
        ("frontend-id", "1"),
        ("online", "1"),
        ("removable", "0"),
        ("bootable", "1"),
        ("state", "1"),
        ("dev", "xvda"),
        ("type", "standalone"),
        ("mode", "w"),
        ("device-type", "disk"),
        ("discard-enable", "1"),
        ("specification", "virtio"),
        ("transport", "mmio"),
        ("base", "33554432"),
        ("irq", "33"),
        ("grant_usage", "1"),
    ];
    let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(nodes(&daemon, back), expected);
    assert_eq!(permissions(&daemon, back), "n0,r1");
    assert_eq!(permissions(&daemon, &format!("{back}/state")), "n0,r1");
    let copy = nodes(&daemon, "/libxl/1/device/virtio_disk/51712");
    assert_eq!(copy[1], ("backend".to_owned(), back.to_owned()));
    assert_eq!(copy[2..], expected[1..]);
}

#[test]
fn front_end_belongs_to_the_guest() {
    let (daemon, toolstack) = dom0();

    toolstack.add(&VirtioDisk::new(DomId(1), 1, "/x")).unwrap();

    let front = "/local/domain/1/device/virtio_disk/51728";
    let expected = [
        ("backend", "/local/domain/0/backend/virtio_disk/1/51728"),
        ("backend-id", "0"),
        ("state", "1"),
        ("virtual-device", "51728"),
        ("device-type", "disk"),
        ("trusted", "1"),
    ];
    let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(nodes(&daemon, front), expected);
    assert_eq!(permissions(&daemon, front), "n1,r0");
    assert_eq!(permissions(&daemon, &format!("{front}/state")), "n1,r0");
    let guest = Xenstore::from_stream(daemon.connect(DomId(1)).unwrap()).unwrap();
    guest.write("device/virtio_disk/51728/state", "4").unwrap();
    let state = "/local/domain/0/backend/virtio_disk/1/51728/state";
    assert_eq!(guest.read_string(state).unwrap(), "1");
    assert!(guest.write(state, "4").is_err());
}

#[test]
fn generic_device_has_the_nodes_of_libxl() {
    let (daemon, toolstack) = dom0();

    toolstack
        .add(&VirtioDevice::new(DomId(1), 0, 1, 26))
        .unwrap();

    let expected = [
        ("frontend", "/local/domain/1/device/virtio/0"),
        ("frontend-id", "1"),
        ("online", "1"),
        ("state", "1"),
        ("irq", "34"),
        ("base", "0x2000200"),
        ("type", "virtio,device1a"),
        ("transport", "mmio"),
        ("grant_usage", "1"),
    ];
    let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(
        nodes(&daemon, "/local/domain/0/backend/virtio/1/0"),
        expected
    );
}

#[test]
fn variants_of_a_disk_show_in_its_nodes() {
    let (daemon, toolstack) = dom0();
    let disk = VirtioDisk {
        writable: false,
        cdrom: true,
        direct_io_safe: true,
        discard: false,
        grant_usage: false,
        ..VirtioDisk::new(DomId(1), 2, "/x")
    };

    toolstack.add(&disk).unwrap();

    let back = disk.id().backend_path();
    let read = |key: &str| daemon.read(&format!("{back}/{key}")).unwrap();
    let keys = [
        "mode",
        "device-type",
        "direct-io-safe",
        "discard-enable",
        "grant_usage",
        "base",
    ];
    assert_eq!(keys.map(read), ["r", "cdrom", "1", "0", "0", "33555456"]);
}

#[test]
fn numbers_are_those_of_libxl() {
    assert_eq!(
        [0, 1, 15, 16].map(vdev_number),
        [51712, 51728, 51952, 268_439_552]
    );
    assert_eq!(slot(10), (0x200_1400, 43));
}

#[test]
fn device_appears_at_once_to_whoever_watches() {
    let (daemon, toolstack) = dom0();
    let watcher = Xenstore::from_stream(daemon.connect(DomId(0)).unwrap()).unwrap();
    let _watch = watcher
        .watch("/local/domain/0/backend/virtio_disk")
        .unwrap();
    watcher.wait_event(LONG).unwrap();

    toolstack.add(&VirtioDisk::new(DomId(1), 0, "/x")).unwrap();

    // At the first event of it the last node is there.
    let event = watcher.wait_event(LONG).unwrap();
    assert!(matches!(event, Event::Watch(_)));
    let back = watcher.at("/local/domain/0/backend/virtio_disk/1/51712");
    assert!(back.read::<bool>("grant_usage").unwrap());
}

#[test]
fn attach_waits_for_state_two() {
    let (daemon, toolstack) = dom0();
    let disk = VirtioDisk::new(DomId(1), 0, "/x");
    let state = format!("{}/state", disk.id().backend_path());

    std::thread::scope(|scope| {
        let attaching = scope.spawn(|| toolstack.attach(&disk, LONG));
        while !daemon.exists(&state) {
            std::thread::yield_now();
        }
        daemon.write(&state, "2").unwrap();
        attaching.join().unwrap().unwrap();
    });
}

#[test]
fn attach_fails_without_a_back_end() {
    let (_daemon, toolstack) = dom0();
    let disk = VirtioDisk::new(DomId(1), 0, "/x");

    let outcome = toolstack.attach(&disk, SHORT);

    let Err(Error::BackendState { wanted, found, .. }) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(
        (wanted, found.as_deref()),
        (XenbusState::InitWait, Some("1"))
    );
}

#[test]
fn attach_fails_when_the_back_end_jumps_to_four() {
    let (daemon, toolstack) = dom0();
    let disk = VirtioDisk::new(DomId(1), 0, "/x");
    toolstack.add(&disk).unwrap();
    daemon
        .write(&format!("{}/state", disk.id().backend_path()), "4")
        .unwrap();

    let outcome = toolstack.wait_state(&disk.id(), XenbusState::InitWait, SHORT);

    assert!(matches!(outcome, Err(Error::BackendState { found: Some(state), .. }) if state == "4"));
}

#[test]
fn removal_asks_waits_and_cleans_up() {
    let (daemon, toolstack) = dom0();
    let id = VirtioDisk::new(DomId(1), 0, "/x").id();
    toolstack.add(&VirtioDisk::new(DomId(1), 0, "/x")).unwrap();
    let back = id.backend_path();

    std::thread::scope(|scope| {
        let removing = scope.spawn(|| toolstack.remove(&id, LONG));
        while daemon.read(&format!("{back}/state")).as_deref() != Some("5") {
            std::thread::yield_now();
        }
        assert_eq!(daemon.read(&format!("{back}/online")).as_deref(), Some("0"));
        daemon.write(&format!("{back}/state"), "6").unwrap();
        removing.join().unwrap().unwrap();
    });

    // Directories that became empty went too.
    assert!(!daemon.exists("/local/domain/0/backend"));
    assert!(!daemon.exists("/libxl/1/device/virtio_disk"));
    assert!(!daemon.exists("/local/domain/1/device"));
    assert!(daemon.exists("/local/domain/0/name"));
}

#[test]
fn destroying_a_guest_closes_all_its_devices() {
    let (daemon, toolstack) = dom0();
    let disk = VirtioDisk::new(DomId(1), 0, "/x");
    let rng = VirtioDevice::new(DomId(1), 0, 1, 4);
    toolstack.add(&disk).unwrap();
    toolstack.add(&rng).unwrap();
    let states = [disk.id(), rng.id()].map(|id| format!("{}/state", id.backend_path()));

    std::thread::scope(|scope| {
        let destroying = scope.spawn(|| toolstack.destroy_domain(DomId(1), LONG));
        // All are asked before any is waited for.
        while !states
            .iter()
            .all(|state| daemon.read(state).as_deref() == Some("5"))
        {
            std::thread::yield_now();
        }
        for state in &states {
            daemon.write(state, "6").unwrap();
        }
        destroying.join().unwrap().unwrap();
    });

    assert!(!daemon.exists("/local/domain/1"));
    assert!(!daemon.exists("/local/domain/0/backend"));
    assert!(daemon.list("/libxl").is_empty());
}

#[test]
fn destroying_a_guest_without_a_back_end_fails_and_leaves_nothing() {
    let (daemon, toolstack) = dom0();
    toolstack.add(&VirtioDisk::new(DomId(1), 0, "/x")).unwrap();

    let outcome = toolstack.destroy_domain(DomId(1), SHORT);

    assert!(matches!(outcome, Err(Error::BackendState { .. })));
    assert!(!daemon.exists("/local/domain/1"));
}
