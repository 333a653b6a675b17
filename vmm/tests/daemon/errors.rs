//! What cannot be served, and how that is told.

use vmm::daemon::StartError;
use xen::fake::toolstack::{Device, VirtioDisk};
use xen::xenstore::XenbusState;

use crate::bench::{Bench, LONG, until};

/// Bad and good disk of one guest; the good one has to be served.
fn refused(bad: impl FnOnce(&Bench, VirtioDisk) -> VirtioDisk) -> (String, String) {
    refused_with("", bad)
}

/// The same with a configuration.
fn refused_with(
    toml: &str,
    bad: impl FnOnce(&Bench, VirtioDisk) -> VirtioDisk,
) -> (String, String) {
    let bench = Bench::new();
    let daemon = bench.daemon_with(bench.options(toml));
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    let disk = bad(&bench, disk);
    bench.toolstack.add(&disk).unwrap();

    let error = bench.error(&disk);
    let line = daemon
        .log
        .line(&["ERROR", "not served", "web", "virtio_disk/51712"]);
    let (good, other) = (bench.disk(&guest, 1), bench.guest("other"));
    bench.attach(&good);
    bench.attach(&bench.disk(&other, 0));

    assert!(
        error.contains("guest web") && error.contains("virtio_disk/51712"),
        "{error}"
    );
    assert_eq!(bench.state(&disk).as_deref(), Some("1"));
    (error, line)
}

#[test]
fn a_malformed_node_is_told_with_its_key_and_value() {
    let (error, line) = refused(|_, disk| VirtioDisk {
        base: 0x1234,
        ..disk
    });

    for text in [&error, &line] {
        assert!(
            text.contains("51712/base") && text.contains("0x1234"),
            "{text}"
        );
    }
    // EINVAL, as xenbus writes it
    assert!(error.starts_with("22 "), "{error}");
}

#[test]
fn a_missing_image_is_told_with_its_path() {
    let (error, line) = refused(|_, disk| VirtioDisk {
        params: "/no/such.img".into(),
        ..disk
    });

    assert!(
        error.contains("/no/such.img") && line.contains("/no/such.img"),
        "{error} {line}"
    );
    // ENOENT
    assert!(error.starts_with("2 "), "{error}");
}

#[test]
fn a_size_that_is_no_multiple_of_512_is_told() {
    let (error, _) = refused(|bench, disk| {
        let image = bench.image("odd.img", 1000);
        VirtioDisk {
            params: image,
            ..disk
        }
    });

    assert!(
        error.contains("odd.img") && error.contains("1000 bytes"),
        "{error}"
    );
}

#[test]
fn an_image_that_is_not_in_its_format_is_told_with_its_path() {
    let toml = "[guest.web.disk.xvda]\nformat = \"qcow2\"\n";

    let (error, line) = refused_with(toml, |_, disk| disk);

    for text in [&error, &line] {
        assert!(
            text.contains("0.img cannot be served as qcow2: it does not begin as a qcow2 image"),
            "{text}"
        );
    }
}

#[test]
fn an_interrupt_that_xen_does_not_give_is_told() {
    let (error, _) = refused(|_, disk| VirtioDisk { irq: 900, ..disk });

    assert!(error.contains("900"), "{error}");
}

#[test]
fn a_refused_device_is_refused_once_and_closed_when_asked() {
    let bench = Bench::new();
    let daemon = bench.daemon();
    let guest = bench.guest("web");
    let disk = VirtioDisk::new(guest.id(), 0, "/no/such.img");
    bench.toolstack.add(&disk).unwrap();
    bench.error(&disk);
    bench
        .machine
        .store()
        .write(&format!("{}/hint", disk.id().backend_path()), "x")
        .unwrap();

    bench.toolstack.remove(&disk.id(), LONG).unwrap();

    let path = Bench::error_path(&disk.id());
    until("the error is gone", || !bench.machine.store().exists(&path));
    assert!(!bench.machine.store().exists(&disk.id().backend_path()));
    assert_eq!(daemon.log.count("not served"), 1);
}

#[test]
fn a_node_that_is_corrected_is_served_and_its_error_taken_back() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("web");
    let good = bench.disk(&guest, 0);
    let bad = VirtioDisk {
        params: "/no/such.img".into(),
        ..good.clone()
    };
    bench.toolstack.add(&bad).unwrap();
    bench.error(&bad);

    bench.attach(&good);

    let path = Bench::error_path(&good.id());
    until("the error is gone", || !bench.machine.store().exists(&path));
    assert_eq!(bench.node(&good.id(), "error"), None);
}

#[test]
fn the_second_guest_on_an_image_is_refused_naming_both_until_the_first_is_gone() {
    let bench = Bench::new();
    let daemon = bench.daemon();
    let (first, second) = (bench.guest("first"), bench.guest("second"));
    let disk = bench.disk(&first, 0);
    bench.attach(&disk);
    let same = VirtioDisk::new(second.id(), 0, disk.params);
    bench.toolstack.add(&same).unwrap();

    let error = bench.error(&same);
    daemon
        .log
        .line(&["ERROR", "second", "virtio_disk/51712 of guest first"]);
    bench.destroy(&first);
    bench.wait(&same, XenbusState::InitWait);

    assert!(
        error.contains("guest second") && error.contains("of guest first"),
        "{error}"
    );
    // EBUSY
    assert!(error.starts_with("16 "), "{error}");
}

#[test]
fn two_guests_may_read_one_image() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let image = bench.image("shared.img", 4096);
    let reader = |name| {
        let guest = bench.guest(name);
        VirtioDisk {
            writable: false,
            ..VirtioDisk::new(guest.id(), 0, image.clone())
        }
    };

    bench.attach(&reader("first"));
    bench.attach(&reader("second"));
}

#[test]
fn a_xen_without_ioreq_servers_is_told_at_start() {
    let bench = Bench::new();
    bench
        .machine
        .reconfigure(|config| config.ioreq_server = false);

    let error = bench.refusal();

    assert!(matches!(error, StartError::NoIoreqServer));
    assert!(error.to_string().contains("CONFIG_IOREQ_SERVER"));
    assert!(!bench.path("state").exists());
}

#[test]
fn a_guest_that_xen_gives_no_ioreq_server_is_told_in_its_nodes() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    bench
        .machine
        .reconfigure(|config| config.ioreq_server = false);
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    bench.toolstack.add(&disk).unwrap();

    let error = bench.error(&disk);

    assert!(error.contains("CONFIG_IOREQ_SERVER"), "{error}");
    assert!(bench.census(&guest).is_clean());
}

#[test]
fn a_second_daemon_is_refused() {
    let bench = Bench::new();
    let _daemon = bench.daemon();

    let error = bench.refusal();

    assert!(
        error.to_string().contains("another xen-dm daemon"),
        "{error}"
    );
}

#[test]
fn a_dom0_that_does_not_know_itself_is_told_the_remedy() {
    let bench = Bench::new();
    bench.machine.store().rm("/local/domain/0/domid").unwrap();

    let error = bench.refusal();

    assert!(matches!(error, StartError::OwnDomain(_)));
    assert!(error.remedy().unwrap().contains("xen-init-dom0"));
}

#[test]
fn a_xenstored_that_does_not_answer_is_told_the_remedy() {
    let bench = Bench::new();
    bench.machine.store().set_accepting(false);

    let error = bench.refusal();

    assert!(matches!(error, StartError::Xenstore(_)));
    assert!(error.remedy().unwrap().contains("start it"));
}
