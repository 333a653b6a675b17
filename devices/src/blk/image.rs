//! The image behind a disk: opened, locked and measured once.
//!
//! Called by the thread that sets a disk up; the engines use what it opened.
//! Block sizes are those seen at opening; its size is looked at again when
//! someone asks for that.

mod error;
#[cfg(test)]
mod tests;

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use swiotlb::InFlight;
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::config::{BlkSpec, Format, SECTOR};
use super::qcow2::{self, Qcow2};
use super::sys::{self, DeviceBlocks, Direction, Span, Wait};

pub use error::ImageError;

/// Largest physical block that is passed on, bytes.
const PHYSICAL_MAX: u32 = 1 << 20;

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

impl Direct {
    /// The file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Whether a part of the image is made of whole blocks.
    pub(super) fn takes(&self, offset: u64, len: u64) -> bool {
        (offset | len).is_multiple_of(self.align.into())
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(Direct {
            file: self.file.try_clone()?,
            align: self.align,
        })
    }
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
    /// What makes a disk of it, if it is not one as it is.
    qcow2: Option<Qcow2>,
}

impl Image {
    /// Opens and locks the image at `path`, as `spec` wants it.
    ///
    /// # Errors
    /// [`ImageError`]
    pub(super) fn open(path: &Path, spec: &BlkSpec) -> Result<Self, ImageError> {
        let path = &path.to_owned();
        let (file, block_device) = open_file(path, spec.readonly)?;
        lock(&file, path, spec.readonly)?;
        let no_sizes = |source| ImageError::Sizes {
            path: path.clone(),
            source,
        };
        let metadata = file.metadata().map_err(no_sizes)?;
        let shape = match block_device {
            true => device_shape(&file, &metadata),
            false => file_shape(&file, &metadata, spec),
        };
        let mut shape = with_overrides(shape.map_err(no_sizes)?, spec);
        let direct = || open_direct(&file, spec.readonly, shape.logical);
        let direct = spec.direct.then(direct).transpose();
        let no_direct = |source| ImageError::NoDirect {
            path: path.clone(),
            source,
        };
        let direct = direct.map_err(no_direct)?;
        let qcow2 = match spec.format {
            Format::Raw => {
                tell_qcow2(path, &file);
                None
            }
            Format::Qcow2 => {
                let again = direct.as_ref().map(Direct::try_clone).transpose();
                let again = again.map_err(no_direct)?;
                let qcow2 = Qcow2::open(&file, again, path, block_device, spec.readonly)?;
                shape = with_overrides(shape_of_qcow2(&qcow2, shape), spec);
                Some(qcow2)
            }
        };
        let shape = check_shape(path, shape)?;
        Ok(Image {
            file,
            direct,
            path: path.clone(),
            block_device,
            size: shape.size.into(),
            shape,
            qcow2,
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

    /// Looks at its size again. What is no whole block at its end is left out. A
    /// qcow2 image keeps its size: its tables are in use.
    ///
    /// # Errors
    /// What the host said; the size is then what it was.
    pub(super) fn look_again(&self) -> io::Result<()> {
        if let Some(qcow2) = &self.qcow2 {
            if qcow2.was_resized()? {
                tracing::warn!(
                    image = %self.path.display(),
                    bytes = self.size(),
                    "someone has given this qcow2 image another size while it was in use, which \
                     may have spoilt it; its disk keeps its size. Resize it while no guest has it"
                );
            }
            return Ok(());
        }
        let size = sys::end(&self.file, self.block_device)?;
        let block = u64::from(self.shape.logical).max(SECTOR);
        self.size.store(size - size % block, Ordering::Relaxed);
        Ok(())
    }

    /// Moves bytes of the disk; returns how many, 0 at its end. A part of a raw
    /// image that is not made of whole blocks goes through the page cache even
    /// past it, which the kernel keeps in agreement.
    ///
    /// # Errors
    /// What the host said, or what is wrong with the image.
    pub(super) fn transfer<T>(
        &self,
        direction: Direction,
        flight: &InFlight<T>,
        span: Span,
    ) -> io::Result<u64> {
        if let Some(qcow2) = &self.qcow2 {
            return qcow2.transfer(direction, flight, span);
        }
        let file = match &self.direct {
            Some(direct) if direct.takes(span.offset, span.len) => &direct.file,
            _ => &self.file,
        };
        sys::transfer(file, direction, flight, span, Wait::Yes)
    }

    /// Makes everything durable that was written.
    ///
    /// # Errors
    /// As [`Image::transfer`].
    pub(super) fn sync(&self) -> io::Result<()> {
        match &self.qcow2 {
            Some(qcow2) => qcow2.sync(),
            None => self.file.sync_data(),
        }
    }

    /// What makes a disk of it, if it is not one as it is. None of its bytes may
    /// be moved but by way of this, or of [`Image::transfer`].
    pub(super) fn qcow2(&self) -> Option<&Qcow2> {
        self.qcow2.as_ref()
    }

    /// The open file, by way of the host's page cache.
    pub(super) fn file(&self) -> &File {
        &self.file
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

/// Opens a file or block device; returns whether it is the latter.
///
/// # Errors
/// [`ImageError`]
pub(super) fn open_file(path: &Path, readonly: bool) -> Result<(File, bool), ImageError> {
    let open_error = |source| ImageError::Open {
        path: path.to_owned(),
        purpose: if readonly {
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
        .write(!readonly)
        // a block device in use by anyone, a mount included, is EBUSY.
        // Linux open(2), O_EXCL
        .custom_flags(if block_device && !readonly {
            libc::O_EXCL
        } else {
            0
        })
        .open(path)
        .map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY) => ImageError::InUse { path: path.into() },
            _ => open_error(source),
        })?;
    let metadata = file.metadata().map_err(open_error)?;
    let block_device = check_kind(path, &metadata)? && block_device;
    Ok((file, block_device))
}

/// Locks an open image: readers share it.
///
/// # Errors
/// [`ImageError`]
pub(super) fn lock(file: &File, path: &Path, readonly: bool) -> Result<(), ImageError> {
    sys::lock(file, !readonly).map_err(|source| match source.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => ImageError::InUse { path: path.into() },
        _ => ImageError::Lock {
            path: path.into(),
            source,
        },
    })
}

/// A guest can give its raw image the looks of any other. It stays raw: the
/// format is the configuration's word alone.
fn tell_qcow2(path: &Path, file: &File) {
    let mut start = [0; qcow2::MAGIC.len()];
    if file.read_exact_at(&mut start, 0).is_ok() && start == qcow2::MAGIC {
        tracing::warn!(
            image = %path.display(),
            "the raw image begins like one in the format qcow2; unless a guest wrote that, say \
             format = \"qcow2\", or a guest that writes to it spoils it"
        );
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

/// A disk in an image whose file has the shape `file`.
fn shape_of_qcow2(qcow2: &Qcow2, file: Shape) -> Shape {
    Shape {
        size: qcow2.size(),
        discard: qcow2.discard_granularity(),
        ..file
    }
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
