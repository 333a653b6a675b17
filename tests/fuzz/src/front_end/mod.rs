//! A back end without manners before a guest's driver that has them: what it
//! says in messages, and what it does to the memory that it is given.
//!
//! The queue is served on this thread as its worker serves it, and after every
//! turn the guest's memory is what it was, but for the used ring and for the
//! bytes that a used entry declares of a request that was open. At the end the
//! device can be taken away, nothing of the guest's is held, and another device
//! of the same guest serves it.

mod back_end;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use devices::rng::{RngConfig, RngDevice};
use devices::testing::{Buffer, DriverRing, GuestRam, Line};
use devices::vhost_user::frontend::config::{AfterRestart, CopyBack};
use devices::vhost_user::frontend::{VhostUserConfig, VhostUserDevice};
use devices::virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1};
use devices::virtio::{ActiveQueue, Device, Notifier, QueueError, QueueHandler, Trial};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use back_end::{BackEnd, Character, Deed};

/// Pages of guest memory.
const PAGES: u64 = 64;
/// Descriptors of the guest's ring, and of the back end's: requests wait.
const RING: u16 = 64;
const SHADOW: u16 = 16;
/// Chains that a driver offers before it starts anew.
const CHAINS: usize = 48;
/// How often it does.
const RINGS: usize = 3;
/// Turns of a worker before it sleeps: more than what is open, each way.
const TURNS: usize = 200;
const GUEST: u64 = VERSION_1 | RING_INDIRECT_DESC | RING_EVENT_IDX;
/// How long a back end is waited for that does all it should, and one that may
/// not.
const PATIENCE: Duration = Duration::from_secs(10);
const DOUBT: Duration = Duration::from_millis(40);

/// What there is and what happens.
#[derive(Arbitrary, Debug)]
pub struct Story {
    whole: bool,
    resets: bool,
    character: Character,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// The driver offers a chain.
    Offer(Vec<Piece>),
    /// The back end does something.
    Deed(Deed),
    /// The driver writes to the configuration space, and reads it.
    Config(u8, Vec<u8>),
    /// The driver resets the device and brings it up again.
    Restart,
    /// The session has a moment for what it was told.
    Moment,
}

#[derive(Arbitrary, Debug)]
struct Piece {
    len: u16,
    writable: bool,
    granted: bool,
}

/// A chain that the device has.
struct Offered {
    writable: Vec<Buffer>,
    room: u64,
}

/// What the driver has of a queue.
struct Active {
    ring: DriverRing,
    queue: ActiveQueue,
    line: Arc<Line>,
    handler: Box<dyn QueueHandler>,
    offered: HashMap<u16, Offered>,
    chains: usize,
    broken: bool,
}

struct Guest {
    ram: GuestRam,
    device: VhostUserDevice,
    active: Active,
    whole: bool,
    rings: usize,
    left: u64,
}

/// Plays a story; what it finds is a failed assertion, or an end that does not
/// come.
pub fn play(story: Story) {
    let honest = story.character.is_honest();
    let mut back_end = BackEnd::new(story.character);
    let config = VhostUserConfig {
        queue_size: SHADOW,
        pool_mib: 1,
        answer_timeout: 1,
        copy_back: match story.whole {
            true => CopyBack::Whole,
            false => CopyBack::Declared,
        },
        after_restart: match story.resets {
            true => AfterRestart::Reset,
            false => AfterRestart::Repeat,
        },
        ..VhostUserConfig::new(back_end.socket(), 42)
    };
    let spec = config.validate().expect("a configuration");
    let device = VhostUserDevice::open(spec).expect("a device");
    if let Trial::Failed(why) = device.trial(PATIENCE) {
        assert!(!honest, "a back end that can be used is refused: {why}");
        return;
    }
    let mut guest = Guest::new(device, story.whole);
    let other = Other::new(&guest.ram);
    guest.await_back_end(&back_end, if honest { PATIENCE } else { DOUBT });
    assert!(
        !honest || guest.active.handler.room() > 0,
        "it never serves"
    );
    for step in story.steps {
        guest.step(step, &mut back_end);
        guest.turn();
    }
    guest.end();
    other.serve();
}

impl Guest {
    fn new(mut device: VhostUserDevice, whole: bool) -> Self {
        let ram = GuestRam::new(PAGES);
        let notifier = Arc::new(Notifier::new(Arc::new(Line::default())));
        device.attach(&notifier, EventFd::new(EFD_NONBLOCK).expect("an event"));
        let active = Active::new(&ram, &mut device);
        Guest {
            ram,
            device,
            active,
            whole,
            rings: 1,
            // of which the rings and the other device have theirs
            left: (PAGES - 1) * 4096 - RINGS as u64 * 4096 - 4096,
        }
    }

    /// Waits until the queue is served, or nobody is there who would.
    fn await_back_end(&mut self, back_end: &BackEnd, patience: Duration) {
        let end = Instant::now() + patience;
        while self.active.handler.room() == 0 && Instant::now() < end && !back_end.is_over() {
            self.active.wait(Duration::from_millis(1));
            self.turn();
        }
    }

    fn step(&mut self, step: Step, back_end: &mut BackEnd) {
        match step {
            Step::Offer(pieces) => self.offer(&pieces),
            Step::Deed(deed) => back_end.act(deed),
            Step::Config(offset, bytes) => {
                self.device.write_config(offset.into(), &bytes);
                self.device.read_config(offset.into(), &mut [0; 40]);
                self.device.features();
                self.device.statistics();
            }
            Step::Restart if self.rings < RINGS => {
                self.rings += 1;
                let served = self.active.handler.room() > 0;
                self.device.stopping(0);
                self.active.stop();
                self.device.reset();
                self.active = Active::new(&self.ram, &mut self.device);
                let patience = if served { DOUBT } else { Duration::ZERO };
                self.await_back_end(back_end, patience);
            }
            Step::Restart => {}
            Step::Moment => {
                self.active.wait(Duration::from_millis(1));
            }
        }
    }

    fn offer(&mut self, pieces: &[Piece]) {
        let pieces = pieces.get(..pieces.len().min(12)).unwrap_or_default();
        // half of them are short
        let most = |piece: &Piece| {
            if piece.len.is_multiple_of(2) {
                64
            } else {
                9000
            }
        };
        let len = |piece: &Piece| u64::from(piece.len / 2 % most(piece)) + 1;
        let pages = |piece: &Piece| len(piece).next_multiple_of(16) + 16;
        let all: u64 = pieces.iter().map(pages).sum::<u64>() + 16 * pieces.len() as u64;
        if pieces.is_empty() || all > self.left || self.active.chains == CHAINS {
            return;
        }
        self.left -= all;
        self.active.chains += 1;
        let mut buffers = Vec::new();
        for writable in [false, true] {
            for piece in pieces.iter().filter(|piece| piece.writable == writable) {
                let byte = if writable { 0x55 } else { 0x33 };
                let address = self.ram.alloc_bytes(&vec![byte; len(piece) as usize]);
                self.ram.alloc(16);
                buffers.push(Buffer {
                    address: match piece.granted {
                        true => GuestRam::granted(address),
                        false => address,
                    },
                    len: len(piece) as u32,
                    writable,
                });
            }
        }
        let head = self.active.ring.add_indirect(&buffers);
        let writable = buffers.into_iter().filter(|buffer| buffer.writable);
        let writable: Vec<Buffer> = writable.collect();
        let room = writable.iter().map(|buffer| u64::from(buffer.len)).sum();
        self.active.offered.insert(head, Offered { writable, room });
    }

    /// What a queue's worker does until it sleeps, and what may come of it.
    fn turn(&mut self) {
        let size = (PAGES * 4096) as usize;
        let mut before = self.ram.read(0, size);
        if !self.active.broken {
            self.active.broken = self.active.serve().is_err();
        }
        let after = self.ram.read(0, size);
        let mut may_differ = |address: u64, len: u64| {
            let at = address as usize..(address + len) as usize;
            before[at.clone()].copy_from_slice(&after[at]);
        };
        let layout = self.active.ring.layout();
        may_differ(layout.used, layout.used_len().into());
        for (head, len) in self.active.ring.used() {
            let offered = self.active.offered.remove(&head);
            let offered = offered.expect("what is used was offered, and once");
            assert!(
                u64::from(len) <= offered.room,
                "more than there is room for"
            );
            let mut left = if self.whole { offered.room } else { len.into() };
            for buffer in offered.writable {
                let now = left.min(buffer.len.into());
                may_differ(buffer.address & !(1 << 63), now);
                left -= now;
            }
        }
        assert!(
            before == after,
            "a byte that nobody may write is another one"
        );
        assert_eq!(self.ram.lent(), 0, "nothing of the guest's is held");
    }

    fn end(mut self) {
        self.device.stopping(0);
        self.active.stop();
        self.device.reset();
    }
}

impl Active {
    fn new(ram: &GuestRam, device: &mut VhostUserDevice) -> Self {
        let ring = DriverRing::new(ram, RING);
        device.activate(&[0]);
        let (queue, line) = ring.activate(GUEST);
        let features = GUEST | device.features();
        Active {
            ring,
            queue,
            line,
            handler: device.start_queue(0, features).expect("a queue"),
            offered: HashMap::new(),
            chains: 0,
            broken: false,
        }
    }

    /// Whether the handler's event comes within `patience`.
    fn wait(&self, patience: Duration) -> bool {
        let event = self.handler.event().expect("an event");
        let patience = Timespec {
            tv_sec: 0,
            tv_nsec: patience.subsec_nanos().into(),
        };
        let mut polled = [PollFd::from_borrowed_fd(event, PollFlags::IN)];
        poll(&mut polled, Some(&patience)).is_ok_and(|count| count > 0)
    }

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

    /// Gives the queue back, as at a reset.
    fn stop(&mut self) {
        self.handler.settle(&mut self.queue);
        assert!(
            Arc::strong_count(&self.line) <= 2,
            "the queue is elsewhere, too"
        );
    }
}

/// Another device of the same guest.
struct Other {
    ring: DriverRing,
    buffer: Buffer,
}

impl Other {
    fn new(ram: &GuestRam) -> Self {
        Other {
            ring: DriverRing::new(ram, 4),
            buffer: Buffer::writable(ram.alloc(64), 64),
        }
    }

    fn serve(mut self) {
        let spec = RngConfig::default().validate().expect("a source");
        let mut device = RngDevice::open(spec).expect("random numbers");
        let (mut queue, _line) = self.ring.activate(VERSION_1);
        let mut handler = device.start_queue(0, VERSION_1).expect("a queue");
        let head = self.ring.add(&[self.buffer]);
        let chains = queue.take(4).expect("a chain");
        handler.serve(&mut queue, chains).expect("service");
        assert_eq!(self.ring.used(), [(head, 64)], "another device is hurt");
    }
}
