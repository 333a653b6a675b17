//! An allocator that does what the specification's section 5 says in the most
//! plodding way, to be compared with the real one operation by operation.
//!
//! It tries every slot, each by the words of the specification, and knows no
//! bit tricks.

use swiotlb::Policy;

/// A pool of the model.
pub struct Model {
    /// Bus address of each slot.
    bus: Vec<u64>,
    free: Vec<bool>,
    /// First slot of each area, and the pool's end.
    areas: Vec<usize>,
    cursors: Vec<usize>,
    policy: Policy,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub hint: usize,
    pub orig: u64,
    pub len: u64,
    pub align: u64,
    pub mask: u64,
    pub boundary: u64,
}

/// What the model found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    pub slot: usize,
    pub slots: usize,
    pub address: u64,
}

impl Model {
    pub fn new(bus: Vec<u64>, areas: usize, policy: Policy) -> Self {
        let slots = bus.len();
        let segments = slots.div_ceil(128);
        let area = segments / areas * 128;
        let mut starts: Vec<usize> = (0..areas).map(|index| index * area).collect();
        starts.push(slots);
        Model {
            free: vec![true; slots],
            bus,
            cursors: vec![0; areas],
            areas: starts,
            policy,
        }
    }

    pub fn used(&self) -> u64 {
        self.free.iter().filter(|&&free| !free).count() as u64
    }

    /// Takes slots; `None` if there is no candidate anywhere.
    pub fn map(&mut self, request: &Request) -> Option<Placed> {
        let &Request {
            orig,
            len,
            mask: m,
            boundary: b,
            ..
        } = request;
        let a = request.align - 1;
        let p = orig & m & (a | 2047);
        let t = (len + p).next_multiple_of(a + 1);
        if t > 262_144 {
            return None;
        }
        let n = t.div_ceil(2048) as usize;
        let mut a2 = if a == 0 && m == 0 && t >= 4096 {
            4095
        } else {
            a
        };
        a2 |= 2047;
        let m2 = m & !a2;
        let window = (u128::from(b) + 1) / 2048;
        let accepted = |model: &Model, i: usize, end: usize| {
            let bus = model.bus[i];
            model.free[i]
                && bus & a2 == 0
                && bus & m2 == orig & m2
                && u128::from(bus / 2048) % window + n as u128 <= window
                && i + n <= end
                && i % 128 + n <= 128
                && (i..i + n).all(|j| model.free[j])
                && (i..i + n).all(|j| model.bus[j] == bus + (j - i) as u64 * 2048)
        };
        let count = self.cursors.len();
        for step in 0..count {
            let area = (request.hint + step) % count;
            let (start, end) = (self.areas[area], self.areas[area + 1]);
            let cursor = match self.policy {
                Policy::LowestFirst => 0,
                Policy::NextFit => self.cursors[area],
            };
            let len = end - start;
            let mut order = (cursor..len).chain(0..cursor).map(|offset| start + offset);
            if let Some(i) = order.find(|&i| accepted(self, i, end)) {
                self.free[i..i + n].fill(false);
                self.cursors[area] = (i - start + n) % len;
                return Some(Placed {
                    slot: i,
                    slots: n,
                    address: self.bus[i] + p,
                });
            }
        }
        None
    }

    pub fn unmap(&mut self, placed: &Placed) {
        let slots = &mut self.free[placed.slot..placed.slot + placed.slots];
        assert!(slots.iter().all(|&free| !free));
        slots.fill(true);
    }
}
