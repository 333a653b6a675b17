//! A disk that keeps nothing.

use super::*;

const GIB: u64 = 1 << 30;

fn null_disk(direct: bool) -> Rig {
    let config = BlkConfig {
        direct,
        ..BlkConfig::null(64 * GIB)
    };
    let on = On::new(EngineKind::Auto, direct);
    Rig::over(new_image(), config, |_| {}, u64::MAX, on)
}

#[test]
fn it_has_its_size_and_nothing_is_opened() {
    let rig = null_disk(false);

    assert_eq!(rig.device.sectors(), 64 * GIB / 512);
}

#[test]
fn every_kind_of_request_succeeds() {
    let mut rig = null_disk(false);
    let extent = extent(8, 8, 0);
    let list = rig.out(extent.as_bytes());
    let last = 64 * GIB / 512 - 1;
    let (space, data) = (rig.space(512), rig.out(&[3; 512]));

    let answers = [
        rig.request(blk::VIRTIO_BLK_T_IN, last, &[space]),
        rig.request(blk::VIRTIO_BLK_T_OUT, last, &[data]),
        rig.request(blk::VIRTIO_BLK_T_FLUSH, 0, &[]),
        rig.request(blk::VIRTIO_BLK_T_DISCARD, 0, &[list]),
        rig.request(blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[list]),
    ];

    assert_eq!(answers.map(|(status, _)| status), [OK; 5]);
    let stats = rig.stats();
    assert_eq!((stats.reads, stats.writes, stats.flushes), (1, 1, 1));
    assert_eq!((stats.syncs, stats.host_errors), (0, 0));
}

#[test]
fn a_read_leaves_its_memory_alone_and_claims_nothing() {
    for direct in [false, true] {
        let mut rig = null_disk(direct);
        let space = rig.space(4096);
        rig.ram.write(space.address, &[0x5a; 4096]);

        let answer = rig.request(blk::VIRTIO_BLK_T_IN, 0, &[space]);

        assert_eq!(answer, (OK, 0));
        assert_eq!(rig.read_back(space), [0x5a; 4096]);
    }
}

#[test]
fn what_it_does_not_have_is_refused() {
    let mut rig = null_disk(false);
    let space = rig.space(1024);

    let answer = rig.request(blk::VIRTIO_BLK_T_IN, 64 * GIB / 512 - 1, &[space]);

    assert_eq!(answer, (IOERR, 0));
}
