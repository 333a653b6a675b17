//! Clients that come, stall and go.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use crate::unix::ListenError;

use super::*;
use crate::console::EndpointError;

fn open(path: &Path) -> Result<ConsoleDevice, EndpointError> {
    ConsoleDevice::open(ConsoleConfig::socket(path).validate().unwrap())
}

#[test]
fn a_reader_that_vanishes_and_comes_back_finds_everything_since() {
    let mut rig = Rig::socket();
    let mut first = connect(&rig.path());
    rig.write(b"one ");
    let read_first = rig.read_host(&mut first, 4);
    drop(first);
    rig.until("nobody went", |rig| rig.stats().hangups == 1);
    rig.write(b"two ");
    rig.write(b"three");
    rig.rests();

    let mut second = connect(&rig.path());
    let read_second = rig.read_host(&mut second, 9);

    assert_eq!(read_first, b"one ");
    assert_eq!(read_second, b"two three");
    assert_eq!(rig.transmit.ring.used().len(), 3);
    assert_eq!(rig.stats().dropped_bytes, 0);
}

#[test]
fn a_reader_that_stalls_holds_the_guest_and_gets_everything_afterwards() {
    let mut rig = Rig::new(|directory| ConsoleConfig {
        buffer: 4096,
        ..ConsoleConfig::socket(directory.join("console"))
    });
    let mut client = connect(&rig.path());
    rig.until("the client is not let in", |rig| rig.stats().clients == 1);
    rig.transmit.settle_down();
    let bytes = pattern(1 << 20);

    rig.write(&bytes);
    rig.transmit.settle_down();
    let (stalls, used) = (rig.stats().stalls, rig.transmit.ring.used().len());
    let read = rig.read_host(&mut client, bytes.len());

    // the kernel may take a little more of it, and stop again
    assert!(stalls > 0);
    assert_eq!(used, 0);
    assert!(read == bytes, "bytes were lost or mixed");
    assert_eq!(rig.transmit.ring.used().len(), 1);
}

#[test]
fn the_second_client_waits_until_the_first_has_gone() {
    let mut rig = Rig::socket();
    let mut first = connect(&rig.path());
    rig.until("the client is not let in", |rig| rig.stats().clients == 1);
    let mut second = connect(&rig.path());

    rig.write(b"for the first");
    let read = rig.read_host(&mut first, 13);
    let clients = rig.stats().clients;
    drop(first);
    rig.until("nobody followed", |rig| rig.stats().clients == 2);
    rig.write(b"for the second");

    assert_eq!((read.as_slice(), clients), (&b"for the first"[..], 1));
    assert_eq!(rig.read_host(&mut second, 14), b"for the second");
}

#[test]
fn a_client_that_does_not_read_any_more_makes_way_for_the_next() {
    let mut rig = Rig::socket();
    let lingering = connect(&rig.path());
    lingering.shutdown(std::net::Shutdown::Read).unwrap();
    rig.until("the client is not let in", |rig| rig.stats().clients == 1);

    rig.write(b"who reads this?");
    rig.until("nobody went", |rig| rig.stats().hangups == 1);
    let mut next = connect(&rig.path());

    assert_eq!(rig.read_host(&mut next, 15), b"who reads this?");
    rig.rests();
}

#[test]
fn the_socket_is_its_owners_alone_and_goes_with_its_console() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");

    let device = open(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    drop(device);

    assert_eq!(mode & 0o777, 0o600);
    assert!(!path.exists());
}

#[test]
fn a_socket_that_was_left_behind_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    // closing a listener leaves its name
    drop(UnixListener::bind(&path).unwrap());

    let device = open(&path);

    assert!(device.is_ok() && UnixStream::connect(&path).is_ok());
}

#[test]
fn what_is_somebody_elses_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (taken, file) = (
        directory.path().join("taken"),
        directory.path().join("file"),
    );
    let _listener = UnixListener::bind(&taken).unwrap();
    std::fs::write(&file, b"precious").unwrap();

    let (in_use, no_socket) = (open(&taken).unwrap_err(), open(&file).unwrap_err());

    assert!(
        matches!(in_use, EndpointError::Listen(ListenError::InUse { .. })),
        "{in_use}"
    );
    assert!(matches!(
        no_socket,
        EndpointError::Listen(ListenError::NoSocket { .. })
    ));
    assert!(UnixStream::connect(&taken).is_ok());
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

#[test]
fn a_socket_that_was_replaced_meanwhile_is_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    let device = open(&path).unwrap();
    let kept = directory.path().join("kept");
    std::fs::rename(&path, &kept).unwrap();
    let _other = UnixListener::bind(&path).unwrap();

    drop(device);

    assert!(UnixStream::connect(&path).is_ok());
}
