//! What the guest writes, on its way to a file or to nobody.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use super::*;
use crate::console::{EndpointError, WhenFull};
use crate::testing::lines::lines_of;

fn on_file() -> (Rig, PathBuf) {
    let rig = Rig::new(|directory| ConsoleConfig::file(directory.join("log")));
    let path = rig.path();
    (rig, path)
}

#[test]
fn a_file_gets_every_byte_in_order_behind_what_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    fs::write(&path, b"before ").unwrap();
    let mut rig = Rig::new(|_| ConsoleConfig::file(&path));

    rig.write(b"hello ");
    rig.write(b"world");

    assert_eq!(fs::read(&path).unwrap(), b"before hello world");
    assert_eq!(rig.transmit.ring.used(), [(0, 0), (1, 0)]);
    assert_eq!(rig.transmit.line.edges(), 2);
    let stats = rig.stats();
    assert_eq!((stats.output_chains, stats.output_bytes), (2, 11));
    assert_eq!((stats.written_bytes, stats.dropped_bytes), (11, 0));
}

#[test]
fn a_new_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (_rig, path) = on_file();

    let mode = fs::metadata(path).unwrap().permissions().mode();

    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_chain_of_buffers_and_grants_is_one_piece_of_output() {
    let (mut rig, path) = on_file();
    let page = rig.ram.alloc(8192).next_multiple_of(4096);
    rig.ram.write(page + 5, b" and granted");
    let buffers = [
        Buffer::readable(rig.ram.alloc_bytes(b"plain"), 5),
        Buffer::readable(GuestRam::granted(page + 5), 12),
        // nothing that it may write is written
        Buffer::writable(rig.ram.alloc(16), 16),
    ];
    rig.transmit.ring.add_indirect(&buffers);

    rig.transmit.serve().unwrap();

    assert_eq!(fs::read(path).unwrap(), b"plain and granted");
    assert_eq!(rig.transmit.ring.used(), [(0, 0)]);
    assert_eq!(rig.ram.read(buffers[2].address, 16), [0; 16]);
    assert_eq!(rig.ram.lent(), 0);
}

#[test]
fn a_chain_longer_than_the_buffer_and_than_a_round_is_written_whole() {
    let mut rig = Rig::new(|directory| ConsoleConfig {
        buffer: 4096,
        when_full: Some(WhenFull::Hold),
        ..ConsoleConfig::file(directory.join("log"))
    });
    let bytes = pattern(300_000);

    rig.write(&bytes);
    let after_one_call = rig.stats().written_bytes;
    rig.transmit.settle_down();

    assert!(after_one_call < 300_000, "a call did all the work");
    assert!(fs::read(rig.path()).unwrap() == bytes);
    assert_eq!(rig.transmit.ring.used(), [(0, 0)]);
}

#[test]
fn a_chain_without_bytes_is_given_back() {
    let (mut rig, _) = on_file();
    let writable = Buffer::writable(rig.ram.alloc(16), 16);
    rig.transmit.ring.add(&[writable]);

    rig.transmit.serve().unwrap();

    assert_eq!(rig.transmit.ring.used(), [(0, 0)]);
    assert_eq!(rig.stats().bad_requests, 1);
}

#[test]
fn bytes_that_are_not_there_break_the_queue_and_spare_those_before() {
    let (mut rig, path) = on_file();
    let good = Buffer::readable(rig.ram.alloc_bytes(b"good"), 4);
    rig.transmit.ring.add(&[good]);
    rig.transmit.ring.add(&[Buffer::readable(1 << 40, 4)]);

    let error = rig.transmit.serve().unwrap_err();
    rig.reset();
    rig.transmit.settle_down();

    assert!(matches!(error, QueueError::Request { head: 1, .. }));
    assert_eq!(fs::read(path).unwrap(), b"good");
}

#[test]
fn output_is_held_when_the_buffer_is_full_and_lost_nowhere() {
    let mut rig = Rig::new(|directory| ConsoleConfig {
        buffer: 4096,
        ..ConsoleConfig::socket(directory.join("console"))
    });
    let bytes = pattern(10_000);

    rig.write(&bytes[..4000]);
    rig.write(&bytes[4000..4200]);
    rig.write(&bytes[4200..]);
    rig.transmit.settle_down();
    let held = (rig.transmit.ring.used().len(), rig.transmit.handler.room());
    let mut client = connect(&rig.path());
    let read = rig.read_host(&mut client, bytes.len());

    assert_eq!(held, (1, 0), "one chain fitted, and no more are taken");
    assert!(read == bytes, "bytes were lost or mixed");
    assert_eq!(rig.transmit.ring.used().len(), 2);
    let stats = rig.stats();
    assert_eq!((stats.stalls, stats.dropped_bytes), (1, 0));
    let listed = rig.device.statistics();
    assert_eq!(timed(&listed, "output"), stats.output_chains);
}

#[test]
fn the_oldest_output_is_dropped_where_the_guest_shall_never_wait() {
    let mut rig = Rig::new(|directory| ConsoleConfig {
        buffer: 4096,
        when_full: Some(WhenFull::Drop),
        ..ConsoleConfig::socket(directory.join("console"))
    });
    let bytes = pattern(100_000);

    for piece in bytes.chunks(1000) {
        rig.write(piece);
        rig.transmit.settle_down();
    }
    let used = rig.transmit.ring.used().len();
    let mut client = connect(&rig.path());
    let read = rig.read_host(&mut client, 4096);

    assert_eq!(used, 100);
    assert!(read == bytes[100_000 - 4096..], "not the newest bytes");
    let stats = rig.stats();
    assert_eq!((stats.stalls, stats.dropped_bytes), (0, 100_000 - 4096));
}

#[test]
fn a_guest_that_resets_again_and_again_fills_no_log() {
    let mut rig = Rig::new(|directory| ConsoleConfig {
        buffer: 4096,
        when_full: Some(WhenFull::Drop),
        ..ConsoleConfig::socket(directory.join("console"))
    });

    let lines = lines_of(|| {
        for _ in 0..10 {
            rig.write(&pattern(5000));
            rig.transmit.settle_down();
            rig.reset();
        }
    });

    assert_eq!(rig.stats().dropped_bytes, 50_000 - 4096);
    assert_eq!(lines, 1);
}

#[test]
fn a_file_that_fails_is_tried_again_without_burning_the_processor() {
    let mut rig = Rig::new(|_| ConsoleConfig {
        when_full: Some(WhenFull::Hold),
        buffer: 4096,
        ..ConsoleConfig::file("/dev/full")
    });

    rig.write(&pattern(10_000));
    rig.transmit.settle_down();
    let at_once = rig.transmit.rings();
    let errors = rig.stats().host_errors;
    let later = readable(rig.transmit.handler.event().unwrap(), PATIENCE);
    rig.transmit
        .handler
        .advance(&mut rig.transmit.queue)
        .unwrap();

    assert!(!at_once && later);
    assert_eq!((errors, rig.stats().host_errors), (1, 2));
    assert_eq!(rig.transmit.ring.used(), []);
}

#[test]
fn what_the_host_has_not_taken_survives_a_reset() {
    let mut rig = Rig::socket();
    rig.write(b"last words");

    rig.reset();
    let mut client = connect(&rig.path());
    let read = rig.read_host(&mut client, 10);

    assert_eq!(read, b"last words");
}

#[test]
fn what_is_left_at_the_end_is_written_or_counted() {
    let mut read = Rig::socket();
    let mut client = connect(&read.path());
    read.until("the client is not let in", |rig| rig.stats().clients == 1);
    let unread = Rig::socket();

    let counted = [&mut { read }, &mut { unread }].map(|rig| {
        // handed over, and never served
        rig.transmit.handler.settle(&mut rig.transmit.queue);
        rig.transmit.handler = Box::new(Nobody);
        rig.transmit = Side::start(&rig.ram, &mut rig.device, TRANSMIT);
        rig.write(b"the end");
        let stats = Arc::clone(rig.device.stats());
        let spare = Rig::new(|directory| ConsoleConfig::file(directory.join("spare")));
        drop(std::mem::replace(rig, spare));
        stats.snapshot()
    });

    let mut bytes = [0; 7];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"the end");
    assert_eq!((counted[0].written_bytes, counted[0].dropped_bytes), (7, 0));
    assert_eq!((counted[1].written_bytes, counted[1].dropped_bytes), (0, 7));
}

#[test]
fn what_is_no_file_is_refused_by_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let opened = |path: &Path| {
        ConsoleDevice::open(ConsoleConfig::file(path).validate().unwrap()).unwrap_err()
    };

    let folder = opened(directory.path());
    let nowhere = opened(Path::new("/nonexistent/log"));

    assert!(matches!(folder, EndpointError::Open { .. }), "{folder}");
    assert!(matches!(nowhere, EndpointError::Open { .. }));
    assert!(nowhere.to_string().contains("/nonexistent/log"));
}

#[test]
fn a_file_has_no_input_and_its_receive_queue_rests() {
    let (mut rig, path) = on_file();
    fs::File::create(path)
        .unwrap()
        .write_all(b"not input")
        .unwrap();

    rig.offer(64);

    assert!(!rig.receive.rings());
    assert_eq!(rig.receive.ring.used(), []);
}
