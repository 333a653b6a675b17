//! qcow2 images made and read by hand: a second opinion, which shares nothing
//! with the code under test. Clusters of 4 KiB, disks of 2 MiB at most, so that
//! one table of each kind is enough.
#![cfg_attr(fuzzing, allow(dead_code))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test's"
)]

use std::path::Path;

pub(in crate::blk) const CLUSTER: usize = 4096;
/// Where the tables are, in clusters.
const REFCOUNTS: usize = 1;
const REFCOUNT_BLOCK: usize = 2;
pub(in crate::blk) const L1: usize = 3;
pub(in crate::blk) const L2: usize = 4;
/// The refcount is one: the entry may be written through.
const OWN: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of the offset of compressed data in clusters of 4 KiB.
const COMPRESSED_BITS: u32 = 62 - (12 - 8);

/// What a cluster of the disk is.
#[derive(Clone, Debug)]
pub(in crate::blk) enum Cluster {
    /// Nothing: the backing file's.
    Absent,
    /// Data.
    Data(Vec<u8>),
    /// Data in a deflate stream.
    Compressed(Vec<u8>),
    /// Zeroes.
    Zero,
}

/// An image to be made.
#[derive(Clone, Debug)]
pub(in crate::blk) struct Maker {
    pub version: u32,
    pub size: u64,
    pub backing: Option<(String, Option<&'static str>)>,
    pub clusters: Vec<Cluster>,
}

impl Maker {
    /// Of version 3, with nothing in it.
    pub(in crate::blk) fn empty(size: u64) -> Self {
        let count = usize::try_from(size).unwrap().div_ceil(CLUSTER);
        assert!(count <= CLUSTER / 8, "one L2 table is all there is");
        Maker {
            version: 3,
            size,
            backing: None,
            clusters: vec![Cluster::Absent; count],
        }
    }

    /// All of whose bytes are there.
    pub(in crate::blk) fn full(bytes: &[u8]) -> Self {
        let clusters = bytes.chunks(CLUSTER).map(|part| {
            let mut cluster = part.to_vec();
            cluster.resize(CLUSTER, 0);
            Cluster::Data(cluster)
        });
        Maker {
            clusters: clusters.collect(),
            ..Maker::empty(bytes.len() as u64)
        }
    }

    /// Over a backing file.
    pub(in crate::blk) fn over(size: u64, name: &str, format: &'static str) -> Self {
        Maker {
            backing: Some((name.into(), Some(format))),
            ..Maker::empty(size)
        }
    }

    /// The bytes of the image.
    pub(in crate::blk) fn make(&self) -> Vec<u8> {
        let mut image = vec![0; (L2 + 1) * CLUSTER];
        for (index, cluster) in self.clusters.iter().enumerate() {
            let at = image.len() as u64;
            let entry = match cluster {
                Cluster::Absent => 0,
                Cluster::Zero => 1,
                Cluster::Data(bytes) => {
                    image.extend(bytes);
                    at | OWN
                }
                Cluster::Compressed(bytes) => {
                    let stream = stored(bytes);
                    let sectors = (stream.len() as u64 - 1) / 512;
                    image.extend(stream);
                    at | COMPRESSED | sectors << COMPRESSED_BITS
                }
            };
            image.resize(image.len().next_multiple_of(CLUSTER), 0);
            put(&mut image, L2 * CLUSTER + index * 8, entry);
        }
        put(&mut image, L1 * CLUSTER, (L2 * CLUSTER) as u64 | OWN);
        put(
            &mut image,
            REFCOUNTS * CLUSTER,
            (REFCOUNT_BLOCK * CLUSTER) as u64,
        );
        for cluster in 0..image.len() / CLUSTER {
            image[REFCOUNT_BLOCK * CLUSTER + cluster * 2 + 1] = 1;
        }
        self.header(&mut image);
        image
    }

    /// QEMU docs/interop/qcow2.txt, "Header"
    fn header(&self, image: &mut [u8]) {
        image[..4].copy_from_slice(b"QFI\xfb");
        put32(image, 4, self.version);
        put32(image, 20, 12);
        put(image, 24, self.size);
        put32(image, 36, 1);
        put(image, 40, (L1 * CLUSTER) as u64);
        put(image, 48, (REFCOUNTS * CLUSTER) as u64);
        put32(image, 56, 1);
        let mut at = 72;
        if self.version == 3 {
            put32(image, 96, 4);
            put32(image, 100, 104);
            at = 104;
        }
        let Some((name, format)) = &self.backing else {
            return;
        };
        if let Some(format) = format {
            put32(image, at, 0xe279_2aca);
            put32(image, at + 4, format.len() as u32);
            image[at + 8..][..format.len()].copy_from_slice(format.as_bytes());
            at += 8 + format.len().next_multiple_of(8);
        }
        // the end of the extensions
        at += 8;
        put(image, 8, at as u64);
        put32(image, 16, name.len() as u32);
        image[at..][..name.len()].copy_from_slice(name.as_bytes());
    }
}

/// A deflate stream of one block that is not compressed. RFC 1951 §3.2.4
fn stored(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).unwrap();
    let mut stream = vec![1];
    stream.extend(len.to_le_bytes());
    stream.extend((!len).to_le_bytes());
    stream.extend(bytes);
    stream
}

pub(in crate::blk) fn put(image: &mut [u8], at: usize, value: u64) {
    image[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

pub(in crate::blk) fn put32(image: &mut [u8], at: usize, value: u32) {
    image[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

pub(in crate::blk) fn get(image: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(image[at..at + 8].try_into().unwrap())
}

/// The disk in the image at `path`, with what its backing files have.
pub(in crate::blk) fn disk(path: &Path) -> Vec<u8> {
    let image = std::fs::read(path).unwrap();
    if image[..4] != *b"QFI\xfb" {
        return image;
    }
    let size = usize::try_from(get(&image, 24)).unwrap();
    let (name_at, name_len) = (get(&image, 8) as usize, (get(&image, 12) as u32) as usize);
    let mut disk = match name_at {
        0 => Vec::new(),
        at => {
            let name = std::str::from_utf8(&image[at..at + name_len]).unwrap();
            self::disk(&path.parent().unwrap().join(name))
        }
    };
    disk.resize(size.next_multiple_of(CLUSTER), 0);
    for (index, cluster) in disk.chunks_mut(CLUSTER).enumerate() {
        match entry(&image, index) {
            0 => {}
            zero if zero & 1 == 1 => cluster.fill(0),
            packed if packed & COMPRESSED != 0 => {
                let at = (packed & ((1 << COMPRESSED_BITS) - 1)) as usize;
                cluster.copy_from_slice(&image[at + 5..][..CLUSTER]);
            }
            data => {
                // what the file lacks of its last cluster is zeroes
                let at = (data & OFFSET) as usize;
                let there = &image[at..image.len().min(at + CLUSTER)];
                cluster.fill(0);
                cluster[..there.len()].copy_from_slice(there);
            }
        }
    }
    disk.truncate(size);
    disk
}

fn entry(image: &[u8], index: usize) -> u64 {
    let l2 = (get(image, get(image, 40) as usize) & OFFSET) as usize;
    get(image, l2 + index * 8)
}

/// Asserts that each cluster of an image is counted as often as it is referred
/// to, and that nothing is lost.
pub(in crate::blk) fn assert_sound(path: &Path) {
    let image = std::fs::read(path).unwrap();
    let mut referred = vec![0_u16; image.len().div_ceil(CLUSTER)];
    let table = get(&image, 48) as usize;
    let l1 = get(&image, 40) as usize;
    let l2 = (get(&image, l1) & OFFSET) as usize;
    let block = (get(&image, table) & OFFSET) as usize;
    for at in [0, table, block, l1, l2] {
        referred[at / CLUSTER] += 1;
    }
    let count = get(&image, 24).div_ceil(CLUSTER as u64);
    for index in 0..count as usize {
        let entry = entry(&image, index);
        let (first, last) = match entry & COMPRESSED {
            0 => ((entry & OFFSET) as usize, (entry & OFFSET) as usize),
            _ => {
                let at = (entry & ((1 << COMPRESSED_BITS) - 1)) as usize;
                let sectors = (entry & !COMPRESSED) >> COMPRESSED_BITS;
                (at, (at / 512 + sectors as usize) * 512)
            }
        };
        if first != 0 {
            (first / CLUSTER..=last / CLUSTER).for_each(|cluster| referred[cluster] += 1);
        }
    }
    let counted: Vec<_> = (0..referred.len())
        .map(|cluster| {
            let at = block + cluster * 2;
            u16::from_be_bytes([image[at], image[at + 1]])
        })
        .collect();
    assert_eq!(counted, referred, "refcounts and references of {path:?}");
}
