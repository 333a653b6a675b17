//! How the daemon leaves, and when it does not.

use std::time::Duration;

use vmm::daemon::Options;

use crate::bench::{Bench, until};

#[test]
fn without_guests_it_leaves_at_once() {
    let bench = Bench::new();
    let daemon = bench.daemon();

    daemon.ask_to_leave();

    daemon.left();
}

#[test]
fn with_a_guest_it_stays_says_which_and_leaves_when_that_is_gone() {
    let bench = Bench::new();
    let daemon = bench.daemon();
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);

    daemon.ask_to_leave();
    let line = daemon.log.line(&["asked to leave", "web"]);
    std::thread::sleep(Duration::from_millis(50));
    let left = daemon.has_left();
    let sectors = guest.with_driver(&disk, |disk| disk.sectors());
    bench.destroy(&guest);

    assert!(!left);
    assert!(line.contains("--force"), "{line}");
    assert_eq!(sectors, 2048);
    daemon.left();
    bench.freed(&guest);
}

#[test]
fn with_force_it_flushes_frees_all_and_leaves() {
    let bench = Bench::new();
    let daemon = bench.daemon_with(Options {
        force: true,
        ..bench.options("")
    });
    let guests = ["one", "two"].map(|name| bench.guest(name));
    let disks = guests.each_ref().map(|guest| bench.disk(guest, 0));
    disks.iter().for_each(|disk| bench.attach(disk));

    daemon.ask_to_leave();
    let log = daemon.log.clone();
    daemon.left();

    log.line(&["--force", "one", "two"]);
    guests
        .iter()
        .for_each(|guest| assert!(bench.census(guest).is_clean()));
    assert!(bench.records().is_empty());
    until("no watch is left", || bench.machine.store().watches() == 0);
}

#[test]
fn a_guest_that_ended_unnoticed_does_not_keep_it() {
    let bench = Bench::new();
    let daemon = bench.daemon();
    let guest = bench.guest("web");
    bench.attach(&bench.disk(&guest, 0));

    guest.domain.destroy();
    daemon.ask_to_leave();

    daemon.left();
    bench.freed(&guest);
}
