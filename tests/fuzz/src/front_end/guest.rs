//! A guest's driver, its queue's worker, and what must come of what the back end
//! has written: told beforehand from the ring, and compared with all of the
//! guest's memory.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use devices::testing::{DriverRing, GuestRam, Line};
use devices::vhost_user::frontend::VhostUserDevice;
use devices::virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1};
use devices::virtio::queue::Descriptor;
use devices::virtio::{ActiveQueue, Device, Notifier, QueueError, QueueHandler};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::IntoBytes;

use super::SHADOW;
use super::back_end::BackEnd;
use super::model::{Chain, Lane};

/// Pages of guest memory, of which the first are for rings.
const PAGES: u64 = 72;
const RING_PAGES: u64 = 6;
const PAGE: u64 = 4096;
/// Descriptors of the guest's ring: more than the back end's has.
const RING: u16 = 32;
/// How often a driver brings the device up.
pub const RINGS: usize = 8;
/// Turns of a worker before it sleeps: more than what is open, each way.
const TURNS: usize = 200;
const GUEST: u64 = VERSION_1 | RING_INDIRECT_DESC | RING_EVENT_IDX;
/// What a driver leaves in buffers that the device writes.
const BLANK: u8 = 0x55;

/// A buffer that a driver offers.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub len: u32,
    pub writable: bool,
    pub granted: bool,
    /// The same memory as the one before, if there is one.
    pub again: bool,
}

/// What the device said of a turn, and whether the worker has its ring still.
struct Turned {
    result: Result<(), QueueError>,
    is_served: bool,
}

/// A queue while it is up.
struct Active {
    ring: DriverRing,
    queue: ActiveQueue,
    handler: Box<dyn QueueHandler>,
    /// Descriptors that nobody uses.
    free: Vec<u16>,
    broken: bool,
}

/// See the module.
pub struct Guest {
    ram: GuestRam,
    device: VhostUserDevice,
    notifier: Arc<Notifier>,
    active: Option<Active>,
    whole: bool,
    resets: bool,
    pub rings: usize,
    /// All of the guest's memory, as it must be.
    memory: Vec<u8>,
    /// As it is; kept for its memory.
    now: Vec<u8>,
    /// Where buffers are, and where the next one may be.
    arena: u64,
    next: u64,
    number: u64,
    /// Chains that the back end has not been shown.
    waiting: VecDeque<Chain>,
    pub lane: Option<Lane>,
    pub done: usize,
}

impl Guest {
    pub fn new(mut device: VhostUserDevice, whole: bool, resets: bool) -> Self {
        let ram = GuestRam::new(PAGES);
        let notifier = Arc::new(Notifier::new(Arc::new(Line::default())));
        device.attach(&notifier, EventFd::new(EFD_NONBLOCK).expect("an event"));
        Guest {
            memory: vec![0; (PAGES * PAGE) as usize],
            now: vec![0; (PAGES * PAGE) as usize],
            ram,
            device,
            notifier,
            active: None,
            whole,
            resets,
            rings: 0,
            arena: (1 + RING_PAGES) * PAGE,
            next: (1 + RING_PAGES) * PAGE,
            number: 0,
            waiting: VecDeque::new(),
            lane: None,
            done: 0,
        }
    }

    pub fn is_up(&self) -> bool {
        self.active.is_some()
    }

    pub fn is_broken(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.broken)
    }

    /// Whether the driver was told that the device is another one now.
    pub fn needs_reset(&self) -> bool {
        self.notifier.needs_reset()
    }

    /// Chains that are not used yet.
    pub fn open(&self) -> usize {
        let flights = self.lane.as_ref().map_or(0, |lane| lane.flights.len());
        self.waiting.len() + flights
    }

    /// Whether a back end serves the queue.
    pub fn is_served(&self) -> bool {
        self.lane.is_some()
    }

    pub fn device(&mut self) -> &mut VhostUserDevice {
        &mut self.device
    }

    /// The driver brings the device up.
    pub fn start(&mut self, back_end: &mut BackEnd) {
        assert!(self.rings < RINGS, "there is a ring left");
        self.rings += 1;
        let ring = DriverRing::new(&self.ram, RING);
        self.device.activate(&[0]);
        let (queue, _) = ring.activate(GUEST);
        let features = GUEST | self.device.features();
        back_end.guest = features;
        self.active = Some(Active {
            handler: self.device.start_queue(0, features).expect("a queue"),
            ring,
            queue,
            free: (0..RING).collect(),
            broken: false,
        });
        let ring = self.arena as usize;
        self.memory[..ring].copy_from_slice(&self.ram.read(0, ring));
    }

    /// The driver resets the device.
    pub fn stop(&mut self) {
        let Some(mut active) = self.active.take() else {
            return;
        };
        self.device.stopping(0);
        active.handler.settle(&mut active.queue);
        drop(active);
        self.device.reset();
        self.notifier.reset();
        self.waiting.clear();
        self.lane = None;
        self.next = self.arena;
        self.compare();
        assert_eq!(self.ram.lent(), 0, "something of the guest's is held");
    }

    /// Offers a chain of these, if there is memory for it.
    pub fn offer(&mut self, pieces: &[Piece]) -> bool {
        if self.open() == 0 {
            self.next = self.arena;
        }
        let Some(active) = self.active.as_mut().filter(|active| !active.broken) else {
            return false;
        };
        let room = |(at, piece): (usize, &Piece)| match at > 0 && piece.again {
            true => 0,
            false => u64::from(piece.len).next_multiple_of(16) + 16,
        };
        let rooms = pieces.iter().enumerate().map(room);
        let need = rooms.sum::<u64>() + 16 * pieces.len() as u64;
        if pieces.is_empty() || self.next + need > PAGES * PAGE || active.free.is_empty() {
            return false;
        }
        let head = active.free.pop().expect("one is free");
        let mut chain = Chain::new(head, self.number);
        self.number += 1;
        let mut table = Vec::new();
        let mut address = self.next;
        for (at, piece) in pieces.iter().enumerate() {
            let len = u64::from(piece.len);
            if room((at, piece)) > 0 {
                address = self.next;
                self.next += room((at, piece));
                let from = address as usize;
                let bytes = &mut self.memory[from..from + len as usize];
                match piece.writable {
                    true => bytes.fill(BLANK),
                    false => chain.fill(at, bytes),
                }
                self.ram.write(address, bytes);
            }
            let from = address as usize;
            match piece.writable {
                true => chain.push_writable(address, len),
                false => chain.push_readable(&self.memory[from..from + len as usize]),
            }
            let more = u16::from(at + 1 < pieces.len());
            table.push(Descriptor {
                addr: match piece.granted {
                    true => GuestRam::granted(address),
                    false => address,
                },
                len: piece.len,
                flags: more | u16::from(piece.writable) << 1,
                next: more * (at as u16 + 1),
            });
        }
        let one = match table[..] {
            [only] => only,
            _ => {
                let bytes = bytes(&table);
                let address = self.next;
                self.next += bytes.len() as u64;
                self.write(address, &bytes);
                Descriptor {
                    addr: address,
                    len: bytes.len() as u32,
                    flags: 4,
                    next: 0,
                }
            }
        };
        let active = self.active.as_mut().expect("it is up");
        active.ring.set_descriptor(head, one);
        active.ring.offer(head);
        let start = active.ring.layout().desc as usize;
        let end = active.ring.layout().used as usize;
        let bytes = self.ram.read(start as u64, end - start);
        self.memory[start..end].copy_from_slice(&bytes);
        self.waiting.push_back(chain);
        true
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        let at = address as usize;
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
        self.ram.write(address, bytes);
    }

    /// What a queue's worker does until it sleeps, and what must come of it.
    pub fn turn(&mut self, back_end: &BackEnd) {
        let Some(active) = self.active.as_mut().filter(|active| !active.broken) else {
            self.compare();
            return;
        };
        let had = self.lane.is_some();
        let lane = self.lane.as_mut();
        let expected = lane
            .map(|lane| lane.foretell(self.whole))
            .unwrap_or_default();
        let result = active.serve();
        active.broken = result.is_err();
        let turned = Turned {
            result,
            is_served: active.handler.is_idle(),
        };
        let used = active.ring.used();
        let told: Vec<_> = expected.done.iter().map(|done| done.told()).collect();
        assert_eq!(used, told, "what is used is what was said, and fits");
        self.done += told.len();
        active.free.extend(told.iter().map(|(head, _)| head));
        for done in &expected.done {
            for (address, bytes) in done.written() {
                let at = address as usize;
                self.memory[at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
        self.compare();
        assert_eq!(self.ram.lent(), 0, "something of the guest's is held");
        let lost = had && !turned.is_served;
        if lost {
            self.take_back(turned.result);
            return;
        }
        assert!(
            !expected.violated || turned.result.is_err(),
            "a broken rule is not found"
        );
        if !had && turned.is_served {
            let hands = back_end.hands().expect("a ring that is served");
            self.lane = Some(Lane::new(hands));
        }
        match turned.result {
            Ok(()) => self.look(),
            Err(_) if expected.violated || self.is_too_long() => {}
            Err(error) => panic!("the device breaks: {error}"),
        }
    }

    /// The back end has gone: what it has not done waits for the next one.
    fn take_back(&mut self, result: Result<(), QueueError>) {
        let lane = self.lane.take().expect("a lane");
        let mut left = lane.left();
        let repeats = left.iter().any(|chain| !chain.readable.is_empty());
        match result {
            Ok(()) => assert!(!(self.resets && repeats), "requests must not be repeated"),
            Err(error) => assert!(self.resets && repeats, "the device breaks: {error}"),
        }
        left.extend(self.waiting.drain(..));
        self.waiting = left.into();
    }

    /// Whether a chain is longer than a ring without tables takes.
    fn is_too_long(&self) -> bool {
        let lane = self.lane.as_ref();
        let has_tables = lane.is_some_and(|lane| lane.hands.borrow().indirect);
        let most = usize::from(SHADOW);
        !has_tables && self.waiting.iter().any(|chain| chain.pieces > most)
    }

    /// Looks at what the back end was shown.
    fn look(&mut self) {
        let Some(lane) = &mut self.lane else { return };
        lane.look(&mut self.waiting);
        let all = self
            .active
            .as_ref()
            .is_some_and(|active| active.handler.room() > 0);
        assert_eq!(all, self.waiting.is_empty(), "what waits is known");
    }

    /// The guest's memory is what it must be, but for the used ring.
    fn compare(&mut self) {
        let now = &mut self.now;
        let read = self.ram.memory().read_slice(now, GuestAddress(0));
        read.expect("the guest's memory");
        if let Some(active) = &self.active {
            let layout = active.ring.layout();
            let used = layout.used as usize..(layout.used + u64::from(layout.used_len())) as usize;
            self.memory[used.clone()].copy_from_slice(&now[used]);
        }
        if *now != self.memory {
            let differs = (0..now.len()).find(|&at| now[at] != self.memory[at]);
            panic!("guest memory at {differs:x?} is not what it must be");
        }
    }

    /// The driver reads the configuration space, and finds only bytes that
    /// somebody has written.
    pub fn read_config(&mut self, known: &HashSet<u8>) {
        let mut bytes = [0xa5; 300];
        self.device.read_config(0, &mut bytes);
        assert!(
            bytes.iter().all(|byte| known.contains(byte)),
            "a byte of a configuration space is nobody's"
        );
        assert_eq!(bytes[256..], [0; 44], "it has an end");
    }
}

/// A table as the device finds it.
fn bytes(table: &[Descriptor]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in table {
        bytes.extend_from_slice(entry.as_bytes());
    }
    bytes
}

impl Active {
    /// As its worker does.
    fn serve(&mut self) -> Result<(), QueueError> {
        let (queue, handler) = (&mut self.queue, &mut self.handler);
        let polled = PollFd::from_borrowed_fd(handler.event().expect("an event"), PollFlags::IN);
        if poll(&mut [polled], Some(&Timespec::default())).is_ok_and(|count| count > 0) {
            handler.advance(queue)?;
            queue.notify()?;
        }
        for _ in 0..TURNS {
            queue.kicks_off()?;
            while handler.room() > 0 {
                let chains = queue.take(handler.room())?;
                if chains.is_empty() {
                    break;
                }
                handler.serve(queue, chains)?;
                queue.notify()?;
            }
            let has_come = handler.has_come() || handler.rest()?;
            if has_come {
                handler.serve(queue, Vec::new())?;
                queue.notify()?;
            }
            let full = handler.room() == 0;
            if !has_come && (full || !queue.kicks_on()?) {
                return Ok(());
            }
        }
        panic!("it never rests");
    }
}
