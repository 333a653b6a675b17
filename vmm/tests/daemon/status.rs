//! What a running daemon tells of itself.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use vmm::daemon::{Options, Scope};
use vmm::status::{
    Addresses, ClientError, DeviceState, DeviceStatus, InterruptsBy, KicksBy, Status, ask,
};
use xen::fake::PrivcmdEventfd;
use xen::fake::toolstack::{Device, VirtioDisk};

use crate::bench::{Bench, until};

/// The daemon's socket.
fn socket(bench: &Bench) -> PathBuf {
    bench.path("state").join("control.sock")
}

#[track_caller]
pub(crate) fn status(bench: &Bench) -> Status {
    ask(&socket(bench)).unwrap()
}

/// The only device of the only guest.
#[track_caller]
fn only_device(status: &Status) -> &DeviceStatus {
    let [guest] = status.guests.as_slice() else {
        panic!("{status:?}")
    };
    let [device] = guest.devices.as_slice() else {
        panic!("{status:?}")
    };
    device
}

#[test]
fn known_requests_have_the_right_numbers() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);
    let path = socket(&bench);

    let told = guest.with_driver(&disk, move |disk| {
        for sector in [0, 8, 16] {
            disk.write(sector, vec![0xa5; 4096]).unwrap();
            disk.drain().unwrap();
        }
        disk.read(0, 512).unwrap();
        disk.read(8, 512).unwrap();
        disk.drain().unwrap();
        disk.flush().unwrap();
        disk.serial().unwrap();
        ask(&path).unwrap()
    });

    let guest_told = &told.guests[0];
    assert_eq!(
        (guest_told.domid, guest_told.name.as_str()),
        (guest.id().0, "web")
    );
    assert!(guest_told.counters.unwrap().ioreqs > 20);
    let told = only_device(&told);
    let statistic = |name: &str| told.statistics[name];
    assert_eq!(
        (statistic("writes"), statistic("written_bytes")),
        (3, 3 * 4096)
    );
    assert_eq!((statistic("reads"), statistic("read_bytes")), (2, 1024));
    assert_eq!((statistic("flushes"), statistic("ids")), (1, 1));
    assert_eq!(
        (statistic("bad_requests"), statistic("host_errors")),
        (0, 0)
    );
    assert_eq!((told.requests, told.unfinished), (7, 0));
    assert_eq!((told.queues[0].taken, told.queues[0].pushed), (7, 7));
    // the data of the reads and of the serial number, and a status byte each
    assert_eq!(told.queues[0].written, 2 * 512 + 20 + 7);
    assert!((1..=7).contains(&told.kicks), "{told:?}");
    assert!((1..=7).contains(&told.interrupts), "{told:?}");
    assert_eq!(
        (told.interrupts_lost, told.malformed, told.failures),
        (0, 0, 0)
    );
    assert_eq!(told.state, DeviceState::Running);
    assert_ne!(told.features, "0x0");
}

#[test]
fn a_device_is_told_with_its_names_place_and_image() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("web");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);

    let told = status(&bench);

    let told = only_device(&told);
    assert_eq!(told.device, "virtio_disk/51712");
    assert_eq!(told.kind.as_deref(), Some("blk"));
    assert_eq!(told.name.as_deref(), Some("xvda"));
    assert_eq!(told.image.as_ref(), Some(&disk.params));
    assert_eq!(told.format.as_deref(), Some("raw"));
    assert_eq!(
        (told.base, told.irq, told.device_type),
        (disk.base, disk.irq, 2)
    );
    assert_eq!(told.state, DeviceState::Idle);
    assert_eq!(told.mapping, "Translated");
}

#[test]
fn ranges_are_counted_by_the_way_that_reached_them() {
    let bench = Bench::new();
    let _daemon = bench.daemon_with(bench.options(
        "granted-data = \"map\"\n[guest.copied]\ngranted-data = \"copy\"\n\
         [guest.forced]\nswiotlb = \"128,force\"",
    ));
    let used = |name: &str, grants: bool| {
        let guest = bench.guest(name);
        let disk = VirtioDisk {
            grant_usage: grants,
            ..bench.disk(&guest, 0)
        };
        bench.attach(&disk);
        guest.with_driver(&disk, |disk| {
            disk.write(0, vec![1; 8192]).unwrap();
            disk.drain().unwrap();
        });
        bench.wait(&disk, xen::xenstore::XenbusState::Connected);
    };
    used("granted", true);
    used("copied", true);
    used("plain", false);
    used("forced", false);

    let told = status(&bench);

    let [granted, copied, plain, forced] = ["granted", "copied", "plain", "forced"].map(|name| {
        let guest = told.guests.iter().find(|guest| guest.name == name);
        &guest.unwrap().devices[0]
    });
    assert_eq!(granted.addresses, Addresses::Grants);
    assert_eq!(plain.addresses, Addresses::Plain);
    assert!(
        granted.dma.granted > 0 && granted.dma.direct == 0,
        "{granted:?}"
    );
    assert!(plain.dma.direct > 0 && plain.dma.granted == 0, "{plain:?}");
    assert_eq!((granted.dma.bounced, plain.dma.bounced), (0, 0));
    assert_eq!((copied.dma.granted, forced.dma.direct), (0, 0));
    assert_eq!(copied.dma.bounced, copied.dma.bounced_cheaper);
    assert_eq!(forced.dma.bounced, forced.dma.bounced_forced);
    assert_eq!(copied.dma.bounced_bytes_in, 8192);
    assert_eq!(forced.dma.bounced_bytes_in, 8192);
    assert_eq!(copied.granted_data.mode, "copy");
    assert_eq!(forced.swiotlb, "128,force");
    assert_eq!((granted.driver_starts, plain.driver_starts), (1, 1));
}

#[test]
fn the_way_of_events_is_what_was_chosen() {
    let chosen = |toml: &str, kernel: PrivcmdEventfd| {
        let bench = Bench::new();
        bench
            .machine
            .reconfigure(|machine| machine.privcmd_eventfd = kernel);
        let _daemon = bench.daemon_with(bench.options(toml));
        let guest = bench.guest("web");
        let disk = bench.disk(&guest, 0);
        bench.attach(&disk);
        guest.with_driver(&disk, |disk| disk.flush().unwrap());
        let told = status(&bench);
        let told = only_device(&told);
        assert!(told.kicks > 0, "{told:?}");
        (told.interrupts_by, told.kicks_by)
    };

    assert_eq!(
        chosen("", PrivcmdEventfd::Present),
        (InterruptsBy::Irqfd, KicksBy::Register)
    );
    assert_eq!(
        chosen("", PrivcmdEventfd::NotConfigured),
        (InterruptsBy::Hypercall, KicksBy::Register)
    );
    assert_eq!(
        chosen("events = \"plain\"", PrivcmdEventfd::Present),
        (InterruptsBy::Hypercall, KicksBy::Register)
    );
    assert_eq!(
        chosen("events = \"ioeventfd\"", PrivcmdEventfd::Present),
        (InterruptsBy::Irqfd, KicksBy::Ioeventfd)
    );
}

#[test]
fn accesses_that_make_no_sense_are_told() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("rogue");
    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);
    let vcpu = guest.domain.vcpu(0);

    // two bytes of a register of four, a read-only one, and an empty slot
    vcpu.read(disk.base, 2).unwrap();
    vcpu.write(disk.base, 4, 1).unwrap();
    vcpu.read(disk.base + 0x200, 4).unwrap();
    let told = status(&bench);

    assert_eq!(only_device(&told).malformed, 2);
    assert_eq!(told.guests[0].counters.unwrap().empty, 1);
}

#[test]
fn refused_devices_are_told_with_the_reason_and_forgotten_with_them() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("web");
    let disk = VirtioDisk::new(guest.id(), 0, "/nonexistent/disk.img".to_owned());
    bench.toolstack.add(&disk).unwrap();
    bench.error(&disk);

    let told = status(&bench);
    bench.toolstack.clean_up(&disk.id()).unwrap();

    let refused = &told.refused[0];
    assert_eq!(
        (refused.domid, refused.device.as_str()),
        (guest.id().0, "virtio_disk/51712")
    );
    assert!(refused.reason.contains("/nonexistent/disk.img"));
    until("it is forgotten", || status(&bench).refused.is_empty());
}

#[test]
fn a_daemon_that_stays_for_its_guests_says_so() {
    let bench = Bench::new();
    let daemon = bench.daemon();
    let guest = bench.guest("web");
    bench.attach(&bench.disk(&guest, 0));
    let before = status(&bench).daemon;

    daemon.ask_to_leave();

    until("it says that it leaves", || status(&bench).daemon.leaving);
    assert!(!before.leaving && before.xenstore);
    assert_eq!((before.pid, before.guest), (std::process::id(), None));
    bench.destroy(&guest);
    daemon.left();
    assert!(matches!(
        ask(&socket(&bench)),
        Err(ClientError::NoDaemon { .. })
    ));
}

#[test]
fn hostile_clients_do_not_disturb_the_daemon() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("web");
    let connect = || UnixStream::connect(socket(&bench)).unwrap();
    let silent: Vec<UnixStream> = (0..40).map(|_| connect()).collect();
    let garbage: Vec<UnixStream> = (0..20)
        .map(|_| {
            let mut stream = connect();
            // cut off when it is too much
            let _ = stream.write_all(&[0xff; 1 << 16]);
            stream
        })
        .collect();
    let deaf: Vec<UnixStream> = (0..8)
        .map(|_| {
            let mut stream = connect();
            let _ = stream.write_all(b"{\"version\":1,\"command\":\"status\"}\n");
            stream
        })
        .collect();

    let disk = bench.disk(&guest, 0);
    bench.attach(&disk);
    guest.with_driver(&disk, |disk| disk.flush().unwrap());
    let told = status(&bench);

    assert_eq!(only_device(&told).statistics["flushes"], 1);
    drop((silent, garbage, deaf));
    assert_eq!(status(&bench).guests.len(), 1);
}

#[test]
fn the_process_of_one_guest_has_a_socket_of_its_own() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.unknown_guest();
    let domid = guest.id();
    let image = bench.image("given.img", 1 << 20);
    let devices = vec![format!("blk,path={image}").parse().unwrap()];
    let scope: Scope = vmm::run::scope(domid, devices, vmm::run::Places::default(), None).unwrap();
    let options = Options {
        scope,
        ..bench.options("")
    };
    let own = options.config.control_socket(Some(domid));

    let _run = bench.daemon_with(options);
    let (of_run, of_daemon) = (ask(&own).unwrap(), status(&bench));

    assert_eq!(
        own,
        bench.path("state").join(format!("control.{domid}.sock"))
    );
    assert_eq!(of_run.daemon.guest, Some(domid.0));
    assert_eq!(only_device(&of_run).device, "blk/0");
    assert_eq!(of_daemon.guests, []);
}

#[test]
fn a_socket_that_cannot_be_made_keeps_nobody_from_being_served() {
    let bench = Bench::new();
    let options = bench.options("control-socket = \"/nonexistent/control.sock\"");
    let daemon = bench.daemon_with(options);
    let guest = bench.guest("web");

    bench.attach(&bench.disk(&guest, 0));

    daemon.log.line(&["no socket at /nonexistent/control.sock"]);
}

#[test]
fn the_command_asks_the_daemon_in_text_and_in_json() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let guest = bench.guest("web");
    bench.attach(&bench.disk(&guest, 0));
    let command = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xen-dm"));
        command.args(["status", "--socket"]).arg(socket(&bench));
        command.args(more).output().unwrap()
    };

    let (text, json) = (command(&[]), command(&["--json"]));

    let text = String::from_utf8(text.stdout).unwrap();
    let json: Status = serde_json::from_slice(&json.stdout).unwrap();
    assert!(
        text.contains("virtio_disk/51712") && text.contains("xvda"),
        "{text}"
    );
    assert_eq!(json.version, 1);
    assert_eq!(json.guests[0].name, "web");
}

#[test]
fn a_client_sees_the_end_of_its_answer() {
    let bench = Bench::new();
    let _daemon = bench.daemon();
    let mut stream = UnixStream::connect(socket(&bench)).unwrap();
    let mut answer = String::new();

    stream
        .write_all(b"{\"version\":1,\"command\":\"status\"}\n")
        .unwrap();
    stream.read_to_string(&mut answer).unwrap();

    assert!(
        answer.starts_with("{\"version\":1,\"status\":{"),
        "{answer}"
    );
    assert!(answer.ends_with("}\n"), "{answer}");
}
