//! A console as a guest's driver has it, and its two ends on the host.

use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use devices::console::{ConsoleConfig, ConsoleDevice, ConsoleHandle};
use vmm::demo::guest::hal::enter;
use vmm::demo::guest::{Addresses, GuestHal, Registers};

use virtio_drivers::device::console::{Size, VirtIOConsole};

use crate::stand::{PATIENCE, Place, Stand};

/// virtio-drivers' console. Made and used on one thread, which may spin: its
/// driver waits for each write to be taken.
pub struct Console {
    driver: VirtIOConsole<GuestHal, Registers>,
}

impl Console {
    /// Brings the driver up at a place, on this thread.
    pub fn new(stand: &Stand, place: &Place) -> Self {
        enter(stand.memory(place.addresses));
        let registers = Registers::probe(&stand.vcpu(0), place.base).unwrap();
        Console {
            driver: VirtIOConsole::new(registers).unwrap(),
        }
    }

    /// Writes, and waits until all is taken.
    pub fn send(&mut self, bytes: &[u8]) {
        self.driver.send_bytes(bytes).unwrap();
    }

    /// Reads `len` bytes.
    pub fn receive(&mut self, len: usize) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = Vec::new();
        while bytes.len() < len {
            match self.driver.recv(true).unwrap() {
                Some(byte) => bytes.push(byte),
                None => {
                    assert!(Instant::now() < deadline, "only {} bytes came", bytes.len());
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
        }
        bytes
    }

    /// Reads a byte, and gives its buffer to the device again only when it has been
    /// there for `rest`.
    pub fn receive_slowly(&mut self, rest: Duration) -> Option<u8> {
        let deadline = Instant::now() + PATIENCE;
        while self.driver.recv(false).unwrap().is_none() {
            assert!(Instant::now() < deadline, "nothing came");
            std::thread::sleep(Duration::from_micros(100));
        }
        std::thread::sleep(rest);
        self.driver.recv(true).unwrap()
    }

    /// The window's size as the guest reads it.
    pub fn size(&self) -> Option<Size> {
        self.driver.size().unwrap()
    }

    /// Writes a character without a queue.
    pub fn emergency(&mut self, character: u8) {
        self.driver.emergency_write(character).unwrap();
    }
}

impl Stand {
    /// Has a console served.
    pub fn add_console(
        &self,
        number: u32,
        addresses: Addresses,
        config: ConsoleConfig,
    ) -> (Place, ConsoleHandle) {
        let device = ConsoleDevice::open(config.validate().unwrap()).unwrap();
        let handle = device.handle().clone();
        (self.add(number, addresses, Box::new(device)), handle)
    }
}

/// The host's end of a console.
pub trait HostEnd: Read + Write + Send {}

impl<T: Read + Write + Send> HostEnd for T {}

/// Opens a terminal, or connects to a socket. Neither blocks.
pub fn attach(path: &Path) -> Box<dyn HostEnd> {
    if path.starts_with("/dev/pts") {
        let terminal = rustix::fs::open(
            path,
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::NONBLOCK,
            rustix::fs::Mode::empty(),
        );
        return Box::new(std::fs::File::from(terminal.unwrap()));
    }
    let socket = std::os::unix::net::UnixStream::connect(path).unwrap();
    socket.set_nonblocking(true).unwrap();
    Box::new(socket)
}

/// Reads `len` bytes at the host's end.
pub fn read_host(host: &mut dyn HostEnd, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut at = 0;
    patiently("the host reads too little", || {
        match host.read(&mut bytes[at..]) {
            Ok(count) => at += count,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
        at == len
    });
    bytes
}

/// Writes all of `bytes` at the host's end.
pub fn write_host(host: &mut dyn HostEnd, bytes: &[u8]) {
    let mut at = 0;
    patiently("the host cannot write", || {
        match host.write(&bytes[at..]) {
            Ok(count) => at += count,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
        at == bytes.len()
    });
}

/// Tries until it is done.
fn patiently(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_micros(100));
    }
}
