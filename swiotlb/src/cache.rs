//! Caches of foreign frames, for devices that do not see the processor's.
//!
//! A device model with cacheable mappings on both sides needs none of this: its
//! devices are coherent, and every function here does nothing. For the rest,
//! the caller of a mapping calls [`Maintenance::for_device`] after mapping and
//! [`Maintenance::for_cpu`] before it looks at what came back.

use crate::device::{Device, Mapping};
use crate::direction::Direction;
use crate::error::Error;
use crate::range::PAGE_SIZE;
use crate::split::page_pieces;

/// What is done to cache lines. `xen/include/public/grant_table.h`,
/// `GNTTABOP_cache_flush`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheOp {
    /// Written to memory.
    Clean,
    /// Forgotten.
    Invalidate,
}

/// A flush inside one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    /// Bus address of the frame.
    pub frame: u64,
    /// Offset of the first byte in the frame.
    pub offset: u64,
    /// Bytes; the hypervisor refuses what leaves the frame.
    pub len: u64,
    /// What is done.
    pub op: CacheOp,
}

/// Carries flushes out; the embedder implements it over its hypercall.
pub trait FlushCache {
    /// Whether the hypervisor knows the call: anything but ENOSYS to a call
    /// that does nothing.
    fn is_supported(&mut self) -> bool;

    /// Flushes.
    ///
    /// # Errors
    /// The hypervisor's error number.
    fn flush(&mut self, flush: Flush) -> Result<(), i32>;
}

/// What is done before the device's turn.
pub fn op_for_device(direction: Direction) -> Option<CacheOp> {
    match direction {
        Direction::FromDevice => Some(CacheOp::Invalidate),
        Direction::ToDevice | Direction::Bidirectional => Some(CacheOp::Clean),
        Direction::None => None,
    }
}

/// What is done before the processor's turn.
pub fn op_for_cpu(direction: Direction) -> Option<CacheOp> {
    direction.from_device().then_some(CacheOp::Invalidate)
}

/// The flushes of a range, one for each frame.
///
/// # Errors
/// [`Error::AddressOverflow`] for a range that wraps around.
pub fn flushes(address: u64, len: u64, op: CacheOp) -> Result<impl Iterator<Item = Flush>, Error> {
    let pieces = page_pieces(address, len)?;
    Ok(pieces.map(move |(address, len)| Flush {
        frame: address & !(PAGE_SIZE - 1),
        offset: address % PAGE_SIZE,
        len,
        op,
    }))
}

/// Cache maintenance for one device.
pub struct Maintenance<'a, F> {
    device: &'a Device,
    flush: &'a mut F,
}

impl<'a, F: FlushCache> Maintenance<'a, F> {
    /// Flushes of `device` go through `flush`.
    pub fn new(device: &'a Device, flush: &'a mut F) -> Self {
        Maintenance { device, flush }
    }

    /// After a mapping of the original at `address`: what the processor wrote
    /// is written to memory. The bytes are in a bounce buffer by then, if there
    /// is one.
    ///
    /// # Errors
    /// [`Error::NoTranslation`], [`Error::Invalid`] with the hypervisor's error.
    pub fn for_device<H>(&mut self, address: u64, mapping: &Mapping<H>) -> Result<(), Error>
    where
        H: std::ops::Deref<Target = Device>,
    {
        self.run(address, mapping, op_for_device(mapping.direction()))
    }

    /// Before the processor looks at the original at `address`, and before
    /// bytes are copied out of a bounce buffer.
    ///
    /// # Errors
    /// As [`Maintenance::for_device`].
    pub fn for_cpu<H>(&mut self, address: u64, mapping: &Mapping<H>) -> Result<(), Error>
    where
        H: std::ops::Deref<Target = Device>,
    {
        self.run(address, mapping, op_for_cpu(mapping.direction()))
    }

    fn run<H>(
        &mut self,
        address: u64,
        mapping: &Mapping<H>,
        op: Option<CacheOp>,
    ) -> Result<(), Error>
    where
        H: std::ops::Deref<Target = Device>,
    {
        let space = self.device.allocator().space();
        // a bounce buffer is local memory: the kernel's business
        let is_direct = mapping.bounced().is_none();
        let Some(op) = op.filter(|_| is_direct && !self.device.constraints().coherent) else {
            return Ok(());
        };
        if !space.is_foreign(address)? {
            return Ok(());
        }
        for flush in flushes(space.bus(address)?, mapping.len(), op)? {
            self.flush.flush(flush).map_err(|error| Error::Invalid {
                what: "the hypervisor's answer to a cache flush",
                value: u64::from(error.unsigned_abs()),
            })?;
        }
        Ok(())
    }
}
