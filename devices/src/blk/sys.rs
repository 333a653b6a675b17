//! The system calls on images that the standard library does not have.
//!
//! The one file of this device with `unsafe`. Its functions are safe: memory
//! comes from an [`InFlight`], which keeps it mapped, or from a reference.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use libc::{c_int, c_ulong, iovec, off_t};
use rustix::fs::StatxFlags;
use smallvec::SmallVec;
use swiotlb::{InFlight, Segment};
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, ioctl_expr, ioctl_with_mut_ref, ioctl_with_ref};

/// Most segments of one call. Linux `include/uapi/linux/uio.h`, UIO_MAXIOV.
const IOV_MAX: usize = 1024;

// Linux include/uapi/linux/fs.h; libc does not have all of them on all targets
/// Size in bytes, u64; encoded as `_IOR(0x12, 114, size_t)`.
const BLKGETSIZE64: c_ulong = ioctl_expr(_IOC_READ, 0x12, 114, 8);
/// Logical block size, int.
const BLKSSZGET: c_ulong = block_ioctl(104);
/// Discards a range, [u64; 2].
const BLKDISCARD: c_ulong = block_ioctl(119);
/// Least I/O without a penalty, unsigned int.
const BLKIOMIN: c_ulong = block_ioctl(120);
/// Best I/O, unsigned int.
const BLKIOOPT: c_ulong = block_ioctl(121);
/// Offset of the first aligned block, int.
const BLKALIGNOFF: c_ulong = block_ioctl(122);
/// Physical block size, unsigned int.
const BLKPBSZGET: c_ulong = block_ioctl(123);

/// Linux include/uapi/linux/stat.h, since 6.1
const STATX_DIOALIGN: StatxFlags = StatxFlags::from_bits_retain(0x2000);

const fn block_ioctl(number: u32) -> c_ulong {
    ioctl_expr(_IOC_NONE, 0x12, number, 0)
}

/// Which way a request's bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the image into the guest's memory.
    Read,
    /// From the guest's memory to the image.
    Write,
}

/// Whether a call may wait for the host's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// As long as it takes.
    Yes,
    /// Only what the page cache has, or takes at once, is moved. Linux
    /// preadv2(2), RWF_NOWAIT
    No,
}

/// Moves bytes between the image at `offset` and the memory of `flight` from
/// its byte `skip` on, in one system call; returns how many were moved, 0 at
/// the end of the image or of the memory. Reading needs memory that was mapped
/// with [`swiotlb::Access::Write`].
///
/// # Errors
/// What the host said, EFAULT for memory that is gone included. With
/// [`Wait::No`] EAGAIN where it would have to wait, and EOPNOTSUPP where it
/// cannot tell.
pub(super) fn transfer<T>(
    file: &File,
    direction: Direction,
    flight: &InFlight<T>,
    skip: u64,
    offset: u64,
    wait: Wait,
) -> io::Result<u64> {
    let flags = match wait {
        Wait::Yes => 0,
        Wait::No => libc::RWF_NOWAIT,
    };
    let vectors = vectors(flight.segments(), skip);
    let offset = off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let count = c_int::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (fd, vectors) = (file.as_raw_fd(), vectors.as_ptr());
    // SAFETY: `vectors` has `count` entries, each of them inside of a segment
    // of `flight`, which owns what keeps its memory mapped and is borrowed for
    // this call. The guest may change the bytes meanwhile; the kernel copes,
    // and no reference to them exists. `Dma::map` was asked for writable
    // memory where the kernel writes; read-only memory makes it say EFAULT.
    let moved = retry(|| unsafe {
        match direction {
            Direction::Read => libc::preadv2(fd, vectors, count, offset, flags),
            Direction::Write => libc::pwritev2(fd, vectors, count, offset, flags),
        }
    })?;
    Ok(moved)
}

/// The parts of `segments` from byte `skip` on, as far as one call takes them.
pub(super) fn vectors(segments: &[Segment], skip: u64) -> SmallVec<[iovec; 16]> {
    let mut skip = usize::try_from(skip).unwrap_or(usize::MAX);
    let mut vectors = SmallVec::new();
    for segment in segments {
        let skipped = skip.min(segment.len());
        skip -= skipped;
        if skipped == segment.len() {
            continue;
        }
        if vectors.len() == IOV_MAX {
            break;
        }
        vectors.push(iovec {
            iov_base: segment.address().wrapping_add(skipped) as *mut libc::c_void,
            iov_len: segment.len() - skipped,
        });
    }
    vectors
}

/// Whether a file is nowhere but in memory. Linux
/// `include/uapi/linux/magic.h`, TMPFS_MAGIC and RAMFS_MAGIC
pub(super) fn is_in_memory(file: &File) -> bool {
    let kind = rustix::fs::fstatfs(file).map(|stat| stat.f_type);
    matches!(kind, Ok(0x0102_1994 | 0x8584_58f6))
}

/// Repeats a call that a signal interrupts.
fn retry(mut call: impl FnMut() -> isize) -> io::Result<u64> {
    loop {
        match u64::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Locks the whole file for `file`'s open file description: against every
/// other description, of this process too. Shared for readers. It lasts until
/// the last duplicate of the description is closed.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] if someone else has it.
pub(super) fn lock(file: &File, exclusive: bool) -> io::Result<()> {
    let kind = if exclusive {
        libc::F_WRLCK
    } else {
        libc::F_RDLCK
    };
    // from the start to whatever the end will be; the process id must be 0.
    // Linux fcntl(2), "Open file description locks"
    let mut lock = libc::flock {
        l_type: 0,
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    lock.l_type = kind.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    lock.l_whence = libc::SEEK_SET
        .try_into()
        .map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `lock` is a flock that lives through the call
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What offsets, lengths and addresses of direct I/O on `file` are multiples of,
/// bytes; the least that works is tried where the kernel does not say.
///
/// # Errors
/// ENOTSUP where the file system has no direct I/O; what the host said.
pub(super) fn direct_alignment(file: &File) -> io::Result<u32> {
    let flags = rustix::fs::AtFlags::EMPTY_PATH;
    let told = rustix::fs::statx(file, "", flags, STATX_DIOALIGN)?;
    if told.stx_mask & STATX_DIOALIGN.bits() != 0 {
        return match told.stx_dio_offset_align.max(told.stx_dio_mem_align) {
            0 => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
            align => Ok(align),
        };
    }
    [512u16, 4096]
        .into_iter()
        .find(|&align| reads_directly(file, usize::from(align)))
        .map(u32::from)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP))
}

/// Whether `align` bytes can be read into memory that is aligned to no more.
fn reads_directly(file: &File, align: usize) -> bool {
    let mut buffer = vec![0u8; 3 * 4096];
    let Some(bytes) = buffer.len().checked_sub(align) else {
        return false;
    };
    // an address that is a multiple of `align` and of nothing larger
    let start = (0..bytes).find(|start| {
        let address = (buffer.as_ptr() as usize).wrapping_add(*start);
        address % (2 * align) == align
    });
    let part = start.and_then(|start| buffer.get_mut(start..start + align));
    part.is_some_and(|part| std::os::unix::fs::FileExt::read_at(file, part, 0).is_ok())
}

/// Size of a block device, bytes.
///
/// # Errors
/// What the host said.
pub(super) fn device_size(device: &File) -> io::Result<u64> {
    let mut size: u64 = 0;
    // SAFETY: BLKGETSIZE64 writes one u64
    check(unsafe { ioctl_with_mut_ref(device, BLKGETSIZE64, &mut size) })?;
    Ok(size)
}

/// What a block device says of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeviceBlocks {
    /// Logical block size, bytes.
    pub logical: u32,
    /// Physical block size, bytes.
    pub physical: u32,
    /// First logical block that is aligned to a physical one, as an offset in
    /// bytes.
    pub alignment: u32,
    /// Least I/O without a penalty, bytes; 0 if unknown.
    pub io_min: u32,
    /// Best I/O, bytes; 0 if unknown.
    pub io_opt: u32,
}

/// Asks a block device for the sizes of its blocks.
///
/// # Errors
/// What the host said.
pub(super) fn device_blocks(device: &File) -> io::Result<DeviceBlocks> {
    let ask = |request: c_ulong| -> io::Result<u32> {
        // int or unsigned int
        let mut value: u32 = 0;
        // SAFETY: each of the requests below writes one 32-bit word
        check(unsafe { ioctl_with_mut_ref(device, request, &mut value) })?;
        Ok(value)
    };
    Ok(DeviceBlocks {
        logical: ask(BLKSSZGET)?,
        physical: ask(BLKPBSZGET)?,
        // -1 where the device is misaligned: nothing can be told then
        alignment: ask(BLKALIGNOFF).map(|at| if at.cast_signed() < 0 { 0 } else { at })?,
        io_min: ask(BLKIOMIN)?,
        io_opt: ask(BLKIOOPT)?,
    })
}

/// Discards a range of a block device.
///
/// # Errors
/// What the host said: EOPNOTSUPP where it cannot, EINVAL off its blocks.
pub(super) fn discard(device: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two u64
    check(unsafe { ioctl_with_ref(device, BLKDISCARD, &range) })
}

fn check(result: c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
