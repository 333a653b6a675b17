//! Consoles of several ports, and what is said of them.

use std::io::Write;

use super::*;
use crate::console::PortConfig;

const MULTIPORT: u64 = 2;
const TELL: u16 = 2;
const HEAR: u16 = 3;

const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// A console on a socket, and two further ports: `agent` on a socket, `second`,
/// a console on a terminal.
struct Ports {
    rig: Rig,
    tell: Side,
    hear: Side,
    agent: [Side; 2],
    /// Buffers for messages to the driver that are not used yet.
    offered: Vec<Buffer>,
}

fn config(directory: &Path) -> ConsoleConfig {
    let mut second = PortConfig::socket("second", "");
    second.backend = crate::console::Backend::Pty;
    second.path = None;
    second.console = true;
    let agent = PortConfig {
        buffer: 4096,
        log: Some(directory.join("agent.log")),
        ..PortConfig::socket("agent", directory.join("agent"))
    };
    ConsoleConfig {
        port: vec![agent, second],
        cols: Some(100),
        rows: Some(40),
        ..ConsoleConfig::socket(directory.join("console"))
    }
}

impl Ports {
    fn new() -> Self {
        let mut rig = Rig::new(config);
        let mut side = |index| Side::start(&rig.ram, &mut rig.device, index);
        Ports {
            tell: side(TELL),
            hear: side(HEAR),
            agent: [side(4), side(5)],
            offered: Vec::new(),
            rig,
        }
    }

    /// The driver says something.
    fn say_bytes(&mut self, bytes: &[u8]) {
        let buffer = Buffer::readable(self.rig.ram.alloc_bytes(bytes), bytes.len() as u32);
        self.hear.ring.add(&[buffer]);
        self.hear.serve().unwrap();
    }

    fn say(&mut self, port: u32, event: u16, value: u16) {
        let port = port.to_le_bytes();
        let (event, value) = (event.to_le_bytes(), value.to_le_bytes());
        self.say_bytes(&[&port[..], &event, &value].concat());
    }

    fn offer(&mut self, len: u32) {
        let buffer = Buffer::writable(self.rig.ram.alloc(len.into()), len);
        self.offered.push(buffer);
        self.tell.ring.add(&[buffer]);
        self.tell.serve().unwrap();
    }

    /// What the driver has been told since the last call: port, event, value,
    /// and what follows.
    fn told(&mut self) -> Vec<(u32, u16, u16, Vec<u8>)> {
        self.tell.settle_down();
        let used = self.tell.ring.used();
        let buffers = self.offered.drain(..used.len());
        let messages = used.iter().zip(buffers).map(|((_, len), buffer)| {
            let bytes = self.rig.ram.read(buffer.address, *len as usize);
            let short = |at| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            let port = u32::from(short(0)) | u32::from(short(2)) << 16;
            (port, short(4), short(6), bytes[8..].to_vec())
        });
        messages.collect()
    }

    /// Has the driver set everything up.
    fn bring_up(&mut self) {
        for _ in 0..16 {
            self.offer(128);
        }
        self.say(0, DEVICE_READY, 1);
        for port in 0..3 {
            self.say(port, PORT_READY, 1);
        }
        assert_eq!(self.told().len(), 3 + 2 + 1 + 4);
    }

    fn control(&self, name: &str) -> u64 {
        let all = self.rig.device.statistics();
        all.iter().find(|(known, _)| *known == name).unwrap().1
    }

    fn agent_path(&self) -> PathBuf {
        self.rig.device.handles()[1].path().to_owned()
    }

    fn agent_stats(&self) -> ConsoleStatsSnapshot {
        self.rig.device.handles()[1].stats().snapshot()
    }

    /// Has the queues of the agent served until something is so.
    fn until(&mut self, what: &str, mut so: impl FnMut(&mut Ports) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !so(self) {
            assert!(Instant::now() < deadline, "{what}");
            self.agent.iter_mut().for_each(Side::settle_down);
            std::thread::yield_now();
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        let buffer = Buffer::readable(self.rig.ram.alloc_bytes(bytes), bytes.len() as u32);
        self.agent[1].ring.add(&[buffer]);
        self.agent[1].serve().unwrap();
    }
}

fn plain(port: u32, event: u16, value: u16) -> (u32, u16, u16, Vec<u8>) {
    (port, event, value, Vec::new())
}

#[test]
fn several_ports_are_offered_with_two_queues_each_and_two_for_control() {
    let ports = Ports::new();
    let mut device = ports.rig.device;
    let mut most = [0; 4];
    device.read_config(4, &mut most);

    let handles = device.handles();
    let names: Vec<_> = handles.iter().map(|handle| handle.name()).collect();
    assert_eq!(names, [None, Some("agent"), Some("second")]);
    let places = device.places();
    assert_eq!(places[1].name.as_deref(), Some("agent"));
    assert_eq!(places[1].path, handles[1].path());
    assert_eq!(device.features() & MULTIPORT, MULTIPORT);
    assert_eq!(device.queue_sizes(), [128; 8]);
    assert_eq!(most, [3, 0, 0, 0]);
    let refused = device.start_queue(8, MULTIPORT).err().unwrap().to_string();
    assert_eq!(refused, "the console has 8 queues, not a number 8");
}

#[test]
fn a_driver_is_told_what_ports_there_are_and_what_each_is() {
    let mut ports = Ports::new();
    for _ in 0..16 {
        ports.offer(128);
    }

    ports.say(0, DEVICE_READY, 1);
    let added = ports.told();
    ports.say(0, PORT_READY, 1);
    let console = ports.told();
    ports.say(1, PORT_READY, 1);
    let agent = ports.told();
    ports.say(2, PORT_READY, 1);
    let second = ports.told();

    assert_eq!(added, [0, 1, 2].map(|port| plain(port, PORT_ADD, 1)));
    let size = |port, cols, rows| (port, RESIZE, 1, vec![cols, 0, rows, 0]);
    let name = |port, name: &str| (port, PORT_NAME, 1, name.as_bytes().to_vec());
    assert_eq!(console, [plain(0, CONSOLE_PORT, 1), size(0, 100, 40)]);
    assert_eq!(agent, [name(1, "agent")]);
    let expected = [
        plain(2, CONSOLE_PORT, 1),
        size(2, 80, 24),
        name(2, "second"),
        // a terminal is always there
        plain(2, PORT_OPEN, 1),
    ];
    assert_eq!(second, expected);
    assert_eq!(ports.control("control_sent"), 10);
    assert_eq!(ports.control("control_received"), 4);
    assert!(ports.tell.line.edges() > 0);
}

#[test]
fn a_client_that_comes_or_goes_opens_or_closes_its_port() {
    let mut ports = Ports::new();
    ports.bring_up();

    let client = connect(&ports.agent_path());
    ports.until("nobody came", |ports| ports.agent_stats().clients == 1);
    let came = ports.told();
    drop(client);
    ports.until("nobody went", |ports| ports.agent_stats().hangups == 1);
    let went = ports.told();

    assert_eq!(came, [plain(1, PORT_OPEN, 1)]);
    assert_eq!(went, [plain(1, PORT_OPEN, 0)]);
    assert!(!ports.tell.rings(), "it waits without working");
}

#[test]
fn what_is_sent_to_a_port_waits_until_the_guest_has_opened_it() {
    let mut ports = Ports::new();
    ports.bring_up();
    let mut client = connect(&ports.agent_path());
    client.write_all(b"early").unwrap();
    ports.until("nobody came", |ports| ports.agent_stats().clients == 1);
    let buffer = Buffer::writable(ports.rig.ram.alloc(64), 64);
    ports.agent[0].ring.add(&[buffer]);
    ports.agent[0].serve().unwrap();
    ports.until("it never rests", |ports| !ports.agent[0].rings());
    let closed = ports.agent_stats().input_bytes;

    ports.say(1, PORT_OPEN, 1);
    ports.until("no input", |ports| ports.agent_stats().input_bytes == 5);
    ports.say(1, PORT_OPEN, 0);
    ports.agent[0].ring.add(&[buffer]);
    ports.agent[0].serve().unwrap();
    client.write_all(b"late").unwrap();
    ports.agent[0].settle_down();

    assert_eq!(closed, 0);
    assert_eq!(ports.rig.ram.read(buffer.address, 5), b"early");
    assert_eq!(ports.agent_stats().input_bytes, 5);
}

#[test]
fn the_console_is_open_whether_the_guest_says_so_or_not() {
    let mut ports = Ports::new();
    let mut client = connect(&ports.rig.path());
    let buffer = ports.rig.offer(16);

    client.write_all(b"hello").unwrap();
    let rig = &mut ports.rig;
    rig.until("no input", |rig| rig.stats().input_bytes == 5);

    assert_eq!(rig.received(&[buffer]), [b"hello"]);
}

#[test]
fn ports_have_buffers_of_their_own_and_none_waits_for_another() {
    let mut ports = Ports::new();
    let bytes = pattern(100_000);
    let _reader_that_stalls = connect(&ports.agent_path());
    ports.until("nobody came", |ports| ports.agent_stats().clients == 1);

    for _ in 0..16 {
        ports.write(&bytes);
        ports.agent[1].settle_down();
    }
    let (stalls, room) = (ports.agent_stats().stalls, ports.agent[1].handler.room());
    let mut client = connect(&ports.rig.path());
    ports.rig.write(b"the console goes on");
    let read = ports.rig.read_host(&mut client, 19);

    assert!(stalls > 0 && room == 0, "output is held in the guest");
    assert_eq!(read, b"the console goes on");
    assert_eq!(ports.rig.stats().stalls, 0);
}

#[test]
fn output_is_logged_whether_somebody_reads_it_or_not() {
    let mut ports = Ports::new();
    let log = ports.rig.directory.path().join("agent.log");

    ports.write(b"one ");
    for side in &mut ports.agent {
        side.handler.settle(&mut side.queue);
        side.handler = Box::new(Nobody);
    }
    ports.agent[1] = Side::start(&ports.rig.ram, &mut ports.rig.device, 5);
    ports.write(b"two");

    assert_eq!(std::fs::read(log).unwrap(), b"one two");
    let stats = ports.agent_stats();
    assert_eq!((stats.logged_bytes, stats.written_bytes), (7, 0));
    assert_eq!(ports.control("logged_bytes"), 7);
}

#[test]
fn each_port_is_counted_by_itself_and_all_of_them_together() {
    let mut ports = Ports::new();
    ports.rig.write(b"console");
    ports.write(b"agent one");
    ports.write(b"agent two");

    let places = ports.rig.device.places();
    let all = ports.rig.device.statistics();

    let counted = |list: &[(&str, u64)], name: &str| {
        let found = list.iter().find(|(known, _)| *known == name);
        found.map(|(_, count)| *count)
    };
    let chains = |list: &[(&str, u64)]| (counted(list, "output_chains"), timed(list, "output"));
    let each: Vec<_> = places
        .iter()
        .map(|place| chains(&place.statistics))
        .collect();
    assert_eq!(each, [(Some(1), 1), (Some(2), 2), (Some(0), 0)]);
    assert_eq!(chains(&all), (Some(3), 3));
    assert_eq!(counted(&all, "output_bytes"), Some(25));
}

#[test]
fn messages_that_make_no_sense_are_counted_and_hurt_nobody() {
    let mut ports = Ports::new();
    ports.bring_up();

    let nothing = Buffer::writable(ports.rig.ram.alloc(16), 16);
    ports.hear.ring.add(&[nothing]);
    ports.hear.serve().unwrap();
    ports.say_bytes(&[0; 7]);
    for (port, event, value) in [
        (3, PORT_READY, 1),
        (u32::MAX, PORT_OPEN, 1),
        (0, PORT_ADD, 1),
        (0, CONSOLE_PORT, 1),
        (0, PORT_NAME, 1),
        (0, u16::MAX, 0),
        (0, DEVICE_READY, 0),
        (1, PORT_READY, 0),
    ] {
        ports.say(port, event, value);
    }
    let told = ports.told();
    ports.say_bytes(&[&[1, 0, 0, 0, 3, 0, 1, 0][..], b"more than is asked for"].concat());

    assert_eq!(told, []);
    assert_eq!(ports.control("bad_control"), 10);
    assert_eq!(ports.told().len(), 1);
    assert_eq!(ports.hear.ring.used().len(), 4 + 10 + 1);
}

#[test]
fn a_flood_of_messages_is_answered_once_there_is_room_for_answers() {
    let mut ports = Ports::new();

    for _ in 0..1000 {
        ports.say(0, DEVICE_READY, 1);
        ports.say(1, PORT_READY, 1);
        ports.say(1, PORT_OPEN, 1);
        ports.say(1, PORT_OPEN, 0);
        ports.hear.ring.used();
    }
    for _ in 0..16 {
        ports.offer(128);
    }

    assert_eq!(ports.told().len(), 4);
    assert_eq!(ports.control("control_received"), 4000);
}

#[test]
fn a_buffer_that_is_too_small_is_given_back_and_its_message_waits() {
    let mut ports = Ports::new();
    ports.say(0, DEVICE_READY, 1);

    let small = [4, 7].map(|len| {
        ports.offer(len);
        ports.tell.settle_down();
        ports.offered.clear();
        ports.tell.ring.used()
    });
    ports.offer(8);

    assert_eq!(small, [[(0, 0)], [(1, 0)]]);
    assert_eq!(ports.told(), [plain(0, PORT_ADD, 1)]);
    assert_eq!(ports.control("bad_control"), 2);
}

#[test]
fn a_message_that_cannot_be_reached_breaks_its_queue() {
    let mut ports = Ports::new();
    ports.say(0, DEVICE_READY, 1);

    ports.hear.ring.add(&[Buffer::readable(1 << 40, 8)]);
    let unread = ports.hear.serve().unwrap_err();
    ports.tell.ring.add(&[Buffer::writable(1 << 40, 8)]);
    let unwritten = ports.tell.serve().unwrap_err();

    assert!(matches!(unread, QueueError::Request { head: 1, .. }));
    assert!(matches!(unwritten, QueueError::Request { head: 0, .. }));
}

#[test]
fn a_window_of_another_size_is_told_by_a_message() {
    let mut ports = Ports::new();
    ports.bring_up();

    ports.rig.device.handle().resize(132, 43);
    ports.rig.receive.settle_down();

    assert_eq!(ports.told(), [(0, RESIZE, 1, vec![132, 0, 43, 0])]);
    assert_eq!(
        ports.rig.receive.line.edges(),
        1,
        "the registers have it, too"
    );
}

#[test]
fn the_next_driver_finds_all_ports_closed_and_is_told_of_them_anew() {
    let mut ports = Ports::new();
    ports.bring_up();
    ports.say(1, PORT_OPEN, 1);

    ports.rig.device.reset();
    let silent = ports.told();
    connect(&ports.agent_path()).write_all(b"early").unwrap();
    let buffer = Buffer::writable(ports.rig.ram.alloc(64), 64);
    ports.agent[0].ring.add(&[buffer]);
    ports.agent[0].serve().unwrap();
    ports.until("nobody came and went", |ports| {
        let stats = ports.agent_stats();
        (stats.clients, stats.hangups) == (1, 1)
    });
    ports.bring_up();

    assert_eq!(silent, []);
    assert_eq!(ports.agent_stats().input_bytes, 0);
}
