//! The switch of the write cache. virtio 1.3 §5.2.5.1

use super::*;

on_every_engine! {
    a_driver_switches_the_cache_and_its_writes_are_durable_at_once
    a_disk_without_a_write_cache_has_one_when_its_driver_wants_it
    a_reset_switches_the_cache_back
    what_is_no_switch_is_left_alone
}

/// Where the switch stands in the configuration space.
const WRITEBACK: u64 = 32;

impl Rig {
    fn writeback(&self) -> u8 {
        let mut byte = [0xff];
        self.device.read_config(WRITEBACK, &mut byte);
        byte[0]
    }

    fn write_one(&mut self) -> u8 {
        let data = self.out(&[1; 512]);
        self.request(blk::VIRTIO_BLK_T_OUT, 0, &[data]).0
    }
}

fn a_driver_switches_the_cache_and_its_writes_are_durable_at_once(on: On) {
    let mut rig = on.rig();

    let first = rig.write_one();
    let before = (rig.writeback(), rig.stats().syncs);
    let taken = rig.device.write_config(WRITEBACK, &[0]);
    let second = rig.write_one();

    assert_eq!((first, second, taken), (OK, OK, true));
    assert_eq!(before, (1, 0));
    assert_eq!((rig.writeback(), rig.stats().syncs), (0, 1));
    let offered = rig.device.features() & 1 << blk::VIRTIO_BLK_F_CONFIG_WCE;
    assert_ne!(offered, 0);
}

fn a_disk_without_a_write_cache_has_one_when_its_driver_wants_it(on: On) {
    let mut rig = on.with(|config| config.write_cache = false);

    rig.write_one();
    let before = (rig.writeback(), rig.stats().syncs);
    rig.device.write_config(WRITEBACK, &[1]);
    rig.write_one();

    assert_eq!(before, (0, 1));
    assert_eq!((rig.writeback(), rig.stats().syncs), (1, 1));
}

fn a_reset_switches_the_cache_back(on: On) {
    let mut rig = on.rig();
    rig.device.write_config(WRITEBACK, &[0]);

    rig.device.reset();

    assert_eq!(rig.writeback(), 1);
}

fn what_is_no_switch_is_left_alone(on: On) {
    let mut rig = on.rig();

    let taken = [
        rig.device.write_config(WRITEBACK, &[2]),
        rig.device.write_config(WRITEBACK, &[0, 0]),
        rig.device.write_config(0, &[0]),
        rig.device.write_config(u64::MAX, &[0]),
    ];

    assert_eq!(taken, [false; 4]);
    assert_eq!(
        (rig.writeback(), rig.device.sectors()),
        (1, SIZE as u64 / 512)
    );
}

#[test]
fn a_disk_that_cannot_be_written_has_no_switch() {
    let mut rig = Rig::with(|config| config.readonly = true);

    let taken = rig.device.write_config(WRITEBACK, &[0]);

    let offered = rig.device.features() & 1 << blk::VIRTIO_BLK_F_CONFIG_WCE;
    assert_eq!((taken, offered), (false, 0));
}

#[test]
fn without_flushes_the_cache_is_off_from_the_start() {
    let rig = On::new(EngineKind::Sync, false).negotiating(|_| {}, !(1 << blk::VIRTIO_BLK_F_FLUSH));

    assert_eq!(rig.writeback(), 0);
}
