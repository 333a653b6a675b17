//! A console of several ports, driven by hand, through grants and through plain
//! addresses. virtio-drivers knows one port alone.

use std::collections::HashMap;
use std::time::Duration;

use devices::console::{ConsoleConfig, ConsoleDevice, ConsoleHandle, PortConfig};
use tests::console::{Console, attach, read_host, write_host};
use tests::raw::{RawDriver, RawQueue, Request, Shared};
use tests::stand::eventually;
use tests::{Place, Stand};
use vmm::demo::guest::{Addresses, Pattern, within};

const LIMIT: Duration = Duration::from_secs(60);
const BYTES: usize = 64 << 10;

/// Queues: the console's, those for control, those of port 1.
const TELL: u16 = 2;
const HEAR: u16 = 3;
const RECEIVE: u16 = 4;
const TRANSMIT: u16 = 5;

const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

const MULTIPORT: u64 = 2;
const NAME: &str = "org.example.agent";

fn both(test: fn(Addresses)) {
    for addresses in [Addresses::Grants, Addresses::Plain] {
        within("the test", LIMIT, move || test(addresses)).unwrap();
    }
}

/// A console on a socket, and a port on another one that is logged, too.
fn add(stand: &Stand, addresses: Addresses) -> (Place, Vec<ConsoleHandle>) {
    let agent = PortConfig {
        buffer: 4096,
        log: Some(stand.path("agent.log")),
        log_size: Some(16 << 10),
        log_files: Some(99),
        ..PortConfig::socket(NAME, stand.path("agent"))
    };
    let config = ConsoleConfig {
        port: vec![agent],
        ..ConsoleConfig::socket(stand.path("console"))
    };
    let device = ConsoleDevice::open(config.validate().unwrap()).unwrap();
    let handles = device.handles().to_vec();
    (stand.add(0, addresses, Box::new(device)), handles)
}

/// One of a driver's queues, and what it has given to it.
struct Queue {
    ring: RawQueue,
    requests: HashMap<u16, Shared>,
    next: u16,
}

impl Queue {
    fn new(driver: &RawDriver, index: u16) -> Self {
        Queue {
            ring: driver.queue(index, 16),
            requests: HashMap::new(),
            next: 0,
        }
    }

    /// Requests of one buffer each.
    fn submit(&mut self, driver: &RawDriver, request: &Request) {
        let shared = request.share(&driver.memory);
        let at = self.next % 16;
        shared.submit(&driver.memory, &mut self.ring, at);
        self.next += 1;
        assert!(self.requests.insert(at, shared).is_none(), "it is full");
        driver.kick(&self.ring);
    }

    fn send(&mut self, driver: &RawDriver, bytes: &[u8]) {
        self.submit(
            driver,
            &Request {
                readable: vec![bytes.to_vec()],
                writable: Vec::new(),
            },
        );
        driver.wait(&mut self.ring).unwrap();
        self.taken(driver);
    }

    fn offer(&mut self, driver: &RawDriver, len: usize) {
        self.submit(
            driver,
            &Request {
                readable: Vec::new(),
                writable: vec![len],
            },
        );
    }

    fn receive(&mut self, driver: &RawDriver) -> Vec<u8> {
        let (head, len) = driver.wait(&mut self.ring).unwrap();
        let shared = self.requests.remove(&(head as u16)).unwrap();
        let mut bytes = shared.take_back(&driver.memory).concat();
        bytes.truncate(len as usize);
        bytes
    }

    /// Takes back what was used: all of it, for one is sent at a time.
    fn taken(&mut self, driver: &RawDriver) {
        for (_, shared) in self.requests.drain() {
            shared.take_back(&driver.memory);
        }
    }

    fn free(mut self, driver: &RawDriver) {
        self.taken(driver);
        self.ring.free(&driver.memory);
    }
}

/// A driver that knows what ports are.
struct Driver {
    raw: RawDriver,
    queues: Vec<Queue>,
}

impl Driver {
    fn new(stand: &Stand, place: &Place) -> Self {
        let raw = stand.raw(place, 0);
        let features = raw.negotiate();
        assert_ne!(features & MULTIPORT, 0);
        assert_eq!(raw.peek(0x104, 4), 2, "the most ports");
        let queues = (0..6).map(|index| Queue::new(&raw, index)).collect();
        raw.go();
        let mut driver = Driver { raw, queues };
        for _ in 0..8 {
            driver.queues[usize::from(TELL)].offer(&driver.raw, 64);
        }
        driver
    }

    fn queue(&mut self, index: u16) -> (&mut Queue, &RawDriver) {
        (&mut self.queues[usize::from(index)], &self.raw)
    }

    fn say(&mut self, port: u32, event: u16, value: u16) {
        let (event, value) = (event.to_le_bytes(), value.to_le_bytes());
        let message = [&port.to_le_bytes()[..], &event, &value].concat();
        let (queue, raw) = self.queue(HEAR);
        queue.send(raw, &message);
    }

    /// The next thing that it is told: port, event, value, what follows.
    fn told(&mut self) -> (u8, u8, u8, Vec<u8>) {
        let (queue, raw) = self.queue(TELL);
        let bytes = queue.receive(raw);
        queue.offer(raw, 64);
        (bytes[0], bytes[4], bytes[6], bytes[8..].to_vec())
    }

    /// Says what Linux says, and expects what it expects.
    fn bring_up(&mut self) {
        self.say(0, DEVICE_READY, 1);
        let added = [self.told(), self.told()];
        assert_eq!(added, [plain(0, PORT_ADD, 1), plain(1, PORT_ADD, 1)]);
        self.say(0, PORT_READY, 1);
        assert_eq!(self.told(), plain(0, CONSOLE_PORT, 1));
        self.say(1, PORT_READY, 1);
        let name = (1, PORT_NAME as u8, 1, NAME.as_bytes().to_vec());
        assert_eq!(self.told(), name);
    }

    fn end(self) {
        self.raw.reset();
        for queue in self.queues {
            queue.free(&self.raw);
        }
    }
}

fn plain(port: u8, event: u16, value: u8) -> (u8, u8, u8, Vec<u8>) {
    (port, event as u8, value, Vec::new())
}

#[test]
fn a_port_is_found_by_its_name_and_every_byte_arrives_both_ways() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handles) = add(&stand, addresses);
        let mut driver = Driver::new(&stand, &place);
        driver.bring_up();
        let mut pattern = Pattern::new(1);
        let (output, input) = (pattern.bytes(BYTES), pattern.bytes(BYTES));

        let mut end = attach(handles[1].path());
        assert_eq!(driver.told(), plain(1, PORT_OPEN, 1));
        driver.say(1, PORT_OPEN, 1);
        let typed = input.clone();
        let host = std::thread::spawn(move || {
            write_host(&mut *end, &typed);
            read_host(&mut *end, BYTES)
        });
        let mut received = Vec::new();
        while received.len() < BYTES {
            let (queue, raw) = driver.queue(RECEIVE);
            queue.offer(raw, 2000);
            received.extend(queue.receive(raw));
        }
        for piece in output.chunks(2000) {
            let (queue, raw) = driver.queue(TRANSMIT);
            queue.send(raw, piece);
        }
        let read = host.join().unwrap();
        let closed = driver.told();

        assert!(received == input, "input differs");
        assert!(read == output, "output differs");
        assert_eq!(closed, plain(1, PORT_OPEN, 0));
        driver.end();
        stand.finish();
    });
}

#[test]
fn a_log_has_every_byte_although_nobody_reads() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handles) = add(&stand, addresses);
        let mut driver = Driver::new(&stand, &place);
        let output = Pattern::new(2).bytes(BYTES);

        let mut end = attach(handles[1].path());
        for piece in output.chunks(1000) {
            let (queue, raw) = driver.queue(TRANSMIT);
            queue.send(raw, piece);
            read_host(&mut *end, piece.len());
        }
        let stats = handles[1].stats().snapshot();
        let files = (1..=stats.log_rotations).rev();
        let names = files.map(|number| format!("agent.log.{number}"));
        let log: Vec<u8> = names
            .chain(["agent.log".into()])
            .flat_map(|name| std::fs::read(stand.path(&name)).unwrap())
            .collect();

        assert!(log == output, "the log differs");
        assert!(stats.log_rotations >= 3);
        driver.end();
        stand.finish();
    });
}

#[test]
fn a_driver_of_one_port_finds_the_console_alone() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handles) = add(&stand, addresses);
        let mut console = Console::new(&stand, &place);
        let mut end = attach(handles[0].path());

        console.send(b"hello");
        let read = read_host(&mut *end, 5);
        write_host(&mut *end, b"hello yourself");
        let received = console.receive(14);

        assert_eq!(read, b"hello");
        assert_eq!(received, b"hello yourself");
        drop(console);
        stand.finish();
    });
}

#[test]
fn a_driver_that_says_nonsense_hinders_nobody_and_finds_its_ports_afterwards() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handles) = add(&stand, addresses);
        let (disk, _) = stand.add_disk(1, addresses, 1 << 20);
        let mut driver = Driver::new(&stand, &place);
        let mut pattern = Pattern::new(7);

        for _ in 0..500 {
            let len = 1 + pattern.below(12) as usize;
            let (queue, raw) = driver.queue(HEAR);
            queue.send(raw, &pattern.bytes(len));
        }
        let mut disk = stand.drive(&disk);
        disk.read(0, 4096).unwrap();
        let read = disk.drain().unwrap().len();
        driver.end();
        let mut driver = Driver::new(&stand, &place);
        driver.bring_up();
        let _end = attach(handles[1].path());
        let opened = driver.told();

        assert_eq!(read, 1);
        assert_eq!(opened, plain(1, PORT_OPEN, 1));
        drop(disk);
        driver.end();
        stand.finish();
    });
}

#[test]
fn clients_that_come_and_go_while_the_driver_looks_away_cost_nothing() {
    both(|addresses| {
        let stand = Stand::new();
        let (place, handles) = add(&stand, addresses);
        let mut driver = Driver::new(&stand, &place);
        driver.bring_up();
        driver.say(1, PORT_OPEN, 1);
        let (queue, raw) = driver.queue(RECEIVE);
        queue.offer(raw, 100);

        for round in 1..=200 {
            drop(attach(handles[1].path()));
            eventually("the client goes", || {
                handles[1].stats().snapshot().hangups == round
            });
        }
        // eight buffers were there for four hundred messages
        let mut told = Vec::new();
        for _ in 0..8 {
            told.push(driver.told());
        }

        assert!(
            told.iter()
                .all(|(port, event, ..)| (*port, *event) == (1, PORT_OPEN as u8))
        );
        assert!(told.chunks(2).all(|pair| (pair[0].2, pair[1].2) == (1, 0)));
        driver.end();
        stand.finish();
    });
}
