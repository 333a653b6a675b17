//! The console as its transport sees it.

use super::*;
use crate::virtio::DeviceType;

const SIZE: u64 = 1;
const EMERG_WRITE: u64 = 4;

fn config(device: &ConsoleDevice) -> [u8; 16] {
    let mut bytes = [0xff; 16];
    device.read_config(0, &mut bytes);
    bytes
}

#[test]
fn it_is_a_console_of_one_port_with_two_queues() {
    let rig = Rig::pty();
    let mut device = rig.device;

    assert_eq!(device.device_type(), DeviceType::CONSOLE);
    assert_eq!(device.queue_sizes(), [128, 128]);
    assert_eq!(device.features(), SIZE | EMERG_WRITE);
    assert_eq!(
        config(&device),
        [80, 0, 24, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    );
    assert!(device.start_queue(2, 0).is_err());
    assert_eq!(device.host_path(), Some(device.handle().path()));
}

#[test]
fn a_console_without_a_window_offers_no_size_until_one_is_configured() {
    let without = Rig::socket();
    let with = Rig::new(|directory| ConsoleConfig {
        cols: Some(132),
        rows: Some(50),
        ..ConsoleConfig::socket(directory.join("console"))
    });

    without.device.handle().resize(10, 10);
    with.device.handle().resize(100, 40);

    assert_eq!(without.device.features(), EMERG_WRITE);
    assert_eq!(config(&without.device)[..4], [0; 4]);
    assert_eq!(with.device.features(), SIZE | EMERG_WRITE);
    assert_eq!(config(&with.device)[..4], [100, 0, 40, 0]);
}

#[test]
fn an_emergency_write_needs_no_queue() {
    let directory = tempfile::tempdir().unwrap();
    let spec = ConsoleConfig::socket(directory.path().join("console"));
    let mut device = ConsoleDevice::open(spec.validate().unwrap()).unwrap();
    let to_nobody = device.write_config(8, &u32::from(b'?').to_le_bytes());
    let mut client = UnixStream::connect(device.handle().path()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while device.stats().snapshot().clients == 0 {
        assert!(Instant::now() < deadline, "the client is not let in");
        std::thread::yield_now();
    }

    let written = device.write_config(8, &u32::from(b'!').to_le_bytes());
    let mut read = [0; 1];
    client.read_exact(&mut read).unwrap();

    assert!(to_nobody && written);
    assert_eq!(&read, b"!");
    let stats = device.stats().snapshot();
    assert_eq!((stats.emergency_bytes, stats.emergency_dropped), (1, 1));
    assert!(device.statistics().contains(&("emergency_bytes", 1)));
}

#[test]
fn nothing_else_of_the_configuration_can_be_written() {
    let mut rig = Rig::pty();
    let mut file = Rig::new(|directory| ConsoleConfig::file(directory.join("log")));

    for (offset, data) in [(0, &[1, 0][..]), (4, &[2; 4]), (8, &[65]), (9, &[65; 4])] {
        assert!(!rig.device.write_config(offset, data));
    }
    // a file may have to be waited for
    assert!(!file.device.write_config(8, &[65; 4]));
    assert_eq!(file.device.features(), 0);
}

#[test]
fn its_directory_is_left_empty() {
    let rig = Rig::socket();
    let Rig {
        directory,
        receive,
        transmit,
        device,
        ..
    } = rig;

    drop(device);
    drop((receive, transmit));

    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
