//! How fast the engines are on the host's own, without a guest: for choosing
//! between them. Nothing is asserted about time.
//!
//! `cargo test --release -p devices --lib speed -- --ignored --nocapture`

use std::time::Instant;

use super::*;

/// Requests of each measurement.
const REQUESTS: usize = 20_000;
/// Size of the image, which the page cache holds.
const IMAGE: u64 = 64 << 20;

/// Measurements of each kind, of which the best counts: the host has other
/// things to do.
const ROUNDS: usize = 9;

/// A disk, and requests on it that are made again and again.
struct Course {
    rig: Rig,
    data: Buffer,
    header: u64,
    status: u64,
    kind: u32,
    len: u32,
    depth: usize,
}

impl Course {
    fn new(on: On, kind: u32, len: u32, depth: usize) -> Self {
        let mut rig = on.rig();
        let image = rig.image.as_file();
        image.write_all_at(&vec![1; IMAGE as usize], 0).unwrap();
        rig.device.refresh();
        let data = match kind {
            blk::VIRTIO_BLK_T_IN => rig.space(len),
            _ => rig.out(&vec![2; len as usize]),
        };
        Course {
            data,
            header: rig.ram.alloc(16 * depth as u64),
            status: rig.ram.alloc(depth as u64),
            rig,
            kind,
            len,
            depth,
        }
    }

    /// Nanoseconds for each request, `depth` at a time.
    fn run(&mut self) -> u128 {
        let blocks = IMAGE / u64::from(self.len);
        let batches = REQUESTS / self.depth / (1 + self.len as usize / 65_536);
        let start = Instant::now();
        for batch in 0..batches {
            for slot in 0..self.depth as u64 {
                let block = (batch as u64 * 7919 + slot * 104_729) % blocks;
                let wire = header(self.kind, block * u64::from(self.len) / 512);
                let at = self.header + 16 * slot;
                self.rig.ram.write(at, wire.as_bytes());
                self.rig.ring.add(&[
                    Buffer::readable(at, 16),
                    self.data,
                    Buffer::writable(self.status + slot, 1),
                ]);
            }
            assert_eq!(self.rig.serve().unwrap().len(), self.depth);
        }
        start.elapsed().as_nanos() / (batches * self.depth) as u128
    }
}

#[test]
#[ignore = "a measurement"]
fn of_each_engine_on_cached_data() {
    let engines = [EngineKind::Sync, EngineKind::IoUring, EngineKind::Threads];
    for (name, kind) in [
        ("read", blk::VIRTIO_BLK_T_IN),
        ("write", blk::VIRTIO_BLK_T_OUT),
    ] {
        for (len, depth) in [(4096, 1), (4096, 32), (131_072, 1), (131_072, 8)] {
            let mut courses =
                engines.map(|engine| Course::new(On::new(engine, false), kind, len, depth));
            let mut best = engines.map(|_| u128::MAX);
            for _ in 0..ROUNDS {
                for (course, best) in courses.iter_mut().zip(&mut best) {
                    *best = course.run().min(*best);
                }
            }
            println!("{name} of {len} bytes, {depth} at a time: {engines:?} take {best:?} ns");
        }
    }
}
