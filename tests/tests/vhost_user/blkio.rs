//! The crate `blkio`, whose driver for vhost-user disks is by the authors of
//! libblkio: reads and writes of several queues, verified.

use std::thread;

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};

use super::program::Program;

const QUEUES: usize = 4;
const DEPTH: usize = 16;
const BLOCK: usize = 8192;
const BLOCKS: usize = 256;

/// A device that is started, with its queues.
fn start(program: &Program) -> (Blkio, Vec<Blkioq>) {
    let mut disk = Blkio::new("virtio-blk-vhost-user").unwrap();
    let socket = program.socket(0).to_str().unwrap();
    disk.set_str("path", socket).unwrap();
    disk.connect().unwrap();
    disk.set_i32("num-queues", QUEUES as i32).unwrap();
    disk.set_i32("queue-size", 64).unwrap();
    let started = disk.start().unwrap();
    (disk, started.queues)
}

/// One queue's share of the disk, and of the memory.
struct Share {
    number: usize,
    queue: Blkioq,
    memory: usize,
}

impl Share {
    fn offset(&self, block: usize) -> u64 {
        ((self.number * BLOCKS + block) * BLOCK) as u64
    }

    fn pattern(&self, block: usize) -> Vec<u8> {
        let seed = self.offset(block);
        let word = |at| (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at as u64).to_le_bytes();
        (0..BLOCK / 8).flat_map(word).collect()
    }

    /// The buffer of a block in flight.
    #[expect(
        clippy::mut_from_ref,
        reason = "the test's own memory, one block at a time"
    )]
    fn buffer(&self, slot: usize) -> &mut [u8] {
        let at = self.memory + slot * BLOCK;
        // SAFETY: the region has DEPTH blocks for each queue, outlives it, and
        // slots are used one after the other.
        unsafe { std::slice::from_raw_parts_mut(at as *mut u8, BLOCK) }
    }

    /// Waits for `count` requests, all of which succeed.
    fn complete(&mut self, count: usize) -> Vec<usize> {
        let mut completions: Vec<_> = (0..count)
            .map(|_| std::mem::MaybeUninit::<Completion>::uninit())
            .collect();
        let done = self
            .queue
            .do_io(&mut completions, count, None, None)
            .unwrap();
        assert_eq!(done, count);
        let done = completions.into_iter().map(|completion| {
            // SAFETY: `do_io` has said that it filled all of them.
            let completion = unsafe { completion.assume_init() };
            assert_eq!(completion.ret, 0);
            completion.user_data
        });
        done.collect()
    }

    /// Writes all its blocks, reads them back and compares.
    fn verify(mut self) {
        for first in (0..BLOCKS).step_by(DEPTH) {
            for slot in 0..DEPTH {
                let pattern = self.pattern(first + slot);
                self.buffer(slot).copy_from_slice(&pattern);
                let (at, buffer) = (self.offset(first + slot), self.buffer(slot).as_ptr());
                self.queue.write(at, buffer, BLOCK, slot, ReqFlags::empty());
            }
            self.complete(DEPTH);
        }
        self.queue.flush(0, ReqFlags::empty());
        self.complete(1);
        for first in (0..BLOCKS).step_by(DEPTH) {
            for slot in 0..DEPTH {
                self.buffer(slot).fill(0);
                let (at, buffer) = (self.offset(first + slot), self.buffer(slot).as_mut_ptr());
                self.queue.read(at, buffer, BLOCK, slot, ReqFlags::empty());
            }
            let mut done = self.complete(DEPTH);
            done.sort_unstable();
            assert_eq!(done, (0..DEPTH).collect::<Vec<_>>());
            for slot in 0..DEPTH {
                assert_eq!(*self.buffer(slot), self.pattern(first + slot));
            }
        }
    }
}

/// Bytes of the disk.
const DISK: u64 = (QUEUES * BLOCKS * BLOCK) as u64;

fn verified(program: &Program) {
    let (mut disk, queues) = start(program);
    let capacity = disk.get_u64("capacity").unwrap();
    let region: MemoryRegion = disk.alloc_mem_region(QUEUES * DEPTH * BLOCK).unwrap();
    disk.map_mem_region(&region).unwrap();

    thread::scope(|scope| {
        for (number, queue) in queues.into_iter().enumerate() {
            let memory = region.addr + number * DEPTH * BLOCK;
            let share = Share {
                number,
                queue,
                memory,
            };
            scope.spawn(|| share.verify());
        }
    });

    assert_eq!(capacity, DISK);
    assert_eq!(program.count("WARN"), 0);
    disk.unmap_mem_region(&region);
}

#[test]
fn four_queues_read_what_they_have_written() {
    let device = "blk,path=DISK,queues=4,queue-size=64,engine=io-uring";

    verified(&Program::serve(&[device], DISK));
}

#[test]
fn four_queues_read_what_they_have_written_with_the_other_engine() {
    let device = "blk,path=DISK,queues=4,queue-size=64,engine=sync";

    verified(&Program::serve(&[device], DISK));
}

#[test]
fn four_queues_read_what_they_have_written_past_the_page_cache() {
    let device = "blk,path=DISK,queues=4,queue-size=64,direct=true";
    let program = Program::serve(&[device], DISK);

    verified(&program);

    assert_eq!(
        program.lines("disk opened")[0].matches("direct=").count(),
        1
    );
}

#[test]
fn four_queues_read_what_they_have_written_to_a_qcow2_image() {
    let device = "blk,path=DISK,format=qcow2,queues=4,queue-size=64";
    let program = Program::serve_qcow2(device, DISK);

    verified(&program);

    assert_eq!(program.qcow2_image().len() as u64, DISK);
}
