//! A network card, driven by virtio-drivers and by hand, through grants and
//! through plain addresses.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use devices::net::{Cable, NetConfig, NetDevice, NetHandle};
use devices::registry::DeviceSpec;
use devices::virtio::interrupt::CONFIG_CHANGE;
use devices::virtio::mmio::Register;
use tests::raw::Request;
use tests::stand::{PATIENCE, eventually};
use tests::{Place, Stand};
use virtio_drivers::device::net::{TxBuffer, VirtIONet};
use vmm::demo::guest::hal::enter;
use vmm::demo::guest::{Addresses, GuestHal, Pattern, Registers, within};

const LIMIT: Duration = Duration::from_secs(60);
const MAC: &str = "52:54:00:12:34:56";
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Bytes of a header.
const HEADER: usize = 12;
/// VIRTIO_NET_S_LINK_UP
const LINK_UP: u64 = 1;
/// VIRTIO_NET_S_ANNOUNCE
const ANNOUNCE: u64 = 2;

/// Runs a test on a thread that plays the guest: virtio-drivers may spin.
fn both(test: fn(Addresses)) {
    for addresses in [Addresses::Grants, Addresses::Plain] {
        within("the test", LIMIT, move || test(addresses)).unwrap();
    }
}

type Driver = VirtIONet<GuestHal, Registers, 32>;

/// virtio-drivers' card, on this thread.
fn drive(stand: &Stand, place: &Place) -> Driver {
    enter(stand.memory(place.addresses));
    let registers = Registers::probe(&stand.vcpu(0), place.base).unwrap();
    Driver::new(registers, 2048).unwrap()
}

/// A card that listens.
fn add(stand: &Stand, addresses: Addresses) -> (Place, NetHandle, PathBuf) {
    let path = stand.path("card");
    let config = NetConfig {
        listen: true,
        mac: Some(MAC.into()),
        ..NetConfig::socket(&path)
    };
    let device = NetDevice::open(config.validate().unwrap()).unwrap();
    let handle = device.handle();
    (stand.add(0, addresses, Box::new(device)), handle, path)
}

/// Connects to a card whose driver is up.
fn connect(path: &PathBuf, handle: &NetHandle) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_nonblocking(true).unwrap();
    eventually("the link", || handle.is_up());
    stream
}

fn frame(pattern: &mut Pattern, len: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(pattern.bytes(len - 6));
    frame
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

/// Reads what there is at the other end.
fn read_more(other: &mut UnixStream, bytes: &mut Vec<u8>) {
    let mut piece = [0; 65536];
    match other.read(&mut piece) {
        Ok(count) => bytes.extend_from_slice(&piece[..count]),
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
    }
}

#[test]
fn every_frame_arrives_whole_and_in_order_both_ways_at_once() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handle, path) = add(&stand, addresses);
        let mut driver = drive(&stand, &place);
        let mut other = connect(&path, &handle);
        let mut pattern = Pattern::new(1);
        let mut frames = || -> Vec<Vec<u8>> {
            let lens = (0..500).map(|n| 60 + n * 37 % 1455);
            lens.map(|len| frame(&mut pattern, len)).collect()
        };
        let (output, input) = (frames(), frames());
        let mut to_write: Vec<u8> = input.iter().flat_map(|frame| framed(frame)).collect();
        let expected: Vec<u8> = output.iter().flat_map(|frame| framed(frame)).collect();

        let (mut sent, mut read, mut received) = (0, Vec::new(), Vec::new());
        let deadline = Instant::now() + PATIENCE;
        while read.len() < expected.len() || received.len() < input.len() {
            assert!(Instant::now() < deadline, "frames are missing");
            if let Some(frame) = output.get(sent) {
                driver.send(TxBuffer::from(frame)).unwrap();
                sent += 1;
            }
            if let Ok(count) = other.write(&to_write[..to_write.len().min(3000)]) {
                to_write.drain(..count);
            }
            read_more(&mut other, &mut read);
            while driver.can_recv() {
                let buffer = driver.receive().unwrap();
                received.push(buffer.packet().to_vec());
                driver.recycle_rx_buffer(buffer).unwrap();
            }
        }

        assert!(read == expected && received == input);
        assert_eq!(driver.mac_address(), [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let stats = handle.stats();
        assert_eq!((stats.tx_frames, stats.rx_frames), (500, 500));
        assert_eq!((stats.rx_dropped, stats.tx_dropped), (0, 0));
        drop(driver);
        stand.finish();
    });
}

#[test]
fn a_link_that_comes_and_goes_is_told_by_an_interrupt() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handle, path) = add(&stand, addresses);
        let driver = stand.raw(&place, 0);
        driver.negotiate();
        let receive = driver.queue(RECEIVE, 16);
        let transmit = driver.queue(TRANSMIT, 16);
        driver.go();
        let told = || {
            eventually("the guest is told", || {
                driver.get(Register::InterruptStatus) & CONFIG_CHANGE != 0
            });
            driver.set(Register::InterruptAck, CONFIG_CHANGE);
            driver.peek(0x106, 2) & LINK_UP
        };
        let plug = |link| {
            let config = NetConfig {
                link,
                ..NetConfig::socket(&path)
            };
            let spec = DeviceSpec::Net(config.validate().unwrap());
            stand.guest().reconfigure(&place.id, spec).unwrap();
        };

        let before = driver.peek(0x106, 2);
        let other = connect(&path, &handle);
        let up = told();
        plug(Cable::Down);
        let out = told();
        plug(Cable::Up);
        let back = told();
        drop(other);
        let gone = told();

        assert_eq!((before, up, out, back, gone), (0, 1, 0, 1, 0));
        driver.reset();
        receive.free(&driver.memory);
        transmit.free(&driver.memory);
        stand.finish();
    });
}

#[test]
fn a_guest_whose_link_has_come_up_is_asked_to_announce_itself_by_an_interrupt_of_its_own() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handle, path) = add(&stand, addresses);
        let driver = stand.raw(&place, 0);
        driver.negotiate();
        let receive = driver.queue(RECEIVE, 16);
        let transmit = driver.queue(TRANSMIT, 16);
        driver.go();
        let _other = connect(&path, &handle);
        let told = |status: u64| {
            eventually("the guest is told", || {
                driver.get(Register::InterruptStatus) & CONFIG_CHANGE != 0
                    && driver.peek(0x106, 2) == status
            });
            driver.set(Register::InterruptAck, CONFIG_CHANGE);
        };

        told(LINK_UP);
        told(LINK_UP | ANNOUNCE);

        assert_eq!(handle.stats().announcements, 1);
        driver.reset();
        assert_eq!(driver.peek(0x106, 2), LINK_UP);
        receive.free(&driver.memory);
        transmit.free(&driver.memory);
        stand.finish();
    });
}

#[test]
fn an_end_that_stalls_hinders_no_disk_and_no_reset() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handle, path) = add(&stand, addresses);
        let (disk, _) = stand.add_disk(1, addresses, 1 << 20);
        let driver = stand.raw(&place, 0);
        driver.negotiate();
        let receive = driver.queue(RECEIVE, 16);
        let mut transmit = driver.queue(TRANSMIT, 64);
        driver.go();
        let _other = connect(&path, &handle);
        let request = Request {
            readable: vec![vec![0; HEADER + 9000]],
            writable: Vec::new(),
        };

        let shared: Vec<_> = (0..64)
            .map(|at| {
                let shared = request.share(&driver.memory);
                shared.submit(&driver.memory, &mut transmit, at);
                shared
            })
            .collect();
        driver.kick(&transmit);
        eventually("frames are held", || handle.stats().tx_stalls > 0);
        let mut disk = stand.drive(&disk);
        disk.read(0, 4096).unwrap();
        let read = disk.drain().unwrap().len();
        driver.reset();

        assert_eq!(read, 1);
        assert!(transmit.used(&driver.memory) < 64);
        drop(disk);
        receive.free(&driver.memory);
        transmit.free(&driver.memory);
        for request in shared {
            request.take_back(&driver.memory);
        }
        stand.finish();
    });
}

#[test]
fn a_flood_stays_with_its_sender_while_the_guest_does_not_look() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handle, path) = add(&stand, addresses);
        let mut driver = drive(&stand, &place);
        let mut other = connect(&path, &handle);
        let mut pattern = Pattern::new(2);
        let mut frames = Vec::new();
        let mut written = Vec::new();

        // until nobody takes any more, for a while
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(200) {
            if written.is_empty() {
                frames.push(frame(&mut pattern, 1400));
                written = framed(&frames[frames.len() - 1]);
            }
            if let Ok(count) = other.write(&written) {
                written.drain(..count);
                last = Instant::now();
            }
            assert!(frames.len() < 10_000, "nobody holds the sender back");
        }
        let taken = handle.stats().rx_frames;
        let mut received = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while received.len() < frames.len() {
            assert!(Instant::now() < deadline, "frames are missing");
            if let Ok(count) = other.write(&written) {
                written.drain(..count);
            }
            while driver.can_recv() {
                let buffer = driver.receive().unwrap();
                received.push(buffer.packet().to_vec());
                driver.recycle_rx_buffer(buffer).unwrap();
            }
        }

        assert_eq!(taken, 32, "as many as the guest had buffers");
        assert!(received == frames);
        drop(driver);
        stand.finish();
    });
}

#[test]
fn a_card_that_is_removed_leaves_nothing_on_the_host() {
    both(|addresses| {
        let mut stand = Stand::new();
        let (place, handle, path) = add(&stand, addresses);
        let driver = drive(&stand, &place);
        let mut other = connect(&path, &handle);

        stand.remove(&place);
        let end = other.read(&mut [0; 16]).unwrap();

        assert_eq!(end, 0);
        assert!(!path.exists() && !handle.is_up());
        drop(driver);
        stand.finish();
    });
}
