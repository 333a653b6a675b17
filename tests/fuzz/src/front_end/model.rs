//! What a queue's ring before a back end must be: the requests that it was
//! shown, where they are, and what its used entries mean.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::hands::{Hands, Place};

static ZEROES: [u8; 4096] = [0; 4096];

/// A chain that the driver has offered.
pub struct Chain {
    head: u16,
    number: u64,
    pub readable: Vec<u8>,
    writable: Vec<(u64, u64)>,
    pub room: u64,
    /// How many buffers it has.
    pub pieces: usize,
}

impl Chain {
    pub fn new(head: u16, number: u64) -> Self {
        Chain {
            head,
            number,
            readable: Vec::new(),
            writable: Vec::new(),
            room: 0,
            pieces: 0,
        }
    }

    /// What the driver writes for the device: nothing like it is elsewhere.
    pub fn fill(&self, piece: usize, bytes: &mut [u8]) {
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = (self.number as usize * 37 + piece * 11 + at * 3 + at / 256) as u8 | 1;
        }
    }

    pub fn push_readable(&mut self, bytes: &[u8]) {
        self.readable.extend_from_slice(bytes);
        self.pieces += 1;
    }

    pub fn push_writable(&mut self, address: u64, len: u64) {
        self.writable.push((address, len));
        self.room += len;
        self.pieces += 1;
    }
}

/// A request that the back end has.
pub struct Open {
    chain: Chain,
    places: Vec<Place>,
    /// Whatever memory it has: buffers and table.
    spans: Vec<u64>,
}

impl Open {
    /// Bytes that the back end may write.
    pub fn room(&self) -> u64 {
        self.chain.room
    }

    /// Where.
    pub fn places(&self) -> &[Place] {
        &self.places
    }
}

/// A request that is done.
pub struct Done {
    chain: Chain,
    declared: u32,
    bytes: Vec<u8>,
}

impl Done {
    /// What the driver finds in its used ring.
    pub fn told(&self) -> (u16, u32) {
        (self.chain.head, self.declared)
    }

    /// What is written to the guest's memory.
    pub fn written(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut bytes = &self.bytes[..];
        self.chain.writable.iter().map(move |(address, len)| {
            let now = bytes.len().min(*len as usize);
            let (part, rest) = bytes.split_at(now);
            bytes = rest;
            (*address, part)
        })
    }
}

/// What must come of the used ring as it is.
#[derive(Default)]
pub struct Foretold {
    pub done: Vec<Done>,
    /// Then a rule is broken.
    pub violated: bool,
}

/// A ring that the worker has a way to.
pub struct Lane {
    pub hands: Rc<RefCell<Hands>>,
    pub flights: BTreeMap<u16, Open>,
    /// Memory in use: start and end of each buffer.
    spans: BTreeMap<u64, u64>,
    shown: u16,
    used: u16,
    /// Heads that were used last.
    pub past: u16,
}

impl Lane {
    pub fn new(hands: Rc<RefCell<Hands>>) -> Self {
        Lane {
            hands,
            flights: BTreeMap::new(),
            spans: BTreeMap::new(),
            shown: 0,
            used: 0,
            past: 0,
        }
    }

    /// Takes the used entries that are there; with `whole` all of a buffer
    /// counts as written.
    pub fn foretell(&mut self, whole: bool) -> Foretold {
        let hands = self.hands.borrow();
        let ahead = hands.used_index().wrapping_sub(self.used);
        let mut foretold = Foretold::default();
        if usize::from(ahead) > self.flights.len() {
            foretold.violated = true;
            return foretold;
        }
        for number in 0..ahead {
            let (id, len) = hands.used_entry(self.used.wrapping_add(number));
            let head = u16::try_from(id).unwrap_or(u16::MAX);
            let Some(open) = self.flights.get(&head).filter(|_| id == u32::from(head)) else {
                foretold.violated = true;
                return foretold;
            };
            let room = open.chain.room;
            // it is not to be believed, or it means what was read
            let declared = if whole || room == 0 {
                room.min(len.into())
            } else {
                len.into()
            };
            if declared > room {
                foretold.violated = true;
                return foretold;
            }
            let mut left = if whole { room } else { declared };
            let mut bytes = Vec::new();
            for place in open.places.iter().filter(|place| place.writable) {
                let now = left.min(place.len);
                bytes.extend_from_slice(&hands.read(place.address, now));
                left -= now;
            }
            let open = self.flights.remove(&head).expect("it is open");
            for start in &open.spans {
                self.spans.remove(start);
            }
            self.past = head;
            foretold.done.push(Done {
                chain: open.chain,
                declared: declared as u32,
                bytes,
            });
        }
        self.used = self.used.wrapping_add(ahead);
        foretold
    }

    /// Looks at requests of `waiting` that have been shown since: each in its
    /// turn, whole, in memory of its own, and with nothing in it that is not
    /// its own.
    pub fn look(&mut self, waiting: &mut VecDeque<Chain>) {
        let hands = Rc::clone(&self.hands);
        let mut hands = hands.borrow_mut();
        let (old, new) = (self.shown, hands.avail_index());
        let must = hands.wants_kick(old, new);
        assert_eq!(
            hands.was_kicked(),
            must,
            "a kick that is wanted, and no other"
        );
        while self.shown != new {
            let head = hands.available(self.shown);
            self.shown = self.shown.wrapping_add(1);
            let chain = waiting.pop_front().expect("what is shown was offered");
            let open = self.open(&hands, head, chain);
            let before = self.flights.insert(head, open);
            assert!(before.is_none(), "a head in use is used again");
        }
    }

    fn open(&mut self, hands: &Hands, head: u16, chain: Chain) -> Open {
        let (places, table) = hands.places(head);
        let mut spans = Vec::new();
        let everything = places.iter().chain(&table);
        for place in everything.filter(|place| place.len > 0) {
            assert!(hands.has(*place), "it is elsewhere than in the pool");
            let end = place.address + place.len;
            let before = self.spans.range(..end).next_back();
            assert!(
                before.is_none_or(|(_, used)| *used <= place.address),
                "memory in use is used again"
            );
            self.spans.insert(place.address, end);
            spans.push(place.address);
            assert!(
                is_zero(&hands.behind(*place)),
                "something of another request is behind it"
            );
        }
        let first = places.iter().position(|place| place.writable);
        let (readable, writable) = places.split_at(first.unwrap_or(places.len()));
        assert!(
            writable.iter().all(|place| place.writable),
            "reads come first"
        );
        assert!(
            all(hands, readable) == chain.readable,
            "it reads something else"
        );
        let room: u64 = writable.iter().map(|place| place.len).sum();
        assert_eq!(room, chain.room, "it may write more, or less");
        assert!(
            is_zero(&all(hands, writable)),
            "what it is to write is not zero"
        );
        Open {
            chain,
            places,
            spans,
        }
    }

    /// What the back end has not done, in its order.
    pub fn left(self) -> Vec<Chain> {
        let mut left: Vec<Chain> = self.flights.into_values().map(|open| open.chain).collect();
        left.sort_by_key(|chain| chain.number);
        left
    }
}

/// What is in these buffers.
fn all(hands: &Hands, places: &[Place]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for place in places {
        bytes.extend_from_slice(&hands.read(place.address, place.len));
    }
    bytes
}

/// Compared and not counted, which is as fast as a copy.
fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(ZEROES.len())
        .all(|part| *part == ZEROES[..part.len()])
}
