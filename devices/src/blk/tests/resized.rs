//! An image whose size changes under its guest.

use super::*;
use crate::testing::lines::lines_of;

on_every_raw_engine! {
    a_disk_grows_with_its_image
    a_disk_shrinks_with_its_image_and_refuses_what_is_beyond
    a_part_of_a_block_at_the_end_is_not_the_guests
    nothing_has_changed_where_the_size_has_not
    an_image_that_has_shrunk_unseen_fails_its_reads_alone
    an_image_that_has_shrunk_fails_what_is_gone_and_is_not_waited_for
}

/// The last sector of the image as it was at first.
const LAST: u64 = SIZE as u64 / 512 - 1;

impl Rig {
    fn resize(&self, size: u64) {
        self.image.as_file().set_len(size).unwrap();
    }

    fn capacity(&self) -> u64 {
        let mut bytes = [0; 8];
        self.device.read_config(0, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}

fn a_disk_grows_with_its_image(on: On) {
    let mut rig = on.rig();
    let (data, back) = (rig.out(&[9; 4096]), rig.space(4096));
    rig.resize(2 * SIZE as u64);

    let before = rig.request(blk::VIRTIO_BLK_T_OUT, LAST + 1, &[data]);
    let changed = rig.device.refresh();
    let wrote = rig.request(blk::VIRTIO_BLK_T_OUT, 2 * LAST - 6, &[data]);
    let read = rig.request(blk::VIRTIO_BLK_T_IN, 2 * LAST - 6, &[back]);

    assert!(changed);
    assert_eq!(rig.capacity(), 2 * (LAST + 1));
    assert_eq!(
        [before.0, wrote.0, read.0],
        [IOERR, OK, OK],
        "what was not told yet is refused"
    );
    assert_eq!(rig.read_back(back), [9; 4096]);
}

fn a_disk_shrinks_with_its_image_and_refuses_what_is_beyond(on: On) {
    let mut rig = on.rig();
    let space = rig.space(512);
    let data = rig.out(&[1; 512]);
    rig.resize(SIZE as u64 / 2);

    let changed = rig.device.refresh();
    let answers = [
        rig.request(blk::VIRTIO_BLK_T_IN, LAST / 2, &[space]),
        rig.request(blk::VIRTIO_BLK_T_IN, LAST / 2 + 1, &[space]),
        rig.request(blk::VIRTIO_BLK_T_OUT, LAST, &[data]),
    ];

    assert!(changed);
    assert_eq!(rig.capacity(), LAST / 2 + 1);
    assert_eq!(answers.map(|(status, _)| status), [OK, IOERR, IOERR]);
    assert_eq!(rig.image().len(), SIZE / 2, "a write has made it grow");
}

fn a_part_of_a_block_at_the_end_is_not_the_guests(on: On) {
    let mut rig = on.with(|config| config.logical_block_size = Some(4096));
    rig.resize(SIZE as u64 + 4096 + 700);

    let changed = rig.device.refresh();

    assert!(changed);
    assert_eq!(rig.capacity(), LAST + 1 + 8);
}

fn nothing_has_changed_where_the_size_has_not(on: On) {
    let mut rig = on.rig();
    rig.resize(SIZE as u64 + 100);

    assert!(!rig.device.refresh());
    assert_eq!(rig.capacity(), LAST + 1);
}

fn an_image_that_has_shrunk_unseen_fails_its_reads_alone(on: On) {
    let mut rig = on.rig();
    let space = rig.space(4096);
    rig.resize(SIZE as u64 / 2);

    let beyond = rig.request(blk::VIRTIO_BLK_T_IN, LAST - 7, &[space]);
    let inside = rig.request(blk::VIRTIO_BLK_T_IN, 0, &[space]);

    assert_eq!((beyond.0, inside.0), (IOERR, OK));
    assert_eq!(rig.stats().host_errors, 1);
}

#[test]
fn a_guest_that_resets_again_and_again_fills_no_log() {
    let mut rig = On::new(EngineKind::Sync, false).rig();
    rig.image.as_file().set_len(0).unwrap();

    let lines = lines_of(|| {
        for _ in 0..64 {
            let space = rig.space(512);
            rig.request(blk::VIRTIO_BLK_T_IN, 0, &[space]);
            rig.handler.settle(&mut rig.queue);
            rig.handler = rig.device.start_queue(0, u64::MAX).unwrap();
        }
    });

    assert_eq!(rig.stats().host_errors, 64);
    // of the first failure, and of 2, 4, 8, 16, 32 and 64
    assert_eq!(lines, 7);
}

fn an_image_that_has_shrunk_fails_what_is_gone_and_is_not_waited_for(on: On) {
    let mut rig = on.rig();
    rig.image.as_file().set_len(1024 * 512 + 700).unwrap();
    let data = rig.space(4096);

    let answer = rig.request(blk::VIRTIO_BLK_T_IN, 1023, &[data]);
    let inside = rig.request(blk::VIRTIO_BLK_T_IN, 0, &[rig.space(512)]);

    // what there was has been written, and no more is claimed
    assert_eq!(answer, (IOERR, 512 + 700));
    assert_eq!(rig.read_back(data)[..1212], pattern(1023, 1212));
    assert_eq!(inside, (OK, 513));
    assert_eq!(rig.stats().host_errors, 1);
}
