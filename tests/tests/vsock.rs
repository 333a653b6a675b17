//! A socket device, driven by virtio-drivers and by hand, through grants and
//! through plain addresses.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use devices::vsock::{VsockConfig, VsockDevice, VsockHandle};
use tests::raw::Request;
use tests::socket::{drive, echo, exchange, wait_for};
use tests::stand::eventually;
use tests::{Place, Stand};
use virtio_drivers::device::socket::{VsockAddr, VsockEventType};
use vmm::demo::guest::{Addresses, Pattern, within};

const LIMIT: Duration = Duration::from_secs(60);
const BYTES: usize = 256 << 10;
const PORT: u32 = 52;
const GUEST: u32 = 1024;
const HOST: VsockAddr = VsockAddr { cid: 2, port: PORT };

/// Runs a test on a thread that plays the guest: virtio-drivers may spin.
fn both(test: fn(Addresses)) {
    for addresses in [Addresses::Grants, Addresses::Plain] {
        within("the test", LIMIT, move || test(addresses)).unwrap();
    }
}

fn add(
    stand: &Stand,
    number: u32,
    addresses: Addresses,
    change: fn(&mut VsockConfig),
) -> (Place, VsockHandle, PathBuf) {
    let path = stand.path(&format!("{number}.vsock"));
    let mut config = VsockConfig::new(&path);
    change(&mut config);
    let device = VsockDevice::open(config.validate().unwrap()).unwrap();
    let handle = device.handle();
    let place = stand.add(number, addresses, Box::new(device));
    (place, handle, path)
}

fn listen(stand: &Stand, number: u32) -> UnixListener {
    UnixListener::bind(stand.path(&format!("{number}.vsock_{PORT}"))).unwrap()
}

#[test]
fn every_byte_comes_back_over_a_connection_of_the_guest() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handle, _) = add(&stand, 0, addresses, |_| {});
        let listener = listen(&stand, 0);
        let mut driver = drive(&stand, &place);
        let host = thread::spawn(move || echo(listener.accept().unwrap().0));
        let output = Pattern::new(1).bytes(BYTES);

        driver.connect(HOST, GUEST).unwrap();
        wait_for(&mut driver, |event| *event == VsockEventType::Connected);
        let input = exchange(&mut driver, HOST, GUEST, &output);
        driver.shutdown(HOST, GUEST).unwrap();
        wait_for(&mut driver, |event| {
            matches!(event, VsockEventType::Disconnected { .. })
        });
        host.join().unwrap();

        assert!(input == output, "bytes differ");
        let stats = handle.stats();
        assert_eq!(
            (stats.tx_bytes, stats.rx_bytes),
            (BYTES as u64, BYTES as u64)
        );
        assert_eq!((stats.bad_packets, stats.dropped_bytes), (0, 0));
        drop(driver);
        stand.finish();
    });
}

#[test]
fn every_byte_comes_back_over_a_connection_of_the_host() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handle, path) = add(&stand, 0, addresses, |_| {});
        let mut driver = drive(&stand, &place);
        driver.listen(GUEST);
        let host = thread::spawn(move || {
            let mut stream = UnixStream::connect(path).unwrap();
            stream.write_all(b"CONNECT 1024\n").unwrap();
            let mut answer = Vec::new();
            while answer.last() != Some(&b'\n') {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                answer.push(byte[0]);
            }
            echo(stream);
            String::from_utf8(answer).unwrap()
        });
        let output = Pattern::new(2).bytes(BYTES);

        let peer = wait_for(&mut driver, |event| {
            *event == VsockEventType::ConnectionRequest
        });
        let input = exchange(&mut driver, peer, GUEST, &output);
        driver.shutdown(peer, GUEST).unwrap();
        let answer = host.join().unwrap();

        assert!(input == output, "bytes differ");
        assert_eq!(answer, format!("OK {}\n", peer.port));
        assert_eq!(handle.stats().opened_by_host, 1);
        drop(driver);
        stand.finish();
    });
}

#[test]
fn a_port_that_nobody_listens_on_is_refused_on_both_sides() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handle, path) = add(&stand, 0, addresses, |_| {});
        let mut driver = drive(&stand, &place);

        driver.connect(HOST, GUEST).unwrap();
        wait_for(&mut driver, |event| {
            matches!(event, VsockEventType::Disconnected { .. })
        });
        let mut client = UnixStream::connect(path).unwrap();
        client.set_nonblocking(true).unwrap();
        client.write_all(b"CONNECT 9\n").unwrap();
        eventually("the client is sent away", || {
            driver.poll().unwrap();
            !matches!(
                client.read(&mut [0; 16]).map_err(|error| error.kind()),
                Err(ErrorKind::WouldBlock)
            )
        });

        assert_eq!(handle.stats().opened_by_guest, 0);
        drop(driver);
        stand.finish();
    });
}

#[test]
fn a_reader_that_stalls_hinders_no_other_connection_no_disk_and_no_reset() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handle, _) = add(&stand, 0, addresses, |config| config.buffer = 64 << 10);
        let (disk, _) = stand.add_disk(1, addresses, 1 << 20);
        let listener = listen(&stand, 0);
        let mut driver = drive(&stand, &place);
        for port in [GUEST, GUEST + 1] {
            driver.connect(HOST, port).unwrap();
            wait_for(&mut driver, |event| *event == VsockEventType::Connected);
        }
        let (_stalled, (other, _)) = (listener.accept().unwrap(), listener.accept().unwrap());
        let host = thread::spawn(move || echo(other));

        let mut sent = 0;
        // until there is no credit any more
        while driver.send(HOST, GUEST, &[7; 4096]).is_ok() || handle.stats().reader_stalls == 0 {
            sent += 4096;
            while driver.poll().unwrap().is_some() {}
            assert!(sent < 64 << 20, "nobody holds the guest back");
        }
        let output = Pattern::new(3).bytes(BYTES);
        let input = exchange(&mut driver, HOST, GUEST + 1, &output);
        drop(driver);
        let raw = stand.raw(&place, 0);
        raw.reset();
        let mut disk = stand.drive(&disk);
        disk.read(0, 4096).unwrap();
        let read = disk.drain().unwrap().len();
        host.join().unwrap();

        assert!(input == output, "bytes differ");
        assert_eq!(read, 1);
        drop(disk);
        stand.finish();
    });
}

#[test]
fn a_guest_that_floods_gets_no_more_than_its_share() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handle, _) = add(&stand, 0, addresses, |config| config.connections = 8);
        let _listener = listen(&stand, 0);
        let driver = stand.raw(&place, 0);
        driver.negotiate();
        let receive = driver.queue(0, 16);
        let mut transmit = driver.queue(1, 16);
        driver.go();
        // requests from ever more ports, and no buffer for an answer
        let request = |port: u32| {
            let mut header = Vec::new();
            header.extend(3u64.to_le_bytes());
            header.extend(2u64.to_le_bytes());
            header.extend(port.to_le_bytes());
            header.extend(PORT.to_le_bytes());
            header.extend(0u32.to_le_bytes());
            header.extend(1u16.to_le_bytes());
            header.extend(1u16.to_le_bytes());
            header.extend([0; 12]);
            Request {
                readable: vec![header],
                writable: Vec::new(),
            }
        };

        let mut taken = 0;
        let mut left = None;
        for port in 0..1000 {
            let shared = request(port).share(&driver.memory);
            shared.submit(&driver.memory, &mut transmit, 0);
            driver.kick(&transmit);
            match driver.wait_for(&mut transmit, Duration::from_millis(500)) {
                Some(used) => {
                    used.unwrap();
                    taken += 1;
                    shared.take_back(&driver.memory);
                }
                None => {
                    left = Some(shared);
                    break;
                }
            }
        }
        driver.reset();

        assert_eq!(taken, 256, "packets without an answer");
        assert_eq!(handle.stats().opened_by_guest, 8);
        left.unwrap().take_back(&driver.memory);
        receive.free(&driver.memory);
        transmit.free(&driver.memory);
        stand.finish();
    });
}

#[test]
fn a_device_that_is_removed_leaves_nothing_on_the_host() {
    both(|addresses| {
        let mut stand = Stand::new();
        let (place, handle, path) = add(&stand, 0, addresses, |_| {});
        let listener = listen(&stand, 0);
        let mut driver = drive(&stand, &place);
        driver.connect(HOST, GUEST).unwrap();
        wait_for(&mut driver, |event| *event == VsockEventType::Connected);
        let (mut host, _) = listener.accept().unwrap();

        stand.remove(&place);
        let end = host.read(&mut [0; 16]).unwrap();

        assert_eq!(end, 0);
        assert!(!path.exists() && !handle.end_connections());
        drop(driver);
        stand.finish();
    });
}
