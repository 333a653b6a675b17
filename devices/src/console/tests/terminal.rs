//! Consoles on a pseudo-terminal.

use std::fs;
use std::io::Write;

use rustix::termios::{LocalModes, Winsize, tcgetattr, tcgetwinsize, tcsetwinsize};

use super::*;
use crate::console::EndpointError;

#[test]
fn bytes_pass_both_ways_as_they_are() {
    let mut rig = Rig::pty();
    let mut terminal = open_terminal(&rig.path());
    let every: Vec<u8> = (0..=255).collect();
    let buffers = [rig.offer(100), rig.offer(100), rig.offer(100)];

    rig.write(&every);
    let read = rig.read_host(&mut terminal, 256);
    terminal.write_all(&every).unwrap();
    rig.until("no input", |rig| rig.stats().input_bytes == 256);

    assert_eq!(read, every);
    assert_eq!(rig.received(&buffers).concat(), every);
    let modes = tcgetattr(&terminal).unwrap().local_modes;
    assert!(!modes.intersects(LocalModes::ECHO | LocalModes::ICANON));
}

#[test]
fn a_reader_that_vanishes_and_comes_back_finds_everything_since() {
    let mut rig = Rig::pty();
    let mut first = open_terminal(&rig.path());
    rig.write(b"one ");
    let read_first = rig.read_host(&mut first, 4);
    drop(first);
    let bytes = pattern(100_000);

    rig.write(&bytes);
    rig.transmit.settle_down();
    let used = rig.transmit.ring.used().len();
    let rang = rig.transmit.rings() || rig.receive.rings();
    let mut second = open_terminal(&rig.path());
    let read_second = rig.read_host(&mut second, bytes.len());

    assert_eq!((read_first.as_slice(), used), (&b"one "[..], 2));
    assert!(read_second == bytes, "bytes were lost or mixed");
    assert!(!rang, "nobody is waited for without work");
    assert_eq!(rig.stats().dropped_bytes, 0);
}

#[test]
fn a_reader_that_stalls_holds_the_guest_and_gets_everything_afterwards() {
    let mut rig = Rig::new(|_| ConsoleConfig {
        buffer: 4096,
        ..ConsoleConfig::default()
    });
    let mut terminal = open_terminal(&rig.path());
    let bytes = pattern(200_000);

    rig.write(&bytes);
    rig.transmit.settle_down();
    let stalls = rig.stats().stalls;
    let read = rig.read_host(&mut terminal, bytes.len());

    // the kernel may take a little more of it, and stop again
    assert!(stalls > 0);
    assert!(read == bytes, "bytes were lost or mixed");
    assert_eq!(rig.transmit.ring.used().len(), 1);
}

#[test]
fn the_link_leads_to_the_terminal_and_goes_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("console");
    std::os::unix::fs::symlink("/nonexistent/left-behind", &link).unwrap();
    let config = ConsoleConfig {
        path: Some(link.clone()),
        ..ConsoleConfig::default()
    };

    let device = ConsoleDevice::open(config.validate().unwrap()).unwrap();
    let target = fs::read_link(&link).unwrap();
    let is_it = target == device.handle().path();
    drop(device);

    assert!(is_it && target.starts_with("/dev/pts"));
    assert!(fs::symlink_metadata(&link).is_err());
}

#[test]
fn a_file_is_not_replaced_by_a_link() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("precious");
    fs::write(&path, b"precious").unwrap();
    let config = ConsoleConfig {
        path: Some(path.clone()),
        ..ConsoleConfig::default()
    };

    let error = ConsoleDevice::open(config.validate().unwrap()).unwrap_err();

    assert!(matches!(error, EndpointError::NoLink { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

/// Columns and rows as the guest reads them.
fn config_size(device: &ConsoleDevice) -> (u16, u16) {
    let mut bytes = [[0; 2]; 2];
    device.read_config(0, &mut bytes[0]);
    device.read_config(2, &mut bytes[1]);
    (u16::from_le_bytes(bytes[0]), u16::from_le_bytes(bytes[1]))
}

fn window(cols: u16, rows: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

#[test]
fn a_terminals_new_size_is_found_when_something_is_typed_and_told_once() {
    let mut rig = Rig::pty();
    let mut terminal = open_terminal(&rig.path());
    let before = config_size(&rig.device);
    rig.offer(10);
    rig.offer(10);
    rig.offer(10);

    tcsetwinsize(&terminal, window(132, 43)).unwrap();
    terminal.write_all(b"x").unwrap();
    rig.until("the size is not told", |rig| rig.stats().resizes == 1);
    let after = config_size(&rig.device);
    terminal.write_all(b"y").unwrap();
    rig.until("no input", |rig| rig.stats().input_bytes == 2);

    assert_eq!((before, after), ((80, 24), (132, 43)));
    assert_eq!(rig.stats().resizes, 1);
}

#[test]
fn a_terminals_new_size_is_found_when_the_guest_reads_it_or_the_host_looks() {
    let mut rig = Rig::pty();
    let terminal = open_terminal(&rig.path());

    tcsetwinsize(&terminal, window(100, 50)).unwrap();
    let read = config_size(&rig.device);
    rig.until("the size is not told", |rig| rig.stats().resizes == 1);
    tcsetwinsize(&terminal, window(90, 40)).unwrap();
    rig.device.handle().look_at_size();
    rig.until("the size is not told", |rig| rig.stats().resizes == 2);

    assert_eq!(read, (100, 50));
    assert_eq!(config_size(&rig.device), (90, 40));
}

#[test]
fn a_size_that_is_told_by_the_host_reaches_guest_and_terminal() {
    let mut rig = Rig::pty();
    let terminal = open_terminal(&rig.path());
    let handle = rig.device.handle().clone();

    handle.resize(120, 30);
    handle.resize(0, 30);
    rig.until("the size is not told", |rig| rig.stats().resizes == 1);
    let interrupts = rig.receive.line.edges();

    let size = tcgetwinsize(&terminal).unwrap();
    assert_eq!((size.ws_col, size.ws_row), (120, 30));
    assert_eq!(config_size(&rig.device), (120, 30));
    assert_eq!(interrupts, 1);
}

#[test]
fn a_handle_outlives_its_console_and_does_nothing_then() {
    let rig = Rig::pty();
    let handle = rig.device.handle().clone();
    let path = rig.path();
    drop(rig);

    handle.resize(1, 1);
    handle.look_at_size();

    assert_eq!(handle.path(), path);
    assert_eq!(handle.stats().snapshot(), ConsoleStatsSnapshot::default());
}
