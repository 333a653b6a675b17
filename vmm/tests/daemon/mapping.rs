//! The kind of a guest's mapping: who may say it, and what comes of it.

use std::fs;

use vmm::daemon::{Options, StartError};
use vmm::run::{Places, scope};
use vmm::status::{DeviceStatus, Status, ask};
use xen::DomId;
use xen::fake::toolstack::VirtioDisk;
use xen::xenstore::{Options as StoreOptions, Tree, Xenstore};

use crate::bench::{Bench, Running, Spot, TestGuest};

const DIRECT: &str = "00066005";
const NOT_DIRECT: &str = "00056005";
const BOTH: &str = "00076005";

/// Has a guest's only disk served, with what was said before, and its driver
/// write and read it.
struct Case {
    bench: Bench,
    guest: TestGuest,
    disk: VirtioDisk,
}

impl Case {
    fn new() -> Self {
        let bench = Bench::new();
        let guest = bench.guest("web");
        let disk = VirtioDisk {
            grant_usage: false,
            ..bench.disk(&guest, 0)
        };
        Case { bench, guest, disk }
    }

    /// The toolstack's word.
    fn toolstack(&self, word: &str) {
        let node = format!("/libxl/{}/xen-dm/features", self.guest.id());
        self.bench.toolstack.xenstore().write(&node, word).unwrap();
    }

    /// The guest's word, as the guest writes it.
    fn says(&self, word: &str) {
        let store = self.guests_store();
        store.write("data/xen-dm/features", word).unwrap();
    }

    fn guests_store(&self) -> Xenstore {
        let (daemon, id) = (self.bench.machine.store().clone(), self.guest.id());
        Xenstore::with_connector(move || daemon.connect(id), StoreOptions::default()).unwrap()
    }

    fn serve(&self, toml: &str) -> (Running, DeviceStatus) {
        let daemon = self.bench.daemon_with(self.bench.options(toml));
        self.bench.attach(&self.disk);
        self.guest.with_driver(&self.disk, |disk| {
            disk.write(0, vec![7; 64 << 10]).unwrap();
            disk.drain().unwrap();
        });
        let status = ask(&self.bench.path("state").join("control.sock")).unwrap();
        (daemon, only_device(status))
    }

    /// The kind, and where it is known from.
    fn told(&self, toml: &str) -> (String, String) {
        let (_daemon, told) = self.serve(toml);
        let looked_up = told.dma.lookups > 0;
        assert!(told.dma.direct > 0 && told.dma.rejected == 0, "{told:?}");
        assert_eq!(looked_up, told.mapping == "Translated", "{told:?}");
        (told.mapping, told.mapping_source)
    }
}

fn only_device(status: Status) -> DeviceStatus {
    let mut devices: Vec<_> = status.guests.into_iter().flat_map(|g| g.devices).collect();
    assert_eq!(devices.len(), 1, "{devices:?}");
    devices.remove(0)
}

#[test]
fn a_guest_about_which_nobody_says_anything_is_translated() {
    let (kind, source) = Case::new().told("");

    assert_eq!(kind, "Translated");
    assert!(source.starts_with("nobody says"), "{source}");
}

#[test]
fn the_configuration_goes_before_the_toolstack_either_way() {
    let said = |direct: bool, word: &str| {
        let case = Case::new();
        case.toolstack(word);
        case.told(&format!("[guest.web]\ndirect-mapped = {direct}\n"))
    };

    let (direct, not_direct) = (said(true, NOT_DIRECT), said(false, DIRECT));

    assert_eq!(direct.0, "OneToOne");
    assert_eq!(direct.1, "the configuration says direct-mapped = true");
    assert_eq!(not_direct.0, "Translated");
    assert_eq!(not_direct.1, "the configuration says direct-mapped = false");
}

#[test]
fn the_toolstacks_word_makes_a_guest_one_to_one() {
    let case = Case::new();
    case.toolstack(DIRECT);

    let (kind, source) = case.told("");

    assert_eq!(kind, "OneToOne");
    assert_eq!(source, "the toolstack's node says 00066005");
}

#[test]
fn the_guest_cannot_write_the_toolstacks_word() {
    let case = Case::new();
    let node = format!("/libxl/{}/xen-dm/features", case.guest.id());

    let before = case.guests_store().write(&node, DIRECT);
    case.toolstack(NOT_DIRECT);
    let after = case.guests_store().write(&node, DIRECT);

    assert!(before.is_err() && after.is_err());
    assert_eq!(
        case.bench.machine.store().read(&node).as_deref(),
        Some(NOT_DIRECT)
    );
}

#[test]
fn a_guest_that_claims_to_be_direct_mapped_is_not_believed() {
    let case = Case::new();
    case.says(DIRECT);

    let (kind, source) = case.told("");

    assert_eq!(kind, "Translated");
    assert!(
        source.contains("nobody says") && source.contains("00066005, direct-mapped, which is not"),
        "{source}"
    );
}

#[test]
fn a_guest_can_make_the_model_more_careful() {
    let case = Case::new();
    case.says(NOT_DIRECT);

    let (kind, source) = case.told("[guest.web]\ndirect-mapped = true\n");

    assert_eq!(kind, "Translated");
    assert!(source.contains("00056005, not direct-mapped, which is followed"));
}

#[test]
fn a_word_that_says_both_is_one_to_one_with_a_warning() {
    let case = Case::new();
    case.toolstack(BOTH);

    let (daemon, told) = case.serve("");

    assert_eq!(told.mapping, "OneToOne");
    assert!(told.mapping_source.contains("both bits"), "{told:?}");
    daemon.log.line(&["WARN", "00076005", "both bits"]);
}

/// A disk is refused for its guest's words; what its `error` node says.
fn refusal(say: impl FnOnce(&Case)) -> String {
    let case = Case::new();
    let _daemon = case.bench.daemon();
    say(&case);
    case.bench.toolstack.add(&case.disk).unwrap();

    let error = case.bench.error(&case.disk);

    // its accesses are answered all the same
    assert_eq!(case.guest.device_id(case.disk.base), 0);
    error
}

#[test]
fn a_malformed_word_of_the_toolstacks_is_refused_with_its_value() {
    for word in ["", "yes", "0x", "6600g", "-1"] {
        let error = refusal(|case| case.toolstack(word));

        assert!(
            error.contains("/xen-dm/features") && error.contains(&format!("{word:?}")),
            "{error}"
        );
    }
}

#[test]
fn a_malformed_word_of_the_guests_is_refused_with_its_value() {
    let error = refusal(|case| case.says("direct\u{1b}[31m"));

    assert!(
        error.contains("data/xen-dm/features") && error.contains(r#""direct\u{1b}[31m""#),
        "{error}"
    );
}

#[test]
fn a_word_that_was_corrected_serves_the_device() {
    let case = Case::new();
    let file = case.bench.path("xen-dm.toml");
    fs::write(
        &file,
        format!("state-dir = {:?}\n", case.bench.path("state")),
    )
    .unwrap();
    let daemon = case.bench.daemon_with(Options {
        config_file: Some(file),
        ..case.bench.options("")
    });
    case.toolstack("nonsense");
    case.bench.toolstack.add(&case.disk).unwrap();
    case.bench.error(&case.disk);

    case.toolstack(DIRECT);
    daemon.reload();
    case.bench
        .wait(&case.disk, xen::xenstore::XenbusState::InitWait);

    let status = ask(&case.bench.path("state").join("control.sock")).unwrap();
    assert_eq!(only_device(status).mapping, "OneToOne");
}

/// `xen-dm run` for a guest that Xen has made itself, mapped 1:1 at 2 GiB.
fn run(bench: &Bench, domid: DomId, direct_mapped: Option<bool>) -> Options {
    let image = bench.image("given.img", 1 << 20);
    let device = format!("blk,path={image}").parse().unwrap();
    Options {
        scope: scope(domid, vec![device], Places::default(), direct_mapped).unwrap(),
        ..bench.options("[guest.\"*\"]\ndirect-mapped = false\n")
    }
}

#[test]
fn the_command_line_goes_before_the_configuration() {
    let told = |direct_mapped| {
        let bench = Bench::new();
        let guest = bench.unknown_guest();
        let options = run(&bench, guest.id(), direct_mapped);
        let socket = options.config.control_socket(Some(guest.id()));
        let _run = bench.daemon_with(options);
        let spot = Spot {
            base: 0x0200_0000,
            irq: 33,
            grants: false,
        };
        guest.with_driver(spot, |disk| {
            disk.write(0, vec![7; 64 << 10]).unwrap();
            disk.drain().unwrap();
        });
        let told = only_device(ask(&socket).unwrap());
        (told.mapping, told.dma.lookups > 0, told.dma.direct > 0)
    };

    assert_eq!(told(Some(true)), ("OneToOne".into(), false, true));
    assert_eq!(told(None), ("Translated".into(), true, true));
}

#[test]
fn a_malformed_word_keeps_a_run_from_starting() {
    let bench = Bench::new();
    let guest = bench.guest("web");
    let node = format!("/local/domain/{}/data/xen-dm/features", guest.id());
    bench.machine.store().write(&node, "12 34").unwrap();

    let error = bench.refusal_of(run(&bench, guest.id(), Some(true)));

    assert!(matches!(error, StartError::Device { .. }));
    assert!(error.to_string().contains("\"12 34\""), "{error}");
    assert!(bench.census(&guest).is_clean());
}
