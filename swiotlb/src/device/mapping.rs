//! What a device was given, and the ways back.

use std::ops::{Deref, Range};

use crate::constraints::SyncPolicy;
use crate::device::{Device, Keeper, Lease};
use crate::direction::{Direction, SyncFor};
use crate::error::Error;
use crate::originals::{OrigFault, Originals};

/// A range that a device can reach. Dropping it ends the mapping without
/// copying anything back.
#[must_use = "a mapping ends when it is dropped"]
#[derive(Debug)]
pub enum Mapping<H: Deref<Target = Device>> {
    /// The device was given the original.
    Direct(Direct),
    /// The device was given a bounce buffer.
    Bounced(Bounced<H>),
}

/// An original that the device reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direct {
    pub(super) dma: u64,
    pub(super) len: u64,
    pub(super) direction: Direction,
}

/// An original behind a bounce buffer.
#[must_use = "a mapping ends when it is dropped"]
#[derive(Debug)]
pub struct Bounced<H: Deref<Target = Device>> {
    pub(super) lease: Lease<H>,
}

impl Direct {
    /// The address for the device.
    pub fn dma_address(&self) -> u64 {
        self.dma
    }
}

impl<H: Deref<Target = Device>> Mapping<H> {
    /// The address for the device.
    #[inline(always)]
    pub fn dma_address(&self) -> u64 {
        match self {
            Mapping::Direct(direct) => direct.dma,
            Mapping::Bounced(bounced) => bounced.lease.dma_address(),
        }
    }

    /// Bytes mapped.
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> u64 {
        match self {
            Mapping::Direct(direct) => direct.len,
            Mapping::Bounced(bounced) => bounced.lease.len(),
        }
    }

    /// Its direction.
    pub fn direction(&self) -> Direction {
        match self {
            Mapping::Direct(direct) => direct.direction,
            Mapping::Bounced(bounced) => bounced.lease.direction(),
        }
    }

    /// The bounce buffer, if there is one.
    pub fn bounced(&self) -> Option<&Bounced<H>> {
        match self {
            Mapping::Direct(_) => None,
            Mapping::Bounced(bounced) => Some(bounced),
        }
    }

    /// Brings a part of the mapping up to date for the processor or the device;
    /// of a direct mapping it always is.
    ///
    /// # Errors
    /// As [`Bounced::sync`].
    pub fn sync(
        &self,
        originals: &(impl Originals + ?Sized),
        address: u64,
        len: u64,
        sync_for: SyncFor,
    ) -> Result<(), Error> {
        match self {
            Mapping::Direct(_) => Ok(()),
            Mapping::Bounced(bounced) => bounced.sync(originals, address, len, sync_for),
        }
    }

    /// Ends the mapping: what the device may have written is copied back.
    ///
    /// # Errors
    /// As [`Bounced::unmap`].
    #[inline(always)]
    pub fn unmap(self, originals: &(impl Originals + ?Sized)) -> Result<(), Error>
    where
        H: Keeper,
    {
        match self {
            Mapping::Direct(_) => Ok(()),
            Mapping::Bounced(bounced) => bounced.unmap(originals),
        }
    }

    /// Ends the mapping: the parts that the device is known to have written are
    /// copied back.
    ///
    /// # Errors
    /// As [`Bounced::unmap_written`].
    #[inline(always)]
    pub fn unmap_written(
        self,
        originals: &(impl Originals + ?Sized),
        written: &[Range<u64>],
    ) -> Result<(), Error>
    where
        H: Keeper,
    {
        match self {
            Mapping::Direct(_) => Ok(()),
            Mapping::Bounced(bounced) => bounced.unmap_written(originals, written),
        }
    }

    /// Leaves the mapping to its address: it stays until
    /// [`Device::unmap`] is called with it.
    #[must_use = "a mapping whose address is lost is never freed"]
    pub fn into_dma_address(self) -> u64 {
        match self {
            Mapping::Direct(direct) => direct.dma,
            Mapping::Bounced(bounced) => bounced.lease.into_address(),
        }
    }
}

impl<H: Deref<Target = Device>> Bounced<H> {
    /// The bounce buffer.
    pub fn lease(&self) -> &Lease<H> {
        &self.lease
    }

    /// Brings `len` bytes at the device's address `address` up to date. For the
    /// processor, what a device may have written is copied to the original; for
    /// the device, what it reads is copied from there. A mapping that only the
    /// device writes is never copied towards it.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for bytes outside the mapping, unless its device's
    /// policy is to clamp; nothing is copied then. [`Error::OrigFault`].
    pub fn sync(
        &self,
        originals: &(impl Originals + ?Sized),
        address: u64,
        len: u64,
        sync_for: SyncFor,
    ) -> Result<(), Error> {
        let lease = &self.lease;
        let mapping = lease.dma_address()..lease.dma_address() + lease.len();
        let policy = lease.device().constraints().sync_policy;
        let Some(range) = inside(&mapping, address, len, policy) else {
            lease.device().out_of_range();
            return Err(Error::OutOfRange { address, len });
        };
        lease.sync_range(originals, range, lease.direction(), sync_for)
    }

    /// Ends the mapping: what the device may have written is copied back,
    /// wholly or, if its consumer states what it has written, not at all.
    ///
    /// # Errors
    /// [`Error::OrigFault`]; the slots are free even so.
    #[inline(always)]
    pub fn unmap(self, originals: &(impl Originals + ?Sized)) -> Result<(), Error>
    where
        H: Keeper,
    {
        self.lease.end(originals)
    }

    /// Ends the mapping: these parts of it, offsets in bytes, are copied back,
    /// and nothing else. For mappings that the device only reads, nothing is.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a part outside the mapping, [`Error::OrigFault`];
    /// the slots are free even so. Nothing is copied of a part outside.
    #[inline(always)]
    pub fn unmap_written(
        self,
        originals: &(impl Originals + ?Sized),
        written: &[Range<u64>],
    ) -> Result<(), Error>
    where
        H: Keeper,
    {
        let lease = self.lease;
        match written {
            [part] if part.start <= part.end && part.end <= lease.len() => {
                lease.end_written(originals, part)
            }
            // apart: parts that are counted are many, and what is counted with
            // them is kept in memory
            parts => lease.end_written_in_parts(originals, parts),
        }
    }
}

impl<H: Deref<Target = Device>> Lease<H> {
    /// Copies a part, given by offsets, in the direction that the matrix says.
    pub(super) fn sync_range(
        &self,
        originals: &(impl Originals + ?Sized),
        range: Range<u64>,
        direction: Direction,
        sync_for: SyncFor,
    ) -> Result<(), Error> {
        if range.is_empty() {
            return Ok(());
        }
        match sync_for {
            SyncFor::Cpu if direction.from_device() => {
                self.copy_back(originals, &range)?;
                self.with_area(|area, _| area.stats.bytes_out += range.end - range.start);
            }
            SyncFor::Device if direction.to_device() => {
                self.copy_in(originals, &range)?;
                self.with_area(|area, _| area.stats.bytes_in += range.end - range.start);
            }
            SyncFor::Cpu | SyncFor::Device => {}
        }
        Ok(())
    }

    /// Frees the slots; before, copies all of it back, if its direction and its
    /// consumer want that.
    #[inline(always)]
    pub(super) fn end(self, originals: &(impl Originals + ?Sized)) -> Result<(), Error>
    where
        H: Keeper,
    {
        let whole = match self.device().copies_back_whole {
            true => self.len(),
            false => 0,
        };
        self.end_written(originals, &(0..whole))
    }

    /// Frees the slots after one part, which is inside, was copied back.
    #[inline(always)]
    fn end_written(
        self,
        originals: &(impl Originals + ?Sized),
        part: &Range<u64>,
    ) -> Result<(), Error>
    where
        H: Keeper,
    {
        if part.is_empty() || !self.direction().from_device() {
            H::end(self, 0);
            return Ok(());
        }
        let result = self.copy_back(originals, part);
        let copied = if result.is_ok() {
            part.end - part.start
        } else {
            0
        };
        H::end(self, copied);
        result
    }

    #[inline(never)]
    fn end_written_in_parts(
        self,
        originals: &(impl Originals + ?Sized),
        written: &[Range<u64>],
    ) -> Result<(), Error>
    where
        H: Keeper,
    {
        // nothing is copied of any part if one of them is outside
        for part in written {
            if part.start > part.end || part.end > self.len() {
                self.device().out_of_range();
                return Err(Error::OutOfRange {
                    address: self.dma_address().saturating_add(part.start),
                    len: part.end.saturating_sub(part.start),
                });
            }
        }
        let (mut result, mut copied) = (Ok(()), 0);
        if self.direction().from_device() {
            for part in written.iter().filter(|part| !part.is_empty()) {
                match self.copy_back(originals, part) {
                    Ok(()) => copied += part.end - part.start,
                    Err(fault) => result = result.and(Err(fault)),
                }
            }
        }
        H::end(self, copied);
        result
    }

    #[inline(always)]
    fn copy_back(
        &self,
        originals: &(impl Originals + ?Sized),
        range: &Range<u64>,
    ) -> Result<(), Error> {
        let len = range.end - range.start;
        let bytes = self.part(range.start, len).ok_or(OrigFault { offset: 0 });
        bytes
            .and_then(|bytes| originals.copy_back(self.slots.orig + range.start, &bytes))
            .map_err(|fault| fault_at(range.start, fault))
    }

    fn copy_in(
        &self,
        originals: &(impl Originals + ?Sized),
        range: &Range<u64>,
    ) -> Result<(), Error> {
        let len = range.end - range.start;
        let bytes = self.part(range.start, len).ok_or(OrigFault { offset: 0 });
        bytes
            .and_then(|bytes| originals.copy_in(self.slots.orig + range.start, &bytes))
            .map_err(|fault| fault_at(range.start, fault))
    }
}

fn fault_at(start: u64, fault: OrigFault) -> Error {
    Error::OrigFault {
        offset: start.saturating_add(fault.offset),
    }
}

/// The part of a mapping that `len` bytes at `address` are, as offsets.
pub(super) fn inside(
    mapping: &Range<u64>,
    address: u64,
    len: u64,
    policy: SyncPolicy,
) -> Option<Range<u64>> {
    let start = address.checked_sub(mapping.start)?;
    let held = mapping.end - mapping.start;
    let end = match policy {
        SyncPolicy::Strict => start.checked_add(len).filter(|&end| end <= held)?,
        SyncPolicy::Clamp => start.saturating_add(len).min(held),
    };
    // a clamped range may start behind the end; an empty one may start there
    (start <= end).then_some(start..end)
}
