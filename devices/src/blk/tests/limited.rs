//! A disk whose guest may ask for so much and no more.

use std::time::Instant;

use super::*;

on_every_engine! {
    requests_above_the_rate_wait_for_it
    bytes_above_the_rate_wait_for_it
    parts_of_a_request_are_one_operation
    what_was_refused_costs_nothing
    a_reset_under_a_limit_drops_what_waits
    queues_share_the_limit
}

/// The first request goes, and the next in a quarter of an hour.
fn stingy(config: &mut BlkConfig) {
    config.queues = 2;
    config.bytes_per_second = Some(1);
    config.bytes_burst = Some(1);
}

impl Rig {
    /// Makes reads of `len` bytes available.
    fn ask(&mut self, count: usize, len: u32) {
        let space = self.space(len);
        for _ in 0..count {
            let (buffers, _) = self.frame(blk::VIRTIO_BLK_T_IN, 0, &[space]);
            self.ring.add(&buffers);
        }
    }

    /// Has the device take what is available, and waits for `count` answers.
    fn serve_some(&mut self, count: usize) {
        let chains = self.queue.take(64).unwrap();
        self.handler.serve(&mut self.queue, chains).unwrap();
        while usize::from(self.ring.used_index()) < count {
            let event = self.handler.event().unwrap();
            assert!(readable(event, PATIENCE), "a request is never completed");
            self.handler.advance(&mut self.queue).unwrap();
        }
    }
}

fn requests_above_the_rate_wait_for_it(on: On) {
    let mut rig = on.with(|config| {
        config.operations_per_second = Some(20);
        config.operations_burst = Some(2);
    });
    rig.ask(4, 512);
    let start = Instant::now();

    let used = rig.serve().unwrap();

    assert_eq!(used.len(), 4);
    assert!(start.elapsed() >= Duration::from_millis(99));
    assert!(rig.stats().limited >= 1);
    assert_eq!((rig.stats().reads, rig.stats().host_errors), (4, 0));
}

fn bytes_above_the_rate_wait_for_it(on: On) {
    let mut rig = on.with(|config| {
        config.bytes_per_second = Some(40_960);
        config.bytes_burst = Some(512);
    });
    rig.ask(3, 4096);
    let start = Instant::now();

    let used = rig.serve().unwrap();

    // 512 of 8192 bytes are there when the third is asked for
    assert_eq!(used.len(), 3);
    assert!(start.elapsed() >= Duration::from_millis(187));
    assert!(rig.stats().limited >= 2);
}

fn parts_of_a_request_are_one_operation(on: On) {
    let on = On {
        pool: "128,force",
        ..on
    };
    let mut rig = on.with(|config| {
        config.operations_per_second = Some(1);
        config.operations_burst = Some(1);
    });
    rig.ask(1, 768 << 10);

    rig.serve().unwrap();

    assert_eq!((rig.stats().reads, rig.stats().limited), (1, 0));
}

fn what_was_refused_costs_nothing(on: On) {
    let mut rig = on.with(stingy);
    let space = rig.space(512);

    let refused = [1 << 40; 3].map(|sector| {
        let (status, _) = rig.request(blk::VIRTIO_BLK_T_IN, sector, &[space]);
        status
    });
    let (status, _) = rig.request(blk::VIRTIO_BLK_T_IN, 0, &[space]);

    assert_eq!((refused, status), ([IOERR; 3], OK));
    assert_eq!(rig.stats().limited, 0);
}

fn a_reset_under_a_limit_drops_what_waits(on: On) {
    let mut rig = on.with(stingy);
    rig.ask(3, 1024);
    rig.serve_some(1);
    let room = rig.handler.room();

    rig.handler.settle(&mut rig.queue);

    assert_eq!(room, 0, "more is taken while requests wait");
    assert_eq!(rig.ring.used().len(), 1);
    assert_eq!((rig.stats().reads, rig.stats().limited), (1, 1));
    assert!(rig.handler.room() > 0);
    assert_eq!(rig.ram.lent(), 0);
}

fn queues_share_the_limit(on: On) {
    let mut rig = on.with(stingy);
    rig.ask(1, 1024);
    rig.serve_some(1);
    let features = rig.device.features() | VERSION_1 | RING_INDIRECT_DESC;
    rig.ring = DriverRing::new(&rig.ram, 256);
    (rig.queue, rig.line) = rig.ring.activate(features);
    rig.handler = rig.device.start_queue(1, features).unwrap();
    rig.ask(1, 512);

    rig.serve_some(0);

    assert_eq!(rig.ring.used(), []);
    assert_eq!((rig.stats().reads, rig.stats().limited), (1, 1));
}
