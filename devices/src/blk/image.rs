//! The image behind a disk: opened, locked and measured once.
//!
//! Called by the thread that sets a disk up; the engines use what it opened.
//! Block sizes are those seen at opening; its size is looked at again when
//! someone asks for that.

#[cfg(test)]
mod tests;

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::config::{BlkSpec, SECTOR};
use super::sys::{self, DeviceBlocks};

/// Largest physical block that is passed on, bytes.
const PHYSICAL_MAX: u32 = 1 << 20;

/// An image that cannot be served. Names the path.
#[derive(Debug, Error)]
pub enum ImageError {
    /// It cannot be opened: it is missing, or access is denied.
    #[error("image {path} cannot be opened for {purpose}")]
    Open {
        /// The image.
        path: PathBuf,
        /// Reading, or reading and writing.
        purpose: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("image {path} is {what}: a raw image file or a block device is needed")]
    Kind {
        /// The image.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Someone else has it.
    #[error("image {path} is in use by another process or guest")]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// The host could not say whether someone else has it.
    #[error("image {path} cannot be locked")]
    Lock {
        /// The image.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Its size or block size cannot be had.
    #[error("image {path}: its sizes cannot be read")]
    Sizes {
        /// The image.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// It has no bytes.
    #[error("image {path} is empty: give it a size, for example with truncate --size=8G")]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// Its size is no whole number of blocks.
    #[error(
        "image {path} has {size} bytes, no multiple of its block size of {block}; the next is {next}"
    )]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size, bytes.
        size: u64,
        /// Its block size, bytes.
        block: u32,
        /// The least multiple above, bytes.
        next: u64,
    },
    /// It cannot be read and written past the host's page cache.
    #[error("image {path} cannot be opened with direct = true: its file system has no direct I/O")]
    NoDirect {
        /// The image.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The host forbids io_uring, or has none.
    #[error(
        "image {path}: engine = \"io-uring\" cannot be had here; leave the key out, or use sync"
    )]
    NoIoUring {
        /// The image.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// Its physical block size is smaller than its logical one.
    #[error("image {path}: physical-block-size {physical} is below its logical {logical}")]
    Physical {
        /// The image.
        path: PathBuf,
        /// The physical block size, bytes.
        physical: u32,
        /// The logical block size, bytes.
        logical: u32,
    },
}

/// The shape of an image: sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// All of it, when it was opened.
    pub size: u64,
    /// Logical block: the least that a guest addresses.
    pub logical: u32,
    /// Physical block: the least that the host writes without reading.
    pub physical: u32,
    /// Offset of the first logical block that is aligned to a physical one.
    pub alignment: u32,
    /// Least I/O without a penalty; 0 if unknown.
    pub io_min: u32,
    /// Best I/O; 0 if unknown.
    pub io_opt: u32,
    /// Granularity of discards, where the host can discard.
    pub discard: Option<u32>,
}

/// The way to an image past the host's page cache.
#[derive(Debug)]
pub(super) struct Direct {
    file: File,
    /// What offsets, lengths and memory addresses are multiples of, bytes.
    align: u32,
}

/// An open image. It is locked until the last user has dropped it.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    direct: Option<Direct>,
    path: PathBuf,
    block_device: bool,
    shape: Shape,
    /// Bytes that a guest may reach, whole blocks.
    size: AtomicU64,
}

impl Image {
    /// Opens and locks the image at `path`, as `spec` wants it.
    ///
    /// # Errors
    /// [`ImageError`]
    pub(super) fn open(path: &Path, spec: &BlkSpec) -> Result<Self, ImageError> {
        let path = &path.to_owned();
        let open_error = |source| ImageError::Open {
            path: path.clone(),
            purpose: if spec.readonly {
                "reading"
            } else {
                "reading and writing"
            },
            source,
        };
        // before opening: opening a FIFO waits for its other end
        let before = path.metadata().map_err(open_error)?;
        let block_device = check_kind(path, &before)?;
        let file = OpenOptions::new()
            .read(true)
            .write(!spec.readonly)
            // a block device in use by anyone, a mount included, is EBUSY.
            // Linux open(2), O_EXCL
            .custom_flags(if block_device && !spec.readonly {
                libc::O_EXCL
            } else {
                0
            })
            .open(path)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::EBUSY) => ImageError::InUse { path: path.clone() },
                _ => open_error(source),
            })?;
        let metadata = file.metadata().map_err(open_error)?;
        let block_device = check_kind(path, &metadata)? && block_device;
        sys::lock(&file, !spec.readonly).map_err(|source| match source.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => ImageError::InUse { path: path.clone() },
            _ => ImageError::Lock {
                path: path.clone(),
                source,
            },
        })?;
        let shape = if block_device {
            device_shape(&file, &metadata)
        } else {
            file_shape(&file, &metadata, spec)
        };
        let shape = shape.map_err(|source| ImageError::Sizes {
            path: path.clone(),
            source,
        })?;
        let shape = check_shape(path, with_overrides(shape, spec))?;
        let direct = match spec.direct {
            true => Some(open_direct(&file, spec.readonly, shape.logical)),
            false => None,
        };
        let direct = direct.transpose().map_err(|source| ImageError::NoDirect {
            path: path.clone(),
            source,
        })?;
        Ok(Image {
            file,
            direct,
            path: path.clone(),
            block_device,
            size: shape.size.into(),
            shape,
        })
    }

    /// Its sizes.
    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Bytes that a guest may reach, as they were known last.
    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Looks at its size again. What is no whole block at its end is left out.
    ///
    /// # Errors
    /// What the host said; the size is then what it was.
    pub(super) fn look_again(&self) -> io::Result<()> {
        let size = match self.block_device {
            true => sys::device_size(&self.file)?,
            false => self.file.metadata()?.len(),
        };
        let block = u64::from(self.shape.logical).max(SECTOR);
        self.size.store(size - size % block, Ordering::Relaxed);
        Ok(())
    }

    /// The open file, by way of the host's page cache.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// What a part of it is read and written by: past the page cache where that
    /// is wanted and the part is made of whole blocks. A part that is not goes
    /// through the cache, which the kernel keeps in agreement.
    pub(super) fn file_for(&self, offset: u64, len: u64) -> &File {
        match &self.direct {
            Some(direct) if (offset | len).is_multiple_of(direct.align.into()) => &direct.file,
            _ => &self.file,
        }
    }

    /// The file past the page cache, if that is wanted.
    pub(super) fn direct_file(&self) -> Option<&File> {
        self.direct.as_ref().map(|direct| &direct.file)
    }

    /// What direct I/O is aligned to, if it is wanted; bytes.
    pub(super) fn direct_align(&self) -> Option<u32> {
        self.direct.as_ref().map(|direct| direct.align)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a block device.
    pub(super) fn is_block_device(&self) -> bool {
        self.block_device
    }
}

/// Opens an open image anew for direct I/O. By its descriptor: its path may be
/// another file's by now.
fn open_direct(file: &File, readonly: bool, logical: u32) -> io::Result<Direct> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let direct = OpenOptions::new()
        .read(true)
        .write(!readonly)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let align = sys::direct_alignment(&direct)?.max(logical).max(512);
    Ok(Direct {
        file: direct,
        align,
    })
}

/// Whether it is a block device; neither that nor a file is an error.
fn check_kind(path: &Path, metadata: &Metadata) -> Result<bool, ImageError> {
    let kind = metadata.file_type();
    let what = if kind.is_file() {
        return Ok(false);
    } else if kind.is_block_device() {
        return Ok(true);
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        "a FIFO or a socket"
    };
    Err(ImageError::Kind {
        path: path.to_owned(),
        what,
    })
}

fn file_shape(file: &File, metadata: &Metadata, spec: &BlkSpec) -> io::Result<Shape> {
    let size = metadata.len();
    let block = u32::try_from(metadata.blksize()).unwrap_or(PHYSICAL_MAX);
    // a file system that writes whole blocks of 4 KiB says so to the guest
    let physical = if block.is_power_of_two() {
        block.clamp(512, 4096)
    } else {
        512
    };
    // behind the end there is nothing to lose, and the size is kept: whether
    // the file system can punch holes at all is all that this tells
    let can_discard = !spec.readonly
        && spec.discard
        && size > 0
        && fallocate(file, FallocateMode::PunchHole, true, size, SECTOR).is_ok();
    Ok(Shape {
        size,
        logical: 512,
        physical,
        alignment: 0,
        io_min: 0,
        io_opt: 0,
        discard: can_discard.then_some(physical),
    })
}

fn device_shape(device: &File, metadata: &Metadata) -> io::Result<Shape> {
    let DeviceBlocks {
        logical,
        physical,
        alignment,
        io_min,
        io_opt,
    } = sys::device_blocks(device)?;
    let discard = device_discard(metadata.rdev());
    Ok(Shape {
        size: sys::device_size(device)?,
        logical,
        physical: physical.clamp(logical, PHYSICAL_MAX.max(logical)),
        alignment,
        io_min,
        io_opt,
        discard: discard.map(|granularity| granularity.max(logical)),
    })
}

/// Granularity of a block device's discards in bytes; `None` if it has none.
/// Linux `Documentation/ABI/stable/sysfs-block`
fn device_discard(device: u64) -> Option<u32> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let limit = |queue: &str, name: &str| -> Option<u64> {
        let node = format!("/sys/dev/block/{major}:{minor}/{queue}/{name}");
        std::fs::read_to_string(node).ok()?.trim().parse().ok()
    };
    // a partition has its disk's limits
    ["queue", "../queue"].into_iter().find_map(|queue| {
        let max = limit(queue, "discard_max_bytes")?;
        let granularity = limit(queue, "discard_granularity")?;
        (max > 0).then(|| u32::try_from(granularity).unwrap_or(u32::MAX))
    })
}

/// What a disk of `size` bytes that keeps nothing looks like.
///
/// # Errors
/// Block sizes that do not go together.
pub(super) fn shape_of_null(size: u64, spec: &BlkSpec) -> Result<Shape, ImageError> {
    let shape = Shape {
        size,
        logical: 512,
        physical: 4096,
        alignment: 0,
        io_min: 0,
        io_opt: 0,
        discard: Some(4096),
    };
    check_shape(Path::new("null"), with_overrides(shape, spec))
}

fn with_overrides(mut shape: Shape, spec: &BlkSpec) -> Shape {
    if let Some(logical) = spec.logical_block_size {
        shape.logical = logical;
        shape.physical = shape.physical.max(logical);
    }
    if let Some(physical) = spec.physical_block_size {
        shape.physical = physical;
        shape.alignment = 0;
    }
    shape.discard = shape
        .discard
        .filter(|_| spec.discard && !spec.readonly)
        .map(|granularity| granularity.max(shape.logical));
    shape
}

fn check_shape(path: &Path, shape: Shape) -> Result<Shape, ImageError> {
    let path = || path.to_owned();
    let Shape {
        size,
        logical,
        physical,
        ..
    } = shape;
    if size == 0 {
        return Err(ImageError::Empty { path: path() });
    }
    if physical < logical {
        return Err(ImageError::Physical {
            path: path(),
            physical,
            logical,
        });
    }
    let block = u64::from(logical).max(SECTOR);
    if size % block != 0 {
        return Err(ImageError::Size {
            path: path(),
            size,
            block: logical,
            next: size.saturating_sub(size % block).saturating_add(block),
        });
    }
    Ok(shape)
}
