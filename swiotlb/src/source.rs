//! How the embedder's guest memory is reached: the traits that it implements.
//!
//! All calls come from the thread that owns the [`crate::Dma`].

use std::any::Any;
use std::sync::Arc;

use smallvec::SmallVec;
use vm_memory::VolatileSlice;

use crate::fault::Fault;
use crate::range::{Access, GrantAddress, Range};
use crate::segment::{self, Segment, Segments};

/// Keeps the memory of translated segments mapped while it lives.
pub type Keep = Arc<dyn Any + Send + Sync>;

/// One contiguous, mapped range of host memory.
pub trait HostRange: Send + Sync {
    /// Its bytes.
    fn volatile(&self) -> VolatileSlice<'_>;
}

/// A part of a ring that stays mapped until its queue is given back.
pub struct RingMapping {
    host: Box<dyn HostRange>,
}

impl RingMapping {
    /// Wraps the embedder's mapping; exactly the bytes of the range asked for.
    pub fn new(host: Box<dyn HostRange>) -> Self {
        RingMapping { host }
    }

    /// Its bytes.
    pub fn volatile(&self) -> VolatileSlice<'_> {
        self.host.volatile()
    }
}

impl std::fmt::Debug for RingMapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RingMapping({} bytes)", self.volatile().len())
    }
}

/// Plain addresses: guest RAM that the embedder maps by itself.
pub trait Translation: Send {
    /// Appends the segments of `range` to `out`, in order, and returns what
    /// keeps them mapped. On an error `out` may hold some of them.
    ///
    /// # Errors
    /// [`Fault::NoTranslation`] for a frame that is not there.
    fn translate(
        &mut self,
        range: Range,
        access: Access,
        out: &mut Segments,
    ) -> Result<Keep, Fault>;

    /// Maps a ring part contiguously and for as long as the result lives.
    ///
    /// # Errors
    /// As [`Translation::translate`].
    fn map_ring(&mut self, range: Range, access: Access) -> Result<RingMapping, Fault>;

    /// A batch begins: until [`Translation::release`] its ranges may be looked up
    /// in the guest's memory as it is now, which is so found once and not for
    /// each of them.
    fn hold(&mut self) {}

    /// The batch has ended: nothing is kept mapped beyond what was given out.
    fn release(&mut self) {}

    /// Copies between `range` and private bytes, which are as long. On an error
    /// some may have been copied.
    ///
    /// # Errors
    /// As [`Translation::translate`].
    fn copy(&mut self, range: Range, bytes: TransferBytes<'_>) -> Result<(), Fault> {
        let access = match bytes {
            TransferBytes::FromGuest(_) => Access::Read,
            TransferBytes::ToGuest(_) => Access::Write,
        };
        let mut segments = Segments::new();
        // `_keep` holds the segments mapped until the copy is done
        let _keep = self.translate(range, access, &mut segments)?;
        match bytes {
            TransferBytes::FromGuest(bytes) => segment::copy_out(&segments, bytes),
            TransferBytes::ToGuest(bytes) => segment::copy_in(&segments, bytes),
        };
        Ok(())
    }

    /// Copies between `range` and memory of this process, the way of `access`:
    /// into `place` what a device reads, from there what it has written, and no
    /// more than both have. On an error some may have been copied.
    ///
    /// # Errors
    /// As [`Translation::translate`].
    fn exchange(
        &mut self,
        range: Range,
        access: Access,
        place: &VolatileSlice<'_>,
    ) -> Result<(), Fault> {
        let mut segments = Segments::new();
        // as above
        let _keep = self.translate(range, access, &mut segments)?;
        segment::exchange(&segments, access, place);
        Ok(())
    }

    /// Whether the kernel can pin these pages. Foreign mappings cannot be
    /// (`VM_PFNMAP`: EFAULT).
    fn pinnable(&self) -> bool;
}

/// The private side of a copy.
#[derive(Debug)]
pub enum TransferBytes<'a> {
    /// From the guest into these bytes.
    FromGuest(&'a mut [u8]),
    /// From these bytes to the guest.
    ToGuest(&'a [u8]),
}

impl TransferBytes<'_> {
    /// How many bytes.
    pub fn len(&self) -> usize {
        match self {
            TransferBytes::FromGuest(bytes) => bytes.len(),
            TransferBytes::ToGuest(bytes) => bytes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same bytes, for a while.
    pub(crate) fn reborrow(&mut self) -> TransferBytes<'_> {
        match self {
            TransferBytes::FromGuest(bytes) => TransferBytes::FromGuest(bytes),
            TransferBytes::ToGuest(bytes) => TransferBytes::ToGuest(bytes),
        }
    }
}

/// A small copy between guest memory and private bytes: an indirect table, a
/// header, a status byte.
#[derive(Debug)]
pub struct Transfer<'a> {
    /// The guest's side, in order.
    pub ranges: SmallVec<[Range; 2]>,
    /// The private side; as long as the ranges together.
    pub bytes: TransferBytes<'a>,
    /// Set by [`crate::Dma::transfer`].
    pub result: Result<(), Fault>,
}

impl<'a> Transfer<'a> {
    /// Copies the guest's `ranges` into `bytes`.
    pub fn from_guest(ranges: impl IntoIterator<Item = Range>, bytes: &'a mut [u8]) -> Self {
        Transfer {
            ranges: ranges.into_iter().collect(),
            bytes: TransferBytes::FromGuest(bytes),
            result: Ok(()),
        }
    }

    /// Copies `bytes` into the guest's `ranges`.
    pub fn to_guest(ranges: impl IntoIterator<Item = Range>, bytes: &'a [u8]) -> Self {
        Transfer {
            ranges: ranges.into_iter().collect(),
            bytes: TransferBytes::ToGuest(bytes),
            result: Ok(()),
        }
    }
}

/// The private side of a grant copy.
#[derive(Debug)]
pub enum CopyBytes<'a> {
    /// From the guest into these bytes.
    FromGuest(&'a mut [u8]),
    /// From these bytes to the guest.
    ToGuest(&'a [u8]),
    /// From the guest into a bounce buffer.
    FromGuestToPool(VolatileSlice<'a>),
    /// From a bounce buffer to the guest.
    ToGuestFromPool(VolatileSlice<'a>),
}

impl CopyBytes<'_> {
    /// How many bytes.
    pub fn len(&self) -> usize {
        match self {
            CopyBytes::FromGuest(bytes) => bytes.len(),
            CopyBytes::ToGuest(bytes) => bytes.len(),
            CopyBytes::FromGuestToPool(slice) | CopyBytes::ToGuestFromPool(slice) => slice.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> From<TransferBytes<'a>> for CopyBytes<'a> {
    fn from(bytes: TransferBytes<'a>) -> Self {
        match bytes {
            TransferBytes::FromGuest(bytes) => CopyBytes::FromGuest(bytes),
            TransferBytes::ToGuest(bytes) => CopyBytes::ToGuest(bytes),
        }
    }
}

/// One copy between granted pages and private bytes.
#[derive(Debug)]
pub struct GrantCopy<'a> {
    /// The guest's side.
    pub grant: GrantAddress,
    /// The private side; as long as the granted range.
    pub bytes: CopyBytes<'a>,
    /// Set by [`Grants::copy`], one by one: one failing copy fails no other.
    pub result: Result<(), Fault>,
}

/// What a guest lends: granted pages.
pub trait Grants: Send {
    /// Carries out all copies of a batch, splitting them where pages end, in
    /// one system call, and sets each result.
    fn copy(&mut self, batch: &mut [GrantCopy<'_>]);

    /// Maps all `ranges` in one call, or none.
    ///
    /// # Errors
    /// The fault of the batch; the caller retries range by range.
    fn map(
        &mut self,
        ranges: &[(GrantAddress, u32)],
        access: Access,
    ) -> Result<Box<dyn GrantLoan>, Fault>;

    /// Maps a ring part until the result is dropped.
    ///
    /// # Errors
    /// [`Fault::GrantRefusedByXen`].
    fn map_ring(
        &mut self,
        grant: GrantAddress,
        len: u32,
        access: Access,
    ) -> Result<RingMapping, Fault>;
}

/// Mapped data grants. They are given back before the guest hears of the
/// request: a guest that finds a grant still held disables its device for good.
pub trait GrantLoan: Send + Sync {
    /// The memory of the `index`-th range of the batch.
    fn segment(&self, index: usize) -> Option<Segment>;

    /// Unmaps all of it. Dropping does the same and swallows the error.
    ///
    /// # Errors
    /// What the host said; the memory is gone from this process regardless.
    fn give_back(self: Box<Self>) -> Result<(), Fault>;
}
