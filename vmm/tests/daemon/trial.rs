//! Devices of which another process says whether they can be used.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use vmm::daemon::{Options, StartError};
use vmm::demo::guest::within;
use vmm::run::{Places, scope};
use xen::fake::toolstack::{Device, VirtioDevice};
use xen::xenstore::XenbusState;

use crate::bench::{Bench, LONG, TestGuest, until};

const NO_DEVICE: u64 = 0;
const FILE_SYSTEM: u32 = 26;
/// Together they would keep a thread that waits for each of them for longer than
/// any wait here is.
const MANY: u8 = 20;
const STATUS: u64 = 0x70;

/// Says of guests' file systems on which sockets their back ends are.
fn file_systems(sockets: &[(&str, u8, &Path)]) -> String {
    let section = |(guest, index, socket): &(&str, u8, &Path)| {
        format!(
            "[guest.{guest}.virtio.{index}.vhost-user]\nsocket = {socket:?}\nvirtio-id = 26\n\
             answer-timeout = 3600\nqueues = 2\n"
        )
    };
    sockets.iter().map(section).collect()
}

fn file_system(guest: &TestGuest, index: u8) -> VirtioDevice {
    VirtioDevice::new(guest.id(), index.into(), index, FILE_SYSTEM)
}

/// A back end that lets everybody connect and says nothing.
fn silent(bench: &Bench, name: &str) -> (PathBuf, UnixListener) {
    let path = bench.path(name);
    let listener = UnixListener::bind(&path).unwrap();
    (path, listener)
}

/// A back end that says how many queues it has.
struct BackEnd {
    path: PathBuf,
    queues: Arc<AtomicU64>,
    connections: Arc<AtomicUsize>,
}

impl BackEnd {
    fn new(bench: &Bench, queues: u64) -> Self {
        let (path, listener) = silent(bench, "back-end.sock");
        let back_end = BackEnd {
            path,
            queues: Arc::new(queues.into()),
            connections: Arc::default(),
        };
        let queues = Arc::clone(&back_end.queues);
        let connections = Arc::clone(&back_end.connections);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                connections.fetch_add(1, Ordering::SeqCst);
                let queues = Arc::clone(&queues);
                std::thread::spawn(move || answer(stream.unwrap(), &queues));
            }
        });
        back_end
    }
}

/// Answers GET_FEATURES, GET_PROTOCOL_FEATURES and GET_QUEUE_NUM; it can MQ.
fn answer(mut stream: UnixStream, queues: &AtomicU64) {
    while let (Some(code), Some(_), Some(size)) = (word(&stream), word(&stream), word(&stream)) {
        stream.read_exact(&mut vec![0; size as usize]).unwrap();
        let value: u64 = match code {
            1 => 1 << 32 | 1 << 30,
            15 => 1,
            17 => queues.load(Ordering::SeqCst),
            _ => continue,
        };
        let header = [code, 5, 8].map(u32::to_ne_bytes).concat();
        // whoever has heard enough leaves
        let _ = stream.write_all(&[header, value.to_ne_bytes().to_vec()].concat());
    }
}

fn word(mut stream: &UnixStream) -> Option<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).ok()?;
    Some(u32::from_ne_bytes(bytes))
}

#[test]
fn back_ends_that_say_nothing_delay_no_other_guest_nor_one_another() {
    let bench = Bench::new();
    let hung: Vec<_> = (0..MANY)
        .map(|index| silent(&bench, &format!("{index}.sock")))
        .collect();
    let sockets: Vec<_> = (0..).zip(&hung).collect();
    let sockets: Vec<_> = sockets
        .iter()
        .map(|(index, (path, _))| ("web", *index, path.as_path()))
        .collect();
    let daemon = bench.daemon_with(bench.options(&file_systems(&sockets)));
    let (guest, other) = (bench.guest("web"), bench.guest("other"));
    let devices: Vec<_> = (0..MANY).map(|index| file_system(&guest, index)).collect();

    for device in &devices {
        bench.toolstack.add(device).unwrap();
    }
    bench.attach(&bench.disk(&other, 0));
    let connected: Vec<_> = hung.iter().map(|(_, listener)| listener.accept()).collect();
    // its toolstack is not told for a while, and then that it is there
    for device in &devices {
        bench.wait(device, XenbusState::InitWait);
    }

    assert!(connected.iter().all(Result::is_ok));
    assert_eq!(daemon.log.count("not served"), 0);
}

#[test]
fn a_device_whose_back_end_hangs_goes_at_once_alone_and_with_its_guest() {
    let bench = Bench::new();
    let (first, second) = (silent(&bench, "first"), silent(&bench, "second"));
    let toml = file_systems(&[("web", 0, &first.0), ("web", 1, &second.0)]);
    let daemon = bench.daemon_with(bench.options(&toml));
    let guest = bench.guest("web");
    let devices = [0, 1].map(|index| file_system(&guest, index));
    for device in &devices {
        bench.toolstack.add(device).unwrap();
    }
    let connected = [first.1.accept().unwrap(), second.1.accept().unwrap()];
    until("they are before the guest", || {
        daemon.log.count("serving a device") == 2
    });

    let there = devices
        .each_ref()
        .map(|device| guest.device_id(device.base));
    bench.toolstack.remove(&devices[0].id(), LONG).unwrap();
    let gone = guest.device_id(devices[0].base);
    bench.destroy(&guest);

    assert_eq!((there, gone), ([FILE_SYSTEM.into(); 2], NO_DEVICE));
    bench.freed(&guest);
    drop(connected);
}

#[test]
fn a_driver_waits_for_a_back_end_that_says_nothing_as_long_as_is_configured_only() {
    let bench = Bench::new();
    let (path, _listener) = silent(&bench, "silent");
    let toml = file_systems(&[("web", 0, &path)]) + "start-wait = 1\n";
    let _daemon = bench.daemon_with(bench.options(&toml));
    let guest = bench.guest("web");
    let device = file_system(&guest, 0);
    bench.toolstack.add(&device).unwrap();
    bench.wait(&device, XenbusState::InitWait);

    let (vcpu, base) = (guest.domain.vcpu(0), device.base);
    let status = within("a driver's first word", LONG, move || {
        vcpu.write(base + STATUS, 4, 1).unwrap();
        vcpu.read(base + STATUS, 4).unwrap()
    });

    assert_eq!(status.unwrap(), 1);
}

#[test]
fn a_back_end_that_cannot_serve_is_told_by_name_and_its_device_is_taken_from_the_guest() {
    let bench = Bench::new();
    let back_end = BackEnd::new(&bench, 1);
    let toml = file_systems(&[("web", 0, &back_end.path)]);
    let daemon = bench.daemon_with(bench.options(&toml));
    let (guest, other) = (bench.guest("web"), bench.guest("other"));
    let device = file_system(&guest, 0);

    bench.toolstack.add(&device).unwrap();
    let error = bench.error(&device);
    let line = daemon.log.line(&["ERROR", "not served", "web", "virtio/0"]);
    until("the guest has it no more", || {
        guest.device_id(device.base) == NO_DEVICE
    });
    let state = bench.state(&device);
    // a device that goes has all that were refused looked at again
    let disk = bench.disk(&other, 0);
    bench.attach(&disk);
    bench.toolstack.remove(&disk.id(), LONG).unwrap();
    bench.attach(&bench.disk(&other, 1));

    let socket = back_end.path.to_str().unwrap();
    for text in [&error, &line] {
        let named = text.contains(socket) && text.contains("has 1 queues, and 2 are configured");
        assert!(named, "{text}");
    }
    assert!(error.contains("guest web"), "{error}");
    assert_eq!(state.as_deref(), Some("1"));
    assert_eq!(daemon.log.count("not served"), 1);
    let tries = back_end.connections.load(Ordering::SeqCst);
    assert!(tries < 20, "{tries} tries");
}

#[test]
fn one_that_was_refused_is_served_when_it_is_looked_at_again_and_can_be() {
    let bench = Bench::new();
    let back_end = BackEnd::new(&bench, 1);
    let toml = file_systems(&[("web", 0, &back_end.path)]);
    let daemon = bench.daemon_with(bench.options(&toml));
    let (guest, other) = (bench.guest("web"), bench.guest("other"));
    let device = file_system(&guest, 0);
    bench.toolstack.add(&device).unwrap();
    bench.error(&device);

    back_end.queues.store(2, Ordering::SeqCst);
    let disk = bench.disk(&other, 0);
    bench.attach(&disk);
    bench.toolstack.remove(&disk.id(), LONG).unwrap();
    bench.wait(&device, XenbusState::InitWait);
    let error_path = Bench::error_path(&device.id());
    until("the error is taken back", || {
        !bench.machine.store().exists(&error_path)
    });

    assert_eq!(guest.device_id(device.base), u64::from(FILE_SYSTEM));
    assert_eq!(daemon.log.count("not served"), 1);
}

#[test]
fn a_guest_in_the_foreground_does_not_start_with_a_back_end_that_cannot_serve() {
    let bench = Bench::new();
    let (back_end, guest) = (BackEnd::new(&bench, 1), bench.unknown_guest());
    let socket = back_end.path.to_str().unwrap();
    let device = format!("vhost-user,socket={socket},virtio-id=26,queues=2,mmio=0xa000000,irq=40");
    let options = Options {
        scope: scope(
            guest.id(),
            vec![device.parse().unwrap()],
            Places::default(),
            None,
        )
        .unwrap(),
        ..bench.options("")
    };

    let refusal = bench.refusal_of(options);

    let StartError::Device { reason, .. } = refusal else {
        panic!("{refusal}");
    };
    assert!(
        reason.contains(socket) && reason.contains("1 queues"),
        "{reason}"
    );
}
