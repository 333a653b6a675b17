//! Discards and write-zeroes: system calls of their own, that never change the
//! image's size.

use std::fs::File;
use std::io;

use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use crate::blk::image::Image;
use crate::blk::request::Extent;
use crate::blk::sys;
use crate::blk::zeroes::write_zeroes;

/// Gives up what the extents hold.
///
/// # Errors
/// What the host said; extents before the failing one are done.
pub(super) fn discard(image: &Image, extents: &[Extent]) -> io::Result<()> {
    if let Some(qcow2) = image.qcow2() {
        return extents.iter().try_for_each(|extent| qcow2.discard(extent));
    }
    let file = image.file();
    extents
        .iter()
        .try_for_each(|extent| match image.is_block_device() {
            true => sys::discard(file, extent.offset, extent.len),
            false => allocate(file, FallocateMode::PunchHole, extent),
        })
}

/// Makes the extents read as zeroes.
///
/// # Errors
/// As [`discard`].
pub(super) fn zero(image: &Image, extents: &[Extent]) -> io::Result<()> {
    if let Some(qcow2) = image.qcow2() {
        let may_unmap = image.shape().discard.is_some();
        let mut each = extents.iter();
        return each.try_for_each(|extent| qcow2.zero(extent, may_unmap && extent.unmap));
    }
    extents
        .iter()
        .try_for_each(|extent| zero_one(image, extent))
}

fn zero_one(image: &Image, extent: &Extent) -> io::Result<()> {
    let file = image.file();
    let may_punch = extent.unmap && image.shape().discard.is_some();
    let modes = [
        may_punch.then_some(FallocateMode::PunchHole),
        Some(FallocateMode::ZeroRange),
    ];
    for mode in modes.into_iter().flatten() {
        match allocate(file, mode, extent) {
            // not on this file system, or not off its blocks
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS)
                ) => {}
            other => return other,
        }
    }
    write_zeroes(file, extent)
}

fn allocate(file: &File, mode: FallocateMode, extent: &Extent) -> io::Result<()> {
    let punch = matches!(mode, FallocateMode::PunchHole);
    loop {
        let mode = match punch {
            true => FallocateMode::PunchHole,
            false => FallocateMode::ZeroRange,
        };
        match fallocate(file, mode, true, extent.offset, extent.len) {
            Err(error) if error.errno() == libc::EINTR => {}
            other => return other.map_err(io::Error::from),
        }
    }
}
