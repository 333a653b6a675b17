//! Guests and disks that come and go.

use std::fs;

use xen::DomId;
use xen::dm_op::ServerId;
use xen::fake::toolstack::{Device, VirtioDisk};
use xen::xenstore::{Tree, XenbusState};
use xen::{Host, fake};

use crate::bench::{Bench, LONG, until};

/// virtio 1.3 §5.2
const BLOCK: u64 = 2;
const NO_DEVICE: u64 = 0;

#[test]
fn a_disk_goes_through_its_states_from_creation_to_removal() {
    let bench = Bench::new();
    let daemon = bench.daemon();
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);

    bench.attach(&disk);
    let offered = guest.device_id(disk.base);
    let beside = guest.device_id(disk.base + 0x200);
    guest.with_driver(&disk, |disk| disk.sectors());
    bench.wait(&disk, XenbusState::Connected);
    bench.toolstack.request_removal(&disk.id()).unwrap();
    bench.wait(&disk, XenbusState::Closed);

    assert_eq!((offered, beside), (BLOCK, NO_DEVICE));
    assert_eq!(guest.device_id(disk.base), NO_DEVICE);
    let line = daemon
        .log
        .line(&["serving a device", "web", "virtio_disk/51712"]);
    assert!(line.contains("xvda"), "{line}");
}

#[test]
fn a_driver_that_comes_and_goes_is_told_once_until_somebody_touches_the_nodes() {
    let bench = Bench::new();
    let daemon = bench.daemon();
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);
    let come_and_go = || {
        let before = daemon.log.count("the driver left");
        guest.with_driver(&disk, |disk| disk.sectors());
        until("the daemon knows", || {
            daemon.log.count("the driver left") > before
        });
    };

    (0..10).for_each(|_| come_and_go());
    let told = daemon.log.count("telling that the driver is up");
    let state = format!("{}/state", disk.id().backend_path());
    bench.machine.store().write(&state, "2").unwrap();

    // its own word is a touch, too, after which it makes sure
    assert!((1..=2).contains(&told), "{told} transactions");
    until("the state is mended", || {
        come_and_go();
        bench.state(&disk).as_deref() == Some("4")
    });
}

#[test]
fn what_a_guest_writes_is_in_the_image_when_its_disk_is_closed() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);

    guest.with_driver(&disk, |disk| {
        disk.write(3, vec![0xa5; 1024]).unwrap();
        disk.drain().unwrap();
        disk.flush().unwrap();
    });
    bench.toolstack.remove(&disk.id(), LONG).unwrap();

    let image = fs::read(&disk.params).unwrap();
    assert!(image[3 * 512..5 * 512].iter().all(|byte| *byte == 0xa5));
    assert_eq!(image[5 * 512], 0);
}

#[test]
fn guests_that_were_there_before_the_daemon_are_served() {
    let bench = Bench::new();
    let guests = ["one", "two"].map(|name| bench.guest(name));
    let disks = guests.each_ref().map(|guest| bench.disk(guest, 0));
    disks
        .iter()
        .for_each(|disk| bench.toolstack.add(disk).unwrap());

    let _daemon = bench.daemon();

    for (guest, disk) in guests.iter().zip(&disks) {
        bench.wait(disk, XenbusState::InitWait);
        assert_eq!(guest.device_id(disk.base), BLOCK);
    }
}

#[test]
fn nodes_that_precede_their_domain_are_served_when_it_comes() {
    let bench = Bench::new();
    let daemon = bench.daemon();
    let guest = bench.guest("early");
    bench.machine.store().release(guest.id());
    let disk = bench.disk(&guest, 0);
    bench.toolstack.add(&disk).unwrap();
    daemon.log.line(&["domain that is not there"]);

    bench.machine.store().introduce(guest.id());

    bench.wait(&disk, XenbusState::InitWait);
}

#[test]
fn nodes_that_a_dead_guest_left_are_not_served() {
    let bench = Bench::new();
    let guest = bench.guest("dead");
    let disk = bench.disk(&guest, 0);
    bench.toolstack.add(&disk).unwrap();
    guest.domain.destroy();

    let daemon = bench.daemon();

    daemon.log.line(&["domain that is not there"]);
    assert_eq!(bench.state(&disk).as_deref(), Some("1"));
}

#[test]
fn ten_guests_with_two_disks_each_are_served_and_freed() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guests: Vec<_> = (0..10)
        .map(|number| bench.guest(&format!("guest-{number}")))
        .collect();
    let disks: Vec<_> = guests
        .iter()
        .flat_map(|guest| [bench.disk(guest, 0), bench.disk(guest, 1)])
        .collect();

    disks
        .iter()
        .for_each(|disk| bench.toolstack.add(disk).unwrap());
    disks
        .iter()
        .for_each(|disk| bench.wait(disk, XenbusState::InitWait));
    let found: Vec<u64> = guests
        .iter()
        .map(|guest| guest.device_id(disks[1].base))
        .collect();
    guests.iter().for_each(|guest| bench.destroy(guest));

    assert_eq!(found, [BLOCK; 10]);
    guests.iter().for_each(|guest| bench.freed(guest));
    until("no record is left", || bench.records().is_empty());
}

#[test]
fn a_disk_that_is_attached_later_joins_the_others() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("web");
    let (first, second) = (bench.disk(&guest, 0), bench.disk(&guest, 1));
    bench.attach(&first);
    let before = guest.device_id(second.base);

    bench.attach(&second);

    assert_eq!((before, guest.device_id(second.base)), (NO_DEVICE, BLOCK));
    assert_eq!(bench.census(&guest).ioreq_servers, 1);
}

#[test]
fn a_removed_disk_leaves_the_window_claimed_and_the_other_disk_alone() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("web");
    let (first, second) = (bench.disk(&guest, 0), bench.disk(&guest, 1));
    bench.attach(&first);
    bench.attach(&second);

    bench.toolstack.remove(&first.id(), LONG).unwrap();

    assert_eq!(guest.device_id(first.base), NO_DEVICE);
    assert_eq!(guest.device_id(second.base), BLOCK);
    assert!(!bench.machine.store().exists(&first.id().backend_path()));
}

#[test]
fn a_removed_disk_can_be_attached_again() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);
    bench.toolstack.remove(&disk.id(), LONG).unwrap();

    bench.attach(&disk);

    assert_eq!(guest.device_id(disk.base), BLOCK);
}

#[test]
fn nodes_that_are_written_anew_make_a_new_device() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);
    let image = bench.image("other.img", 2 << 20);

    bench.attach(&VirtioDisk {
        params: image,
        ..disk.clone()
    });

    // capacity in sectors is at the start of the configuration. virtio 1.3 §5.2.4
    let capacity = || guest.domain.vcpu(0).read(disk.base + 0x100, 4).unwrap();
    until("the new image is served", || capacity() == (2 << 20) / 512);
}

#[test]
fn nodes_that_vanish_take_the_device_with_them() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);

    bench.toolstack.clean_up(&disk.id()).unwrap();

    until("the slot is empty", || {
        guest.device_id(disk.base) == NO_DEVICE
    });
    assert!(!bench.machine.store().exists(&disk.id().backend_path()));
}

#[test]
fn after_xl_destroy_nothing_is_held() {
    let bench = Bench::new();
    let daemon = bench.daemon();
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);
    guest.with_driver(&disk, |disk| disk.flush().unwrap());

    bench.destroy(&guest);

    bench.freed(&guest);
    until("no record is left", || bench.records().is_empty());
    daemon.log.line(&["stopping: the domain is gone", "web"]);
}

#[test]
fn a_guest_that_dies_with_its_disk_open_is_freed_and_the_image_with_it() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("crashed");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);
    let domain = guest.domain.clone();

    guest.with_driver(&disk, move |_| domain.destroy());

    bench.freed(&guest);
    let next = bench.guest("next");
    bench.attach(&VirtioDisk::new(next.id(), 0, disk.params));
}

#[test]
fn a_guest_goes_on_when_xenstored_is_restarted_and_new_guests_come() {
    let bench = Bench::new();
    let daemon = bench.daemon();
    let guest = bench.guest("old");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);

    bench.machine.store().restart();
    daemon.log.line(&["xenstored is back"]);
    let sectors = guest.with_driver(&disk, |disk| disk.sectors());
    let again = xen::fake::toolstack::Toolstack::new(bench.machine.store()).unwrap();
    let new = bench
        .machine
        .create_domain(fake::DomainConfig::with_memory(1 << 20))
        .unwrap();
    again.create_domain(new.id(), "new").unwrap();
    let image = bench.image("new.img", 4096);
    again
        .attach(&VirtioDisk::new(new.id(), 0, image), LONG)
        .unwrap();

    assert_eq!(sectors, 2048);
    again
        .wait_state(&disk.id(), XenbusState::Connected, LONG)
        .unwrap();
}

#[test]
fn guests_that_a_new_xenstored_does_not_know_are_served_until_xen_ends_them() {
    let bench = Bench::new();
    let daemon = bench.daemon();
    let guest = bench.guest("old");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);

    bench.machine.store().restart_empty().unwrap();
    daemon.log.line(&[
        "WARN",
        "lost the guest",
        "old",
        "xl destroy",
        "xen-init-dom0",
    ]);
    let sectors = guest.with_driver(&disk, |disk| disk.sectors());
    let again = xen::fake::toolstack::Toolstack::new(bench.machine.store()).unwrap();
    let new = bench
        .machine
        .create_domain(fake::DomainConfig::with_memory(1 << 20))
        .unwrap();
    again.create_domain(new.id(), "new").unwrap();
    let image = bench.image("new.img", 4096);
    again
        .attach(&VirtioDisk::new(new.id(), 0, image), LONG)
        .unwrap();
    let served_beside = guest.with_driver(&disk, |disk| disk.sectors());
    guest.domain.destroy();

    assert_eq!((sectors, served_beside), (2048, 2048));
    bench.freed(&guest);
    assert_eq!(daemon.log.count("lost the guest"), 1);
}

#[test]
fn what_happened_while_xenstored_was_away_is_found_afterwards() {
    let bench = Bench::new();
    let daemon = bench.daemon();
    let (gone, kept) = (bench.guest("gone"), bench.guest("kept"));
    let disks = [bench.disk(&gone, 0), bench.disk(&kept, 0)];
    disks.iter().for_each(|disk| bench.attach(disk));
    let store = bench.machine.store();

    store.set_accepting(false);
    store.restart();
    daemon.log.line(&["xenstored is gone"]);
    gone.domain.destroy();
    store
        .write(&format!("{}/state", disks[1].id().backend_path()), "5")
        .unwrap();
    store.set_accepting(true);

    bench.freed(&gone);
    until("the other is closed", || {
        bench.state(&disks[1]).as_deref() == Some("6")
    });
}

#[test]
fn a_restarted_daemon_serves_anew_and_says_what_the_guest_has_to_do() {
    let bench = Bench::new();
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    let first = bench.daemon_with(vmm::daemon::Options {
        force: true,
        ..bench.options("")
    });
    bench.attach(&disk);
    guest.with_driver(&disk, |disk| disk.sectors());
    bench.wait(&disk, XenbusState::Connected);
    first.ask_to_leave();
    first.left();

    let second = bench.daemon();

    let line = second
        .log
        .line(&["web", "virtio_disk/51712", "its state was 4"]);
    assert!(line.contains("Reboot the guest"), "{line}");
    bench.wait(&disk, XenbusState::InitWait);
    guest.with_driver(&disk, |disk| disk.sectors());
    bench.wait(&disk, XenbusState::Connected);
}

#[test]
fn the_ioreq_server_of_a_dead_daemon_is_destroyed_before_its_guest_is_served() {
    let bench = Bench::new();
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    bench.toolstack.add(&disk).unwrap();
    let privcmd = Host::Fake(bench.machine.clone()).open_privcmd().unwrap();
    let ServerId(server) = privcmd.create_ioreq_server(guest.id()).unwrap();
    fs::create_dir(bench.path("state")).unwrap();
    let record = format!(
        r#"{{"domid":{},"uuid":null,"server":{server},"pid":5000000,"start_time":1}}"#,
        guest.id()
    );
    fs::write(bench.path("state").join("domain-1.json"), record).unwrap();

    let daemon = bench.daemon();

    daemon
        .log
        .line(&["destroyed the ioreq server of an earlier daemon"]);
    bench.wait(&disk, XenbusState::InitWait);
    assert_eq!(bench.census(&guest).ioreq_servers, 1);
}

#[test]
fn the_ioreq_server_of_a_later_guest_with_the_same_number_is_left_alone() {
    let bench = Bench::new();
    let guest = bench.guest("other");
    let privcmd = Host::Fake(bench.machine.clone()).open_privcmd().unwrap();
    let ServerId(server) = privcmd.create_ioreq_server(guest.id()).unwrap();
    fs::create_dir(bench.path("state")).unwrap();
    let record = format!(
        r#"{{"domid":{},"uuid":"an-earlier-guest","server":{server},"pid":5000000,"start_time":1}}"#,
        guest.id()
    );
    fs::write(bench.path("state").join("domain-1.json"), record).unwrap();

    let _daemon = bench.daemon();

    assert_eq!(bench.census(&guest).ioreq_servers, 1);
    assert!(bench.records().is_empty());
}

#[test]
fn the_configuration_reaches_the_guests_disk() {
    let bench = Bench::new();
    let toml = "[guest.\"w*\".disk.xvda]\nserial = \"root-disk\"\n";
    let _daemon = bench.daemon_with(bench.options(toml));
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);

    bench.attach(&disk);
    let serial = guest.with_driver(&disk, |disk| disk.serial().unwrap());

    assert_eq!(serial, "root-disk");
}

#[test]
fn other_kinds_of_back_end_are_none_of_its_business() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let store = bench.toolstack.xenstore();

    store
        .write("/local/domain/0/backend/vbd/1/51712/state", "1")
        .unwrap();
    store
        .write("/local/domain/0/backend/virtio_disk/none/of/this", "1")
        .unwrap();
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);

    assert_eq!(
        store
            .read_string("/local/domain/0/backend/vbd/1/51712/state")
            .unwrap(),
        "1"
    );
    assert!(!bench.machine.census().contains_key(&DomId(0)));
}
