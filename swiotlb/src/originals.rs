//! How bytes move between an original and its bounce buffer: the trait that an
//! embedder implements over its guest's memory.

use vm_memory::{GuestAddress, GuestMemory, Permissions, VolatileSlice};

use crate::segment;

/// A byte of an original that cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrigFault {
    /// Its offset in the range that was to be copied.
    pub offset: u64,
}

/// The originals of a guest: memory that is written concurrently, so that every
/// copy is of bytes that may change meanwhile, and each byte is fetched once.
pub trait Originals {
    /// Copies from the guest's memory at `address` into all of `bounce`.
    ///
    /// # Errors
    /// [`OrigFault`]; bytes before the fault may have been copied.
    fn copy_in(&self, address: u64, bounce: &VolatileSlice<'_>) -> Result<(), OrigFault>;

    /// Copies all of `bounce` to the guest's memory at `address`, and marks
    /// exactly these bytes dirty where that is recorded.
    ///
    /// # Errors
    /// [`OrigFault`]; bytes before the fault have been copied.
    fn copy_back(&self, address: u64, bounce: &VolatileSlice<'_>) -> Result<(), OrigFault>;

    /// Hears that `len` bytes at `address` are about to be copied in, for a
    /// device that only reads them. An embedder whose memory is at hand has the
    /// processor bring them near while slots are looked for: the locks on the
    /// way there and back let no copy begin before the one in front of it is
    /// done. Nothing is read.
    #[inline(always)]
    fn expect_copy_in(&self, address: u64, len: u64) {
        let _ = (address, len);
    }

    /// Hears that `len` bytes at `address` will be copied back and are not
    /// copied in. An embedder whose memory is at hand has the processor bring
    /// them near, or the lock that frees their slots waits for the copy's last
    /// line. Nothing is read or written.
    #[inline(always)]
    fn expect_copy_back(&self, address: u64, len: u64) {
        let _ = (address, len);
    }
}

/// One contiguous window of guest memory: what a guest mapped 1:1 has.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    base: u64,
    memory: VolatileSlice<'a>,
}

impl<'a> Window<'a> {
    /// The guest's memory from address `base` on.
    pub fn new(base: u64, memory: VolatileSlice<'a>) -> Self {
        Window { base, memory }
    }

    #[inline(always)]
    fn part(&self, address: u64, len: usize) -> Result<VolatileSlice<'a>, OrigFault> {
        let offset = address
            .checked_sub(self.base)
            .and_then(|offset| usize::try_from(offset).ok());
        let offset = offset.ok_or(OrigFault { offset: 0 })?;
        self.memory.subslice(offset, len).map_err(|_| OrigFault {
            offset: self.memory.len().saturating_sub(offset) as u64,
        })
    }
}

impl Originals for Window<'_> {
    #[inline(always)]
    fn copy_in(&self, address: u64, bounce: &VolatileSlice<'_>) -> Result<(), OrigFault> {
        let original = self.part(address, bounce.len())?;
        original.copy_to_volatile_slice(*bounce);
        Ok(())
    }

    #[inline(always)]
    fn copy_back(&self, address: u64, bounce: &VolatileSlice<'_>) -> Result<(), OrigFault> {
        let original = self.part(address, bounce.len())?;
        bounce.copy_to_volatile_slice(original);
        Ok(())
    }

    #[inline(always)]
    fn expect_copy_in(&self, address: u64, len: u64) {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if let Ok(original) = self.part(address, len) {
            segment::bring_near(&original);
        }
    }

    #[inline(always)]
    fn expect_copy_back(&self, address: u64, len: u64) {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if let Ok(original) = self.part(address, len) {
            segment::bring_near_to_write(&original);
        }
    }
}

/// Any memory of vm-memory's, its dirty bitmap included.
#[derive(Clone, Copy, Debug)]
pub struct GuestRam<'a, M>(
    /// The guest's memory.
    pub &'a M,
);

impl<M: GuestMemory> GuestRam<'_, M> {
    /// Calls `copy` with each piece of the range and its part of `bounce`.
    fn each<'b>(
        &self,
        address: u64,
        bounce: &VolatileSlice<'b>,
        access: Permissions,
        copy: impl Fn(&VolatileSlice<'_, vm_memory::bitmap::BS<'_, M::Bitmap>>, VolatileSlice<'b>),
    ) -> Result<(), OrigFault> {
        let mut offset = 0;
        let fault = |offset: usize| OrigFault {
            offset: offset as u64,
        };
        let pieces = self
            .0
            .get_slices(GuestAddress(address), bounce.len(), access)
            .map_err(|_| fault(0))?;
        for piece in pieces {
            let piece = piece.map_err(|_| fault(offset))?;
            let part = bounce.subslice(offset, piece.len());
            copy(&piece, part.map_err(|_| fault(offset))?);
            offset += piece.len();
        }
        match offset == bounce.len() {
            true => Ok(()),
            false => Err(fault(offset)),
        }
    }
}

impl<M: GuestMemory> Originals for GuestRam<'_, M> {
    fn copy_in(&self, address: u64, bounce: &VolatileSlice<'_>) -> Result<(), OrigFault> {
        self.each(address, bounce, Permissions::Read, |original, part| {
            original.copy_to_volatile_slice(part);
        })
    }

    fn copy_back(&self, address: u64, bounce: &VolatileSlice<'_>) -> Result<(), OrigFault> {
        self.each(address, bounce, Permissions::Write, |original, part| {
            part.copy_to_volatile_slice(original.clone());
        })
    }
}
