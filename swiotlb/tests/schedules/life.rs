//! Threads that do everything at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use crate::allocator::Allocator;
use crate::device::{Attrs, Device, Mapping};
use crate::direction::{Direction, SyncFor};
use crate::error::Error;
use crate::many_schedules;
use crate::stand::*;

/// Bytes of guest memory that a mapping has for itself.
const EACH: u64 = 0x3000;
/// Steps of each thread.
const STEPS: u64 = 6;
/// Slots of the transient pools that there can be at one time.
const TRANSIENT_SLOTS: u64 = (16 << 20) / 2048;

/// What the threads share: mappings by value and by address, for anybody to end.
#[derive(Default)]
struct Table {
    values: Mutex<Vec<Mapping<Arc<Device>>>>,
    /// Address, original and length.
    addresses: Mutex<Vec<(u64, u64, u64)>>,
    claims: Claims,
}

pub struct Life {
    allocator: Arc<Allocator>,
    device: Arc<Device>,
    ram: Arc<Ram>,
    table: Table,
}

impl Life {
    /// `threads` threads with `STEPS` steps each, and then the end of all.
    /// `taken` bytes of the pool are out of their reach.
    pub fn of(threads: u64, allocator: Arc<Allocator>, taken: u64) {
        let device = device(&allocator);
        let taken = (taken > 0).then(|| lease(&device, taken));
        let life = Arc::new(Life {
            device,
            allocator,
            ram: Ram::new((threads * STEPS * EACH) as usize),
            table: Table::default(),
        });
        let run = |number: u64| {
            let life = Arc::clone(&life);
            move || (0..STEPS).for_each(|step| life.step(number, (number * STEPS + step) * EACH))
        };
        let others: Vec<_> = (1..threads).map(|n| thread::spawn(run(n))).collect();
        run(0)();
        others
            .into_iter()
            .for_each(|other| other.join().expect("another thread"));
        while life.end_value() || life.end_address() {}
        drop(taken);
        assert_as_new(&life.allocator);
    }

    fn step(&self, number: u64, orig: u64) {
        let mut random = thread_rng();
        match random.gen_range(0..8) {
            0..=2 => self.map(number, orig, random.gen_range(1..EACH)),
            3 | 4 => drop(self.end_value()),
            5 => drop(self.end_address()),
            6 => self.coherent(number),
            _ => self.look(),
        }
    }

    fn map(&self, number: u64, orig: u64, len: u64) {
        let worker = self.device.worker(number as usize);
        let mapping = match map(&worker, &self.ram, orig, len) {
            Ok(mapping) => mapping,
            Err(error) => return assert!(matches!(error, Error::Full { .. }), "{error}"),
        };
        self.table.claims.take(&mapping);
        device_writes(&mapping, number as u8 + 1);
        if len.is_multiple_of(2) {
            self.table.values.lock().expect("table").push(mapping);
            return;
        }
        // whoever ends it by address has no mapping to ask for its slots
        self.table.claims.give_back(&mapping);
        let address = mapping.into_dma_address();
        let mut addresses = self.table.addresses.lock().expect("table");
        addresses.push((address, orig, len));
    }

    /// Ends somebody's mapping: the device's bytes are where they belong.
    fn end_value(&self) -> bool {
        let taken = self.table.values.lock().expect("table").pop();
        let Some(mapping) = taken else {
            return false;
        };
        self.table.claims.give_back(&mapping);
        let lease = mapping.bounced().expect("forced").lease();
        let (orig, len) = (lease.original(), lease.len());
        mapping.unmap(&*self.ram).expect("mapped");
        self.assert_written(orig, len);
        true
    }

    fn end_address(&self) -> bool {
        let taken = self.table.addresses.lock().expect("table").pop();
        let Some((address, orig, len)) = taken else {
            return false;
        };
        let synced = self.device.sync(
            &*self.ram,
            address,
            len,
            Direction::FromDevice,
            SyncFor::Cpu,
        );
        assert_eq!(synced, Ok(()));
        self.assert_written(orig, len);
        assert_eq!(unmap(&self.device, &self.ram, address, len), Ok(()));
        true
    }

    fn assert_written(&self, orig: u64, len: u64) {
        let byte = (orig / EACH / STEPS) as u8 + 1;
        assert_eq!(self.ram.read(orig, len as usize), vec![byte; len as usize]);
    }

    fn coherent(&self, number: u64) {
        let worker = self.device.worker(number as usize);
        let address = worker.alloc_coherent(5000).map(|m| m.into_dma_address());
        if let Ok(address) = address {
            thread::yield_now();
            assert_eq!(self.device.free_coherent(address, 5000), Ok(()));
        }
    }

    fn look(&self) {
        // not all of one moment, and never beyond what there can be
        let stats = self.allocator.stats();
        assert!(stats.used <= stats.nslots + TRANSIENT_SLOTS);
        // not often, for it ends the scarcity that the others are to meet
        if thread_rng().gen_range(0..4) == 0 {
            self.allocator.grow().expect("memory");
        }
    }
}

#[test]
fn inv23_inv24_inv29_inv30_two_threads_in_two_areas() {
    many_schedules(2000, || Life::of(2, allocator("256,2"), 0));
}

#[test]
fn inv23_inv24_inv29_inv30_three_threads_with_little_room() {
    // each slot changes hands many times, and not everybody finds one
    many_schedules(2000, || Life::of(3, allocator("256,2"), 0x3_c000));
}

#[test]
fn inv25_inv26_inv27_three_threads_whose_pools_come_and_go() {
    many_schedules(2000, || Life::of(3, growing("128,1").0, 0x3_c000));
}

/// Slots that are in use for certain, and slots that may be.
#[derive(Default)]
struct Bounds {
    now: AtomicU64,
    highest: AtomicU64,
}

impl Bounds {
    fn add(&self, slots: u64) {
        let now = self.now.fetch_add(slots, Ordering::SeqCst) + slots;
        self.highest.fetch_max(now, Ordering::SeqCst);
    }

    fn sub(&self, slots: u64) {
        self.now.fetch_sub(slots, Ordering::SeqCst);
    }
}

/// Three threads that map and unmap while their high-water mark is taken.
pub fn three_threads_count_what_they_hold() {
    let allocator = allocator("256,2,track_hiwater");
    let device = device(&allocator);
    let bounds = Arc::new((Bounds::default(), Bounds::default()));
    let run = |number: usize| {
        let (worker, bounds) = (device.worker(number), Arc::clone(&bounds));
        move || {
            let (certain, possible) = &*bounds;
            for _ in 0..3 {
                let slots = thread_rng().gen_range(1..6);
                possible.add(slots);
                let attrs = Attrs::default();
                let lease = worker.lease(0, slots * 2048, Direction::FromDevice, &attrs);
                let lease = lease.expect("room for all");
                certain.add(slots);
                thread::yield_now();
                certain.sub(slots);
                drop(lease);
                possible.sub(slots);
            }
        }
    };
    let others = [1, 2].map(|number| thread::spawn(run(number)));
    run(0)();
    for other in others {
        other.join().expect("another thread");
    }
    let hiwater = allocator.stats().used_hiwater;
    let (low, high) = (&bounds.0.highest, &bounds.1.highest);
    assert!(low.load(Ordering::SeqCst) <= hiwater, "it misses somebody");
    assert!(hiwater <= high.load(Ordering::SeqCst), "it counts twice");
    assert_as_new(&allocator);
}

#[test]
fn inv28_the_high_water_mark_is_that_of_some_order() {
    many_schedules(2000, three_threads_count_what_they_hold);
}
