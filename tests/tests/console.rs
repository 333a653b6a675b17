//! A console, driven by virtio-drivers and by hand, through grants and through
//! plain addresses, on every kind of host's end.

use std::fs;
use std::thread;
use std::time::Duration;

use devices::console::{Backend, ConsoleConfig, WhenFull};
use devices::virtio::interrupt::CONFIG_CHANGE;
use devices::virtio::mmio::Register;
use tests::Stand;
use tests::console::{Console, HostEnd, attach, read_host, write_host};
use tests::raw::{RawDriver, RawQueue, Request, Shared};
use tests::stand::eventually;
use vmm::demo::guest::{Addresses, Disk, Pattern, within};

const LIMIT: Duration = Duration::from_secs(60);
const BYTES: usize = 64 << 10;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// Runs a test on a thread that plays the guest: virtio-drivers may spin.
fn both(test: fn(Addresses)) {
    for addresses in [Addresses::Grants, Addresses::Plain] {
        within("the test", LIMIT, move || test(addresses)).unwrap();
    }
}

fn config(stand: &Stand, backend: Backend) -> ConsoleConfig {
    ConsoleConfig {
        backend,
        path: Some(stand.path("console")),
        ..ConsoleConfig::default()
    }
}

/// A console's transmit queue, with requests that nobody takes yet.
struct Flood {
    queue: RawQueue,
    requests: Vec<Shared>,
    bytes: Vec<u8>,
}

/// Brings a driver up and fills its transmit queue.
fn flood(driver: &RawDriver) -> Flood {
    driver.negotiate();
    let mut queue = driver.queue(TRANSMIT, 32);
    driver.go();
    let mut pattern = Pattern::new(3);
    let mut bytes = Vec::new();
    let requests = (0..32)
        .map(|at| {
            let piece = pattern.bytes(16 << 10);
            bytes.extend_from_slice(&piece);
            let request = Request {
                readable: vec![piece],
                writable: Vec::new(),
            };
            let shared = request.share(&driver.memory);
            shared.submit(&driver.memory, &mut queue, at);
            shared
        })
        .collect();
    driver.kick(&queue);
    Flood {
        queue,
        requests,
        bytes,
    }
}

fn use_disk(disk: &mut Disk) {
    for sector in 0..200 {
        disk.read(sector, 4096).unwrap();
        assert_eq!(disk.drain().unwrap().len(), 1);
    }
}

#[test]
fn every_byte_arrives_both_ways_at_once() {
    both(|addresses| {
        for backend in [Backend::Pty, Backend::Socket] {
            let stand = Stand::new();
            let (place, handle) = stand.add_console(0, addresses, config(&stand, backend));
            let mut console = Console::new(&stand, &place);
            let mut pattern = Pattern::new(1);
            let (output, input) = (pattern.bytes(BYTES), pattern.bytes(BYTES));
            let typed = input.clone();
            let path = handle.path().to_owned();

            let host = thread::spawn(move || {
                let mut end = attach(&path);
                write_host(&mut *end, &typed);
                read_host(&mut *end, BYTES)
            });
            for piece in output.chunks(5000) {
                console.send(piece);
            }
            let received = console.receive(BYTES);
            let read = host.join().unwrap();

            assert!(read == output, "{backend:?}: output differs");
            assert!(received == input, "{backend:?}: input differs");
            drop(console);
            stand.finish();
        }
    });
}

#[test]
fn a_file_gets_every_byte() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handle) = stand.add_console(0, addresses, config(&stand, Backend::File));
        let mut console = Console::new(&stand, &place);
        let output = Pattern::new(2).bytes(BYTES);

        for piece in output.chunks(4096) {
            console.send(piece);
        }

        assert!(fs::read(handle.path()).unwrap() == output);
        drop(console);
        stand.finish();
    });
}

#[test]
fn a_reader_that_stalls_stalls_nothing_but_its_console() {
    both(|addresses| {
        for backend in [Backend::Pty, Backend::Socket] {
            let stand = Stand::new();
            let small = ConsoleConfig {
                buffer: 4096,
                ..config(&stand, backend)
            };
            let (place, handle) = stand.add_console(0, addresses, small);
            let (disk, _) = stand.add_disk(1, addresses, 1 << 20);
            let mut end = attach(handle.path());
            let driver = stand.raw(&place, 0);
            let mut flood = flood(&driver);
            eventually("output is held", || handle.stats().snapshot().stalls > 0);
            let taken = flood.queue.used(&driver.memory);

            let mut disk = stand.drive(&disk);
            use_disk(&mut disk);
            let still_taken = flood.queue.used(&driver.memory);
            let read = read_host(&mut *end, flood.bytes.len());
            for _ in 0..32 {
                driver.wait(&mut flood.queue).unwrap();
            }

            assert!(taken < 32 && still_taken < 32, "{taken}, {still_taken}");
            assert!(read == flood.bytes, "{backend:?}: bytes were lost or mixed");
            assert_eq!(handle.stats().snapshot().dropped_bytes, 0);
            drop(disk);
            driver.reset();
            flood.queue.free(&driver.memory);
            for request in flood.requests {
                request.take_back(&driver.memory);
            }
            stand.finish();
        }
    });
}

#[test]
fn a_reset_does_not_wait_for_a_reader_that_stalls() {
    both(|addresses| {
        let stand = Stand::new();
        let small = ConsoleConfig {
            buffer: 4096,
            ..config(&stand, Backend::Socket)
        };
        let (place, handle) = stand.add_console(0, addresses, small);
        let driver = stand.raw(&place, 0);
        let flooded = flood(&driver);
        eventually("output is held", || handle.stats().snapshot().stalls > 0);

        driver.reset();
        flooded.queue.free(&driver.memory);
        for request in flooded.requests {
            request.take_back(&driver.memory);
        }
        stand.check();
        let mut end = attach(handle.path());
        let mut console = Console::new(&stand, &place);
        console.send(b"after the reset");
        let kept = read_host(&mut *end, 4096);
        let after = read_host(&mut *end, 15);

        assert!(kept == flooded.bytes[..4096]);
        assert_eq!(after, b"after the reset");
        drop(console);
        stand.finish();
    });
}

#[test]
fn a_guest_that_shall_not_wait_does_not() {
    both(|addresses| {
        let stand = Stand::new();
        let dropping = ConsoleConfig {
            buffer: 4096,
            when_full: Some(WhenFull::Drop),
            ..config(&stand, Backend::Socket)
        };
        let (place, handle) = stand.add_console(0, addresses, dropping);
        let mut console = Console::new(&stand, &place);
        let output = Pattern::new(4).bytes(BYTES);

        for piece in output.chunks(1000) {
            console.send(piece);
        }
        let mut end = attach(handle.path());
        let newest = read_host(&mut *end, 4096);

        assert!(newest == output[BYTES - 4096..]);
        let stats = handle.stats().snapshot();
        assert_eq!(
            (stats.stalls, stats.dropped_bytes),
            (0, BYTES as u64 - 4096)
        );
        drop(console);
        stand.finish();
    });
}

#[test]
fn a_reader_that_vanishes_and_comes_back_finds_everything_since() {
    both(|addresses| {
        for backend in [Backend::Pty, Backend::Socket] {
            let stand = Stand::new();
            let (place, handle) = stand.add_console(0, addresses, config(&stand, backend));
            let mut console = Console::new(&stand, &place);
            let output = Pattern::new(5).bytes(BYTES);

            for (round, piece) in output.chunks(BYTES / 8).enumerate() {
                let mut end = attach(handle.path());
                write_host(&mut *end, &[round as u8; 3]);
                assert_eq!(console.receive(3), [round as u8; 3]);
                console.send(&piece[..1000]);
                assert!(read_host(&mut *end, 1000) == piece[..1000]);
                drop(end);
                eventually("the reader is missed", || {
                    backend == Backend::Pty
                        || handle.stats().snapshot().hangups == round as u64 * 2 + 1
                });
                console.send(&piece[1000..]);
                let mut back = attach(handle.path());
                assert!(read_host(&mut *back, piece.len() - 1000) == piece[1000..]);
                drop(back);
                eventually("the reader is missed", || {
                    backend == Backend::Pty
                        || handle.stats().snapshot().hangups == round as u64 * 2 + 2
                });
            }

            assert_eq!(handle.stats().snapshot().dropped_bytes, 0);
            drop(console);
            stand.finish();
        }
    });
}

#[test]
fn who_types_is_held_back_while_the_guest_does_not_read() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handle) = stand.add_console(0, addresses, config(&stand, Backend::Socket));
        let driver = stand.raw(&place, 0);
        driver.negotiate();
        let receive = driver.queue(RECEIVE, 16);
        let transmit = driver.queue(TRANSMIT, 16);
        driver.go();
        let mut end = attach(handle.path());

        let mut pattern = Pattern::new(6);
        let mut typed = Vec::new();
        let mut piece = pattern.bytes(1000);
        while let Ok(count) = end.write(&piece) {
            typed.extend_from_slice(&piece[..count]);
            assert!(typed.len() < 1 << 23, "nobody holds the writer back");
            piece = pattern.bytes(1000);
        }
        let unread = handle.stats().snapshot().input_bytes;
        driver.reset();
        receive.free(&driver.memory);
        transmit.free(&driver.memory);
        let mut console = Console::new(&stand, &place);
        let received = console.receive(typed.len());

        assert_eq!(unread, 0);
        assert!(received == typed, "input differs");
        drop(console);
        stand.finish();
    });
}

#[test]
fn a_window_of_another_size_is_told_by_an_interrupt() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handle) = stand.add_console(0, addresses, config(&stand, Backend::Pty));
        let console = Console::new(&stand, &place);
        let before = console.size().unwrap();
        drop(console);
        let driver = stand.raw(&place, 0);
        driver.negotiate();
        let receive = driver.queue(RECEIVE, 16);
        driver.go();
        let generation = driver.get(Register::ConfigGeneration);

        handle.resize(132, 43);
        eventually("the guest is told", || {
            driver.get(Register::InterruptStatus) & CONFIG_CHANGE != 0
        });
        let size = (driver.peek(0x100, 2), driver.peek(0x102, 2));

        assert_eq!((before.columns, before.rows), (80, 24));
        assert_eq!(size, (132, 43));
        assert_ne!(driver.get(Register::ConfigGeneration), generation);
        driver.reset();
        receive.free(&driver.memory);
        stand.finish();
    });
}

#[test]
fn a_character_can_be_written_without_a_queue() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handle) = stand.add_console(0, addresses, config(&stand, Backend::Pty));
        let mut end = attach(handle.path());
        let mut console = Console::new(&stand, &place);

        for character in b"panic" {
            console.emergency(*character);
        }

        assert_eq!(read_host(&mut *end, 5), b"panic");
        drop(console);
        stand.finish();
    });
}

/// Whether nobody is at the other end.
fn hung_up(end: &mut dyn HostEnd) -> bool {
    match end.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()),
    }
}

#[test]
fn a_console_that_is_removed_leaves_nothing_on_the_host() {
    both(|addresses| {
        for backend in [Backend::Pty, Backend::Socket] {
            let mut stand = Stand::new();
            let (place, handle) = stand.add_console(0, addresses, config(&stand, backend));
            let console = Console::new(&stand, &place);
            let path = stand.path("console");
            let there = fs::symlink_metadata(&path).is_ok();
            let mut end = attach(handle.path());

            stand.remove(&place);

            assert!(there && fs::symlink_metadata(&path).is_err());
            // a terminal's name may be another one's by now
            assert!(hung_up(&mut *end));
            drop(console);
            stand.finish();
        }
    });
}
