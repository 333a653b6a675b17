//! Control messages and bytes of a console of several ports. virtio 1.3 §5.3.6
//!
//! By default the driver is ready, somebody is at each port, and chains have
//! just room for what is said.

use std::path::PathBuf;

use devices::console::{ConsoleConfig, ConsoleDevice, ConsoleHandle, PortConfig, WhenFull};

use crate::driver::{Driver, Piece};
use crate::host::{Act, Clients, directory};
use crate::script::{Record, Script};

/// Queues of control, and of three ports: to the guest and from it.
const TELL: usize = 2;
const HEAR: usize = 3;
const PORTS: [(usize, usize); 3] = [(0, 1), (4, 5), (6, 7)];
const QUEUES: u8 = 8;

/// A console, its driver, and who is at its sockets.
struct Console {
    driver: Driver,
    handles: Vec<ConsoleHandle>,
    clients: Vec<(PathBuf, Clients)>,
}

/// Plays a story; what it finds is a failed assertion.
pub fn play(input: &[u8]) {
    let mut script = Script::new(input);
    let head = script.next().unwrap_or_default();
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    let agent = PortConfig {
        buffer: 4096,
        when_full: (head.what & 1 != 0).then_some(WhenFull::Drop),
        log: Some(path("log")),
        log_size: Some(4096),
        log_files: Some(1),
        ..PortConfig::socket("agent", path("agent"))
    };
    let second = PortConfig {
        console: true,
        cols: Some(80),
        rows: Some(25),
        ..PortConfig::socket("second", path("second"))
    };
    let config = ConsoleConfig {
        port: vec![agent, second],
        cols: Some(80),
        rows: Some(25),
        ..ConsoleConfig::socket(path("console"))
    };
    let device = ConsoleDevice::open(config.validate().expect("ports")).expect("sockets");
    let handles = device.handles().to_vec();
    let clients = handles.iter().map(|handle| {
        let path = handle.path().to_owned();
        let mut clients = Clients::default();
        clients.act(&path, Act::Come);
        (path, clients)
    });
    let mut console = Console {
        clients: clients.collect(),
        handles,
        driver: Driver::new(Box::new(device), u64::MAX << (head.a % 64)),
    };
    if head.what & 2 == 0 {
        console.ready();
    }
    for record in script {
        console.step(record);
    }
    console.driver.advance();
    console.driver.finish();
}

impl Console {
    fn step(&mut self, record: Record) {
        let Record { what, a, b, c } = record;
        let port = usize::from(what >> 5) % PORTS.len();
        let (to_guest, from_guest) = PORTS[port];
        match what % 16 {
            0 | 1 => {
                // somebody types, for a chain with so much more room
                let typed = vec![c; usize::from(a) + 1];
                let room = u16::from(a) + 1;
                let room = room.saturating_add_signed((b as i8).into());
                self.driver.offer(to_guest, &[Piece::Room(room)]);
                self.act(port, Act::Say(0, typed));
            }
            2 => self
                .driver
                .offer(from_guest, &[Piece::Bytes(vec![c; record.word().into()])]),
            3 => self.tell(message((a % 4).into(), b % 10, c), None),
            4 => self.tell(message((a % 4).into(), b % 10, 1), Some(usize::from(c % 9))),
            5 => self.tell(message(u32::from(a) << (c % 32), b % 10, 1), None),
            6 => self
                .driver
                .offer(TELL, &[Piece::Room(record.word() % 2048)]),
            7 => {
                let pieces = [Piece::Bytes(vec![b; c.into()]), Piece::Room(b.into())];
                let pieces = pieces.get(usize::from(a / 8 % 2)..).unwrap_or_default();
                self.driver.offer(usize::from(a % QUEUES), pieces);
            }
            8 => self.act(port, Act::Hear(a, u16::from(b) << 8)),
            9 => self.act(port, Act::Go(a)),
            10 => self.act(port, Act::Come),
            11 => self.handles[port].resize(a.into(), b.into()),
            12 => self.driver.configure(record.word(), &[c; 8]),
            13 => self.act(port, Act::Say(a, vec![c; usize::from(b) * 16])),
            14 => self.ready(),
            _ => self.driver.reset(u64::MAX << (a % 64)),
        }
        if what & 0x10 == 0 {
            self.driver.advance();
        }
    }

    fn act(&mut self, port: usize, act: Act) {
        let (path, clients) = &mut self.clients[port];
        clients.act(path, act);
    }

    /// What a driver says that comes up.
    fn ready(&mut self) {
        self.tell(message(0, 0, 1), None);
        for port in 0..3 {
            self.tell(message(port, 3, 1), None);
            self.tell(message(port, 6, 1), None);
        }
        self.driver.advance();
    }

    /// Tells a message, which may be cut in two.
    fn tell(&mut self, mut message: Vec<u8>, cut: Option<usize>) {
        let rest = message.split_off(cut.unwrap_or(message.len()));
        let parts = [message, rest].into_iter();
        let parts = parts.filter(|part| !part.is_empty());
        self.driver
            .offer(HEAR, &parts.map(Piece::Bytes).collect::<Vec<_>>());
    }
}

fn message(port: u32, event: u8, value: u8) -> Vec<u8> {
    let mut bytes = port.to_le_bytes().to_vec();
    bytes.extend([event, 0, value, 0]);
    bytes
}
