//! A socket device as a guest's driver has it, and echoes on the host.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use virtio_drivers::device::socket::{
    VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEventType,
};
use vmm::demo::guest::hal::enter;
use vmm::demo::guest::{GuestHal, Registers};

use crate::stand::{PATIENCE, Place, Stand};

/// virtio-drivers' connections.
pub type Driver = VsockConnectionManager<GuestHal, Registers>;

/// virtio-drivers' socket device, on this thread.
pub fn drive(stand: &Stand, place: &Place) -> Driver {
    enter(stand.memory(place.addresses));
    let registers = Registers::probe(&stand.vcpu(0), place.base).unwrap();
    Driver::new_with_capacity(VirtIOSocket::new(registers).unwrap(), 8192)
}

/// Polls the driver until it says that.
pub fn wait_for(driver: &mut Driver, wanted: fn(&VsockEventType) -> bool) -> VsockAddr {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "the driver hears nothing");
        match driver.poll().unwrap() {
            Some(event) if wanted(&event.event_type) => return event.source,
            Some(_) => {}
            None => thread::sleep(Duration::from_micros(50)),
        }
    }
}

/// Moves bytes both ways at once over a connection of the driver's.
pub fn exchange(driver: &mut Driver, peer: VsockAddr, port: u32, output: &[u8]) -> Vec<u8> {
    let deadline = Instant::now() + PATIENCE;
    let (mut sent, mut input) = (0, Vec::new());
    let mut piece = [0; 4096];
    while sent < output.len() || input.len() < output.len() {
        assert!(
            Instant::now() < deadline,
            "{sent} sent, {} got",
            input.len()
        );
        let more = &output[sent..output.len().min(sent + 4096)];
        // it refuses when it has no credit
        if !more.is_empty() && driver.send(peer, port, more).is_ok() {
            sent += more.len();
        }
        while driver.poll().unwrap().is_some() {}
        let got = driver.recv(peer, port, &mut piece).unwrap();
        if got > 0 {
            input.extend_from_slice(&piece[..got]);
            driver.update_credit(peer, port).unwrap();
        }
    }
    input
}

/// Echoes what it reads, all of it, until the end.
pub fn echo(mut stream: UnixStream) {
    let mut bytes = vec![0; 20_000];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        stream.write_all(&bytes[..count]).unwrap();
    }
}
