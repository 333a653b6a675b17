//! A back end without manners before a guest's driver that has them: what it
//! says in messages, and what it does to the memory that it is given.
//!
//! Session, worker, driver and back end move in turn on this thread: nothing
//! waits, and what happens depends on the input alone. By default everything
//! goes as it should, up to requests that are served; an input's records are
//! what happens besides ([`script`]).
//!
//! Before each turn of the worker it is told from the ring what must come of it
//! ([`model`]): which requests are done, with how many bytes, and whether a rule
//! is broken. Afterwards all of the guest's memory is compared ([`guest`]). What
//! the back end is shown has to be what the driver offered, zeroed, in memory
//! that nothing else uses. Nobody may speak with a back end any more that has
//! given an answer that is none ([`odd`]). In the end a back end that does all it
//! should serves everything that is open, and a pool of which nothing has been
//! lost; and so it does after a reset, at least where a rule was broken.

mod back_end;
mod guest;
mod hands;
mod model;
mod odd;

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;

use devices::vhost_user::frontend::by_hand::Pause;
use devices::vhost_user::frontend::config::{AfterRestart, CopyBack};
use devices::vhost_user::frontend::{VhostUserConfig, VhostUserDevice};
use devices::virtio::Device;

use back_end::{BackEnd, Character, VERSION};
use guest::{Guest, Piece, RINGS};
use hands::Hands;
use odd::{Odd, Spoken};

use crate::script::{Record, Script};

/// Descriptors of the back end's ring: fewer than the guest's has, so that
/// requests wait.
const SHADOW: u16 = 16;
/// Rounds in which a back end that does all it should has served everything: a
/// driver's ring, of which one request fills the back end's ring if it knows no
/// tables, and what it takes until the back end is there.
const ROUNDS: usize = 64;
/// A record whose number has this lets the session sleep afterwards; and with
/// this the worker.
const SESSION_SLEEPS: u8 = 0x80;
const WORKER_SLEEPS: u8 = 0x40;
/// Buffers of a request that takes a sixteenth of the pool: a page each, and one
/// for their table.
const SIXTEENTH: usize = 15;
/// Bytes of a quarter of the pool: the longest buffer that there is.
const QUARTER: u32 = 1 << 18;

/// What a story is at.
enum Stage {
    /// Its records.
    Records,
    /// Everything is to be served; so many rounds are left.
    Serving(usize),
    /// The same, behind a reset.
    Again(usize),
    Over,
}

struct World {
    script: Script,
    stage: Stage,
    back_end: BackEnd,
    /// What it is at the end.
    usual: Character,
    guest: Option<Guest>,
    /// Bytes that may stand in its configuration space.
    known: HashSet<u8>,
    floods: bool,
    again: bool,
}

/// Plays a story; what it finds is a failed assertion, or an end that does not
/// come.
pub fn play(input: &[u8]) {
    let mut script = Script::new(input);
    let head = script.next().unwrap_or_default();
    let usual = Character::new(head.a, head.b);
    let back_end = BackEnd::new(usual);
    let (whole, resets) = (head.what & 1 != 0, head.what & 2 != 0);
    let config = VhostUserConfig {
        queue_size: SHADOW,
        pool_mib: 1,
        copy_back: if whole {
            CopyBack::Whole
        } else {
            CopyBack::Declared
        },
        after_restart: if resets {
            AfterRestart::Reset
        } else {
            AfterRestart::Repeat
        },
        ..VhostUserConfig::new(back_end.socket(), 42)
    };
    let spec = config.validate().expect("a configuration");
    let (device, session) = VhostUserDevice::by_hand(spec).expect("a device");
    let mut world = World {
        script,
        stage: Stage::Records,
        back_end,
        usual,
        guest: Some(Guest::new(device, whole, resets)),
        known: HashSet::from([0, usual.config]),
        floods: head.what & 4 != 0,
        again: head.what & 8 != 0,
    };
    // the first words have their oddities before they are said
    for _ in 0..head.c % 16 {
        if let Some(record) = world.script.next() {
            world.arm(record);
        }
    }
    session.run(move |pause| world.moves(pause));
}

impl World {
    fn moves(&mut self, pause: Pause) {
        if pause == Pause::Told {
            self.back_end.hear();
            return;
        }
        let Some(mut guest) = self.guest.take() else {
            return;
        };
        if let (Stage::Again(rounds), Pause::Away, false) = (&mut self.stage, pause, guest.is_up())
        {
            // its driver comes up when there is a back end again: one that is
            // another device than the last one may be it from then on
            assert!(*rounds > 0, "no back end comes back");
            *rounds -= 1;
            self.guest = Some(guest);
            return;
        }
        if !guest.is_up() {
            guest.start(&mut self.back_end);
            guest.offer(&[readable(40), writable(300)]);
        }
        match self.stage {
            Stage::Records => self.play_records(&mut guest),
            Stage::Serving(rounds) => self.serve_all(&mut guest, rounds, false),
            Stage::Again(rounds) => self.serve_all(&mut guest, rounds, true),
            Stage::Over => return,
        }
        // the session ends when the device is gone
        if !matches!(self.stage, Stage::Over) {
            self.guest = Some(guest);
        }
    }

    fn play_records(&mut self, guest: &mut Guest) {
        loop {
            let Some(record) = self.script.next() else {
                self.back_end.odd.clear();
                self.back_end.character = self.usual;
                self.stage = Stage::Serving(ROUNDS);
                return;
            };
            self.play_one(guest, record);
            if record.what & WORKER_SLEEPS == 0 {
                guest.turn(&self.back_end);
            }
            if record.what & SESSION_SLEEPS == 0 {
                return;
            }
        }
    }

    fn play_one(&mut self, guest: &mut Guest, record: Record) {
        let Record { a, b, c, .. } = record;
        match record.what % 16 {
            0 => {}
            1 | 2 => {
                guest.offer(&pieces(record));
            }
            3 => {
                guest.offer(&vec![long_piece(); usize::from(a % 40) + 1]);
            }
            4 | 5 => use_one(guest, record),
            6 => use_all(guest, a),
            7 => on_ring(guest, |hands| {
                hands.next = hands.next.wrapping_add_signed((a as i8).into());
                hands.show();
            }),
            8 => on_ring(guest, |hands| {
                hands.scribble(record.word(), &vec![c; usize::from(c % 16) + 1]);
            }),
            9 => on_ring(guest, |hands| hands.fill(a)),
            10 => on_ring(guest, |hands| hands.set_event(c.into(), record.word())),
            11 => {
                let bytes = vec![c; usize::from(b % 9)];
                self.known.insert(c);
                guest.device().write_config(a.into(), &bytes);
                guest.read_config(&self.known);
            }
            12 => self.arm(record),
            13 => self.speak(record),
            14 => {
                // it comes back, perhaps as another one
                self.back_end.end();
                self.back_end.character.features ^= u64::from(c & 1) << 9 | u64::from(c & 2) << 4;
                self.back_end.character.features ^= u64::from(c & 4) << 53;
                self.known.insert(b);
                if b != 0 {
                    self.back_end.character.config = b;
                }
            }
            _ if guest.rings + 1 < RINGS => {
                guest.stop();
                // the session may see that it was down, or not
                if a & 1 == 0 {
                    guest.start(&mut self.back_end);
                }
            }
            _ => {}
        }
    }

    /// Has an odd answer said: record.a answers from now on.
    fn arm(&mut self, record: Record) {
        self.known.extend([record.c, 0xff]);
        self.back_end
            .odd
            .push((record.a, Odd::new(record.b, record.c)));
    }

    /// Says what nobody has asked for.
    fn speak(&mut self, record: Record) {
        let Record { a, b, c, .. } = record;
        let mut spoken = Spoken {
            // the configuration space has changed
            code: 2,
            flags: VERSION,
            ..Spoken::default()
        };
        match a % 8 {
            0 => {
                self.back_end.character.config = c;
                self.known.insert(c);
            }
            1 => spoken.flags |= 1 << 3,
            2 => spoken.code = c.into(),
            3 => spoken.flags = c.into(),
            4 => spoken.size = Some(u32::from(c) << (b % 32)),
            5 => spoken.body = vec![c; b.into()],
            6 => spoken.files = c % 12,
            _ => {
                self.back_end.ask(None);
                return;
            }
        }
        match a & 8 {
            0 => self.back_end.ask(Some(&spoken)),
            _ => self.back_end.say(&spoken),
        }
    }

    /// A back end that does all it should serves what is open, a full pool, and a
    /// device that was reset.
    fn serve_all(&mut self, guest: &mut Guest, rounds: usize, again: bool) {
        guest.turn(&self.back_end);
        use_all(guest, 0xff);
        guest.turn(&self.back_end);
        if guest.is_broken() || guest.needs_reset() {
            assert!(!again, "a device that was reset is not served");
            self.go_on(guest, true);
            return;
        }
        if !guest.is_served() || guest.open() > 0 {
            assert!(rounds > 0, "{} requests are never served", guest.open());
            self.stage = match again {
                true => Stage::Again(rounds - 1),
                false => Stage::Serving(rounds - 1),
            };
            return;
        }
        if self.floods {
            self.flood(guest);
        }
        self.go_on(guest, !again && self.again);
    }

    /// Has the device reset and served once more, or taken away.
    fn go_on(&mut self, guest: &mut Guest, again: bool) {
        guest.stop();
        self.stage = Stage::Over;
        if again {
            self.stage = Stage::Again(ROUNDS);
        }
    }

    /// All of the pool is there, if nothing of it was lost.
    fn flood(&mut self, guest: &mut Guest) {
        let lane = guest.lane.as_ref().expect("it is served");
        if !lane.hands.borrow().indirect {
            return;
        }
        // page by page, and then in buffers for which no page may be kept
        let pages = [long_piece(); SIXTEENTH];
        let quarters = [Piece {
            len: QUARTER,
            ..long_piece()
        }; 4];
        for (count, chain) in [(usize::from(SHADOW), &pages[..]), (1, &quarters)] {
            for _ in 0..count {
                assert!(guest.offer(chain), "there is memory");
            }
            guest.turn(&self.back_end);
            let flights = guest.lane.as_ref().map_or(0, |lane| lane.flights.len());
            assert_eq!(flights, count, "a part of the pool is lost");
            use_all(guest, 0);
            guest.turn(&self.back_end);
            assert_eq!(guest.open(), 0, "a flood is served");
        }
    }
}

fn readable(len: u32) -> Piece {
    Piece {
        len,
        writable: false,
        granted: false,
        again: false,
    }
}

fn writable(len: u32) -> Piece {
    Piece {
        writable: true,
        ..readable(len)
    }
}

/// One that has a page to itself; all of a request are the same memory.
fn long_piece() -> Piece {
    Piece {
        again: true,
        ..readable(257)
    }
}

/// Up to three buffers each way.
fn pieces(record: Record) -> Vec<Piece> {
    let Record { what, a, b, c } = record;
    let (reads, writes) = (a & 3, a >> 2 & 3);
    let granted = a & 16 != 0;
    // short ones lie in a cell, long ones have pages
    let len = |byte: u8, at: u8| {
        let len = u32::from(byte) + u32::from(at) * 7 + 1;
        if what % 16 == 2 { len * 33 } else { len }
    };
    let reads = (0..reads).map(|at| readable(len(b, at)));
    let writes = (0..writes.max(u8::from(a & 3 == 0))).map(|at| writable(len(c, at)));
    let pieces = reads.chain(writes);
    pieces.map(|piece| Piece { granted, ..piece }).collect()
}

/// The back end uses one entry: of a request or of none, with a length that fits
/// or not.
fn use_one(guest: &mut Guest, record: Record) {
    let Some(lane) = &mut guest.lane else { return };
    let Record { what, a, b, c } = record;
    let heads: Vec<u16> = lane.flights.keys().copied().collect();
    let nth = |at: u8| heads.get(usize::from(at) % heads.len().max(1)).copied();
    let known = u32::from(nth(a).unwrap_or(0));
    let id = match a / 32 {
        0..=3 => known,
        4 => lane.past.into(),
        5 => known + u32::from(SHADOW) * (u32::from(a % 32) + 1),
        6 => known | 1 << (16 + a % 16),
        _ => a.into(),
    };
    let open = u16::try_from(id).ok().and_then(|id| lane.flights.get(&id));
    let room = open.map_or(0, |open| open.room() as u32);
    let more = u32::from(c);
    let len = match b % 8 {
        0 => room,
        1 => room.saturating_sub(more),
        2 => more.min(room),
        3 => room + more,
        4 => room + (more << 4),
        5 => more << 24 | room,
        6 => more.wrapping_mul(0x0101_0101),
        _ => 0,
    };
    let mut hands = lane.hands.borrow_mut();
    for place in open.map_or(&[][..], |open| open.places()) {
        if place.writable {
            let bytes: Vec<u8> = (0..place.len).map(|at| (at as u8 ^ c) | 0x80).collect();
            hands.write(place.address, &bytes);
        }
    }
    hands.use_one(id, len);
    // the next one may come with it
    if what % 16 == 4 {
        hands.show();
    }
}

/// The back end does all that it has, the newest first or the oldest.
fn use_all(guest: &mut Guest, byte: u8) {
    let Some(lane) = &guest.lane else { return };
    let mut hands = lane.hands.borrow_mut();
    let mut flights: Vec<_> = lane.flights.iter().collect();
    if byte & 1 != 0 {
        flights.reverse();
    }
    for (head, open) in flights {
        for place in open.places().iter().filter(|place| place.writable) {
            hands.write(place.address, &vec![byte; place.len as usize]);
        }
        hands.use_one((*head).into(), open.room() as u32);
    }
    hands.show();
}

/// Does something to the ring, if there is one.
fn on_ring(guest: &mut Guest, act: impl FnOnce(&mut Hands)) {
    if let Some(lane) = &guest.lane {
        let hands: &Rc<RefCell<Hands>> = &lane.hands;
        act(&mut hands.borrow_mut());
    }
}
