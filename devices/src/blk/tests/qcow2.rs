//! Disks in qcow2 images: what they have beside those in raw ones.

mod qemu_img;

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::made::{CLUSTER, Cluster};
use super::*;
use crate::blk::ImageError;

/// Sectors of a cluster.
const SECTORS: u64 = CLUSTER as u64 / 512;

/// A folder with images.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A guest whose disk is the qcow2 image `name` of this folder.
    fn rig(&self, name: &str, engine: EngineKind) -> Rig {
        let config = BlkConfig {
            format: Format::Qcow2,
            engine,
            ..BlkConfig::new(self.path(name))
        };
        // the rig's own image is not used
        Rig::on(NamedTempFile::new().unwrap(), config, |_| {}, u64::MAX)
    }

    fn disk(&self, name: &str) -> Vec<u8> {
        made::disk(&self.path(name))
    }
}

impl Rig {
    fn get(&mut self, sector: u64, len: u32) -> Vec<u8> {
        let space = self.space(len);
        let answer = self.request(blk::VIRTIO_BLK_T_IN, sector, &[space]);
        assert_eq!(answer, (OK, len + 1));
        self.read_back(space)
    }

    fn put(&mut self, sector: u64, bytes: &[u8]) {
        let data = self.out(bytes);
        let answer = self.request(blk::VIRTIO_BLK_T_OUT, sector, &[data]);
        assert_eq!(answer, (OK, 1));
    }

    fn flush(&mut self) {
        let answer = self.request(blk::VIRTIO_BLK_T_FLUSH, 0, &[]);
        assert_eq!(answer, (OK, 1));
    }
}

const ENGINES: [EngineKind; 2] = [EngineKind::Sync, EngineKind::Threads];

#[test]
fn what_was_never_written_is_the_backing_files() {
    for engine in ENGINES {
        for format in ["raw", "qcow2"] {
            let folder = Folder::new();
            let below = pattern(0, SIZE);
            let bytes = match format {
                "raw" => below.clone(),
                _ => Maker::full(&below).make(),
            };
            folder.put("base", &bytes);
            let top = folder.put("top", &Maker::over(SIZE as u64, "base", format).make());
            let mut rig = folder.rig("top", engine);

            let before = rig.get(100, 8192);
            rig.put(101, &[0xaa; 1024]);
            let after = rig.get(100, 8192);
            drop(rig);

            let mut expected = pattern(100, 8192);
            assert_eq!(before, expected);
            expected[512..1536].fill(0xaa);
            assert_eq!(after, expected);
            let mut whole = below;
            whole[101 * 512..][..1024].fill(0xaa);
            assert!(folder.disk("top") == whole, "{engine:?} on {format}");
            assert_eq!(std::fs::read(folder.path("base")).unwrap(), bytes);
            made::assert_sound(&top);
        }
    }
}

#[test]
fn a_backing_file_that_is_shorter_ends_in_zeroes() {
    let folder = Folder::new();
    folder.put("base", &[7; 3 * 512]);
    folder.put("top", &Maker::over(SIZE as u64, "base", "raw").make());
    let mut rig = folder.rig("top", EngineKind::Threads);

    let read = rig.get(0, 8192);
    rig.put(4, &[9; 512]);
    let written = rig.get(0, 8192);

    assert_eq!(read, [&[7; 1536][..], &[0; 6656]].concat());
    let parts = [&[7; 1536][..], &[0; 512], &[9; 512], &[0; 5632]];
    assert_eq!(written, parts.concat());
}

#[test]
fn compressed_clusters_are_read_and_written_over() {
    for engine in ENGINES {
        let folder = Folder::new();
        let bytes = pattern(0, 4 * CLUSTER);
        let clusters = bytes.chunks(CLUSTER);
        let maker = Maker {
            clusters: clusters
                .map(|part| Cluster::Compressed(part.to_vec()))
                .collect(),
            ..Maker::empty(bytes.len() as u64)
        };
        let path = folder.put("packed", &maker.make());
        let mut rig = folder.rig("packed", engine);

        let read = rig.get(3, 9 * 1024);
        rig.put(9, &[0x77; 512]);
        let over = rig.get(0, 4 * CLUSTER as u32);
        drop(rig);

        assert_eq!(read, pattern(3, 9 * 1024));
        let mut expected = bytes;
        expected[9 * 512..][..512].fill(0x77);
        assert_eq!(over, expected);
        assert_eq!(folder.disk("packed"), expected);
        made::assert_sound(&path);
    }
}

#[test]
fn zeroes_and_holes_read_as_zeroes_and_hide_the_backing_file() {
    let folder = Folder::new();
    folder.put("base", &pattern(0, 4 * CLUSTER));
    let mut maker = Maker::over(4 * CLUSTER as u64, "base", "raw");
    maker.clusters[1] = Cluster::Zero;
    maker.clusters[2] = Cluster::Data(vec![5; CLUSTER]);
    folder.put("top", &maker.make());
    let mut rig = folder.rig("top", EngineKind::Threads);

    let read = rig.get(0, 4 * CLUSTER as u32);

    let (zeroes, fives) = (vec![0; CLUSTER], vec![5; CLUSTER]);
    let (first, last) = (pattern(0, CLUSTER), pattern(24, CLUSTER));
    assert_eq!(read, [first, zeroes, fives, last].concat());
}

#[test]
fn what_was_discarded_never_shows_the_backing_file_again() {
    for engine in ENGINES {
        let folder = Folder::new();
        folder.put("base", &pattern(0, SIZE));
        let top = folder.put("top", &Maker::over(SIZE as u64, "base", "raw").make());
        let mut rig = folder.rig("top", engine);
        rig.put(0, &pattern(7, 8 * CLUSTER));
        let list = rig.out([extent(SECTORS, 2 * SECTORS as u32, 0)].as_bytes());
        let zero = rig.out([extent(100, 100, 0)].as_bytes());

        let discarded = rig.request(blk::VIRTIO_BLK_T_DISCARD, 0, &[list]);
        let zeroed = rig.request(blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[zero]);
        let read = rig.get(SECTORS, 2 * CLUSTER as u32);
        rig.put(2 * SECTORS, &[3; 512]);
        drop(rig);

        assert_eq!((discarded, zeroed), ((OK, 1), (OK, 1)));
        assert_eq!(read, vec![0; 2 * CLUSTER]);
        let mut expected = pattern(0, SIZE);
        expected[..8 * CLUSTER].copy_from_slice(&pattern(7, 8 * CLUSTER));
        expected[CLUSTER..3 * CLUSTER].fill(0);
        expected[2 * CLUSTER..][..512].fill(3);
        expected[100 * 512..200 * 512].fill(0);
        assert!(folder.disk("top") == expected);
        made::assert_sound(&top);
    }
}

#[test]
fn version_2_has_no_discard_and_writes_its_zeroes() {
    let folder = Folder::new();
    let maker = Maker {
        version: 2,
        ..Maker::full(&pattern(0, SIZE))
    };
    folder.put("old", &maker.make());
    let mut rig = folder.rig("old", EngineKind::Threads);
    let list = rig.out([extent(5, 20, UNMAP)].as_bytes());

    let zeroed = rig.request(blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[list]);
    let offered = rig.device.features() & 1 << blk::VIRTIO_BLK_F_DISCARD;

    assert_eq!((zeroed, offered), ((OK, 1), 0));
    let mut expected = pattern(0, SIZE);
    expected[5 * 512..25 * 512].fill(0);
    assert!(folder.disk("old") == expected);
}

#[test]
fn many_first_writes_at_once_leave_a_sound_image() {
    let folder = Folder::new();
    let path = folder.put("empty", &Maker::empty(SIZE as u64).make());
    let mut rig = folder.rig("empty", EngineKind::Threads);
    let mut expected = vec![0; SIZE];

    for round in 0..8_u64 {
        for index in 0..32 {
            // neighbours in the same cluster, and the one behind it
            let sector = (round * 32 + index) * 7 % 2040;
            let bytes = vec![(round * 32 + index) as u8; 512];
            let (chain, _) = rig.frame(blk::VIRTIO_BLK_T_OUT, sector, &[rig.out(&bytes)]);
            rig.ring.add(&chain);
            expected[sector as usize * 512..][..512].copy_from_slice(&bytes);
        }
        rig.serve().unwrap();
    }
    rig.flush();

    assert_eq!(rig.stats().writes, 256);
    assert!(folder.disk("empty") == expected);
    drop(rig);
    made::assert_sound(&path);
}

#[test]
fn a_completed_write_is_in_the_file_before_any_flush() {
    let folder = Folder::new();
    folder.put("empty", &Maker::empty(SIZE as u64).make());
    let mut rig = folder.rig("empty", EngineKind::Threads);

    rig.put(40, &[6; 4096]);

    // what a process that dies now would leave
    assert_eq!(folder.disk("empty")[40 * 512..][..4096], [6; 4096]);
    assert_eq!(rig.stats().syncs, 0);
}

#[test]
fn a_raw_image_with_a_qcow2_header_in_it_stays_raw() {
    let folder = Folder::new();
    folder.put("secret", &[0x5e; 4096]);
    let hostile = Maker::over(SIZE as u64, "secret", "raw").make();
    let path = folder.put("disk", &hostile);
    let config = BlkConfig::new(&path);
    let mut rig = Rig::on(NamedTempFile::new().unwrap(), config, |_| {}, u64::MAX);

    let read = rig.get(0, 4096);

    assert_eq!(read, hostile[..4096]);
    assert_eq!(rig.device.sectors(), hostile.len() as u64 / 512);
}

#[test]
fn clusters_beyond_the_end_fail_their_requests_alone() {
    for engine in ENGINES {
        let folder = Folder::new();
        let mut image = Maker::full(&pattern(0, SIZE)).make();
        // the last 32 clusters, and half of the one before
        image.truncate(image.len() - 32 * CLUSTER - CLUSTER / 2);
        folder.put("short", &image);
        let mut rig = folder.rig("short", engine);
        let space = rig.space(4096);
        let out = rig.out(&[1; 4096]);
        let last = SIZE as u64 / 512 - 8;

        let gone = rig.request(blk::VIRTIO_BLK_T_IN, last, &[space]);
        let over = rig.request(blk::VIRTIO_BLK_T_OUT, last, &[out]);
        let there = rig.get(0, 4096);
        let half = rig.get(last - 32 * 8, 4096);

        assert_eq!([gone.0, over.0], [IOERR, IOERR]);
        assert_eq!(there, pattern(0, 4096));
        assert_eq!(half[..2048], pattern(last as usize - 256, 2048));
        assert_eq!(half[2048..], [0; 2048]);
        assert_eq!(rig.stats().host_errors, 2);
    }
}

#[test]
fn data_in_place_of_the_header_is_not_written() {
    let folder = Folder::new();
    let mut image = Maker::full(&pattern(0, SIZE)).make();
    // cluster 0 of the disk would be at the header with this, which is none
    made::put(&mut image, made::L2 * CLUSTER + 8, 1 << 63 | 512);
    let before = folder.put("odd", &image);
    let mut rig = folder.rig("odd", EngineKind::Threads);
    let out = rig.out(&[1; 512]);

    let answer = rig.request(blk::VIRTIO_BLK_T_OUT, SECTORS, &[out]);

    assert_eq!(answer.0, IOERR);
    assert_eq!(std::fs::read(before).unwrap(), image);
}

#[test]
fn an_image_whose_header_changes_under_its_guest_keeps_its_size() {
    let folder = Folder::new();
    let path = folder.put("disk", &Maker::full(&pattern(0, SIZE)).make());
    let mut rig = folder.rig("disk", EngineKind::Threads);
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&(2 * SIZE as u64).to_be_bytes(), 24)
        .unwrap();

    let changed = rig.device.refresh();

    assert!(!changed);
    assert_eq!(rig.device.sectors(), SIZE as u64 / 512);
}

#[test]
fn guests_share_a_backing_file_and_nobody_writes_it_meanwhile() {
    let folder = Folder::new();
    folder.put("base", &pattern(0, SIZE));
    let over = Maker::over(SIZE as u64, "base", "raw").make();
    folder.put("one", &over);
    folder.put("two", &over);
    let (mut one, mut two) = (
        folder.rig("one", EngineKind::Threads),
        folder.rig("two", EngineKind::Threads),
    );
    one.put(0, &[1; 512]);
    two.put(0, &[2; 512]);

    let config = BlkConfig::new(folder.path("base"));
    let writer = BlkDevice::open(config.validate().unwrap());

    assert!(matches!(writer, Err(ImageError::InUse { .. })));
    assert_eq!(
        (one.get(0, 512), two.get(0, 512)),
        (vec![1; 512], vec![2; 512])
    );
    assert_eq!(one.get(1, 512), pattern(1, 512));
}
