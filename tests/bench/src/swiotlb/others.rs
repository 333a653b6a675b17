//! What is not a pair of map and unmap with a copy: the allocator alone,
//! decisions, other threads.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde::Serialize;
use swiotlb::allocator::PadPolicy;
use swiotlb::options::DEFAULT_SLOTS;
use swiotlb::sizing::SLOT_SIZE;
use swiotlb::space::FrameTable;
use swiotlb::{
    AddressSpace, Attrs, Base, Device, Direction, Error, Mapping, Originals, PAGE_SIZE, PoolMemory,
    Window, Worker,
};

use crate::bursts::{Plan, Subject, idle, take_turns, timed};
use crate::figures::{Figures, Series};
use crate::swiotlb::pairs::Guests;
use crate::swiotlb::stand::{Guest, Nothing, Setup, Stand};

/// Figures beside what is expected of them.
#[derive(Serialize)]
pub struct Row {
    pub name: String,
    pub ours: Figures,
    /// What it is compared with, and the ratio.
    pub beside: Option<(&'static str, Figures, Figures)>,
    pub target: Target,
}

/// What section 17.4 expects.
#[derive(Clone, Copy, Serialize)]
pub enum Target {
    /// Nanoseconds at most, on its machine.
    Nanoseconds(f64),
    /// At most as many times what it is compared with.
    Ratio(f64),
    /// Nothing: shown for comparison.
    Shown,
}

impl Row {
    fn alone(name: impl Into<String>, ours: &Series, target: Target) -> Self {
        Row {
            name: name.into(),
            ours: ours.figures(),
            beside: None,
            target,
        }
    }

    fn beside(
        name: impl Into<String>,
        ours: &Series,
        what: &'static str,
        other: &Series,
        target: Target,
    ) -> Self {
        let ratio = ours.over(other).figures();
        Row {
            beside: Some((what, other.figures(), ratio)),
            ..Row::alone(name, ours, target)
        }
    }
}

/// Measures what is chosen by name, and shows each row as it comes.
///
/// # Errors
/// The crate's own, and too few processors.
pub fn measure(
    guests: &Guests,
    plan: &Plan,
    chosen: &impl Fn(&str) -> bool,
    mut show: impl FnMut(Row),
) -> anyhow::Result<()> {
    type Measure<'a> = Box<dyn Fn(&str) -> anyhow::Result<Vec<Row>> + 'a>;
    let all: [(&str, Measure<'_>); 11] = [
        (
            "allocator alone, 1 slot",
            Box::new(|name| allocator_alone(name, 512, 25.0, plan)),
        ),
        (
            "allocator alone, 2 slots",
            Box::new(|name| allocator_alone(name, 4096, 25.0, plan)),
        ),
        (
            "allocator alone, 128 slots",
            Box::new(|name| allocator_alone(name, 262_144, 40.0, plan)),
        ),
        (
            "512 B to device, 2 threads",
            Box::new(|name| beside_one_thread(name, 512, guests, plan)),
        ),
        (
            "4 KiB to device, 2 threads",
            Box::new(|name| beside_one_thread(name, 4096, guests, plan)),
        ),
        (
            "512 B to device, 2 threads, high-water mark",
            Box::new(|name| hiwater(name, guests, plan)),
        ),
        (
            "4 KiB to device, unmapped by another thread, 32 at a time",
            Box::new(|name| other_thread(name, 32, guests, plan)),
        ),
        (
            "4 KiB to device, unmapped by another thread, 1 at a time",
            Box::new(|name| other_thread(name, 1, guests, plan)),
        ),
        (
            "decision and pass-through, 1:1",
            Box::new(|name| pass_through(name, plan)),
        ),
        (
            "decision, translated, 64 frames in a row",
            Box::new(|name| translated(name, plan)),
        ),
        (
            "refusal by a full pool, 64 MiB in 16 areas",
            Box::new(|name| full(name, plan)),
        ),
    ];
    for (name, measure) in all.iter().filter(|(name, _)| chosen(name)) {
        measure(name)?.into_iter().for_each(&mut show);
    }
    Ok(())
}

/// Map and unmap, the originals all the same one.
fn pairs<'a>(worker: Worker, guest: &'a Guest, size: u64) -> Subject<'a> {
    timed(move |operations| {
        let window = Window::new(0, guest.all()?);
        Ok(repeat(&worker, &window, size, operations)?)
    })
}

/// Map and unmap without a copy.
fn pairs_alone<'a>(worker: Worker, size: u64) -> Subject<'a> {
    timed(move |operations| Ok(repeat(&worker, &Nothing, size, operations)?))
}

#[inline(never)]
fn repeat(
    worker: &Worker,
    originals: &impl Originals,
    size: u64,
    operations: u64,
) -> Result<(), Error> {
    let attrs = Attrs::default();
    for _ in 0..operations {
        let mapping = worker.map(originals, 0x1000, size, Direction::ToDevice, &attrs)?;
        black_box(mapping.dma_address());
        mapping.unmap(originals)?;
    }
    Ok(())
}

/// A stand whose pool leaves padding alone, as the targets at 512 bytes do.
fn trusted(setup: Setup) -> anyhow::Result<Stand> {
    Stand::new(Setup {
        pad: PadPolicy::Trusted,
        ..setup
    })
}

fn allocator_alone(name: &str, size: u64, target: f64, plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let stand = trusted(Setup::default())?;
    let outcome = take_turns(vec![vec![pairs_alone(stand.device.worker(0), size)]], plan)?;
    let target = Target::Nanoseconds(target);
    Ok(vec![Row::alone(name, &outcome.of(0), target)])
}

/// Two threads on their own areas, on one, and one of them alone.
fn beside_one_thread(
    name: &str,
    size: u64,
    guests: &Guests,
    plan: &Plan,
) -> anyhow::Result<Vec<Row>> {
    let own = trusted(Setup {
        areas: 2,
        ..Setup::default()
    })?;
    let shared = trusted(Setup::default())?;
    let threads = guests.hot.iter().enumerate().map(|(thread, guest)| {
        let one = match thread {
            0 => pairs(own.device.worker(0), guest, size),
            _ => idle(),
        };
        vec![
            one,
            pairs(own.device.worker(thread), guest, size),
            pairs(shared.device.worker(thread), guest, size),
        ]
    });
    let outcome = take_turns(threads.collect(), plan)?;
    let one = outcome.of_thread(0, 0);
    let row = |place, contender, most| {
        let name = format!("{name}, {place}");
        Row::beside(name, &outcome.of(contender), "1 thread", &one, most)
    };
    let one_area = if size == 4096 {
        Target::Ratio(2.5)
    } else {
        Target::Shown
    };
    Ok(vec![
        row("own areas", 1, Target::Ratio(1.10)),
        row("one area", 2, one_area),
    ])
}

fn hiwater(name: &str, guests: &Guests, plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let stand = |hiwater| {
        trusted(Setup {
            areas: 2,
            hiwater,
            ..Setup::default()
        })
    };
    let (on, off) = (stand(true)?, stand(false)?);
    let threads = guests.hot.iter().enumerate().map(|(thread, guest)| {
        vec![
            pairs(on.device.worker(thread), guest, 512),
            pairs(off.device.worker(thread), guest, 512),
        ]
    });
    let outcome = take_turns(threads.collect(), plan)?;
    let (with, without) = (outcome.of(0), outcome.of(1));
    let most = Target::Ratio(2.0);
    Ok(vec![Row::beside(name, &with, "without it", &without, most)])
}

/// Mappings that one thread makes and another one ends, so many at a time,
/// beside mappings that the same thread ends.
fn other_thread(
    name: &str,
    batch: usize,
    guests: &Guests,
    plan: &Plan,
) -> anyhow::Result<Vec<Row>> {
    let stand = trusted(Setup::default())?;
    let local = trusted(Setup::default())?;
    let (guest, own) = match &guests.hot[..] {
        [guest, own, ..] => (guest, own),
        _ => anyhow::bail!("two guests are needed"),
    };
    let between = Arc::new(Between::default());
    let threads = vec![
        vec![
            maps(stand.device.worker(0), guest, batch, Arc::clone(&between)),
            idle(),
        ],
        vec![
            ends(guest, between),
            maps_and_ends(local.device.worker(0), own, batch),
        ],
    ];
    let outcome = take_turns(threads, plan)?;
    let pair = outcome.of_thread(0, 0).plus(&outcome.of_thread(1, 0));
    let each = 1.0 / batch as f64;
    let (pair, local) = (pair.times(each), outcome.of_thread(1, 1).times(each));
    let most = Target::Ratio(2.0);
    Ok(vec![Row::beside(name, &pair, "by the same", &local, most)])
}

/// Mappings on their way to another thread.
#[derive(Default)]
struct Between {
    mappings: Mutex<Vec<Mapping<Arc<Device>>>>,
    /// Whether they are with the thread that ends them.
    over: AtomicBool,
}

impl Between {
    /// Waits until the mappings are on one side.
    fn wait(&self, over: bool) {
        let mut looks = 0u32;
        while self.over.load(Ordering::Acquire) != over {
            looks += 1;
            match looks % 1024 {
                0 => std::thread::yield_now(),
                _ => std::hint::spin_loop(),
            }
        }
    }

    /// Hands them to the other side after `work`, whose time counts.
    fn work(
        &self,
        over: bool,
        work: impl FnOnce(&mut Vec<Mapping<Arc<Device>>>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Duration> {
        self.wait(over);
        let mut mappings = self.mappings.lock().unwrap_or_else(PoisonError::into_inner);
        let start = Instant::now();
        let done = work(&mut mappings);
        let took = start.elapsed();
        drop(mappings);
        // even after a failure: the other side waits
        self.over.store(!over, Ordering::Release);
        done.map(|()| took)
    }
}

fn map_batch(
    worker: &Worker,
    guest: &Guest,
    batch: usize,
    mappings: &mut Vec<Mapping<Arc<Device>>>,
) -> anyhow::Result<()> {
    let window = Window::new(0, guest.all()?);
    for _ in 0..batch {
        let (way, attrs) = (Direction::ToDevice, Attrs::default());
        mappings.push(worker.map_owned(&window, 0x1000, 4096, way, &attrs)?);
    }
    Ok(())
}

fn end_batch(guest: &Guest, mappings: &mut Vec<Mapping<Arc<Device>>>) -> anyhow::Result<()> {
    let window = Window::new(0, guest.all()?);
    for mapping in mappings.drain(..) {
        mapping.unmap(&window)?;
    }
    Ok(())
}

/// Makes a batch for another thread; an operation is a batch.
fn maps<'a>(worker: Worker, guest: &'a Guest, batch: usize, between: Arc<Between>) -> Subject<'a> {
    Box::new(move |batches| {
        let map = |mappings: &mut Vec<_>| map_batch(&worker, guest, batch, mappings);
        (0..batches).map(|_| between.work(false, map)).sum()
    })
}

/// Ends a batch of another thread's.
fn ends<'a>(guest: &'a Guest, between: Arc<Between>) -> Subject<'a> {
    Box::new(move |batches| {
        let end = |mappings: &mut Vec<_>| end_batch(guest, mappings);
        (0..batches).map(|_| between.work(true, end)).sum()
    })
}

/// Makes a batch and ends it.
fn maps_and_ends<'a>(worker: Worker, guest: &'a Guest, batch: usize) -> Subject<'a> {
    let mut mappings = Vec::new();
    Box::new(move |batches| {
        let mut both = || {
            let start = Instant::now();
            map_batch(&worker, guest, batch, &mut mappings)?;
            let mapped = start.elapsed();
            // as the other way: two clocks' readings each
            let start = Instant::now();
            end_batch(guest, &mut mappings)?;
            Ok(mapped + start.elapsed())
        };
        (0..batches).map(|_| both()).sum()
    })
}

/// No bounce: a device that reaches everything, of a domain mapped 1:1.
fn pass_through(name: &str, plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let stand = Stand::new(Setup {
        force: false,
        ..Setup::default()
    })?;
    let outcome = take_turns(vec![vec![direct(stand.device.worker(0), 4096)]], plan)?;
    let target = Target::Nanoseconds(5.0);
    Ok(vec![Row::alone(name, &outcome.of(0), target)])
}

/// No bounce: 64 frames that follow each other on the bus, each looked up.
fn translated(name: &str, plan: &Plan) -> anyhow::Result<Vec<Row>> {
    const FRAMES: u64 = 64;
    let table = (0..1024u64).map(|frame| Some(0x8_0000 + frame));
    // the pool is where the host has it, and has to be in the table, too
    let pool = PoolMemory::anonymous(
        u64::from(DEFAULT_SLOTS) * SLOT_SIZE,
        Base::At(1024 * PAGE_SIZE),
    )?;
    let pool_frames = (0..pool.len() / PAGE_SIZE).map(|frame| Some(0x10_0000 + frame));
    let frames = FrameTable::new(0, table.chain(pool_frames));
    let stand = Stand::in_memory(
        Setup {
            force: false,
            space: AddressSpace::Translated(Arc::new(frames)),
            ..Setup::default()
        },
        &mut |_, _| Ok(pool.clone()),
    )?;
    let subject = direct(stand.device.worker(0), FRAMES * PAGE_SIZE);
    let outcome = take_turns(vec![vec![subject]], plan)?;
    let target = Target::Nanoseconds(FRAMES as f64 * 1.5);
    Ok(vec![Row::alone(name, &outcome.of(0), target)])
}

/// Mappings that are not bounced, which is looked at once for all of them.
fn direct<'a>(worker: Worker, size: u64) -> Subject<'a> {
    timed(move |operations| {
        let attrs = Attrs::default();
        for _ in 0..operations {
            let address = black_box(0x1000);
            let mapping = worker.map(&Nothing, address, size, Direction::ToDevice, &attrs)?;
            ensure!(mapping.bounced().is_none(), "a mapping was bounced");
            black_box(mapping.dma_address());
            mapping.unmap(&Nothing)?;
        }
        Ok(())
    })
}

/// Refusals of a pool of 16 areas without a free slot.
fn full(name: &str, plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let stand = Stand::new(Setup {
        areas: 16,
        ..Setup::default()
    })?;
    let worker = stand.device.worker(0);
    let attrs = Attrs {
        no_warn: true,
        ..Attrs::default()
    };
    let way = Direction::ToDevice;
    let mut held = Vec::new();
    let refusal = loop {
        match worker.map_owned(&Nothing, 0, 262_144, way, &attrs) {
            Ok(mapping) => held.push(mapping),
            Err(error) => break error,
        }
    };
    ensure!(
        matches!(refusal, Error::Full { .. }),
        "not full but {refusal}"
    );
    let subject = timed(move |operations| {
        for _ in 0..operations {
            let refused = worker.map(&Nothing, 0, 4096, way, &attrs);
            ensure!(black_box(refused).is_err(), "a full pool had room");
        }
        Ok(())
    });
    let outcome = take_turns(vec![vec![subject]], plan)?;
    drop(held);
    let target = Target::Nanoseconds(1000.0);
    Ok(vec![Row::alone(name, &outcome.of(0), target)])
}
