//! Disks on a block device: they need root and a loop device, and are run
//! with `--ignored`.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::blk::ImageError;

/// A loop device over an image; detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(image: &Path, options: &[&str]) -> Self {
        let output = Command::new("losetup")
            .args(options)
            .args(["--find", "--show"])
            .arg(image)
            .output()
            .unwrap();
        assert!(output.status.success(), "losetup: {output:?}");
        let path = String::from_utf8(output.stdout).unwrap();
        Loop(PathBuf::from(path.trim()))
    }

    fn open(&self, readonly: bool) -> Result<BlkDevice, ImageError> {
        let config = BlkConfig {
            readonly,
            ..BlkConfig::new(&self.0)
        };
        BlkDevice::open(config.validate().unwrap())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let status = Command::new("losetup").arg("-d").arg(&self.0).status();
        assert!(status.unwrap().success());
    }
}

/// A guest whose disk is `device`, over `image`.
fn rig(image: NamedTempFile, device: &Loop) -> Rig {
    Rig::on(image, BlkConfig::new(&device.0), |_| {}, u64::MAX)
}

#[test]
#[ignore = "needs root and a loop device"]
fn a_block_device_is_read_written_discarded_and_zeroed() {
    let image = new_image();
    let device = Loop::new(image.path(), &[]);
    let mut rig = rig(image, &device);
    let data = rig.space(1024);
    let discard = rig.out(extent(8, 512, 0).as_bytes());
    let zero = rig.out(extent(1024, 64, 0).as_bytes());
    let unmap = rig.out(extent(1536, 64, UNMAP).as_bytes());
    let before = rig.blocks();

    let answers = [
        rig.request(blk::VIRTIO_BLK_T_IN, 2046, &[data]),
        rig.request(blk::VIRTIO_BLK_T_OUT, 0, &[rig.out(&[7; 512])]),
        rig.request(blk::VIRTIO_BLK_T_DISCARD, 0, &[discard]),
        rig.request(blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[zero]),
        rig.request(blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[unmap]),
        rig.request(blk::VIRTIO_BLK_T_FLUSH, 0, &[]),
    ];

    let one = (OK, 1);
    assert_eq!(answers, [(OK, 1025), one, one, one, one, one]);
    assert_eq!(rig.read_back(data), pattern(2046, 1024));
    assert!(before - rig.blocks() >= 512 + 64 - 16);
    let image = rig.image();
    assert_eq!(image[..512], [7; 512]);
    assert_eq!(image[512..8 * 512], pattern(1, 7 * 512));
    assert!(image[8 * 512..520 * 512].iter().all(|byte| *byte == 0));
    assert!(image[1024 * 512..1088 * 512].iter().all(|byte| *byte == 0));
    assert_eq!(image[1088 * 512..1536 * 512], pattern(1088, 448 * 512));
    assert!(image[1536 * 512..1600 * 512].iter().all(|byte| *byte == 0));
}

#[test]
#[ignore = "needs root and a loop device"]
fn a_block_device_is_opened_once_for_writing() {
    let image = new_image();
    let device = Loop::new(image.path(), &[]);
    let _first = device.open(false).unwrap();

    let second = device.open(false);
    let reader = device.open(true);

    assert!(matches!(second, Err(ImageError::InUse { .. })));
    assert!(matches!(reader, Err(ImageError::InUse { .. })));
}

#[test]
#[ignore = "needs root and a loop device"]
fn a_block_device_tells_its_block_size() {
    let image = new_image();
    let device = Loop::new(image.path(), &["--sector-size", "4096"]);

    let disk = device.open(false).unwrap();

    let mut blk_size = [0; 4];
    disk.read_config(20, &mut blk_size);
    assert_eq!(blk_size, 4096u32.to_le_bytes());
    assert_eq!(disk.sectors(), 2048);
}
