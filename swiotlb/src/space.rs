//! The consumer's address space: what a device that serves a domain must emit
//! to reach the domain's memory.

use std::collections::HashMap;
use std::sync::Arc;

use crate::contiguity::{FrameTranslation, NoTranslation};
use crate::features::Kind;
use crate::foreign::ForeignFrames;
use crate::range::PAGE_SIZE;

/// How a domain's addresses become the consumer's.
#[derive(Clone)]
pub enum AddressSpace {
    /// Plain addresses, without Xen's rules.
    Plain,
    /// A domain mapped 1:1, with the frames that are not its own.
    OneToOne(Arc<ForeignFrames>),
    /// A domain that is not mapped 1:1, behind an IOMMU that is programmed with
    /// its addresses: no look-up, and still [`Kind::Translated`].
    IommuIdentity,
    /// A domain whose frames are looked up one by one.
    Translated(Arc<dyn FrameTranslation + Send + Sync>),
}

impl AddressSpace {
    /// The space of a domain mapped 1:1 without foreign frames.
    pub fn one_to_one() -> Self {
        AddressSpace::OneToOne(Arc::default())
    }

    /// The kind of mapping this is.
    pub fn kind(&self) -> Kind {
        match self {
            AddressSpace::Plain => Kind::Disabled,
            AddressSpace::OneToOne(_) => Kind::OneToOne,
            AddressSpace::IommuIdentity | AddressSpace::Translated(_) => Kind::Translated,
        }
    }

    /// Whether every address is the bus's own, with nothing to look up.
    #[inline(always)]
    pub(crate) fn is_identity(&self) -> bool {
        match self {
            AddressSpace::OneToOne(foreign) => foreign.is_empty(),
            space => !matches!(space, AddressSpace::Translated(_)),
        }
    }

    /// The bus address behind `address`.
    ///
    /// # Errors
    /// [`NoTranslation`] for a frame that is not there.
    #[inline]
    pub fn bus(&self, address: u64) -> Result<u64, NoTranslation> {
        match self {
            AddressSpace::Plain | AddressSpace::IommuIdentity => Ok(address),
            AddressSpace::OneToOne(foreign) if foreign.is_empty() => Ok(address),
            AddressSpace::OneToOne(foreign) => through(&**foreign, address),
            AddressSpace::Translated(frames) => through(&**frames, address),
        }
    }

    /// Whether `len` bytes at `address` are not one piece on the bus. The range
    /// is neither empty nor wraps around.
    ///
    /// # Errors
    /// [`NoTranslation`] for the first frame that is not there.
    #[inline]
    pub fn straddles(&self, address: u64, len: u64) -> Result<bool, NoTranslation> {
        match self {
            AddressSpace::Plain | AddressSpace::IommuIdentity => Ok(false),
            AddressSpace::OneToOne(foreign) if foreign.is_empty() => Ok(false),
            AddressSpace::OneToOne(foreign) => foreign.straddles_at(address, len),
            AddressSpace::Translated(frames) => frames.straddles_at(address, len),
        }
    }

    /// The local frame behind a bus frame, if it is local.
    pub fn bfn_to_local_gfn(&self, bfn: u64) -> Option<u64> {
        match self {
            AddressSpace::Plain | AddressSpace::IommuIdentity => Some(bfn),
            AddressSpace::OneToOne(foreign) => foreign.bfn_to_local_gfn(bfn),
            AddressSpace::Translated(frames) => frames.bfn_to_local_gfn(bfn),
        }
    }

    /// Whether the frame behind `address` has another number on the bus, as
    /// somebody else's frame has.
    #[inline]
    pub(crate) fn is_foreign(&self, address: u64) -> Result<bool, NoTranslation> {
        Ok(self.bus(address)? != address)
    }
}

impl std::fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            AddressSpace::Plain => "Plain",
            AddressSpace::OneToOne(_) => "OneToOne",
            AddressSpace::IommuIdentity => "IommuIdentity",
            AddressSpace::Translated(_) => "Translated",
        })
    }
}

fn through(frames: &(impl FrameTranslation + ?Sized), address: u64) -> Result<u64, NoTranslation> {
    let gfn = address / PAGE_SIZE;
    let bus = frames.gfn_to_bfn(gfn)?.checked_mul(PAGE_SIZE);
    Ok(bus.ok_or(NoTranslation(gfn))? + address % PAGE_SIZE)
}

/// A table of a translated domain's frames, from its first one on.
///
/// ```
/// use swiotlb::contiguity::FrameTranslation;
/// use swiotlb::space::FrameTable;
/// let table = FrameTable::new(0x100, [Some(0x8000), None, Some(0x9000)]);
/// assert_eq!(table.gfn_to_bfn(0x102), Ok(0x9000));
/// assert!(table.gfn_to_bfn(0x101).is_err());
/// assert_eq!(table.bfn_to_local_gfn(0x9000), Some(0x102));
/// ```
#[derive(Clone, Debug, Default)]
pub struct FrameTable {
    first: u64,
    frames: Vec<u64>,
    locals: HashMap<u64, u64>,
}

/// Marks a frame that is not there; no machine has it.
const HOLE: u64 = u64::MAX;

impl FrameTable {
    /// A table whose entries are the bus frames of `first`, `first + 1`, …;
    /// `None` for a frame that is not there.
    pub fn new(first: u64, frames: impl IntoIterator<Item = Option<u64>>) -> Self {
        let frames: Vec<u64> = frames.into_iter().map(|bfn| bfn.unwrap_or(HOLE)).collect();
        let locals = frames
            .iter()
            .enumerate()
            .filter(|&(_, &bfn)| bfn != HOLE)
            .filter_map(|(index, &bfn)| Some((bfn, first.checked_add(index as u64)?)))
            .collect();
        FrameTable {
            first,
            frames,
            locals,
        }
    }
}

impl FrameTranslation for FrameTable {
    #[inline]
    fn gfn_to_bfn(&self, gfn: u64) -> Result<u64, NoTranslation> {
        let index = gfn
            .checked_sub(self.first)
            .and_then(|index| usize::try_from(index).ok());
        match index.and_then(|index| self.frames.get(index)) {
            Some(&bfn) if bfn != HOLE => Ok(bfn),
            _ => Err(NoTranslation(gfn)),
        }
    }

    fn bfn_to_local_gfn(&self, bfn: u64) -> Option<u64> {
        let gfn = *self.locals.get(&bfn)?;
        (self.gfn_to_bfn(gfn) == Ok(bfn)).then_some(gfn)
    }
}
