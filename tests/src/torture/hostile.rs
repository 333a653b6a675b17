//! Rings that a driver would never build.

use std::time::Duration;

use devices::virtio::mmio::Register;
use devices::virtio::queue::Descriptor;
use vmm::demo::guest::Addresses;
use zerocopy::IntoBytes;

use super::{Bench, RING};
use crate::raw::{INDIRECT, NEXT, RawQueue, WRITE};

/// How long a device is watched that may well say nothing at all.
const GLANCE: Duration = Duration::from_millis(10);

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        addr,
        len,
        flags,
        next,
    }
}

/// Bit 63: a grant.
const GRANT: u64 = 1 << 63;

/// Addresses where nothing of the guest's is, or nothing that may be used.
const WILD: [u64; 14] = [
    0,
    1,
    0xfff,
    0x0200_0000,
    0x3fff_f000,
    0x4400_0000,
    0x4000_0000_0000,
    0x000f_ffff_ffff_f000,
    0x7fff_ffff_ffff_fff0,
    GRANT,
    GRANT | 0x7fff << 12,
    GRANT | 0xffff_ffff << 12,
    GRANT | 1 << 45,
    u64::MAX - 15,
];

/// Pages behind those that descriptors begin in: a device that fills a buffer
/// which is longer than them does as it was told, and no device fills more at
/// once.
const SPARE: usize = 17;

/// Puts chains into a queue and lets the device make of it what it can; then
/// resets it and frees the rings at once.
fn inflict(bench: &mut Bench, build: impl FnOnce(&mut Bench, &mut RawQueue)) {
    let mut queue = bench.up();
    build(bench, &mut queue);
    bench.driver.kick(&queue);
    let _ = bench.driver.wait_for(&mut queue, GLANCE);
    bench.driver.reset();
    queue.free(&bench.driver.memory);
    bench.stand.check();
}

/// Inflicts one chain whose descriptors stand from 0 on.
fn inflict_chain(bench: &mut Bench, chain: &[Descriptor]) {
    inflict(bench, |bench, queue| {
        for (at, descriptor) in (0..).zip(chain) {
            queue.describe(&bench.driver.memory, at, *descriptor);
        }
        queue.offer(&bench.driver.memory, 0);
    });
}

/// Loops, wild addresses, zero lengths, the wrong order, descriptors that do
/// not exist.
pub(super) fn chains(bench: &mut Bench) {
    let memory = bench.driver.memory.clone();
    let page = memory.alloc(1, false).unwrap();
    let mut chains = vec![
        vec![descriptor(page, 16, NEXT, 0)],
        vec![descriptor(page, 16, NEXT, 1), descriptor(page, 16, NEXT, 0)],
        vec![descriptor(page, 16, NEXT, RING)],
        vec![descriptor(page, 16, NEXT, u16::MAX)],
        vec![descriptor(page, 0, 0, 0)],
        vec![descriptor(page, 0, WRITE, 0)],
        vec![descriptor(page, 16, 0, 0)],
        vec![descriptor(page, 16, WRITE, 0)],
        vec![descriptor(page, u32::MAX, 0, 0)],
        vec![descriptor(page, 16, u16::MAX, 1)],
        vec![
            descriptor(page, 1, WRITE | NEXT, 1),
            descriptor(page, 16, 0, 0),
        ],
        vec![descriptor(page, 15, NEXT, 1), descriptor(page, 1, WRITE, 0)],
    ];
    for wild in WILD {
        chains.push(vec![descriptor(wild, 16, 0, 0)]);
        chains.push(vec![descriptor(wild, u32::MAX, WRITE, 0)]);
        chains.push(vec![
            descriptor(page, 16, NEXT, 1),
            descriptor(wild, 4096, WRITE | NEXT, 2),
            descriptor(page + 64, 1, WRITE, 0),
        ]);
        chains.push(vec![
            descriptor(page, 16, NEXT, 1),
            descriptor(page + 512, 512, WRITE | NEXT, 2),
            descriptor(wild, 1, WRITE, 0),
        ]);
    }
    for chain in &chains {
        inflict_chain(bench, chain);
    }
    inflict(bench, |bench, queue| {
        queue.offer(&bench.driver.memory, RING);
        queue.offer(&bench.driver.memory, u16::MAX);
    });
    memory.free(page).unwrap();
}

/// Tables that are nested, odd, empty, too long, elsewhere, or loop.
pub(super) fn tables(bench: &mut Bench) {
    let memory = bench.driver.memory.clone();
    let table = memory.alloc(8, false).unwrap();
    let entries = [
        descriptor(table + 2048, 16, NEXT, 1),
        descriptor(table + 3072, 512, WRITE | NEXT, 2),
        descriptor(table + 4096, 1, WRITE, 0),
    ];
    let nested = [descriptor(table, 48, INDIRECT, 0)];
    let looping = [descriptor(table + 2048, 16, NEXT, 0)];
    let outside = [descriptor(table + 2048, 16, NEXT, 3)];
    let empty = [descriptor(table + 2048, 0, 0, 0)];
    let contents: [&[Descriptor]; 5] = [&entries, &nested, &looping, &outside, &empty];
    for content in contents {
        for (at, entry) in content.iter().enumerate() {
            memory
                .write(table + 16 * at as u64, entry.as_bytes())
                .unwrap();
        }
        for len in [0, 1, 15, 16, 17, 32, 48, 16384, 16400, 0xffff_fff0] {
            inflict_chain(bench, &[descriptor(table, len, INDIRECT, 0)]);
        }
        inflict_chain(bench, &[descriptor(table, 48, INDIRECT | NEXT, 1)]);
        inflict_chain(bench, &[descriptor(table, 48, INDIRECT | WRITE, 0)]);
        inflict_chain(
            bench,
            &[
                descriptor(table + 2048, 16, NEXT, 1),
                descriptor(table, 48, INDIRECT, 0),
            ],
        );
    }
    for wild in WILD {
        inflict_chain(bench, &[descriptor(wild, 48, INDIRECT, 0)]);
    }
    memory.free(table).unwrap();
}

/// Available indices that jump, run back, and go on without end.
pub(super) fn indices(bench: &mut Bench) {
    for index in [1, RING, RING + 1, 0x7fff, 0x8000, u16::MAX] {
        inflict(bench, |bench, queue| {
            queue.show(&bench.driver.memory, index);
        });
    }
    inflict(bench, |bench, queue| {
        let requests = bench.load(queue);
        queue.show(&bench.driver.memory, 0);
        bench.driver.kick(queue);
        queue.show(&bench.driver.memory, u16::MAX);
        bench.driver.kick(queue);
        bench.driver.reset();
        for request in requests {
            request.take_back(&bench.driver.memory);
        }
    });
    // the same head offered many times over
    inflict(bench, |bench, queue| {
        let request = bench.request().share(&bench.driver.memory);
        request.submit(&bench.driver.memory, queue, 0);
        for _ in 1..RING {
            queue.offer(&bench.driver.memory, 0);
        }
        bench.driver.kick(queue);
        bench.driver.reset();
        request.take_back(&bench.driver.memory);
    });
}

/// Descriptors, heads and indices out of a hat, rewritten while the device
/// reads them.
pub(super) fn random_descriptors(bench: &mut Bench) {
    let memory = bench.driver.memory.clone();
    let page = memory.alloc(4 + SPARE, false).unwrap();
    for _ in 0..48 {
        inflict(bench, |bench, queue| {
            for _ in 0..4 {
                for at in 0..RING {
                    let descriptor = random(bench, page);
                    queue.describe(&memory, at, descriptor);
                }
                for _ in 0..bench.pattern.below(16) {
                    let head = bench.pattern.below(u64::from(RING) + 2);
                    queue.offer(&memory, head as u16);
                }
                bench.driver.kick(queue);
            }
        });
    }
    memory.free(page).unwrap();
}

fn random(bench: &mut Bench, page: u64) -> Descriptor {
    let pattern = &mut bench.pattern;
    let addr = match pattern.below(8) {
        0 => WILD[pattern.below(WILD.len() as u64) as usize],
        1 => pattern.number(),
        _ => page + pattern.below(4 * 4096),
    };
    let len = match pattern.below(8) {
        0 => pattern.number() as u32,
        1 => 0,
        2 => 1,
        3 => 16,
        _ => pattern.below(4096) as u32,
    };
    // seldom indirect, or nothing else would be tried
    let flags = match pattern.below(8) {
        0 => pattern.below(8),
        _ => pattern.below(4),
    };
    let next = pattern.below(u64::from(RING) + 1);
    descriptor(addr, len, flags as u16, next as u16)
}

/// Rings at addresses where nothing is, and rings that overlap.
pub(super) fn rings_anywhere(bench: &mut Bench) {
    let memory = bench.driver.memory.clone();
    let page = memory.alloc(4, false).unwrap();
    let mut layouts = vec![(page, page, page), (page, page + 2, page + 4)];
    for wild in WILD {
        layouts.push((wild, page, page + 4096));
        layouts.push((page, wild, page + 4096));
        layouts.push((page, page + 4096, wild));
    }
    for (desc, avail, used) in layouts {
        let driver = &bench.driver;
        driver.negotiate();
        driver.set(Register::QueueSel, bench.subject.queue.into());
        driver.set(Register::QueueSize, RING.into());
        driver.set_address(Register::QueueDescLow, desc);
        driver.set_address(Register::QueueDriverLow, avail);
        driver.set_address(Register::QueueDeviceLow, used);
        driver.set(Register::QueueReady, 1);
        driver.go();
        driver.set(Register::QueueNotify, bench.subject.queue.into());
        driver.get(Register::Status);
        driver.reset();
        bench.stand.check();
    }
    memory.free(page).unwrap();
    // a driver of the other kind: its rings are where this device must not look
    let other = match bench.place.addresses {
        Addresses::Grants => Addresses::Plain,
        Addresses::Plain => Addresses::Grants,
    };
    let foreign = bench.stand.memory(other);
    let queue = RawQueue::new(&foreign, bench.subject.queue, RING);
    bench.driver.negotiate();
    bench.driver.install(&queue);
    bench.driver.go();
    assert!(bench.driver.needs_reset());
    bench.driver.reset();
    queue.free(&foreign);
}
