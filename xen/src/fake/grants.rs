//! A domain's grant table: what the guest gives, and what dom0 holds of it.
//!
//! The rules are those of version 1 tables in `xen/common/grant_table.c`;
//! the guest's side behaves as Linux's `drivers/xen/grant-dma-ops.c` does.

use std::collections::VecDeque;

use thiserror::Error;

/// References Linux never hands out (`GNTTAB_NR_RESERVED_ENTRIES`).
const RESERVED: usize = 8;
/// References of one grant frame.
const PER_FRAME: usize = 512;

/// `GNTST_okay`.
pub(super) const OKAY: i16 = 0;
/// `GNTST_general_error`.
pub(super) const GENERAL_ERROR: i16 = -1;
/// `GNTST_bad_domain`.
pub(super) const BAD_DOMAIN: i16 = -2;
/// `GNTST_bad_gntref`.
pub(super) const BAD_GNTREF: i16 = -3;
/// `GNTST_bad_page`.
pub(super) const BAD_PAGE: i16 = -9;

/// What a fake guest hears of its grant table.
#[derive(Debug, Error, Eq, PartialEq)]
pub enum GrantError {
    /// The back end holds a page: the guest leaks it and its device is dead
    /// until it reboots ("Grant still in use by backend domain").
    #[error("grant {gref} is still in use by the back end")]
    StillInUse {
        /// The reference.
        gref: u32,
    },
    /// No such many references in a row are free.
    #[error("no {count} free grant references in a row")]
    Full {
        /// References asked for.
        count: u32,
    },
    /// The reference is not granted.
    #[error("grant {gref} is not granted")]
    NotGranted {
        /// The reference.
        gref: u32,
    },
    /// The frame is not RAM.
    #[error("frame {gfn:#x} has no page to grant")]
    NoPage {
        /// The guest frame.
        gfn: u64,
    },
    /// The domain is gone.
    #[error("the domain is gone")]
    NoDomain,
}

struct Grant {
    gfn: u64,
    read_only: bool,
    /// Maps of it that dom0 holds.
    maps: u64,
    /// Statuses that the next copies get instead of being made.
    statuses: VecDeque<i16>,
}

/// The table.
pub(super) struct GrantTable {
    entries: Vec<Option<Grant>>,
    limit: usize,
    /// Where the search for free references goes on.
    cursor: usize,
    mapped: u64,
    broken: u64,
}

impl GrantTable {
    /// A table of one frame that may grow to `frames`.
    pub(super) fn new(frames: u32) -> GrantTable {
        let limit = usize::try_from(frames).unwrap_or(0).max(1) * PER_FRAME;
        let mut entries = Vec::new();
        entries.resize_with(PER_FRAME, || None);
        GrantTable {
            entries,
            limit,
            cursor: RESERVED,
            mapped: 0,
            broken: 0,
        }
    }

    /// Grants consecutive frames by consecutive references; the first.
    pub(super) fn grant_range(
        &mut self,
        gfn: u64,
        count: u32,
        read_only: bool,
    ) -> Result<u32, GrantError> {
        let full = GrantError::Full { count };
        let wanted = usize::try_from(count).map_err(|_| GrantError::Full { count })?;
        let Some(first) = self.free_run(wanted) else {
            return Err(full);
        };
        for (entry, gfn) in self.entries.iter_mut().skip(first).take(wanted).zip(gfn..) {
            *entry = Some(Grant {
                gfn,
                read_only,
                maps: 0,
                statuses: VecDeque::new(),
            });
        }
        self.cursor = first + wanted;
        u32::try_from(first).map_err(|_| full)
    }

    /// `gnttab_try_end_foreign_access`: a grant still held stays for good.
    pub(super) fn end_access(&mut self, gref: u32) -> Result<(), GrantError> {
        let entry = self
            .slot(gref)
            .filter(|entry| entry.is_some())
            .ok_or(GrantError::NotGranted { gref })?;
        if entry.as_ref().is_some_and(|grant| grant.maps > 0) {
            self.broken += 1;
            return Err(GrantError::StillInUse { gref });
        }
        *entry = None;
        Ok(())
    }

    /// The page a map or copy reaches, as `map_grant_ref` and
    /// `acquire_grant_for_copy` check it; `Err` is a `GNTST_*` value.
    pub(super) fn page(&mut self, gref: u32, write: bool) -> Result<u64, i16> {
        let grant = self
            .slot(gref)
            .ok_or(BAD_GNTREF)?
            .as_ref()
            .ok_or(GENERAL_ERROR)?;
        if write && grant.read_only {
            return Err(GENERAL_ERROR);
        }
        Ok(grant.gfn)
    }

    /// A map of dom0's began.
    pub(super) fn hold(&mut self, gref: u32) {
        if let Some(Some(grant)) = self.slot(gref) {
            grant.maps += 1;
            self.mapped += 1;
        }
    }

    /// A map of dom0's ended.
    pub(super) fn let_go(&mut self, gref: u32) {
        if let Some(Some(grant)) = self.slot(gref) {
            grant.maps -= 1;
            self.mapped -= 1;
        }
    }

    /// The status planned for the next copy through `gref`.
    pub(super) fn planned_status(&mut self, gref: u32) -> Option<i16> {
        self.slot(gref)?.as_mut()?.statuses.pop_front()
    }

    /// Plans statuses for the next copies through `gref`.
    pub(super) fn plan_statuses(&mut self, gref: u32, statuses: &[i16]) -> Result<(), GrantError> {
        match self.slot(gref) {
            Some(Some(grant)) => {
                grant.statuses.extend(statuses);
                Ok(())
            }
            _ => Err(GrantError::NotGranted { gref }),
        }
    }

    /// Maps that dom0 holds.
    pub(super) fn mapped(&self) -> u64 {
        self.mapped
    }

    /// Ends of access that found a map.
    pub(super) fn broken(&self) -> u64 {
        self.broken
    }

    /// References that are granted.
    pub(super) fn granted(&self) -> usize {
        self.entries.iter().flatten().count()
    }

    fn slot(&mut self, gref: u32) -> Option<&mut Option<Grant>> {
        self.entries.get_mut(usize::try_from(gref).ok()?)
    }

    fn free_run(&mut self, wanted: usize) -> Option<usize> {
        loop {
            let found = self
                .free_run_from(self.cursor, wanted)
                .or_else(|| self.free_run_from(RESERVED, wanted));
            if found.is_some() {
                return found;
            }
            let grown = self.entries.len() + PER_FRAME;
            if grown > self.limit {
                return None;
            }
            self.entries.resize_with(grown, || None);
        }
    }

    fn free_run_from(&self, from: usize, wanted: usize) -> Option<usize> {
        let mut run = 0;
        for (at, entry) in self.entries.iter().enumerate().skip(from) {
            run = if entry.is_none() { run + 1 } else { 0 };
            if run >= wanted.max(1) {
                return Some(at + 1 - run);
            }
        }
        None
    }
}
