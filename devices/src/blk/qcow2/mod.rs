//! qcow2 images: disks whose bytes a table says the place of, and whose
//! unwritten parts stand in a backing file. QEMU `docs/interop/qcow2.txt`
//!
//! ```text
//! header   what an image says of itself, judged before it is trusted
//! error    what is wrong with it
//! chain    opens and locks the files that it stands on
//! layer    one of these files: the library's `Storage`, and the way of data
//! here     requests: the library says where, `layer` moves
//! ```
//!
//! The library (`imago`) keeps the tables: it looks up, allocates, copies what
//! a first write leaves of its cluster, and counts references. It never sees a
//! guest's memory: that would have to be shown to it as slices, which memory
//! that a guest can write must not be. It is asked where a part of the disk
//! stands, and the bytes are moved by the same system calls as those of a raw
//! image, without a copy. What stands nowhere as it is (compressed clusters) is
//! made in a private buffer and copied.
//!
//! What a request has changed in the tables is handed to the host before the
//! request completes, so that a completed write outlives this process; a flush
//! makes it durable. A process that dies in between has leaked clusters at
//! worst, which `qemu-img check -r leaks` gives back.
//!
//! Called by the workers of a disk's queues and by their threads, at any time:
//! reads and writes go side by side, and what takes clusters away goes alone.

mod chain;
mod error;
mod header;
#[cfg(any(test, fuzzing))]
pub mod hostile;
mod layer;
#[cfg(any(test, fuzzing))]
pub(super) mod made;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use imago::{FormatAccess, Mapping, ShallowMapping};
use swiotlb::InFlight;
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::image::{Direct, ImageError};
use super::request::Extent;
use super::sys::{Direction, Span};
use super::zeroes::ZEROES;
pub use error::HeaderError;
use header::Header;
pub(super) use header::MAGIC;
use layer::Layer;

/// Most bytes that are made at once of what is compressed.
const COMPRESSED_PART: u64 = 1 << 20;
/// Most bytes that are discarded at once: their places are kept meanwhile.
const DISCARD_PART: u64 = 64 << 20;

/// An open qcow2 image with what it stands on.
#[derive(Debug)]
pub(super) struct Qcow2 {
    /// There until it is dropped. Locked for writing where clusters are taken
    /// away, which reads and writes may know the place of.
    access: Option<RwLock<FormatAccess<Layer>>>,
    path: PathBuf,
    /// For what stands in its header.
    file: File,
    header: Header,
    /// Size that its header said last, bytes.
    said: AtomicU64,
    /// The library has given up in the middle of something.
    broken: AtomicBool,
}

impl Qcow2 {
    /// The image at `path`, which is open and locked, and its chain.
    ///
    /// # Errors
    /// [`ImageError`]
    pub(super) fn open(
        file: &File,
        direct: Option<Direct>,
        path: &Path,
        block_device: bool,
        readonly: bool,
    ) -> Result<Self, ImageError> {
        let host = |source| ImageError::Open {
            path: path.to_owned(),
            purpose: "reading",
            source,
        };
        let top = chain::Opened {
            file: file.try_clone().map_err(host)?,
            path: path.to_owned(),
            block_device,
        };
        let header = chain::read_header(&top)?;
        let access = chain::build(top, direct, &header, !readonly)?;
        Ok(Qcow2 {
            access: Some(RwLock::new(access)),
            path: path.to_owned(),
            file: file.try_clone().map_err(host)?,
            said: header.size.into(),
            header,
            broken: AtomicBool::new(false),
        })
    }

    /// Size of the disk, bytes.
    pub(super) fn size(&self) -> u64 {
        self.header.size
    }

    /// What can be discarded, bytes, if anything can: a cluster that was given
    /// up must not let the backing file be seen again.
    pub(super) fn discard_granularity(&self) -> Option<u32> {
        self.header.has_zeroes.then_some(self.header.cluster)
    }

    /// Whether its header has another size than when this was asked last.
    ///
    /// # Errors
    /// What the host said.
    pub(super) fn was_resized(&self) -> io::Result<bool> {
        let now = Header::size_now(&self.file)?;
        Ok(self.said.swap(now, Ordering::Relaxed) != now)
    }

    /// Moves all bytes of `span`, whose offset is one of the disk.
    ///
    /// # Errors
    /// What the host said, or what is wrong with the image.
    pub(super) fn transfer<T>(
        &self,
        direction: Direction,
        flight: &InFlight<T>,
        span: Span,
    ) -> io::Result<u64> {
        self.contained(|access| {
            let access = access.read().unwrap_or_else(PoisonError::into_inner);
            match direction {
                Direction::Read => read(&access, flight, span),
                Direction::Write => self.write(&access, flight, span),
            }
        })?;
        Ok(span.len)
    }

    /// Makes everything durable that was written.
    ///
    /// # Errors
    /// As [`Qcow2::transfer`].
    pub(super) fn sync(&self) -> io::Result<()> {
        self.contained(|access| {
            let access = access.read().unwrap_or_else(PoisonError::into_inner);
            access.flush()?;
            access.sync()
        })
    }

    /// Gives up the clusters that lie in `extent` with all they have; the host
    /// gets their space back.
    ///
    /// # Errors
    /// As [`Qcow2::transfer`].
    pub(super) fn discard(&self, extent: &Extent) -> io::Result<()> {
        self.contained(|access| {
            let mut access = access.write().unwrap_or_else(PoisonError::into_inner);
            parts(extent).try_for_each(|(offset, len)| {
                let places = self.places(&access, offset, len)?;
                access.discard_to_any(offset, len)?;
                self.give_back(&access, &places)
            })
        })
    }

    /// Makes `extent` read as zeroes; `unmap` lets its clusters go.
    ///
    /// # Errors
    /// As [`Qcow2::transfer`].
    pub(super) fn zero(&self, extent: &Extent, unmap: bool) -> io::Result<()> {
        self.contained(|access| {
            // alone: a cluster of which the rest is zero already is made zero as
            // a whole, and a write to that rest would be lost
            let mut access = access.write().unwrap_or_else(PoisonError::into_inner);
            parts(extent).try_for_each(|(offset, len)| {
                if !self.header.has_zeroes {
                    write_zeroes(&access, offset, len)?;
                    access.flush()
                } else if unmap {
                    let places = self.places(&access, offset, len)?;
                    access.discard_to_zero(offset, len)?;
                    self.give_back(&access, &places)
                } else {
                    access.write_zeroes(offset, len)?;
                    access.flush()
                }
            })
        })
    }

    fn write<T>(
        &self,
        access: &FormatAccess<Layer>,
        flight: &InFlight<T>,
        span: Span,
    ) -> io::Result<()> {
        let mut left = span;
        let mut changed = false;
        while left.len > 0 {
            let mapping = access.prepare_data_mapping(left.offset, left.len, true)?;
            let (layer, place) = (mapping.storage(), mapping.offset());
            let now = left.first(mapping.length(), place);
            // what is new may lie behind the end, and what is there may not
            let is_there = !mapping.is_nonblocking() || layer.has(place)?;
            if now.len == 0 || place < u64::from(self.header.cluster) || !is_there {
                let text = format!("corrupt: offset {} is said to be at {place}", left.offset);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            // a mapping that is dropped in between was never there
            layer.transfer(Direction::Write, flight, now)?;
            changed |= !mapping.is_nonblocking();
            access.commit_data_mapping(mapping)?;
            left = left.after(now.len);
        }
        match changed {
            true => access.flush(),
            false => Ok(()),
        }
    }

    /// Where the clusters are that lie in a part of the disk whole, and are
    /// nobody else's.
    fn places(
        &self,
        access: &FormatAccess<Layer>,
        offset: u64,
        len: u64,
    ) -> io::Result<Vec<(u64, u64)>> {
        let cluster = u64::from(self.header.cluster);
        let end = offset + len;
        let end = end - end % cluster;
        let mut at = offset.next_multiple_of(cluster);
        let mut places = Vec::new();
        while at < end {
            let (mapping, len) = access.get_shallow_mapping(at, end - at)?;
            if let ShallowMapping::Raw {
                offset,
                writable: true,
                ..
            } = mapping
                && offset >= cluster
            {
                places.push((offset, len));
            }
            at += len.max(cluster);
        }
        Ok(places)
    }

    /// Has the host take back the space of clusters that are nobody's any more,
    /// where it can.
    fn give_back(&self, access: &FormatAccess<Layer>, places: &[(u64, u64)]) -> io::Result<()> {
        // first the tables, which referred to them
        access.flush()?;
        for (offset, len) in places {
            let punched = fallocate(&self.file, FallocateMode::PunchHole, true, *offset, *len);
            if let Err(error) = punched {
                tracing::debug!(image = %self.path.display(), ?error, "its space stays taken");
                break;
            }
        }
        Ok(())
    }

    /// Has the library do something that it may not survive: what it asserts, a
    /// hostile image may deny. The disk is of no use then, and nothing else is
    /// harmed.
    fn contained<R>(
        &self,
        work: impl FnOnce(&RwLock<FormatAccess<Layer>>) -> io::Result<R>,
    ) -> io::Result<R> {
        let given_up = || io::Error::other("the image was given up after an earlier error");
        let Some(access) = &self.access else {
            return Err(given_up());
        };
        if self.broken.load(Ordering::Relaxed) {
            return Err(given_up());
        }
        catch_unwind(AssertUnwindSafe(|| work(access))).unwrap_or_else(|_| {
            self.broken.store(true, Ordering::Relaxed);
            tracing::error!(
                image = %self.path.display(),
                "the image is corrupt beyond what can be served: every request fails from here on"
            );
            Err(given_up())
        })
    }
}

impl Drop for Qcow2 {
    /// The library writes what it has kept back, which may fail as all of it.
    fn drop(&mut self) {
        let access = self.access.take();
        if catch_unwind(AssertUnwindSafe(|| drop(access))).is_err() {
            tracing::error!(image = %self.path.display(), "the image could not be closed");
        }
    }
}

fn read<T>(access: &FormatAccess<Layer>, flight: &InFlight<T>, span: Span) -> io::Result<()> {
    let mut left = span;
    while left.len > 0 {
        let (mapping, len) = access.get_mapping(left.offset, left.len)?;
        let now = left.first(len, left.offset);
        match mapping {
            Mapping::Raw {
                storage, offset, ..
            } if now.len > 0 => {
                storage.transfer(Direction::Read, flight, left.first(len, offset))?;
                left = left.after(now.len);
            }
            Mapping::Zero { .. } if now.len > 0 => {
                layer::fill(flight, now.skip, now.len);
                left = left.after(now.len);
            }
            Mapping::Special { .. } if now.len > 0 => {
                let now = now.first(COMPRESSED_PART, now.offset);
                let mut buffer = vec![0; usize::try_from(now.len).unwrap_or(0)];
                access.read(buffer.as_mut_slice(), now.offset)?;
                flight.write_at(now.skip, &buffer);
                left = left.after(now.len);
            }
            other => {
                let text = format!("offset {} is nowhere: {other}", left.offset);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
    }
    Ok(())
}

/// Writes zeroes, as a guest might.
fn write_zeroes(access: &FormatAccess<Layer>, offset: u64, len: u64) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let left = usize::try_from(len - done).unwrap_or(usize::MAX);
        let zeroes = ZEROES.get(..left).unwrap_or(&ZEROES);
        access.write(zeroes, offset + done)?;
        done += zeroes.len() as u64;
    }
    Ok(())
}

fn parts(extent: &Extent) -> impl Iterator<Item = (u64, u64)> + use<> {
    let end = extent.offset + extent.len;
    let step = usize::try_from(DISCARD_PART).unwrap_or(usize::MAX);
    (extent.offset..end)
        .step_by(step)
        .map(move |at| (at, DISCARD_PART.min(end - at)))
}
