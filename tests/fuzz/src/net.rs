//! Frames and commands of a network card, and what comes over its socket.
//! virtio 1.3 §5.1.6
//!
//! By default the other end is there, chains have just room for the frame that
//! comes, and commands are whole. Where a frame fills one chain, none holds a part
//! of one.

use std::collections::HashSet;
use std::path::PathBuf;

use devices::net::{NetConfig, NetDevice};

use crate::driver::{Driver, Piece};
use crate::host::{Act, Clients, directory};
use crate::script::{Record, Script};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL: usize = 2;
/// Bytes of a frame's header, and of the shortest frame. virtio 1.3 §5.1.6
const HEADER: usize = 12;
const FRAME_MIN: usize = 14;
/// Frames may fill several chains.
const MRG_RXBUF: u64 = 1 << 15;

/// A card, its driver, and who is at its socket.
struct Card {
    driver: Driver,
    clients: Clients,
    path: PathBuf,
    features: u64,
    /// Bytes of a chain with a frame that was sent, header and all; none if these
    /// cannot be told any more.
    lens: Option<HashSet<usize>>,
}

/// Plays a story; what it finds is a failed assertion.
pub fn play(input: &[u8]) {
    let mut script = Script::new(input);
    let head = script.next().unwrap_or_default();
    let directory = directory();
    let path = directory.path().join("card");
    let config = NetConfig {
        listen: true,
        mac: Some("52:54:00:12:34:56".into()),
        mtu: Some(1500),
        ..NetConfig::socket(&path)
    };
    let device = NetDevice::open(config.validate().expect("a card")).expect("a socket");
    let refused = match head.what & 1 {
        0 => 0,
        _ => MRG_RXBUF,
    };
    let features = u64::MAX << (head.a % 64) & !refused;
    let mut card = Card {
        driver: Driver::new(Box::new(device), features),
        clients: Clients::default(),
        path,
        features,
        lens: (refused != 0).then(HashSet::new),
    };
    card.clients.act(&card.path, Act::Come);
    card.driver.advance();
    for record in script {
        card.step(record);
    }
    card.driver.advance();
    card.driver.finish();
}

impl Card {
    fn step(&mut self, record: Record) {
        let Record { what, a, b, c } = record;
        match what % 16 {
            0 | 1 => self.arrives(record),
            2 => {
                for _ in 0..=c % 4 {
                    let room = vec![Piece::Room(record.word() % 4096)];
                    self.driver.offer(RECEIVE, &room);
                }
            }
            3 => self.say(0, &frame(a, b), i32::from(c as i8)),
            4 => {
                let head = [&[a, b][..], &[0; HEADER - 2]].concat();
                self.transmit(head, &frame(c, what >> 4));
            }
            5 => {
                let lens = [a, b, c].map(|len| u16::from(len) * 8);
                let lens = lens.map(u16::to_le_bytes).concat();
                let head = [&[1, 1][..], &lens, &[0; HEADER - 8]].concat();
                self.transmit(head, &frame(100, what >> 4));
            }
            6 => self.command(&[a % 8, b % 8, c, 0, 0, 0, 0, 0, 0, 0], Vec::new(), true),
            7 => {
                let mut command = vec![1, 0];
                for count in [a % 20, b % 20] {
                    let said = u32::from(count).wrapping_add_signed((c as i8).into());
                    command.extend(said.to_le_bytes());
                    command.resize(command.len() + 6 * usize::from(count), a);
                }
                self.command(&command, Vec::new(), true);
            }
            8 => {
                // longer than any command, and mostly nowhere
                let more = Piece::Anything {
                    address: record.word().into(),
                    len: 1 << (c % 32),
                    writable: false,
                };
                self.command(&[1, 0], vec![more; usize::from(what >> 6) + 1], true);
            }
            9 => self.command(&[a % 8, b % 8], vec![Piece::Bytes(vec![c; 8])], a & 8 == 0),
            10 => {
                let pieces = [Piece::Bytes(vec![b; c.into()]), Piece::Room(b.into())];
                let pieces = pieces.get(usize::from(a / 4 % 2)..).unwrap_or_default();
                self.driver.offer(usize::from(a % 3), pieces);
            }
            11 => self.driver.configure(record.word(), &[c; 8]),
            12 => self.clients.act(&self.path, Act::Hear(a, record.word())),
            13 => self.clients.act(&self.path, Act::Go(a)),
            14 => {
                self.lens = None;
                self.clients.act(&self.path, Act::Come);
                self.clients.act(&self.path, Act::Say(a, vec![b; c.into()]));
            }
            _ => self
                .driver
                .reset(self.features & !(u64::from(a) << (b % 64))),
        }
        if what & 0x80 == 0 {
            self.driver.advance();
        }
    }

    /// A frame comes for a chain that has room for it, and so much more.
    fn arrives(&mut self, record: Record) {
        let frame = frame(record.a, record.b);
        let more = i32::from(record.c as i8);
        let room = (frame.len() + HEADER) as i32 + more;
        let room = u16::try_from(room).unwrap_or(1);
        let earlier = self.driver.ask(RECEIVE, &[Piece::Room(room)]);
        self.say(0, &frame, 0);
        let later = self.driver.take_answer();
        let written = [earlier, later].into_iter().flatten();
        let mut written = written.map(|answer| answer.written as usize);
        let lens = self.lens.as_ref();
        let is_frame = |len: usize| len == 0 || lens.is_none_or(|lens| lens.contains(&len));
        assert!(written.all(is_frame), "it is a part of a frame");
    }

    /// The other end sends a frame, whose length it says wrong by some.
    fn say(&mut self, who: u8, frame: &[u8], wrong: i32) {
        let len = (frame.len() as u32).wrapping_add_signed(wrong);
        let bytes = [&len.to_be_bytes()[..], frame].concat();
        match wrong {
            0 => self.lens.iter_mut().for_each(|lens| {
                lens.insert(HEADER + frame.len());
            }),
            _ => self.lens = None,
        }
        self.clients.act(&self.path, Act::Say(who, bytes));
        self.driver.advance();
    }

    fn transmit(&mut self, head: Vec<u8>, frame: &[u8]) {
        let pieces = [Piece::Bytes(head), Piece::Bytes(frame.to_vec())];
        self.driver.offer(TRANSMIT, &pieces);
    }

    fn command(&mut self, command: &[u8], more: Vec<Piece>, answer: bool) {
        let mut pieces = vec![Piece::Bytes(command.to_vec())];
        pieces.extend(more);
        pieces.extend(answer.then_some(Piece::Room(1)));
        self.driver.offer(CONTROL, &pieces);
    }
}

/// A frame for everybody.
fn frame(long: u8, more: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.resize(
        FRAME_MIN + usize::from(long) * 8 + usize::from(more % 8),
        long,
    );
    frame
}
