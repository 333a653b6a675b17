//! `/dev/xen/gntdev` by raw ioctls.
//!
//! Called by [`Gntdev`](crate::gntdev::Gntdev) only.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;

use super::abi::PAGE_SIZE;
use super::abi::ioctl::{self as abi, GntdevCopySegment, GntdevGrantCopy, GntdevUnmap};
use super::ioctl::{ioctl, ioctl_words};
use super::mapping::Mapping;
use crate::domid::DomId;
use crate::gntdev::{CopyDirection, CopySegment};

/// Where the file is.
pub(crate) const PATH: &str = "/dev/xen/gntdev";

/// The open file.
#[derive(Debug)]
pub(crate) struct GntdevFile {
    file: File,
}

impl GntdevFile {
    pub(crate) fn open() -> io::Result<GntdevFile> {
        let file = OpenOptions::new().read(true).write(true).open(PATH)?;
        Ok(GntdevFile { file })
    }

    /// Announces references; the mapping itself is [`GntdevFile::mmap`].
    pub(crate) fn map(&self, refs: &[(DomId, u32)]) -> io::Result<u64> {
        let count =
            u32::try_from(refs.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        // `GntdevMap` {count, pad, index}, then `GntdevRef` {domid, gref} each.
        let mut words: Vec<u64> = Vec::with_capacity(2 + refs.len());
        words.extend([u64::from(count), 0]);
        words.extend(
            refs.iter()
                .map(|&(dom, gref)| u64::from(dom.0) | u64::from(gref) << 32),
        );
        // SAFETY: the kernel reads `count` references after the head, which
        // is how many follow, and writes the head's index.
        unsafe { ioctl_words(self.file.as_fd(), abi::GNTDEV_MAP_GRANT_REF, &mut words) }?;
        words
            .get(1)
            .copied()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))
    }

    pub(crate) fn mmap(&self, index: u64, count: u32, write: bool) -> io::Result<Mapping> {
        let len = usize::try_from(count)
            .ok()
            .and_then(|pages| pages.checked_mul(PAGE_SIZE))
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        Mapping::of_file(self.file.as_fd(), index, len, write)
    }

    pub(crate) fn unmap(&self, index: u64, count: u32) -> io::Result<()> {
        let mut call = GntdevUnmap {
            index,
            count,
            pad: 0,
        };
        // SAFETY: the structure holds no address. A range that is still
        // mapped stays so until munmap.
        unsafe { ioctl(self.file.as_fd(), abi::GNTDEV_UNMAP_GRANT_REF, &mut call) }?;
        Ok(())
    }

    pub(crate) fn copy(&self, segments: &mut [CopySegment<'_>]) -> io::Result<()> {
        let mut raw: Vec<GntdevCopySegment> = segments
            .iter()
            .map(encode)
            .collect::<io::Result<Vec<_>>>()?;
        let mut call = GntdevGrantCopy {
            count: u32::try_from(raw.len())
                .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?,
            pad: 0,
            segments_ptr: raw.as_mut_ptr().expose_provenance() as u64,
        };
        // SAFETY: the array of `count` segments lives until after the call;
        // each local side is a volatile slice, valid for its length and
        // borrowed for the call, that may be written to at any time.
        unsafe { ioctl(self.file.as_fd(), abi::GNTDEV_GRANT_COPY, &mut call) }?;
        for (segment, raw) in segments.iter_mut().zip(&raw) {
            segment.status = raw.status;
        }
        Ok(())
    }
}

fn encode(segment: &CopySegment<'_>) -> io::Result<GntdevCopySegment> {
    let len = u16::try_from(segment.local.len())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let local = segment.local.ptr_guard_mut().as_ptr().expose_provenance() as u64;
    let granted = GntdevCopySegment::foreign(segment.gref, segment.offset, segment.dom.0);
    let (source, dest, flags) = match segment.direction {
        CopyDirection::FromGrant => (granted, local, abi::COPY_SOURCE_GREF),
        CopyDirection::ToGrant => (local, granted, abi::COPY_DEST_GREF),
    };
    Ok(GntdevCopySegment {
        source,
        dest,
        len,
        flags,
        status: 0,
        pad: 0,
    })
}
