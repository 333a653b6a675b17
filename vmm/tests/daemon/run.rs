//! One guest in the foreground.

use vmm::daemon::{Options, Scope, StartError};
use vmm::run::{Places, scope};
use vmm::state::{Maker, ServerRecord, StateError};
use xen::DomId;
use xen::fake::toolstack::Device;
use xen::xenstore::XenbusState;

use crate::bench::{Bench, Spot, TestGuest, until};

/// virtio 1.3 §5.2
const BLOCK: u64 = 2;
const NO_DEVICE: u64 = 0;
/// Outside of the window that libxl uses.
const ELSEWHERE: Spot = Spot {
    base: 0x0a00_0000,
    irq: 40,
    grants: false,
};

/// Options of a `run` for a guest with the devices of the command line.
fn options(bench: &Bench, domid: DomId, devices: &[&str]) -> Options {
    let devices = devices.iter().map(|text| text.parse().unwrap()).collect();
    Options {
        scope: scope(domid, devices, Places::default(), None).unwrap(),
        ..bench.options("")
    }
}

fn model_state(bench: &Bench, guest: &TestGuest) -> Option<String> {
    let path = format!("/local/domain/0/device-model/{}/state", guest.id());
    bench.machine.store().read(&path)
}

#[test]
fn a_guest_of_xens_own_is_served_what_no_toolstack_has_announced() {
    let bench = Bench::new();
    let guest = bench.unknown_guest();
    let image = bench.image("given.img", 1 << 20);
    let device = format!("blk,path={image},mmio=0xa000000,irq=40");

    let run = bench.daemon_with(options(&bench, guest.id(), &[&device]));
    let state = model_state(&bench, &guest);
    let (offered, sectors) = (
        guest.device_id(ELSEWHERE.base),
        guest.with_driver(ELSEWHERE, |disk| {
            disk.write(5, vec![0x77; 4096]).unwrap();
            disk.drain().unwrap();
            disk.flush().unwrap();
            disk.sectors()
        }),
    );
    guest.domain.destroy();
    run.left();

    assert_eq!(state.as_deref(), Some("running"));
    assert_eq!((offered, sectors), (BLOCK, 2048));
    assert!(std::fs::read(image).unwrap()[5 * 512..5 * 512 + 4096] == [0x77; 4096]);
    bench.freed(&guest);
    assert_eq!(model_state(&bench, &guest), None);
    assert!(bench.records().is_empty());
}

#[test]
fn elsewhere_nothing_is_claimed_but_the_devices_own_slots() {
    let bench = Bench::new();
    let guest = bench.unknown_guest();
    let image = bench.image("given.img", 4096);
    let device = format!("blk,path={image},mmio=0xa000000,irq=40");

    let _run = bench.daemon_with(options(&bench, guest.id(), &[&device]));
    let read = |base| guest.domain.vcpu(0).read(base + 8, 4);

    assert_eq!(read(ELSEWHERE.base).unwrap(), BLOCK);
    assert!(read(ELSEWHERE.base + 0x200).is_err());
    assert!(read(0x0200_0000).is_err());
}

#[test]
fn in_libxls_window_the_slots_beside_a_device_answer() {
    let bench = Bench::new();
    let guest = bench.unknown_guest();
    let images = ["a.img", "b.img"].map(|name| bench.image(name, 4096));
    let devices = images.map(|image| format!("blk,path={image}"));
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();

    let _run = bench.daemon_with(options(&bench, guest.id(), &devices));

    let found = [0x0200_0000, 0x0200_0200, 0x0200_0400].map(|base| guest.device_id(base));
    assert_eq!(found, [BLOCK, BLOCK, NO_DEVICE]);
}

#[test]
fn a_guest_that_xenstored_never_knew_is_not_said_to_be_lost_to_it() {
    let bench = Bench::new();
    let (guest, other) = (bench.unknown_guest(), bench.guest("other"));
    let image = bench.image("given.img", 4096);
    let run = bench.daemon_with(options(&bench, guest.id(), &[&format!("blk,path={image}")]));

    // every end of a guest has all others looked at
    bench.destroy(&other);
    guest.domain.destroy();
    run.log.line(&["the guest is over"]);

    assert_eq!(run.log.count("WARN"), 0);
    run.left();
}

#[test]
fn what_xenstore_announces_for_the_guest_is_served_and_other_guests_are_not() {
    let bench = Bench::new();
    let (guest, other) = (bench.guest("web"), bench.guest("other"));
    let disks = [&guest, &other].map(|guest| bench.disk(guest, 0));
    disks
        .iter()
        .for_each(|disk| bench.toolstack.add(disk).unwrap());

    let run = bench.daemon_with(options(&bench, guest.id(), &[]));
    bench.wait(&disks[0], XenbusState::InitWait);
    let second = bench.disk(&guest, 1);
    bench.attach(&second);
    let state = model_state(&bench, &guest);
    bench.destroy(&guest);
    run.left();

    assert_eq!(state.as_deref(), Some("running"));
    assert_eq!(bench.state(&disks[1]).as_deref(), Some("1"));
    assert!(bench.census(&other).is_clean());
    bench.freed(&guest);
}

#[test]
fn asked_to_leave_it_stays_with_its_guest_and_leaves_with_force() {
    let bench = Bench::new();
    let (kept, left) = (bench.guest("kept"), bench.guest("left"));
    let stays = bench.daemon_with(options(&bench, kept.id(), &[]));
    let leaves = bench.daemon_with(Options {
        force: true,
        ..options(&bench, left.id(), &[])
    });

    stays.ask_to_leave();
    leaves.ask_to_leave();
    leaves.left();
    stays.log.line(&["asked to leave", "kept", "--force"]);
    let (state_kept, state_left) = (model_state(&bench, &kept), model_state(&bench, &left));
    bench.destroy(&kept);
    stays.left();

    assert_eq!((state_kept.as_deref(), state_left), (Some("running"), None));
    assert!(bench.census(&left).is_clean());
    assert!(bench.records().is_empty());
}

#[test]
fn a_device_that_cannot_be_served_is_told_and_nothing_is_left() {
    let bench = Bench::new();
    let guest = bench.guest("web");
    let image = bench.image("good.img", 4096);
    let devices = [format!("blk,path={image}"), "blk,path=/no/such.img".into()];
    let devices = devices.each_ref().map(String::as_str);

    let error = bench.refusal_of(options(&bench, guest.id(), &devices));

    let text = error.to_string();
    assert!(matches!(error, StartError::Device { .. }));
    assert!(
        text.contains("blk/1") && text.contains("/no/such.img"),
        "{text}"
    );
    assert!(bench.census(&guest).is_clean());
    assert!(bench.records().is_empty());
    assert_eq!(model_state(&bench, &guest), None);
}

#[test]
fn a_guest_that_is_not_there_is_told() {
    let bench = Bench::new();

    let error = bench.refusal_of(options(&bench, DomId(77), &[]));

    assert!(matches!(error, StartError::NoGuest(DomId(77))));
    assert!(error.to_string().contains("77"));
}

#[test]
fn a_guest_that_another_process_serves_is_left_to_it() {
    let bench = Bench::new();
    let guest = bench.guest("web");
    let record = ServerRecord {
        domid: guest.id().0,
        uuid: None,
        server: 0,
        maker: Maker::of(1).unwrap(),
    };
    let name = format!("state/domain-{}.json", guest.id());
    std::fs::create_dir(bench.path("state")).unwrap();
    std::fs::write(bench.path(&name), serde_json::to_vec(&record).unwrap()).unwrap();

    let refused = bench.refusal_of(options(&bench, guest.id(), &[]));
    let daemon = bench.daemon();
    let disk = bench.disk(&guest, 0);
    bench.toolstack.add(&disk).unwrap();
    daemon
        .log
        .line(&["not served", "another xen-dm (process 1)"]);

    assert!(matches!(
        refused,
        StartError::State(StateError::Served { pid: 1, .. })
    ));
    // the other one's word about its device stands
    assert!(!bench.machine.store().exists(&Bench::error_path(&disk.id())));
    assert!(bench.census(&guest).is_clean());
    assert!(bench.path(&name).exists());
}

#[test]
fn it_runs_beside_a_daemon_that_serves_other_guests() {
    let bench = Bench::new();
    let daemon = bench.daemon();
    let (mine, theirs) = (bench.unknown_guest(), bench.guest("web"));
    let disk = bench.disk(&theirs, 0);
    let image = bench.image("given.img", 4096);

    let run = bench.daemon_with(options(&bench, mine.id(), &[&format!("blk,path={image}")]));
    bench.attach(&disk);
    daemon.ask_to_leave();
    bench.destroy(&theirs);
    daemon.left();

    assert_eq!(mine.device_id(0x0200_0000), BLOCK);
    mine.domain.destroy();
    run.left();
}

#[test]
fn a_given_device_is_served_on_when_xenstored_is_restarted() {
    let bench = Bench::new();
    let guest = bench.guest("web");
    let image = bench.image("given.img", 4096);
    let run = bench.daemon_with(options(&bench, guest.id(), &[&format!("blk,path={image}")]));

    bench.machine.store().restart();
    run.log.line(&["xenstored is back"]);

    assert_eq!(guest.device_id(0x0200_0000), BLOCK);
    assert_eq!(run.log.count("removing"), 0);
    guest.domain.destroy();
    run.left();
    until("all is freed", || bench.census(&guest).is_clean());
}

#[test]
fn the_scope_of_a_daemon_is_all_guests() {
    assert!(matches!(Scope::default(), Scope::All));
}
