//! What is measured: guests on the fake Xen, served by the very code that serves
//! real ones, each of their queues in use. A process of its own, which says how
//! large it is and ends.

use std::io::Read;
use std::os::unix::net::UnixListener;

use anyhow::Context;
use clap::Args;
use devices::blk::BlkConfig;
use devices::net::NetConfig;
use devices::registry::DeviceSpec;
use serde::{Deserialize, Serialize};
use tests::raw::{RawDriver, RawQueue, Request};
use tests::{Place, Stand};
use vmm::demo::guest::Addresses;

/// Who is served.
#[derive(Args, Clone, Copy, Debug, Serialize)]
pub struct Served {
    /// Guests
    #[arg(long)]
    pub guests: u32,
    /// Disks of each
    #[arg(long)]
    pub disks: u32,
    /// Queues of each disk
    #[arg(long)]
    pub queues: u16,
    /// Each has a network card, too
    #[arg(long)]
    pub nic: bool,
}

/// How large the process is, KiB.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Size {
    /// Its own memory.
    pub anonymous: u64,
    /// Its program, as far as it is there.
    pub program: u64,
    /// Shared memory: on the fake Xen that is the guests' own.
    pub shared: u64,
    /// Threads.
    pub threads: u64,
}

/// Bytes of each image.
const IMAGE: usize = 1 << 20;
/// Requests of each queue.
const REQUESTS: usize = 64;
/// Bytes of each request.
const BLOCK: usize = 4096;
/// VIRTIO_BLK_T_IN, sector 0
const READ: [u8; 16] = [0; 16];
/// A frame's header and its first bytes.
const FRAME: [u8; 76] = [0; 76];

/// Serves, has everything used, and says how large this process is.
///
/// # Errors
/// A device that cannot be made. A guest that is not served panics.
pub fn run(served: &Served) -> anyhow::Result<()> {
    let mut stands = Vec::new();
    for _ in 0..served.guests {
        stands.push(guest(served)?);
    }
    println!("{}", serde_json::to_string(&size()?)?);
    for (stand, drivers) in stands {
        // reset before the guest goes: nothing of its is held then
        drivers.iter().for_each(RawDriver::reset);
        stand.finish();
    }
    Ok(())
}

fn guest(served: &Served) -> anyhow::Result<(Stand, Vec<RawDriver>)> {
    let stand = Stand::new();
    let mut drivers = Vec::new();
    for number in 0..served.disks {
        // one way and the other
        let addresses = match number % 2 {
            0 => Addresses::Grants,
            _ => Addresses::Plain,
        };
        let (path, _) = stand.image(&format!("{number}.img"), IMAGE);
        let config = BlkConfig {
            queues: served.queues,
            ..BlkConfig::new(path)
        };
        let device = DeviceSpec::Blk(config.validate()?).open()?;
        let place = stand.add(number, addresses, device);
        drivers.push(drive_disk(&stand, &place, served.queues));
    }
    if served.nic {
        let path = stand.path("nic");
        let listener = UnixListener::bind(&path)?;
        std::thread::spawn(move || swallow(&listener));
        let device = DeviceSpec::Net(NetConfig::socket(path).validate()?).open()?;
        let place = stand.add(served.disks, Addresses::Grants, device);
        drivers.push(drive_nic(&stand, &place));
    }
    Ok((stand, drivers))
}

/// Has each queue of a disk used.
fn drive_disk(stand: &Stand, place: &Place, queues: u16) -> RawDriver {
    let driver = stand.raw(place, 0);
    driver.negotiate();
    let mut queues: Vec<_> = (0..queues).map(|index| driver.queue(index, 128)).collect();
    driver.go();
    let read = Request {
        readable: vec![READ.to_vec()],
        writable: vec![BLOCK, 1],
    };
    for queue in &mut queues {
        (0..REQUESTS).for_each(|_| carry_out(&driver, queue, &read));
    }
    driver
}

/// Has both queues of a network card used; the received stays with the card.
fn drive_nic(stand: &Stand, place: &Place) -> RawDriver {
    let driver = stand.raw(place, 0);
    driver.negotiate();
    let (mut receive, mut transmit) = (driver.queue(0, 128), driver.queue(1, 128));
    driver.go();
    let room = Request {
        readable: Vec::new(),
        writable: vec![BLOCK],
    };
    for head in 0..64 {
        let shared = room.share(&driver.memory);
        shared.submit(&driver.memory, &mut receive, head);
    }
    driver.kick(&receive);
    let frame = Request {
        readable: vec![FRAME.to_vec()],
        writable: Vec::new(),
    };
    (0..REQUESTS).for_each(|_| carry_out(&driver, &mut transmit, &frame));
    driver
}

fn carry_out(driver: &RawDriver, queue: &mut RawQueue, request: &Request) {
    let shared = request.share(&driver.memory);
    shared.submit(&driver.memory, queue, 0);
    driver.kick(queue);
    assert!(driver.wait(queue).is_ok(), "a request broke its queue");
    shared.take_back(&driver.memory);
}

/// The other end of a card: takes all frames.
fn swallow(listener: &UnixListener) {
    let Ok((mut stream, _)) = listener.accept() else {
        return;
    };
    let mut bytes = [0; 4096];
    while matches!(stream.read(&mut bytes), Ok(1..)) {}
}

/// How large this process is. Linux Documentation/filesystems/proc.rst
fn size() -> anyhow::Result<Size> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let word = line.and_then(|line| line.split_whitespace().next());
        let value = word.and_then(|word| word.parse().ok());
        value.with_context(|| format!("/proc/self/status has no {name}"))
    };
    Ok(Size {
        anonymous: value("RssAnon:")?,
        program: value("RssFile:")?,
        shared: value("RssShmem:")?,
        threads: value("Threads:")?,
    })
}
