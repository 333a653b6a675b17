//! Requests as long as a disk: a driver may ask for that, and may reset its
//! device before it has it.

use super::*;

on_every_raw_engine! {
    a_long_request_is_carried_out_in_turns
    a_long_request_is_dropped_between_its_parts
    many_long_requests_share_a_turn
}

const MIB: u64 = 1 << 20;
/// What a queue has under way at once, and the part that goes beyond.
const TURN: u64 = 68 * MIB;
/// Of each request, in MiB.
const LONG: usize = 160;

impl Rig {
    /// A disk of 256 MiB, none of it written.
    fn long(on: On) -> Self {
        let image = NamedTempFile::new().unwrap();
        image.as_file().set_len(256 * MIB).unwrap();
        let config = BlkConfig {
            engine: on.engine,
            direct: on.direct,
            ..BlkConfig::new(image.path())
        };
        Rig::over(image, config, |_| {}, u64::MAX, on)
    }

    /// Asks for much more than the guest has memory for, all of it into the same.
    fn ask_long(&mut self) -> u64 {
        let space = self.space(MIB as u32);
        let (buffers, status) = self.frame(blk::VIRTIO_BLK_T_IN, 8, &[space; LONG]);
        self.ring.add(&buffers);
        status
    }

    /// Bytes that were handed to the engine so far.
    fn moved(&mut self) -> u64 {
        let dma = self.queue.dma().counters().snapshot();
        dma.direct * MIB + dma.bounced_bytes_out
    }

    fn take(&mut self) {
        let chains = self.queue.take(64).unwrap();
        self.handler.serve(&mut self.queue, chains).unwrap();
    }
}

fn a_long_request_is_carried_out_in_turns(on: On) {
    let mut rig = Rig::long(on);
    let status = rig.ask_long();
    let mut most = 0;

    rig.take();
    let first = rig.moved();
    let mut used = rig.ring.used();
    while used.is_empty() {
        let before = rig.moved();
        rig.turn().unwrap();
        most = most.max(rig.moved() - before);
        used = rig.ring.used();
    }

    assert!(first <= TURN && most <= TURN, "{first} and {most} bytes");
    assert_eq!(rig.moved(), LONG as u64 * MIB);
    assert_eq!(used, [(0, (LONG as u32) * MIB as u32 + 1)]);
    assert_eq!(rig.ram.read(status, 1), [OK]);
    assert_eq!(rig.stats().reads, 1);
}

fn a_long_request_is_dropped_between_its_parts(on: On) {
    let mut rig = Rig::long(on);
    let status = rig.ask_long();

    rig.take();
    rig.handler.settle(&mut rig.queue);

    let moved = rig.moved();
    assert!(moved <= 2 * TURN, "{moved} bytes for a reset");
    assert_eq!(rig.ring.used(), []);
    assert_eq!(rig.ram.read(status, 1), [UNTOUCHED]);
    assert!(rig.handler.is_idle());
    assert_eq!(rig.queue.dma().pool_in_use(), 0);
}

fn many_long_requests_share_a_turn(on: On) {
    let mut rig = Rig::long(on);
    let space = rig.space(MIB as u32);
    // as many as an engine takes, by an indirect table each
    for sector in 0..40 {
        let (buffers, _) = rig.frame(blk::VIRTIO_BLK_T_IN, sector, &[space; 8]);
        rig.ring.add_indirect(&buffers);
    }

    rig.take();
    let first = rig.moved();
    while usize::from(rig.ring.used_index()) < 40 {
        rig.turn().unwrap();
    }

    assert!(first <= TURN, "{first} bytes before it looks up");
    assert_eq!(rig.moved(), 320 * MIB);
    let used = rig.ring.used();
    assert!(used.iter().all(|(_, len)| *len == 8 * MIB as u32 + 1));
}
