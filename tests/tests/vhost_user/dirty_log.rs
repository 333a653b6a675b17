//! A front end that moves its guest finds every page that the device has
//! written in the dirty log, and no other.

use std::os::unix::fs::FileExt;

use vhost::VhostBackend;

use super::guest::{
    DATA, Guest, IN, LOG_ALL, OUT, REGION, Session, memory_file, places, request, status,
};
use super::program::Program;

const DISK: &str = "blk,path=DISK,queue-size=128";
/// A bit for each page up to the end of the guest's memory.
const LOG: usize = (DATA as usize + REGION) / 4096 / 8;

/// The pages whose bits are set.
fn dirty(log: &std::fs::File) -> Vec<u64> {
    let mut bytes = vec![0; LOG];
    log.read_exact_at(&mut bytes, 0).unwrap();
    let pages = bytes.iter().enumerate().flat_map(|(at, byte)| {
        (0..8)
            .filter(move |bit| byte & 1 << bit != 0)
            .map(move |bit| at as u64 * 8 + bit)
    });
    pages.collect()
}

fn ask(guest: &mut Guest, slot: u16, kind: u32) {
    request(guest, 0, slot, kind, 0);
    guest.kick(0);
    guest.wait(0);
    assert_eq!(status(guest, 0, slot), 0);
}

#[test]
fn pages_that_the_device_writes_are_marked_from_when_logging_is_on() {
    let program = Program::serve(&[DISK], 1 << 20);
    let mut guest = Guest::new(1);
    let mut session = Session::connect(&program, 0);
    session.start(&guest);
    let log = memory_file(LOG);
    ask(&mut guest, 0, IN);

    session.log(&log, LOG);
    let before = dirty(&log);
    session.set_features(LOG_ALL);
    ask(&mut guest, 1, IN);
    ask(&mut guest, 2, OUT);
    let running = dirty(&log);
    session.frontend.get_vring_base(0).unwrap();
    let stopped = dirty(&log);

    assert!(before.is_empty(), "{before:?}");
    let [_, data, status] = places(0, 1).map(|address| address / 4096);
    let used = guest.rings[0].parts()[2] / 4096;
    assert_eq!(running, [status, data]);
    assert_eq!(stopped, [used, status, data]);
}

#[test]
fn nothing_is_marked_any_more_when_logging_is_off() {
    let program = Program::serve(&[DISK], 1 << 20);
    let mut guest = Guest::new(1);
    let mut session = Session::connect(&program, 0);
    session.start(&guest);
    let log = memory_file(LOG);
    session.log(&log, LOG);
    session.set_features(LOG_ALL);
    ask(&mut guest, 0, IN);

    session.set_features(0);
    log.write_all_at(&vec![0; LOG], 0).unwrap();
    ask(&mut guest, 1, IN);
    session.frontend.get_vring_base(0).unwrap();

    let marked = dirty(&log);
    assert!(marked.is_empty(), "{marked:?}");
}
