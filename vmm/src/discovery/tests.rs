mod driver_domain;

use devices::virtio::DeviceType;
use xen::DomId;
use xen::fake::toolstack::{Device, Toolstack, VirtioDevice, VirtioDisk};
use xen::fake::xenstored::Store;
use xen::xenstore::{XenbusState, Xenstore};

use super::*;
use crate::guest::DeviceKey;

const GUEST: DomId = DomId(3);
const DEVICE: &str = "/local/domain/0/backend/virtio_disk/3/51712";

struct Dom0 {
    daemon: Store,
    toolstack: Toolstack,
    store: Xenstore,
    root: Root,
}

impl Dom0 {
    /// With one guest that has one disk.
    fn with_disk() -> Self {
        let daemon = Store::new().unwrap();
        let toolstack = Toolstack::new(&daemon).unwrap();
        toolstack.create_domain(GUEST, "web").unwrap();
        toolstack
            .add(&VirtioDisk::new(GUEST, 0, "/images/web.img"))
            .unwrap();
        let store = Xenstore::from_stream(daemon.connect(DomId(0)).unwrap()).unwrap();
        Dom0 {
            daemon,
            toolstack,
            store,
            root: Root::new(DomId(0)),
        }
    }

    fn write(&self, key: &str, value: &str) {
        self.daemon
            .write(&format!("{DEVICE}/{key}"), value)
            .unwrap();
    }

    fn seen(&self) -> Seen {
        read_backend(&self.store, &self.root, &place()).unwrap()
    }

    fn life(&self) -> Life {
        read_life(&self.store, &self.root, &place()).unwrap()
    }

    fn malformed(&self) -> String {
        match self.seen() {
            Seen::Malformed(error) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    fn node(&self) -> DeviceNode {
        match self.seen() {
            Seen::Device(backend) => backend.node,
            other => panic!("{other:?}"),
        }
    }

    fn disk(&self) -> DiskNode {
        match self.node().announced {
            Announced::Disk(disk) => disk,
            other => panic!("{other:?}"),
        }
    }

    /// Another device of the guest's: of `virtio = [ ... ]`.
    fn virtio(&self, kind: &str) -> Seen {
        let device = VirtioDevice {
            device_type: kind.to_owned(),
            ..VirtioDevice::new(GUEST, 0, 1, 4)
        };
        self.toolstack.add(&device).unwrap();
        read_backend(&self.store, &self.root, &virtio_place()).unwrap()
    }
}

fn place() -> Place {
    Place {
        domid: GUEST,
        key: DeviceKey::new("virtio_disk", 51712),
    }
}

fn virtio_place() -> Place {
    Place {
        domid: GUEST,
        key: DeviceKey::new("virtio", 0),
    }
}

#[test]
fn a_generic_device_as_libxl_writes_it_is_read_whole() {
    let dom0 = Dom0::with_disk();

    let Seen::Device(Backend { state, node }) = dom0.virtio("virtio,device4") else {
        panic!("no device")
    };

    assert_eq!(state, XenbusState::Initialising);
    let expected = DeviceNode {
        base: 0x0200_0200,
        irq: 34,
        grants: true,
        announced: Announced::Virtio(VirtioType(DeviceType(4))),
    };
    assert_eq!(node, expected);
}

#[test]
fn the_number_of_a_generic_device_is_hexadecimal() {
    let dom0 = Dom0::with_disk();
    let announced = |kind| match dom0.virtio(kind) {
        Seen::Device(backend) => backend.node.announced,
        other => panic!("{other:?}"),
    };

    // virtio 1.3 §5: 26 is a file system, 38 is not
    assert_eq!(
        announced("virtio,device1a"),
        Announced::Virtio(VirtioType(DeviceType(26)))
    );
    assert_eq!(
        announced("virtio,device26"),
        Announced::Virtio(VirtioType(DeviceType(38)))
    );
}

#[test]
fn a_type_that_is_none_is_refused_with_its_value() {
    let dom0 = Dom0::with_disk();

    for kind in [
        "virtio,device",
        "virtio,device0",
        "virtio,device1q",
        "device4",
        "blk",
    ] {
        let Seen::Malformed(error) = dom0.virtio(kind) else {
            panic!("{kind} was taken")
        };

        let text = error.to_string();
        assert!(text.contains("virtio/3/0/type"), "{text}");
        assert!(text.contains(&format!("{kind:?}")), "{text}");
    }
}

#[test]
fn a_disk_as_libxl_writes_it_is_read_whole() {
    let dom0 = Dom0::with_disk();

    let Seen::Device(Backend { state, node }) = dom0.seen() else {
        panic!("no device")
    };

    assert_eq!(state, XenbusState::Initialising);
    let expected = DiskNode {
        image: "/images/web.img".into(),
        readonly: false,
        discard: true,
        name: Some("xvda".to_owned()),
    };
    assert_eq!(node.announced, Announced::Disk(expected));
    assert_eq!((node.base, node.irq, node.grants), (0x0200_0000, 33, true));
}

#[test]
fn numbers_may_be_hexadecimal_too() {
    let dom0 = Dom0::with_disk();

    dom0.write("base", "0x2000200");
    dom0.write("irq", "0x22");

    assert_eq!((dom0.node().base, dom0.node().irq), (0x0200_0200, 34));
}

#[test]
fn a_cdrom_and_a_disk_without_write_access_are_read_only() {
    let dom0 = Dom0::with_disk();

    dom0.write("mode", "r");
    let by_mode = dom0.disk().readonly;
    dom0.write("mode", "w");
    dom0.write("device-type", "cdrom");
    let by_type = dom0.disk().readonly;

    assert!(by_mode && by_type);
}

#[test]
fn each_wrong_value_is_refused_with_its_key_and_value() {
    let wrong = [
        ("state", "nine"),
        ("online", "yes"),
        ("frontend-id", "4"),
        ("params", "relative.img"),
        ("mode", "rw"),
        ("device-type", "floppy"),
        ("discard-enable", "2"),
        ("specification", "xen"),
        ("transport", "pci"),
        ("base", "12q"),
        ("base", "-1"),
        ("base", "99999999999999999999999"),
        ("irq", "31"),
        ("irq", ""),
        ("grant_usage", "true"),
    ];
    for (key, value) in wrong {
        let dom0 = Dom0::with_disk();

        dom0.write(key, value);

        let text = dom0.malformed();
        assert!(text.contains(&format!("{DEVICE}/{key}")), "{text}");
        assert!(text.contains(&format!("{value:?}")), "{text}");
    }
}

#[test]
fn a_base_outside_of_the_window_is_refused_with_the_window() {
    let dom0 = Dom0::with_disk();

    dom0.write("base", "0x1fffe00");

    let text = dom0.malformed();
    assert!(
        text.contains("/base") && text.contains("0x2000000+0x100000"),
        "{text}"
    );
}

#[test]
fn each_missing_node_that_is_needed_is_named() {
    let needed = [
        "state",
        "frontend-id",
        "params",
        "mode",
        "device-type",
        "specification",
        "transport",
        "base",
        "irq",
        "grant_usage",
    ];
    for key in needed {
        let dom0 = Dom0::with_disk();

        dom0.daemon.rm(&format!("{DEVICE}/{key}")).unwrap();

        let text = dom0.malformed();
        assert!(text.contains(&format!("{DEVICE}/{key}")), "{text}");
    }
}

#[test]
fn a_device_to_be_closed_need_not_be_right() {
    let dom0 = Dom0::with_disk();

    dom0.write("base", "nonsense");
    dom0.toolstack
        .request_removal(&VirtioDisk::new(GUEST, 0, "").id())
        .unwrap();

    assert_eq!(dom0.life(), Life::Closing);
}

#[test]
fn what_is_wanted_of_a_device_follows_from_state_and_online() {
    let dom0 = Dom0::with_disk();
    let mut found = vec![dom0.life()];

    for (key, value) in [
        ("state", "4"),
        ("state", "odd"),
        ("online", "0"),
        ("state", "6"),
    ] {
        dom0.write(key, value);
        found.push(dom0.life());
    }
    dom0.daemon.rm(DEVICE).unwrap();
    found.push(dom0.life());

    let expected = [
        Life::New,
        Life::Wanted,
        Life::Wanted,
        Life::Closing,
        Life::Closed,
        Life::Gone,
    ];
    assert_eq!(found, expected);
}

#[test]
fn devices_are_listed_and_names_that_are_none_left_out() {
    let dom0 = Dom0::with_disk();
    dom0.toolstack
        .add(&VirtioDisk::new(GUEST, 1, "/images/more.img"))
        .unwrap();
    dom0.virtio("virtio,device4");
    for odd in ["x", "3/disk", "007/51712", "70000/1"] {
        dom0.daemon
            .mkdir(&format!("/local/domain/0/backend/virtio_disk/{odd}"))
            .unwrap();
    }

    let mut places = list(&dom0.store, &dom0.root).unwrap();

    places.sort();
    let second = Place {
        domid: GUEST,
        key: DeviceKey::new("virtio_disk", 51728),
    };
    assert_eq!(places, [virtio_place(), place(), second]);
}

#[test]
fn without_any_back_end_the_list_is_empty() {
    let daemon = Store::new().unwrap();
    let store = Xenstore::from_stream(daemon.connect(DomId(0)).unwrap()).unwrap();

    assert_eq!(list(&store, &Root::new(DomId(0))).unwrap(), []);
}

#[test]
fn a_changed_node_is_traced_to_its_device() {
    let root = Root::new(DomId(0));

    assert_eq!(root.touched(DEVICE), Touched::Device(place()));
    assert_eq!(
        root.touched(&format!("{DEVICE}/state")),
        Touched::Device(place())
    );
    assert_eq!(
        root.touched("/local/domain/0/backend/virtio_disk"),
        Touched::List
    );
    assert_eq!(
        root.touched("/local/domain/0/backend/virtio/3/0/online"),
        Touched::Device(virtio_place())
    );
    assert_eq!(
        root.touched("/local/domain/0/backend/virtio_disk/3"),
        Touched::List
    );
    assert_eq!(root.touched("/local/domain/0/backend"), Touched::List);
    for other in [
        "/local/domain/0/backend/virtio_disk/x/51712",
        "/local/domain/0/backend/virtio_disk/03/51712",
        "/local/domain/0/backend/virtio_disk/3/xvda/state",
        "/local/domain/0/backend/virtio_disks/3/51712",
        "/local/domain/3/device/virtio_disk/51712",
    ] {
        assert_eq!(root.touched(other), Touched::Nothing, "{other}");
    }
}

#[test]
fn a_state_is_written_only_where_the_device_is_wanted() {
    let dom0 = Dom0::with_disk();
    let write = |state| write_state(&dom0.store, &dom0.root, &place(), state).unwrap();
    let state = || dom0.daemon.read(&format!("{DEVICE}/state"));

    assert!(write(XenbusState::InitWait));
    dom0.write("state", "5");
    assert!(!write(XenbusState::Connected));
    assert_eq!(state().as_deref(), Some("5"));
    assert!(write(XenbusState::Closed));
    assert_eq!(state().as_deref(), Some("6"));
    dom0.daemon.rm(DEVICE).unwrap();
    assert!(!write(XenbusState::Closed));
    assert_eq!(state(), None);
}

#[test]
fn an_error_is_told_in_both_places_and_taken_back_without_a_trace() {
    let dom0 = Dom0::with_disk();
    let error = "/local/domain/0/error/backend/virtio_disk/3/51712/error";
    let in_device = format!("{DEVICE}/error");

    report_error(&dom0.store, &dom0.root, &place(), 22, "guest web: no").unwrap();
    assert_eq!(dom0.daemon.read(error).as_deref(), Some("22 guest web: no"));
    assert_eq!(
        dom0.daemon.read(&in_device).as_deref(),
        Some("22 guest web: no")
    );
    clear_error(&dom0.store, &dom0.root, &place()).unwrap();

    assert!(!dom0.daemon.exists(&in_device));
    assert!(
        !dom0
            .daemon
            .exists("/local/domain/0/error/backend/virtio_disk/3")
    );
}

#[test]
fn an_error_about_a_device_that_is_gone_does_not_bring_its_directory_back() {
    let dom0 = Dom0::with_disk();
    dom0.daemon.rm(DEVICE).unwrap();

    report_error(&dom0.store, &dom0.root, &place(), 2, &"long ".repeat(4000)).unwrap();

    assert!(!dom0.daemon.exists(DEVICE));
}

#[test]
fn a_domain_is_read_with_name_and_uuid_as_long_as_it_lives() {
    let dom0 = Dom0::with_disk();

    let info = read_domain(&dom0.store, &dom0.root, GUEST)
        .unwrap()
        .unwrap();
    dom0.daemon.release(GUEST);
    let after = read_domain(&dom0.store, &dom0.root, GUEST).unwrap();

    assert_eq!(info.name, "web");
    assert_eq!(
        info.uuid.as_deref(),
        Some("00000000-0000-4000-8000-000000000003")
    );
    assert_eq!(after, None);
}

#[test]
fn a_domain_without_a_name_is_called_by_its_number() {
    let dom0 = Dom0::with_disk();
    dom0.daemon.rm("/local/domain/3/name").unwrap();

    let info = read_domain(&dom0.store, &dom0.root, GUEST)
        .unwrap()
        .unwrap();

    assert_eq!(info.name, "domain-3");
}

#[test]
fn dom0_over_a_socket_is_known_by_its_directory() {
    let dom0 = Dom0::with_disk();

    let own = own_domain(&dom0.store).unwrap();
    dom0.daemon.write("/local/domain/0/domid", "zero").unwrap();
    let wrong = own_domain(&dom0.store).unwrap_err();

    assert_eq!(own, DomId(0));
    assert!(wrong.to_string().contains("zero"));
}

#[test]
fn a_device_model_says_that_it_runs_and_leaves_no_trace() {
    let dom0 = Dom0::with_disk();
    let state = "/local/domain/0/device-model/3/state";

    write_running(&dom0.store, &dom0.root, GUEST).unwrap();
    let written = dom0.daemon.read(state);
    clear_running(&dom0.store, &dom0.root, GUEST).unwrap();
    clear_running(&dom0.store, &dom0.root, GUEST).unwrap();

    assert_eq!(written.as_deref(), Some("running"));
    assert!(!dom0.daemon.exists("/local/domain/0/device-model/3"));
}
