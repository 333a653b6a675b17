//! The one client of all disks: the crate `blkio`, one queue, a number of
//! requests always in flight.
//!
//! The one file of the bench with `unsafe`.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};

use super::workload::{Access, Order, Workload};

/// Bytes of the memory that requests use: the largest workload's.
const MEMORY: usize = 4 << 20;
/// Most requests in flight.
const DEPTH: usize = 64;

/// A disk, ready for requests.
pub struct Client {
    // dropped in this order: nothing is in flight between two bursts
    queue: Blkioq,
    disk: Blkio,
    memory: MemoryRegion,
    capacity: u64,
    random: u64,
    next: u64,
}

/// What became of a burst.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    pub requests: u64,
    pub took: Duration,
    pub p50: Duration,
    pub p99: Duration,
}

impl Client {
    /// A disk that a back end serves on `socket`.
    ///
    /// # Errors
    /// What `blkio` says.
    pub fn of_socket(socket: &Path) -> anyhow::Result<Self> {
        let mut disk = Blkio::new("virtio-blk-vhost-user")?;
        disk.set_str("path", text(socket)?)?;
        disk.connect()?;
        disk.set_i32("queue-size", 128)?;
        Self::start(disk)
    }

    /// An image, by io_uring in this process.
    ///
    /// # Errors
    /// What `blkio` says.
    pub fn of_file(image: &Path) -> anyhow::Result<Self> {
        let mut disk = Blkio::new("io_uring")?;
        disk.set_str("path", text(image)?)?;
        disk.connect()?;
        disk.set_i32("num-entries", 128)?;
        Self::start(disk)
    }

    fn start(mut disk: Blkio) -> anyhow::Result<Self> {
        let queue = disk
            .start()?
            .queues
            .pop()
            .context("a disk without queues")?;
        let memory = disk.alloc_mem_region(MEMORY)?;
        disk.map_mem_region(&memory)?;
        let capacity = disk.get_u64("capacity")?;
        ensure!(
            capacity >= MEMORY as u64,
            "a disk of {capacity} bytes is too small"
        );
        Ok(Client {
            queue,
            disk,
            memory,
            capacity,
            random: 0x9e37_79b9_7f4a_7c15,
            next: 0,
        })
    }

    /// Requests of one kind for `length`. Those of one place in the depth are
    /// timed: to look at the clock for each would be seen in the figures.
    ///
    /// # Errors
    /// A request that failed.
    pub fn burst(&mut self, workload: &Workload, length: Duration) -> anyhow::Result<Burst> {
        let mut completions = [const { MaybeUninit::<Completion>::uninit() }; DEPTH];
        let depth = workload.depth.min(DEPTH);
        let mut latencies = Vec::with_capacity(1 << 16);
        let (mut requests, mut left) = (0, depth);
        let start = Instant::now();
        let (mut now, mut timed) = (start, start);
        (0..depth).for_each(|place| self.request(workload, place));
        while left > 0 {
            let count = self.queue.do_io(&mut completions, 1, None, None)?;
            now = Instant::now();
            let goes_on = now - start < length;
            for completion in completions.iter().take(count) {
                // SAFETY: `do_io` has filled the first `count`.
                let completion = unsafe { completion.assume_init_ref() };
                ensure!(
                    completion.ret == 0,
                    "a request failed with {}",
                    completion.ret
                );
                let place = completion.user_data;
                if place == 0 {
                    latencies.push(now - timed);
                }
                requests += 1;
                match goes_on {
                    true => self.request(workload, place),
                    false => left -= 1,
                }
                if place == 0 {
                    timed = Instant::now();
                }
            }
        }
        latencies.sort_unstable();
        let at = |percent: usize| latencies.get(latencies.len() * percent / 100).copied();
        Ok(Burst {
            requests,
            took: now - start,
            p50: at(50).unwrap_or_default(),
            p99: at(99).unwrap_or_default(),
        })
    }

    fn request(&mut self, workload: &Workload, place: usize) {
        let bytes = workload.bytes;
        let at = self.offset(workload);
        // each place has its own part: MEMORY is enough for every workload
        let buffer = self.memory.addr + place * bytes;
        let none = ReqFlags::empty();
        match workload.access {
            Access::Read => self.queue.read(at, buffer as *mut u8, bytes, place, none),
            Access::Write => self
                .queue
                .write(at, buffer as *const u8, bytes, place, none),
        }
    }

    /// A multiple of the requests' size inside of the disk.
    fn offset(&mut self, workload: &Workload) -> u64 {
        let bytes = workload.bytes as u64;
        let blocks = self.capacity / bytes;
        let block = match workload.order {
            Order::Random => {
                // xorshift64: quick, and no two requests in flight on a block
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                self.random % blocks
            }
            Order::Sequential => {
                self.next = (self.next + 1) % blocks;
                self.next
            }
        };
        block * bytes
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.disk.unmap_mem_region(&self.memory);
    }
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
