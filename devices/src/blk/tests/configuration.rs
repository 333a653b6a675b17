//! The configuration space. virtio 1.3 §5.2.4

use super::*;

fn config_bytes(device: &BlkDevice, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; len];
    device.read_config(offset, &mut bytes);
    bytes
}

#[test]
fn the_configuration_space_says_what_the_disk_is() {
    let rig = Rig::with(|config| {
        config.logical_block_size = Some(512);
        config.physical_block_size = Some(4096);
        config.queues = 2;
        config.queue_size = 128;
    });
    let word = |offset| {
        let bytes = config_bytes(&rig.device, offset, 4);
        u32::from_le_bytes(bytes.try_into().unwrap())
    };

    assert_eq!(config_bytes(&rig.device, 0, 8), 2048u64.to_le_bytes());
    assert_eq!(word(12), 126); // seg_max
    assert_eq!(word(20), 512); // blk_size
    assert_eq!(word(24), 3); // 8 logical blocks in a physical one
    assert_eq!(config_bytes(&rig.device, 34, 2), 2u16.to_le_bytes()); // num_queues
    assert_eq!((word(36), word(40)), (1 << 22, 32)); // discard
    assert_eq!(word(44), 8); // discard_sector_alignment
    assert_eq!((word(48), word(52), word(56)), (1 << 16, 8, 1)); // write-zeroes
    assert_eq!(rig.device.queue_sizes(), [128, 128]);
    assert_ne!(rig.device.features() & 1 << blk::VIRTIO_BLK_F_MQ, 0);
}

#[test]
fn past_the_end_the_configuration_space_reads_as_zero() {
    let rig = Rig::new();

    assert_eq!(config_bytes(&rig.device, 56, 8), [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(config_bytes(&rig.device, u64::MAX, 4), [0; 4]);
    assert_eq!(config_bytes(&rig.device, 1, 1), [8]);
}
