//! A file of an image's chain, as the library wants it, and as requests reach
//! it.
//!
//! The library reads and writes its tables by way of [`Storage`]; the data of
//! requests takes [`Layer::transfer`], straight between the file and the
//! guest's memory. Both know one end of the file, which is why the library's
//! own files will not do: they keep an end of their own, and cut off what was
//! written behind it.
//!
//! `Storage` wants its readers and writers to be `unsafe fn`, for callers that
//! neglect alignment and order. Nothing is unsafe in these.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;
use swiotlb::InFlight;
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use crate::blk::image::Direct;
use crate::blk::request::Extent;
use crate::blk::sys::{self, Direction, Span, Wait};
use crate::blk::zeroes::{ZEROES, write_zeroes};

/// How far behind its end a file is written to, bytes: the clusters that lie
/// between are being written by others. Further away only hostile tables have
/// one.
const AHEAD: u64 = 1 << 30;

/// See the module.
#[derive(Debug)]
pub(super) struct Layer {
    file: File,
    direct: Option<Direct>,
    path: PathBuf,
    block_device: bool,
    /// Size of a cluster, bytes: what may stand at the end of the file in part.
    cluster: u64,
    /// The end of the file as it was known last.
    end: AtomicU64,
    helper: CommonStorageHelper,
}

impl Layer {
    /// A file whose mapped parts are clusters of `cluster` bytes; 1 in a raw
    /// one.
    ///
    /// # Errors
    /// What the host said of its end.
    pub(super) fn new(
        file: File,
        direct: Option<Direct>,
        path: &Path,
        block_device: bool,
        cluster: u64,
    ) -> io::Result<Self> {
        let end = sys::end(&file, block_device)?;
        Ok(Layer {
            file,
            direct,
            path: path.to_owned(),
            block_device,
            cluster,
            end: end.into(),
            helper: CommonStorageHelper::default(),
        })
    }

    /// Whether the cluster that `offset` is in begins before the end of the
    /// file, as it was or is. One that does not was cut off, or never was.
    ///
    /// # Errors
    /// What the host said.
    pub(super) fn has(&self, offset: u64) -> io::Result<bool> {
        match self.start_of(offset) < self.end.load(Ordering::Relaxed) {
            true => Ok(true),
            false => self.has_now(offset),
        }
    }

    fn has_now(&self, offset: u64) -> io::Result<bool> {
        let end = sys::end(&self.file, self.block_device)?;
        self.end.store(end, Ordering::Relaxed);
        Ok(self.start_of(offset) < end)
    }

    /// Refuses to write far behind the end of the file, which would leave it with
    /// the size that somebody else wants it to have.
    fn may_grow_to(&self, offset: u64) -> io::Result<()> {
        let is_near = |end: u64| offset <= end.saturating_add(AHEAD);
        if is_near(self.end.load(Ordering::Relaxed)) {
            return Ok(());
        }
        let end = sys::end(&self.file, self.block_device)?;
        self.end.store(end, Ordering::Relaxed);
        match is_near(end) {
            true => Ok(()),
            false => Err(beyond(&self.path, offset)),
        }
    }

    fn start_of(&self, offset: u64) -> u64 {
        offset - offset % self.cluster
    }

    /// Moves all bytes of `span`, whose offset is one in this file. What the last
    /// cluster lacks reads as zeroes.
    ///
    /// # Errors
    /// What the host said; `UnexpectedEof` for clusters beyond the end of the
    /// file.
    pub(super) fn transfer<T>(
        &self,
        direction: Direction,
        flight: &InFlight<T>,
        span: Span,
    ) -> io::Result<()> {
        if direction == Direction::Write {
            self.may_grow_to(span.offset)?;
        }
        let mut left = span;
        while left.len > 0 {
            let file = match &self.direct {
                Some(direct) if direct.takes(left.offset, left.len) => direct.file(),
                _ => &self.file,
            };
            match sys::transfer(file, direction, flight, left, Wait::Yes)? {
                0 if direction == Direction::Read && self.has_now(left.offset)? => {
                    // no more than to the next cluster, which may not be there
                    let cluster_left = self.cluster - left.offset % self.cluster;
                    let count = left.len.min(cluster_left);
                    fill(flight, left.skip, count);
                    left = left.after(count);
                }
                0 => return Err(beyond(&self.path, left.offset)),
                count => left = left.after(count),
            }
        }
        Ok(())
    }

    fn read_buffer(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.file.read_at(buffer, offset) {
                Ok(0) if self.has_now(offset)? => {
                    buffer.fill(0);
                    return Ok(());
                }
                Ok(0) => return Err(beyond(&self.path, offset)),
                Ok(count) => {
                    buffer = buffer.get_mut(count..).unwrap_or_default();
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Fills a part of a request's memory with zeroes.
pub(super) fn fill<T>(flight: &InFlight<T>, skip: u64, len: u64) {
    let mut done = 0;
    while done < len {
        let left = usize::try_from(len - done).unwrap_or(usize::MAX);
        let zeroes = ZEROES.get(..left).unwrap_or(&ZEROES);
        flight.write_at(skip + done, zeroes);
        done += zeroes.len() as u64;
    }
}

fn beyond(path: &Path, offset: u64) -> io::Error {
    let text = format!(
        "{} is cut off or corrupt: it refers to offset {offset}, beyond its end",
        path.display()
    );
    io::Error::new(io::ErrorKind::UnexpectedEof, text)
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Storage for Layer {
    fn size(&self) -> io::Result<u64> {
        sys::end(&self.file, self.block_device)
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        for mut buffer in bufv.into_inner() {
            self.read_buffer(&mut buffer, offset)?;
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        self.may_grow_to(offset)?;
        for buffer in bufv.into_inner() {
            self.file.write_all_at(&buffer, offset)?;
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.may_grow_to(offset)?;
        // the file grows with it, if need be
        match fallocate(&self.file, FallocateMode::ZeroRange, false, offset, length) {
            Ok(()) => Ok(()),
            // not on this file system
            Err(_) => write_zeroes(
                &self.file,
                &Extent {
                    offset,
                    len: length,
                    unmap: false,
                },
            ),
        }
    }

    fn flush(&self) -> io::Result<()> {
        // it keeps nothing back
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}
