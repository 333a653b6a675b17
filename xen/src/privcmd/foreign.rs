//! Frames of another domain, mapped, with what became of each.

use std::io;

use vm_memory::VolatileSlice;

use crate::sys::abi::PAGE_SIZE;
use crate::sys::mapping::Mapping;

/// Guest frames mapped by
/// [`Privcmd::map_foreign`](super::Privcmd::map_foreign). Pages that could
/// not be mapped are holes: touching one ends the process, so [`page`] does
/// not give them out.
///
/// The kernel cannot pin these pages (`VM_PFNMAP`): direct I/O and grant
/// copies with them fail with EFAULT.
///
/// [`page`]: ForeignPages::page
#[derive(Debug)]
pub struct ForeignPages {
    mapping: Mapping,
    /// Negative errno of each page, or 0; none if all are 0.
    errors: Option<Box<[i32]>>,
}

impl ForeignPages {
    pub(super) fn new(mapping: Mapping, errors: Vec<i32>) -> ForeignPages {
        let failed = errors.iter().any(|&error| error != 0);
        ForeignPages {
            mapping,
            errors: failed.then(|| errors.into_boxed_slice()),
        }
    }

    /// The mapping, holes and all.
    #[must_use]
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Number of pages, holes included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.mapping.len() / PAGE_SIZE
    }

    /// Whether there are no pages at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mapping.is_empty()
    }

    /// Whether every page is there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.errors.is_none()
    }

    /// Whether no page is there.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.errors
            .as_ref()
            .is_some_and(|errors| errors.iter().all(|&error| error != 0))
    }

    /// Index of the first page that is not there, and why.
    #[must_use]
    pub fn first_error(&self) -> Option<(usize, io::Error)> {
        (0..self.len()).find_map(|page| self.error(page).map(|error| (page, error)))
    }

    /// Why page `index` is not there; none if it is (or lies outside).
    #[must_use]
    pub fn error(&self, index: usize) -> Option<io::Error> {
        match self.errors.as_ref()?.get(index) {
            None | Some(0) => None,
            Some(error) => Some(io::Error::from_raw_os_error(error.saturating_neg())),
        }
    }

    /// Page `index`, if it is there.
    #[must_use]
    pub fn page(&self, index: usize) -> Option<VolatileSlice<'_>> {
        if self.error(index).is_some() {
            return None;
        }
        let start = index.checked_mul(PAGE_SIZE)?;
        self.mapping.volatile().subslice(start, PAGE_SIZE).ok()
    }

    /// The mapping itself, if every page is there; otherwise `self` again.
    ///
    /// # Errors
    /// `self`, when a page is missing.
    pub fn into_complete(self) -> Result<Mapping, ForeignPages> {
        if self.is_complete() {
            Ok(self.mapping)
        } else {
            Err(self)
        }
    }
}
