//! A guest's driver that has any manners a story likes, and a device's queues
//! served as their workers serve them, on this thread.
//!
//! After every step: what is used was offered, once, with no more bytes said to
//! be written than there was room for, and no byte that the device may only
//! read is another one. At the end nothing of the guest's is held.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use arbitrary::Arbitrary;
use devices::testing::{Buffer, DriverRing, GuestRam, readable};
use devices::virtio::features::{RING_INDIRECT_DESC, VERSION_1};
use devices::virtio::{ActiveQueue, Device, QueueError, QueueHandler};

/// Pages of guest memory, and bytes of it that stories may use.
const PAGES: u64 = 256;
const BYTES: u64 = (PAGES - 1) * 4096;
/// Descriptors of a ring.
const RING: u16 = 64;
/// What is in memory that the device has not written.
pub const UNWRITTEN: u8 = 0xa5;
/// What the transport negotiates besides.
const TRANSPORT: u64 = VERSION_1 | RING_INDIRECT_DESC;

/// A piece of a chain.
#[derive(Arbitrary, Clone, Debug)]
pub enum Piece {
    /// For the device to read.
    Bytes(Vec<u8>),
    /// For the device to write: this many bytes.
    Room(u16),
    /// The same in memory that was granted.
    GrantedBytes(Vec<u8>),
    GrantedRoom(u16),
    /// Whatever else a driver could write into a descriptor.
    Anything {
        address: u64,
        len: u32,
        writable: bool,
    },
}

/// A chain that the device has.
#[derive(Default)]
struct Offered {
    room: u64,
    readable: Vec<(u64, Vec<u8>)>,
    /// Room whose bytes are the device's answer: address and length.
    rooms: Vec<(u64, usize)>,
}

/// What the driver finds in a chain that is used.
pub struct Answer {
    /// Bytes that the device says it has written.
    pub written: u32,
    /// All that it may have written.
    pub bytes: Vec<u8>,
}

struct Queue {
    ring: DriverRing,
    active: ActiveQueue,
    handler: Box<dyn QueueHandler>,
    offered: HashMap<u16, Offered>,
    /// Its next head.
    next: u16,
    broken: bool,
}

/// A device, its guest and its driver.
pub struct Driver {
    pub ram: GuestRam,
    pub device: Box<dyn Device>,
    queues: Vec<Option<Queue>>,
    features: u64,
    left: u64,
    answer: Option<Answer>,
}

impl Driver {
    /// Brings the device up with some of its features, and all queues that it
    /// has then.
    pub fn new(device: Box<dyn Device>, features: u64) -> Self {
        let mut driver = Driver {
            features: features & device.features(),
            ram: GuestRam::new(PAGES),
            device,
            queues: Vec::new(),
            left: BYTES,
            answer: None,
        };
        driver.start();
        driver
    }

    /// As after DRIVER_OK. What does not fit into memory any more is left out.
    fn start(&mut self) {
        let queues = self.device.queue_sizes().len();
        for index in (0..queues).map_while(|index| u16::try_from(index).ok()) {
            let ring = self
                .take_memory(4096)
                .map(|()| DriverRing::new(&self.ram, RING));
            let negotiated = self.features | TRANSPORT;
            let queue = ring.and_then(|ring| {
                // not every device has each queue with each set of features
                let handler = self.device.start_queue(index, negotiated).ok()?;
                let (active, _line) = ring.activate(negotiated);
                Some(Queue {
                    ring,
                    active,
                    handler,
                    offered: HashMap::new(),
                    next: 0,
                    broken: false,
                })
            });
            self.queues.push(queue);
        }
    }

    /// Whether a story may still have `len` bytes.
    fn take_memory(&mut self, len: u64) -> Option<()> {
        self.left = self.left.checked_sub(len.next_multiple_of(4096))?;
        Some(())
    }

    fn queue(&mut self, index: usize) -> Option<&mut Queue> {
        let queue = self.queues.get_mut(index)?.as_mut()?;
        (!queue.broken).then_some(queue)
    }

    /// Offers a chain, and has it served.
    pub fn offer(&mut self, index: usize, pieces: &[Piece]) {
        let Some(head) = self.queue(index).map(|queue| queue.next) else {
            return;
        };
        let busy = |queue: &mut Queue| queue.offered.contains_key(&head);
        if pieces.is_empty() || self.queue(index).is_none_or(busy) {
            return;
        }
        let mut offered = Offered::default();
        let mut buffers = Vec::new();
        for piece in pieces {
            let Some(buffer) = self.place(piece, &mut offered) else {
                return;
            };
            buffers.push(buffer);
        }
        if self.take_memory(16 * buffers.len() as u64).is_none() {
            return;
        }
        let Some(queue) = self.queue(index) else {
            return;
        };
        assert_eq!(queue.ring.add_indirect(&buffers), head);
        queue.next = (head + 1) % RING;
        queue.offered.insert(head, offered);
        self.serve(index);
    }

    /// Offers a chain, has it served, and returns what has come of it if it is
    /// done by then.
    pub fn ask(&mut self, index: usize, pieces: &[Piece]) -> Option<Answer> {
        self.answer = None;
        self.offer(index, pieces);
        self.answer.take()
    }

    /// What was used last since this was asked.
    pub fn take_answer(&mut self) -> Option<Answer> {
        self.answer.take()
    }

    /// Puts a piece into memory.
    fn place(&mut self, piece: &Piece, offered: &mut Offered) -> Option<Buffer> {
        let (bytes, room, granted) = match piece {
            Piece::Bytes(bytes) => (Some(bytes), 0, false),
            Piece::GrantedBytes(bytes) => (Some(bytes), 0, true),
            Piece::Room(room) => (None, *room, false),
            Piece::GrantedRoom(room) => (None, *room, true),
            &Piece::Anything {
                address,
                len,
                writable,
            } => {
                offered.room += if writable { u64::from(len) } else { 0 };
                return Some(Buffer {
                    address,
                    len,
                    writable,
                });
            }
        };
        // a length of zero is the one thing that Anything is for
        let len = bytes.map_or(u64::from(room), |bytes| bytes.len() as u64);
        let len = len.max(1);
        self.take_memory(len)?;
        let address = self.ram.alloc(len);
        if let Some(bytes) = bytes {
            self.ram.write(address, bytes);
            offered.readable.push((address, bytes.clone()));
        } else {
            self.ram.write(address, &vec![UNWRITTEN; len as usize]);
            offered.rooms.push((address, len as usize));
            offered.room += len;
        }
        let address = match granted {
            true => GuestRam::granted(address),
            false => address,
        };
        let len = u32::try_from(len).ok()?;
        Some(match bytes {
            Some(_) => Buffer::readable(address, len),
            None => Buffer::writable(address, len),
        })
    }

    /// Serves what is available.
    fn serve(&mut self, index: usize) {
        let Some(queue) = self.queue(index) else {
            return;
        };
        queue.broken = queue.serve().is_err();
        self.check(index);
    }

    /// Whatever the handlers wait for has come, or not.
    pub fn advance(&mut self) {
        for index in 0..self.queues.len() {
            let Some(queue) = self.queue(index) else {
                continue;
            };
            // as often as a worker would, if it has no end
            for _ in 0..4 {
                if !queue.handler.event().is_some_and(rings) || queue.broken {
                    break;
                }
                queue.broken = queue.advance().is_err();
            }
            self.check(index);
        }
    }

    fn check(&mut self, index: usize) {
        let Some(Some(queue)) = self.queues.get_mut(index) else {
            return;
        };
        for (head, written) in queue.ring.used() {
            let offered = queue.offered.remove(&head);
            let offered = offered.expect("a chain is used that was not offered, or twice");
            assert!(
                u64::from(written) <= offered.room,
                "{written} bytes are said to be written into {}",
                offered.room
            );
            let rooms = offered.rooms.iter();
            let bytes = rooms.flat_map(|(address, len)| self.ram.read(*address, *len));
            self.answer = Some(Answer {
                written,
                bytes: bytes.collect(),
            });
            for (address, bytes) in offered.readable {
                assert!(
                    self.ram.read(address, bytes.len()) == bytes,
                    "what may only be read was written"
                );
            }
        }
    }

    /// Reads and writes of the configuration space.
    pub fn configure(&mut self, offset: u16, bytes: &[u8]) {
        let mut read = bytes.to_vec();
        self.device.read_config(offset.into(), &mut read);
        self.device.write_config(offset.into(), bytes);
    }

    /// STATUS = 0, and a driver that comes next with these features.
    pub fn reset(&mut self, features: u64) {
        self.stop();
        self.features = features & self.device.features();
        self.start();
    }

    fn stop(&mut self) {
        for queue in self.queues.drain(..).flatten() {
            let Queue {
                mut active,
                mut handler,
                ..
            } = queue;
            handler.settle(&mut active);
            drop(handler);
            active.give_back();
        }
        self.device.reset();
        assert_eq!(self.ram.lent(), 0, "something of the guest's is held");
    }

    /// The guest has gone.
    pub fn finish(mut self) {
        self.stop();
    }
}

impl Queue {
    fn serve(&mut self) -> Result<(), QueueError> {
        while self.handler.room() > 0 {
            let chains = self.active.take(self.handler.room())?;
            if chains.is_empty() {
                break;
            }
            self.handler.serve(&mut self.active, chains)?;
        }
        self.active.notify()
    }

    fn advance(&mut self) -> Result<(), QueueError> {
        self.handler.advance(&mut self.active)?;
        self.serve()
    }
}

fn rings(event: BorrowedFd<'_>) -> bool {
    readable(event, Duration::ZERO)
}
