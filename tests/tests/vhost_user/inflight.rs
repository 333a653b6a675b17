//! The back end is killed in full flight, comes back, and nothing is lost or
//! done twice.

use std::time::Instant;

use vhost::VhostBackend;

use super::guest::{BLOCK, Guest, Kept, OUT, Session, places, request, status};
use super::program::{PATIENCE, Program};

const RINGS: usize = 2;
const SLOTS: u16 = 32;

/// A load of writes that checks itself: each slot of a ring owns a block and
/// writes ascending numbers into it, one after the other.
struct Load {
    guest: Guest,
    /// The number that each slot has in flight, or wrote last.
    numbers: Vec<[u64; SLOTS as usize]>,
    outstanding: Vec<[bool; SLOTS as usize]>,
    completed: u64,
}

fn block(ring: usize, slot: u16) -> u64 {
    ring as u64 * u64::from(SLOTS) + u64::from(slot)
}

fn content(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK as usize / 8)
}

impl Load {
    fn new() -> Load {
        Load {
            guest: Guest::new(u16::try_from(RINGS).unwrap()),
            numbers: vec![[0; SLOTS as usize]; RINGS],
            outstanding: vec![[false; SLOTS as usize]; RINGS],
            completed: 0,
        }
    }

    /// Has every slot write its next number, unless it waits for the last one.
    fn submit(&mut self) {
        for ring in 0..RINGS {
            for slot in 0..SLOTS {
                let waits = &mut self.outstanding[ring][usize::from(slot)];
                if std::mem::replace(waits, true) {
                    continue;
                }
                let number = &mut self.numbers[ring][usize::from(slot)];
                *number += 1;
                self.guest.write(places(ring, slot)[1], &content(*number));
                request(&mut self.guest, ring, slot, OUT, block(ring, slot));
            }
            self.guest.kick(ring);
        }
    }

    /// Takes back what is there. A chain that nobody waits for was done twice.
    fn reap(&mut self) {
        for ring in 0..RINGS {
            while let Some(used) = self.guest.take(ring) {
                let slot = used.head / 3;
                let waits = &mut self.outstanding[ring][usize::from(slot)];
                assert!(std::mem::take(waits), "slot {slot} was completed twice");
                assert_eq!(status(&self.guest, ring, slot), 0);
                self.completed += 1;
            }
        }
    }

    /// Goes on until `count` more have been completed.
    fn run(&mut self, count: u64) {
        let end = Instant::now() + PATIENCE;
        let goal = self.completed + count;
        while self.completed < goal {
            assert!(Instant::now() < end, "the load does not go on");
            self.submit();
            self.reap();
        }
    }

    /// Waits for all that is outstanding.
    fn drain(&mut self) {
        let end = Instant::now() + PATIENCE;
        while self.outstanding.iter().flatten().any(|waits| *waits) {
            assert!(Instant::now() < end, "requests were lost");
            self.reap();
        }
    }

    fn submitted(&self) -> u64 {
        self.numbers.iter().flatten().sum()
    }
}

fn connect(program: &Program, load: &Load, kept: Option<Kept>) -> (Session, Kept) {
    let mut session = Session::connect(program, 0);
    let kept = kept.unwrap_or_else(|| session.get_inflight(u16::try_from(RINGS).unwrap()));
    session.set_inflight(&kept);
    session.start(&load.guest);
    (session, kept)
}

/// Bytes of the disk.
const DISK: u64 = 1 << 20;

/// Kills and restarts it under load; returns how many requests were in flight
/// at the moments it died.
fn killed_under_load(
    mut program: Program,
    kills: u64,
    image: impl FnOnce(&Program) -> Vec<u8>,
) -> usize {
    let mut load = Load::new();
    let (mut session, mut kept) = connect(&program, &load, None);
    let mut found = 0;

    for round in 0..kills {
        load.run(500 + 37 * round);
        load.submit();
        program.kill();
        found += kept.in_flight(RINGS);
        drop(session);
        program.start();
        (session, kept) = connect(&program, &load, Some(kept));
    }
    load.run(500);
    load.drain();
    let bases = [0, 1].map(|ring| session.frontend.get_vring_base(ring).unwrap());

    assert_eq!(load.completed, load.submitted());
    let ends = [0, 1].map(|ring: usize| u32::from(load.guest.rings[ring].available()));
    assert_eq!(bases, ends);
    assert_eq!(kept.in_flight(RINGS), 0);
    program.terminate();
    let image = image(&program);
    for (ring, numbers) in load.numbers.iter().enumerate() {
        for (slot, number) in (0..).zip(numbers) {
            let at = usize::try_from(block(ring, slot)).unwrap() * BLOCK as usize;
            assert_eq!(image[at..at + BLOCK as usize], content(*number));
        }
    }
    found
}

#[test]
fn killed_in_full_flight_it_loses_nothing_and_does_nothing_twice() {
    let device = "blk,path=DISK,queue-size=128,queues=2,engine=io-uring";
    let program = Program::serve(&[device], DISK);

    let in_flight = killed_under_load(program, 20, Program::image);

    assert!(in_flight > 0, "nothing was in flight when it died");
}

#[test]
fn so_it_is_with_the_other_engine() {
    let device = "blk,path=DISK,queue-size=128,queues=2,engine=sync";
    let program = Program::serve(&[device], DISK);

    let in_flight = killed_under_load(program, 20, Program::image);

    assert!(in_flight > 0, "nothing was in flight when it died");
}

#[test]
fn so_it_is_on_a_qcow2_image_whose_tables_grow_meanwhile() {
    let device = "blk,path=DISK,format=qcow2,queue-size=128,queues=2";
    let program = Program::serve_qcow2(device, DISK);

    let in_flight = killed_under_load(program, 20, Program::qcow2_image);

    assert!(in_flight > 0, "nothing was in flight when it died");
}
