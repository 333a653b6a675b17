//! Requests to a disk, built by hand. virtio 1.3 §5.2.6

use crate::raw::{RawDriver, RawQueue, Request};

/// VIRTIO_BLK_T_IN
pub const IN: u32 = 0;
/// VIRTIO_BLK_T_OUT
pub const OUT: u32 = 1;
/// VIRTIO_BLK_T_DISCARD
pub const DISCARD: u32 = 11;
/// VIRTIO_BLK_T_WRITE_ZEROES
pub const WRITE_ZEROES: u32 = 13;

/// VIRTIO_BLK_S_OK
pub const OK: u8 = 0;
/// VIRTIO_BLK_S_IOERR
pub const IOERR: u8 = 1;
/// VIRTIO_BLK_S_UNSUPP
pub const UNSUPP: u8 = 2;

/// A request's header.
pub fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend(0u32.to_le_bytes());
    header.extend(sector.to_le_bytes());
    header
}

/// A read of `len` bytes.
pub fn read(sector: u64, len: usize) -> Request {
    Request {
        readable: vec![header(IN, sector)],
        writable: vec![len, 1],
    }
}

/// A write.
pub fn write(sector: u64, data: &[u8]) -> Request {
    Request {
        readable: vec![header(OUT, sector), data.to_vec()],
        writable: vec![1],
    }
}

/// A discard or write-zeroes of one extent.
pub fn extent(kind: u32, sector: u64, sectors: u32, flags: u32) -> Request {
    let mut extent = sector.to_le_bytes().to_vec();
    extent.extend(sectors.to_le_bytes());
    extent.extend(flags.to_le_bytes());
    Request {
        readable: vec![header(kind, 0), extent],
        writable: vec![1],
    }
}

/// Has a request answered: what the device wrote, and the status last.
pub fn ask(driver: &RawDriver, queue: &mut RawQueue, request: &Request) -> (Vec<u8>, u8) {
    let shared = request.share(&driver.memory);
    shared.submit(&driver.memory, queue, 0);
    driver.kick(queue);
    driver.wait(queue).expect("the request is completed");
    let mut written = shared.take_back(&driver.memory);
    let status = written.pop().expect("there is a status")[0];
    (written.pop().unwrap_or_default(), status)
}
