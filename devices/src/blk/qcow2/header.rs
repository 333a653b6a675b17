//! What an image says of itself, judged before anything is built on it.
//!
//! The library that serves qcow2 takes some headers that this program must not
//! serve (encrypted ones) or that it would not survive (tables beyond the end,
//! an extension that is cut off). QEMU `docs/interop/qcow2.txt`

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::error::HeaderError;

/// How each image begins.
pub(in crate::blk) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Least and most bits of an offset in a cluster; the most is QEMU's.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Largest first-level table, bytes; QEMU's.
const L1_MAX: u64 = 32 << 20;
/// Largest refcount table, bytes; QEMU's.
const REFCOUNTS_MAX: u64 = 8 << 20;
/// Largest disk: offsets in it are numbers with a sign, and so are those of its
/// clusters' ends.
const SIZE_MAX: u64 = 1 << 60;
/// Bytes of a table's entry.
const ENTRY: u64 = 8;
/// Longest name of a backing file, bytes.
const NAME_MAX: u32 = 1023;
/// Where an L1 entry says that an L2 table is.
const L2_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// What an L1 entry leaves out.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;

/// Header extensions that are looked into.
const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
/// Bytes of a name in the table of features.
const FEATURE_NAME: u32 = 48;

/// Version 2, and what version 3 begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Wire {
    magic: [u8; 4],
    version: U32,
    backing_offset: U64,
    backing_len: U32,
    cluster_bits: U32,
    size: U64,
    encryption: U32,
    l1_entries: U32,
    l1_offset: U64,
    refcounts_offset: U64,
    refcounts_clusters: U32,
    snapshots: U32,
    snapshots_offset: U64,
}

/// What version 3 has behind that.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct More {
    incompatible: U64,
    compatible: U64,
    autoclear: U64,
    refcount_order: U32,
    header_len: U32,
}

/// A header extension.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Extension {
    kind: U32,
    len: U32,
}

/// What a backing file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BackingFormat {
    Raw,
    Qcow2,
}

/// What an image stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backing {
    /// As the image has it: a path, from the image's own folder if it is not
    /// absolute.
    pub name: String,
    /// How its bytes are read. Never guessed.
    pub format: BackingFormat,
}

/// A header that can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Size of the disk, bytes.
    pub size: u64,
    /// Size of a cluster, bytes.
    pub cluster: u32,
    /// It can say of a cluster that it is zero: version 3.
    pub has_zeroes: bool,
    /// What is below it.
    pub backing: Option<Backing>,
}

/// Where a file's bytes come from, and how many there are.
struct Bytes<'a> {
    file: &'a File,
    end: u64,
}

impl Bytes<'_> {
    fn read<T: FromZeros + IntoBytes + FromBytes>(&self, offset: u64) -> Result<T, HeaderError> {
        let mut value = T::new_zeroed();
        let read = self.file.read_exact_at(value.as_mut_bytes(), offset);
        match read {
            Ok(()) => Ok(value),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(HeaderError::Short(self.end))
            }
            Err(error) => Err(HeaderError::Read(error)),
        }
    }

    fn text(&self, offset: u64, len: u32) -> Option<String> {
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        self.file.read_exact_at(&mut bytes, offset).ok()?;
        String::from_utf8(bytes)
            .ok()
            .filter(|text| !text.is_empty() && !text.contains('\0'))
    }

    /// Calls `each` with the number and the value of each entry of a table, up to
    /// the first one that it refuses.
    fn each_entry(
        &self,
        offset: u64,
        len: u64,
        mut each: impl FnMut(u64, u64) -> Result<(), HeaderError>,
    ) -> Result<(), HeaderError> {
        let mut part = [U64::ZERO; 4096];
        let mut index = 0;
        while index * ENTRY < len {
            let count = usize::try_from(len / ENTRY - index).unwrap_or(usize::MAX);
            let count = count.min(part.len());
            let now = part.get_mut(..count).unwrap_or_default();
            let at = offset + index * ENTRY;
            let read = self.file.read_exact_at(now.as_mut_bytes(), at);
            read.map_err(HeaderError::Read)?;
            for entry in now {
                each(index, entry.get())?;
                index += 1;
            }
        }
        Ok(())
    }

    /// Whether a table lies in the file, at the beginning of a cluster.
    fn check_table(
        &self,
        table: &'static str,
        offset: u64,
        len: u64,
        cluster: u64,
    ) -> Result<(), HeaderError> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.end);
        // the first cluster is the header's
        match inside && offset >= cluster && offset.is_multiple_of(cluster) {
            true => Ok(()),
            false => Err(HeaderError::Table {
                table,
                offset,
                len,
                end: self.end,
            }),
        }
    }
}

impl Header {
    /// Reads and judges the header of an image of `end` bytes, and its
    /// first-level table.
    ///
    /// # Errors
    /// [`HeaderError`]
    pub(super) fn read(file: &File, end: u64) -> Result<Self, HeaderError> {
        let bytes = Bytes { file, end };
        let wire: Wire = bytes.read(0)?;
        if wire.magic != MAGIC {
            return Err(HeaderError::Magic);
        }
        let bits = wire.cluster_bits.get();
        if !CLUSTER_BITS.contains(&bits) {
            return Err(HeaderError::ClusterBits(bits));
        }
        let cluster = 1_u32 << bits;
        let extensions_at = match wire.version.get() {
            2 => size_of::<Wire>() as u64,
            3 => check_version_3(&bytes.read(size_of::<Wire>() as u64)?, cluster)?,
            other => return Err(HeaderError::Version(other)),
        };
        let encryption = wire.encryption.get();
        if encryption != 0 {
            return Err(HeaderError::Encrypted(encryption));
        }
        // a name may follow without a word
        let extensions_end = match wire.backing_offset.get() {
            0 => cluster.into(),
            name => name.min(cluster.into()),
        };
        let format = backing_format(&bytes, extensions_at, extensions_end)?;
        let backing = backing(&bytes, &wire, cluster, format)?;
        check_tables(&bytes, &wire, u64::from(cluster))?;
        Ok(Header {
            size: wire.size.get(),
            cluster,
            has_zeroes: wire.version.get() >= 3,
            backing,
        })
    }

    /// The size of the disk as a header says it now, bytes.
    ///
    /// # Errors
    /// What the host said.
    pub(super) fn size_now(file: &File) -> io::Result<u64> {
        let mut size = U64::ZERO;
        let at = std::mem::offset_of!(Wire, size) as u64;
        file.read_exact_at(size.as_mut_bytes(), at)?;
        Ok(size.get())
    }
}

/// Returns where the extensions begin.
fn check_version_3(more: &More, cluster: u32) -> Result<u64, HeaderError> {
    let least = size_of::<Wire>() + size_of::<More>();
    let len = more.header_len.get();
    if u64::from(len) < least as u64 || len > cluster {
        return Err(HeaderError::HeaderLen(len));
    }
    let needed = more.incompatible.get();
    if needed != 0 {
        let names = (0..u64::BITS).filter(|bit| needed & 1 << bit != 0);
        return Err(HeaderError::Features(names.map(feature).collect()));
    }
    let order = more.refcount_order.get();
    if order > 6 {
        return Err(HeaderError::RefcountOrder(order));
    }
    Ok(len.into())
}

/// An incompatible feature, in words.
fn feature(bit: u32) -> String {
    let name = match bit {
        0 => "a repair, for it was not closed (qemu-img check -r all)",
        1 => "a repair, for it is marked as corrupt (qemu-img check -r all)",
        2 => "an external data file",
        3 => "another compression than deflate",
        4 => "extended L2 entries",
        other => return format!("feature bit {other}"),
    };
    name.into()
}

/// Goes through the extensions, which end before `end` at the latest; returns
/// what the backing file's format is said to be.
fn backing_format(bytes: &Bytes<'_>, mut at: u64, end: u64) -> Result<Option<String>, HeaderError> {
    let mut format = None;
    while at + size_of::<Extension>() as u64 <= end {
        let header: Extension = bytes.read(at)?;
        let (kind, len) = (header.kind.get(), header.len.get());
        at += size_of::<Extension>() as u64;
        let cut_off = || HeaderError::Extension { kind, len };
        if kind == END {
            return Ok(format);
        }
        if at + u64::from(len) > end {
            return Err(cut_off());
        }
        match kind {
            BACKING_FORMAT => format = Some(bytes.text(at, len).ok_or_else(cut_off)?),
            FEATURE_NAMES if !len.is_multiple_of(FEATURE_NAME) => return Err(cut_off()),
            _ => {}
        }
        at += u64::from(len).next_multiple_of(8);
    }
    Ok(format)
}

fn backing(
    bytes: &Bytes<'_>,
    wire: &Wire,
    cluster: u32,
    format: Option<String>,
) -> Result<Option<Backing>, HeaderError> {
    let (offset, len) = (wire.backing_offset.get(), wire.backing_len.get());
    if offset == 0 {
        return Ok(None);
    }
    let inside = offset
        .checked_add(len.into())
        .is_some_and(|end| end < cluster.into());
    let name = Some(())
        .filter(|()| inside && len <= NAME_MAX)
        .and_then(|()| bytes.text(offset, len))
        .ok_or(HeaderError::BackingName { offset, len })?;
    let format = match format.as_deref() {
        Some("raw") => BackingFormat::Raw,
        Some("qcow2") => BackingFormat::Qcow2,
        Some(other) => {
            let format = other.to_owned();
            return Err(HeaderError::BackingFormat { name, format });
        }
        None => return Err(HeaderError::BackingUnknown(name)),
    };
    Ok(Some(Backing { name, format }))
}

fn check_tables(bytes: &Bytes<'_>, wire: &Wire, cluster: u64) -> Result<(), HeaderError> {
    let size = wire.size.get();
    if size > SIZE_MAX {
        return Err(HeaderError::Size(size));
    }
    let refcounts = u64::from(wire.refcounts_clusters.get()) * cluster;
    let l1 = u64::from(wire.l1_entries.get()) * ENTRY;
    for (table, len, most) in [
        ("refcount table", refcounts, REFCOUNTS_MAX),
        ("L1 table", l1, L1_MAX),
    ] {
        if len > most {
            return Err(HeaderError::TableLen { table, len, most });
        }
    }
    let offset = wire.refcounts_offset.get();
    bytes.check_table("refcount table", offset, refcounts, cluster)?;
    check_refcounts(bytes, offset, refcounts, cluster)?;
    // an L2 table is a cluster of entries, each of a cluster
    let covered = cluster * (cluster / ENTRY);
    let (entries, needed) = (wire.l1_entries.get(), size.div_ceil(covered));
    if u64::from(entries) < needed {
        return Err(HeaderError::L1Short {
            entries,
            size,
            needed,
        });
    }
    match entries {
        0 => Ok(()),
        _ => check_l1(bytes, wire.l1_offset.get(), l1, cluster),
    }
}

/// Looks at every entry: an L2 table that is cut off would read as zeroes.
fn check_l1(bytes: &Bytes<'_>, offset: u64, len: u64, cluster: u64) -> Result<(), HeaderError> {
    bytes.check_table("L1 table", offset, len, cluster)?;
    bytes.each_entry(offset, len, |index, entry| {
        if entry & L1_RESERVED != 0 {
            return Err(HeaderError::L1Entry { index, entry });
        }
        match entry & L2_OFFSET {
            0 => Ok(()),
            l2 => bytes.check_table("L2 table", l2, cluster, cluster),
        }
    })
}

/// Looks at every entry. The first cluster is the header's: without a block that
/// counts it the library would look for one for ever. And each block is another:
/// it looks through all of them for what is free.
fn check_refcounts(
    bytes: &Bytes<'_>,
    offset: u64,
    len: u64,
    cluster: u64,
) -> Result<(), HeaderError> {
    let mut blocks = Vec::new();
    bytes.each_entry(offset, len, |index, entry| {
        if entry != 0 {
            bytes.check_table("refcount block", entry, cluster, cluster)?;
            blocks.push((entry, index));
        }
        Ok(())
    })?;
    if blocks.first().is_none_or(|(_, index)| *index != 0) {
        return Err(HeaderError::Refcounts { index: 0, entry: 0 });
    }
    blocks.sort_unstable();
    let twice = |pair: &&[(u64, u64)]| matches!(pair, [(a, _), (b, _)] if a == b);
    match blocks.windows(2).find(twice) {
        Some(&[_, (entry, index)]) => Err(HeaderError::Refcounts { index, entry }),
        _ => Ok(()),
    }
}
