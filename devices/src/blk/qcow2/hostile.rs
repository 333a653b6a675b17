//! Images that someone has made in order to do harm: for the property test and
//! for the fuzz target of the same, which shares no other code with it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test's"
)]

use std::path::Path;

use super::made::{CLUSTER, Cluster, Maker, put};
use crate::blk::image::Image;
use crate::blk::request::Extent;
use crate::blk::{BlkConfig, Format};

/// Bytes of the disk.
const SIZE: usize = 16 * CLUSTER;
/// Bytes that changes reach: the header and every table.
pub const REACH: usize = 5 * CLUSTER;
/// Largest file that one can be made to grow into. Sparse: it takes no space.
const LARGEST: u64 = 1 << 40;

/// An image with something of everything, on a backing file.
fn mixed() -> Vec<u8> {
    let mut maker = Maker::over(SIZE as u64, "base", "raw");
    for (index, cluster) in maker.clusters.iter_mut().enumerate() {
        *cluster = match index % 4 {
            0 => Cluster::Absent,
            1 => Cluster::Zero,
            2 => Cluster::Data(vec![index as u8; CLUSTER]),
            _ => Cluster::Compressed(vec![index as u8; CLUSTER]),
        };
    }
    maker.make()
}

/// Opens a sound image with some of its words changed, and what is behind `cut`
/// gone; reads it through, and writes, zeroes and discards all over it. Returns
/// whether it could be opened.
///
/// # Panics
/// Where that does harm to anything but the image.
pub fn play(folder: &Path, changes: &[(u16, u64)], cut: Option<u32>) -> bool {
    let base = vec![0x42; SIZE];
    let (base_path, path) = (folder.join("base"), folder.join("disk"));
    std::fs::write(&base_path, &base).unwrap();
    let mut image = mixed();
    for (at, value) in changes {
        put(&mut image, usize::from(*at) % (REACH - 8), *value);
    }
    image.truncate(cut.map_or(image.len(), |cut| cut as usize % image.len()));
    std::fs::write(&path, &image).unwrap();

    let opened = use_all(&path);

    assert!(std::fs::read(&base_path).unwrap() == base);
    let len = std::fs::metadata(&path).unwrap().len();
    assert!(len < LARGEST, "the image has grown to {len} bytes");
    opened
}

fn use_all(path: &Path) -> bool {
    let config = BlkConfig {
        format: Format::Qcow2,
        ..BlkConfig::new(path)
    };
    let Ok(image) = Image::open(path, &config.validate().unwrap()) else {
        return false;
    };
    let qcow2 = image.qcow2().unwrap();
    let whole = image.size().min(2 * SIZE as u64);
    let extent = |offset, len: u64| Extent {
        offset,
        len: len.min(whole - offset),
        unmap: true,
    };
    let mut buffer = vec![0; 8192];
    for offset in (0..whole).step_by(buffer.len()) {
        let _ =
            qcow2.contained(|access| access.read().unwrap().read(buffer.as_mut_slice(), offset));
    }
    for offset in (0..whole).step_by(9 * 512) {
        let part = buffer.get(..512.min((whole - offset) as usize)).unwrap();
        let _ = qcow2.contained(|access| access.read().unwrap().write(part, offset));
        let _ = qcow2.zero(&extent(offset, 5120), offset % 3 == 0);
        let _ = qcow2.discard(&extent(offset, 16_384));
    }
    let _ = qcow2.sync();
    true
}
