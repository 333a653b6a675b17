//! The contenders: this crate, allocate-copy-free, memcpy, and memset for what
//! zeroing costs.

use std::collections::VecDeque;
use std::hint::black_box;
use std::slice::from_ref;

use anyhow::Context;
use serde::Serialize;
use swiotlb::sizing::SLOT_SIZE;
use swiotlb::{Attrs, Direction, Error, Window, Worker};

use crate::bursts::{Outcome, Plan, Subject, take_turns, timed};
use crate::figures::{Figures, Series};
use crate::swiotlb::cases::{Areas, Case, Way};
use crate::swiotlb::stand::{Guest, Setup, Stand, Walk};

/// The factor and the nanoseconds of section 17.4's gate.
const GATE_FACTOR: f64 = 1.10;
const GATE_MORE: f64 = 30.0;

/// What a case came to.
#[derive(Serialize)]
pub struct Row {
    pub case: Case,
    pub ours: Figures,
    /// A zeroed heap buffer for each mapping, copied and freed.
    pub copy_free: Figures,
    /// One copy.
    pub memcpy: Figures,
    /// Ours over one copy.
    pub over_memcpy: Figures,
    pub over_copy_free: Figures,
    /// The gate, and ours over it.
    pub gate: Figures,
    pub over_gate: Figures,
    /// Bursts of each contender.
    pub bursts: usize,
    /// Whether a limit is missed, or these bursts leave it open.
    #[serde(skip)]
    pub is_doubtful: bool,
}

impl Row {
    /// What was to hold and does not.
    pub fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        let mut judge = |what: &str, ratio: f64, most: f64| {
            // a ratio that is no number holds nothing
            if ratio <= most {
                return;
            }
            missed.push(format!(
                "{}: {ratio:.3} × {what}, at most {most} allowed",
                self.case.name()
            ));
        };
        if self.case.is_gated() {
            judge("the gate", self.over_gate.median, 1.0);
        }
        if let Some(linux) = self.case.linux() {
            judge("memcpy, where Linux has", self.over_memcpy.median, linux);
        }
        missed
    }
}

/// The memory that originals are in: of each thread, warm and cold.
pub struct Guests {
    pub hot: Vec<Guest>,
    pub cold: Vec<Guest>,
}

impl Guests {
    /// That of two threads.
    ///
    /// # Errors
    /// Where memory is short.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Guests {
            hot: vec![Guest::hot()?, Guest::hot()?],
            cold: vec![Guest::cold()?, Guest::cold()?],
        })
    }
}

/// A case and all of its bursts so far.
pub struct Measured {
    case: Case,
    outcome: Outcome,
}

impl Measured {
    /// Measures a case; every pair of ours is `burden` steps longer than it has
    /// to be.
    ///
    /// # Errors
    /// The crate's own, and too few processors.
    pub fn new(case: Case, guests: &Guests, plan: &Plan, burden: u32) -> anyhow::Result<Self> {
        let outcome = measure(&case, guests, plan, burden)?;
        Ok(Measured { case, outcome })
    }

    /// Measures it for another time, beside all of the times before.
    ///
    /// # Errors
    /// As [`Measured::new`].
    pub fn again(&mut self, guests: &Guests, plan: &Plan, burden: u32) -> anyhow::Result<()> {
        let later = measure(&self.case, guests, plan, burden)?;
        self.outcome.extend(&later);
        Ok(())
    }

    /// What it came to.
    pub fn row(&self) -> Row {
        row(&self.case, &self.outcome)
    }
}

fn measure(case: &Case, guests: &Guests, plan: &Plan, burden: u32) -> anyhow::Result<Outcome> {
    let stand = Stand::new(Setup {
        areas: match (case.threads, case.areas) {
            (2, Areas::Own) => 2,
            _ => 1,
        },
        pad: case.pad(),
        consumer: case.way.consumer(),
        ..Setup::default()
    })?;
    let guests = if case.cold { &guests.cold } else { &guests.hot };
    let threads = (0..case.threads).zip(guests).map(|(thread, guest)| {
        // what ours is judged by comes right after it
        vec![
            ours(&stand, case, thread, guest, burden),
            memcpy(&stand, case, thread, guest),
            memset(case),
            copy_free(case, guest),
        ]
    });
    let plan = Plan {
        whole: guests.first().map_or(1, |guest| guest.pass(case.size)),
        ..*plan
    };
    take_turns(threads.collect(), &plan)
}

fn row(case: &Case, outcome: &Outcome) -> Row {
    let [ours, memcpy, memset, copy_free] = [0, 1, 2, 3].map(|contender| outcome.of(contender));
    let zeroed = match case.padding() {
        0 => memset.times(0.0),
        _ => memset,
    };
    let gate = gate(case, &memcpy, &zeroed);
    let (over_memcpy, over_gate) = (ours.over(&memcpy), ours.over(&gate));
    let mut row = Row {
        case: *case,
        bursts: ours.len(),
        is_doubtful: false,
        over_memcpy: over_memcpy.figures(),
        over_copy_free: ours.over(&copy_free).figures(),
        over_gate: over_gate.figures(),
        ours: ours.figures(),
        copy_free: copy_free.figures(),
        memcpy: memcpy.figures(),
        gate: gate.figures(),
    };
    let linux = case.linux();
    row.is_doubtful = !row.missed().is_empty()
        || case.is_gated() && over_gate.leaves_open(1.0)
        || linux.is_some_and(|linux| over_memcpy.leaves_open(linux));
    row
}

/// What a pair may take, burst by burst.
fn gate(case: &Case, memcpy: &Series, zeroed: &Series) -> Series {
    let copies = memcpy.times(f64::from(case.way.copies()));
    copies.plus(zeroed).times(GATE_FACTOR).and(GATE_MORE)
}

/// The crate: `depth` mappings are open, the oldest one is ended for each that
/// is made.
fn ours<'a>(
    stand: &Stand,
    case: &Case,
    thread: usize,
    guest: &'a Guest,
    burden: u32,
) -> Subject<'a> {
    let worker = stand.device.worker(thread);
    let case = *case;
    let mut originals = guest.walk(case.size);
    timed(move |operations| {
        let window = Window::new(0, guest.all()?);
        let mut work = Work {
            worker: &worker,
            window: &window,
            originals: &mut originals,
            size: case.size,
            direction: case.way.direction(),
            burden,
        };
        match (case.depth, case.way) {
            (1, Way::FromDeclared) => work.one_declared(operations)?,
            (1, _) => work.one(operations)?,
            (depth, _) => work.many(operations, usize::try_from(depth)?)?,
        }
        Ok(())
    })
}

/// The loops, each a function of its own: what is between map and unmap is what
/// a careful caller has there.
struct Work<'a> {
    worker: &'a Worker,
    window: &'a Window<'a>,
    originals: &'a mut Walk,
    size: u64,
    direction: Direction,
    burden: u32,
}

/// What makes a pair longer: steps that wait for each other. The processor does
/// the first of them beside what is before and after.
#[inline(always)]
fn carry(burden: u32) {
    let mut step = burden;
    while step > 0 {
        step = black_box(step) - 1;
    }
}

impl Work<'_> {
    #[inline(never)]
    fn one(&mut self, operations: u64) -> Result<(), Error> {
        let (worker, window, attrs) = (self.worker, self.window, Attrs::default());
        let burden = self.burden;
        for _ in 0..operations {
            let original = self.originals.next();
            carry(burden);
            let mapping = worker.map(window, original, self.size, self.direction, &attrs)?;
            black_box(mapping.dma_address());
            mapping.unmap(window)?;
        }
        Ok(())
    }

    #[inline(never)]
    fn one_declared(&mut self, operations: u64) -> Result<(), Error> {
        let (worker, window, attrs) = (self.worker, self.window, Attrs::default());
        let burden = self.burden;
        let written = 0..self.size;
        for _ in 0..operations {
            let original = self.originals.next();
            carry(burden);
            let mapping = worker.map(window, original, self.size, self.direction, &attrs)?;
            black_box(mapping.dma_address());
            mapping.unmap_written(window, black_box(from_ref(&written)))?;
        }
        Ok(())
    }

    #[inline(never)]
    fn many(&mut self, operations: u64, depth: usize) -> Result<(), Error> {
        let (worker, window, attrs) = (self.worker, self.window, Attrs::default());
        let burden = self.burden;
        let mut open: Vec<_> = (0..depth).map(|_| None).collect();
        let mut places = (0..depth).cycle();
        for _ in 0..operations {
            let original = self.originals.next();
            carry(burden);
            let mapping = worker.map(window, original, self.size, self.direction, &attrs)?;
            black_box(mapping.dma_address());
            let place = places.next().and_then(|place| open.get_mut(place));
            if let Some(place) = place
                && let Some(oldest) = place.replace(mapping)
            {
                oldest.unmap(window)?;
            }
        }
        open.into_iter()
            .flatten()
            .try_for_each(|mapping| mapping.unmap(window))
    }
}

/// QEMU's way: a zeroed buffer of the heap for each mapping; copied to before
/// the device reads it, or from after the device wrote it; freed.
fn copy_free<'a>(case: &Case, guest: &'a Guest) -> Subject<'a> {
    let &Case {
        way, size, depth, ..
    } = case;
    let direction = way.direction();
    let mut originals = guest.walk(size);
    timed(move |operations| {
        let (guest, bytes) = (guest.all()?, usize::try_from(size)?);
        let end = |address: usize, buffer: Vec<u8>| -> anyhow::Result<()> {
            if direction.from_device() {
                guest.subslice(address, bytes)?.copy_from(&buffer);
            }
            Ok(())
        };
        let mut open = VecDeque::with_capacity(usize::try_from(depth)? + 1);
        for _ in 0..operations {
            let address = usize::try_from(originals.next())?;
            let mut buffer = vec![0u8; black_box(bytes)];
            if direction.to_device() {
                guest.subslice(address, bytes)?.copy_to(&mut buffer);
            }
            black_box(&mut buffer);
            if depth == 1 {
                end(address, buffer)?;
                continue;
            }
            open.push_back((address, buffer));
            if open.len() as u64 > depth
                && let Some((address, buffer)) = open.pop_front()
            {
                end(address, buffer)?;
            }
        }
        open.into_iter()
            .try_for_each(|(address, buffer)| end(address, buffer))
    })
}

/// The physical limit: one copy from the same originals to the very bytes that
/// the pool gives out, as many places in turn as mappings are open. Out of the
/// caches, in the other direction where that is the only one: memory that is
/// written makes one way more than memory that is read.
fn memcpy<'a>(stand: &Stand, case: &Case, thread: usize, guest: &'a Guest) -> Subject<'a> {
    let &Case {
        way, size, depth, ..
    } = case;
    let pool = stand.pool.clone();
    let step = size.next_multiple_of(SLOT_SIZE);
    let apart = match case.areas {
        Areas::Own => pool.len() / case.threads as u64,
        Areas::Shared => step * depth,
    };
    let mut originals = guest.walk(size);
    let mut places = Walk::of(apart * thread as u64, step, depth);
    let back = case.cold && way == Way::FromDeclared;
    timed(move |operations| {
        let guest = guest.all()?;
        let pool = pool.slice(0, pool.len()).context("the pool")?;
        let bytes = usize::try_from(size)?;
        for _ in 0..operations {
            let original = guest.subslice(usize::try_from(originals.next())?, bytes)?;
            let place = pool.subslice(usize::try_from(places.next())?, bytes)?;
            match back {
                true => black_box(place).copy_to_volatile_slice(original),
                false => black_box(original).copy_to_volatile_slice(place),
            }
        }
        Ok(())
    })
}

/// What zeroing the padding costs. Of no padding it is never counted, and
/// measured all the same so that the contenders are the same ones.
fn memset<'a>(case: &Case) -> Subject<'a> {
    let padding = case.padding();
    timed(move |operations| {
        let mut bytes = vec![1u8; usize::try_from(padding)?];
        for _ in 0..operations {
            black_box(&mut bytes).fill(0);
        }
        Ok(())
    })
}
