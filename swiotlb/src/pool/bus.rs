//! Where a pool's slots are on the bus.
//!
//! Worked out once, when the pool is made: what happens to a domain's frames
//! afterwards changes neither where a mapping is nor what is freed for it.

use crate::contiguity::NoTranslation;
use crate::error::Error;
use crate::pool::bits;
use crate::pool::placement::Placement;
use crate::range::PAGE_SIZE;
use crate::sizing::{SEGMENT_SLOTS, SLOT_SHIFT, SLOT_SIZE};
use crate::space::AddressSpace;

/// Slots of a page.
const PAGE_SLOTS: u64 = PAGE_SIZE / SLOT_SIZE;

/// The bus addresses of a pool's pages.
#[derive(Debug)]
pub(crate) enum Bus {
    /// One piece, from this address on.
    Linear { base: u64, len: u64 },
    /// Page by page.
    Paged {
        /// Bus address of each page.
        pages: Box<[u64]>,
        /// The same, sorted: bus address and page.
        index: Box<[(u64, u64)]>,
        /// Length of the pool, bytes.
        len: u64,
    },
}

impl Bus {
    /// Looks every page of the pool up.
    pub(crate) fn of_pool(base: u64, len: u64, space: &AddressSpace) -> Result<Self, Error> {
        let pages = len.div_ceil(PAGE_SIZE);
        let address = |page: u64| base.checked_add(page * PAGE_SIZE);
        let buses: Result<Vec<u64>, NoTranslation> = (0..pages)
            .map(|page| space.bus(address(page).ok_or(NoTranslation(base / PAGE_SIZE))?))
            .collect();
        Ok(Bus::of_pages(buses?, len))
    }

    /// The bus addresses of pages as they are given.
    pub(crate) fn of_pages(pages: Vec<u64>, len: u64) -> Self {
        let base = pages.first().copied().unwrap_or(0);
        let mut expected = (0u64..).map(|page| base.checked_add(page * PAGE_SIZE));
        if pages.iter().all(|&bus| expected.next() == Some(Some(bus))) {
            return Bus::Linear { base, len };
        }
        let mut index: Vec<(u64, u64)> = pages.iter().copied().zip(0..).collect();
        index.sort_unstable();
        Bus::Paged {
            pages: pages.into(),
            index: index.into(),
            len,
        }
    }

    /// The first address of a pool that is one piece.
    #[inline(always)]
    pub(crate) fn linear(&self) -> Option<u64> {
        match self {
            Bus::Linear { base, .. } => Some(*base),
            Bus::Paged { .. } => None,
        }
    }

    /// Bytes of the pool.
    fn len(&self) -> u64 {
        match self {
            Bus::Linear { len, .. } | Bus::Paged { len, .. } => *len,
        }
    }

    /// First address of each piece of at most a page, and its length.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let len = self.len();
        (0..len.div_ceil(PAGE_SIZE)).map(move |page| {
            let offset = page * PAGE_SIZE;
            (self.at(offset), PAGE_SIZE.min(len - offset))
        })
    }

    /// The highest address, over all pages: the last page need not be the
    /// highest one. Whole pages, because a page is what a device is shown.
    pub(crate) fn max(&self) -> u64 {
        let highest = match self {
            Bus::Linear { base, len } => base + (len - 1) / PAGE_SIZE * PAGE_SIZE,
            Bus::Paged { pages, .. } => pages.iter().copied().max().unwrap_or(0),
        };
        highest.saturating_add(PAGE_SIZE - 1)
    }

    /// The bus address of the byte at `offset` into the pool.
    #[inline(always)]
    pub(crate) fn at(&self, offset: u64) -> u64 {
        match self {
            Bus::Linear { base, .. } => base + offset,
            Bus::Paged { pages, .. } => {
                let page = usize::try_from(offset / PAGE_SIZE).unwrap_or(usize::MAX);
                pages.get(page).map_or(0, |bus| bus + offset % PAGE_SIZE)
            }
        }
    }

    /// The offset into the pool of the byte at a bus address; `None` outside.
    #[inline(always)]
    pub(crate) fn offset(&self, bus: u64) -> Option<u64> {
        let offset = match self {
            Bus::Linear { base, .. } => bus.checked_sub(*base)?,
            Bus::Paged { index, .. } => {
                let start = bus & !(PAGE_SIZE - 1);
                let at = index.binary_search_by_key(&start, |&(bus, _)| bus).ok()?;
                index.get(at)?.1 * PAGE_SIZE + bus % PAGE_SIZE
            }
        };
        (offset < self.len()).then_some(offset)
    }

    /// Which slots of the segment that starts with `slot` may be the first one
    /// of a request. Where the pool is not one piece, neither may the request
    /// cross from piece to piece.
    #[inline(always)]
    pub(crate) fn eligible(&self, slot: u32, placement: Placement) -> u128 {
        match self {
            Bus::Linear { base, .. } => placement.eligible((base >> SLOT_SHIFT) + u64::from(slot)),
            Bus::Paged { .. } => self.eligible_paged(u64::from(slot), placement),
        }
    }

    fn eligible_paged(&self, first: u64, placement: Placement) -> u128 {
        let slots = (self.len() / SLOT_SIZE).saturating_sub(first);
        let mut accepted = 0u128;
        let mut joined = 0u128; // slots that the next one follows on the bus
        for i in 0..slots.min(u64::from(SEGMENT_SLOTS)) {
            let bus = self.at((first + i) * SLOT_SIZE);
            if placement.accepts(bus >> SLOT_SHIFT) {
                accepted |= 1 << i;
            }
            let same_page = !(first + i + 1).is_multiple_of(PAGE_SLOTS);
            if same_page || self.at((first + i + 1) * SLOT_SIZE) == bus.wrapping_add(SLOT_SIZE) {
                joined |= 1 << i;
            }
        }
        match placement.slots {
            1 => accepted,
            slots => accepted & bits::starts(joined, slots - 1),
        }
    }
}
