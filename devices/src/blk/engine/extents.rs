//! Discards and write-zeroes: system calls of their own, that never change the
//! image's size.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use crate::blk::image::Image;
use crate::blk::request::Extent;
use crate::blk::sys;

/// What is written where the host cannot make zeroes by itself.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// Gives up what the extents hold.
///
/// # Errors
/// What the host said; extents before the failing one are done.
pub(super) fn discard(image: &Image, extents: &[Extent]) -> io::Result<()> {
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

fn write_zeroes(file: &File, extent: &Extent) -> io::Result<()> {
    let end = extent.offset + extent.len;
    let mut at = extent.offset;
    while at < end {
        let count = usize::try_from(end - at).unwrap_or(usize::MAX);
        let chunk = ZEROES.get(..count).unwrap_or(&ZEROES);
        file.write_all_at(chunk, at)?;
        at += chunk.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_written_to_their_extent_alone() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 200_000], 0).unwrap();
        let extent = Extent {
            offset: 512,
            len: 150_016,
            unmap: false,
        };

        write_zeroes(&file, &extent).unwrap();

        let mut bytes = vec![0; 200_000];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[512..150_528].iter().all(|byte| *byte == 0));
        assert!(bytes[..512].iter().all(|byte| *byte == 7));
        assert!(bytes[150_528..].iter().all(|byte| *byte == 7));
    }
}
