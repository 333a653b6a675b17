//! Page allocator of a fake guest's driver.
//!
//! What is freed is filled with a pattern and looked at again before it is
//! given out and by [`GuestHeap::check_poison`]: a device model that writes to
//! memory the guest has taken back is found out. Linux's driver frees its
//! rings right after writing 0 to the status register, without polling.
//!
//! Used on the threads that play the guest.

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use vm_memory::VolatileSlice;

use super::super::domain::Domain;
use super::super::ram::PAGE_SHIFT;
use crate::Mapping;
use crate::abi::PAGE_SIZE;

/// What a freed page holds, xored with its frame.
const POISON: u64 = 0x6b6b_6b6b_6b6b_6b6b;
/// Words of a page.
const WORDS: usize = PAGE_SIZE / size_of::<u64>();

/// Why the heap refuses.
#[derive(Debug, Error, Eq, PartialEq)]
pub enum HeapError {
    /// Not so many pages in a row are free.
    #[error("no {pages} free pages in a row in the guest's heap")]
    Full {
        /// Pages asked for.
        pages: usize,
    },
    /// Freed memory was written to; found when it was to be given out.
    #[error(transparent)]
    Poison(PoisonBroken),
}

/// Freed memory that somebody wrote to.
#[derive(Copy, Clone, Debug, Error, Eq, PartialEq)]
#[error("freed frame {gfn:#x} changed at offset {offset:#x}: {found:#018x}")]
pub struct PoisonBroken {
    /// The guest frame.
    pub gfn: u64,
    /// First changed word's offset in bytes.
    pub offset: usize,
    /// What stands there.
    pub found: u64,
}

/// Runs of pages inside a domain's RAM; clones are the same heap.
#[derive(Clone)]
pub struct GuestHeap {
    shared: Arc<Shared>,
}

struct Shared {
    mapping: Mapping,
    first_gfn: u64,
    pages: Mutex<Pages>,
}

struct Pages {
    states: Vec<State>,
    /// Where the next search begins, so that freed pages rest for long.
    cursor: usize,
    /// The first change of freed memory that was seen.
    broken: Option<PoisonBroken>,
}

#[derive(Copy, Clone, Eq, PartialEq)]
enum State {
    Fresh,
    Used,
    Freed,
}

/// Pages in a row, given out by a heap. Dropping it frees nothing, as in C;
/// [`GuestHeap::free`] does.
pub struct Run {
    shared: Arc<Shared>,
    page: usize,
    pages: usize,
}

impl GuestHeap {
    /// A heap over `frames` frames of the domain, which nothing else in the
    /// guest uses.
    ///
    /// # Errors
    /// `EFAULT` where there is no page, or what `mmap` gives.
    pub fn new(domain: &Domain, first_gfn: u64, frames: u64) -> io::Result<GuestHeap> {
        let mapping = domain.map_memory(first_gfn, frames)?;
        let states = vec![State::Fresh; mapping.len() / PAGE_SIZE];
        Ok(GuestHeap {
            shared: Arc::new(Shared {
                mapping,
                first_gfn,
                pages: Mutex::new(Pages {
                    states,
                    cursor: 0,
                    broken: None,
                }),
            }),
        })
    }

    /// Gives out `pages` zeroed pages in a row.
    ///
    /// # Errors
    /// See [`HeapError`].
    pub fn alloc(&self, pages: usize) -> Result<Run, HeapError> {
        let mut state = self.shared.lock();
        let page = state
            .find(state.cursor, pages)
            .or_else(|| state.find(0, pages))
            .ok_or(HeapError::Full { pages })?;
        for at in page..page + pages {
            if state.states.get(at) == Some(&State::Freed) {
                self.shared.check_page(&mut state, at);
            }
            if let Some(slot) = state.states.get_mut(at) {
                *slot = State::Used;
            }
            self.shared.fill(at, 0);
        }
        state.cursor = page + pages;
        match state.broken {
            Some(broken) => Err(HeapError::Poison(broken)),
            None => Ok(Run {
                shared: Arc::clone(&self.shared),
                page,
                pages,
            }),
        }
    }

    /// Takes a run back: from here on nobody may write to it.
    pub fn free(&self, run: Run) {
        self.free_at(run.page, run.pages);
    }

    /// Takes the run back that begins at a guest-physical address, for
    /// drivers that keep addresses only. Pages that are not given out are
    /// left alone.
    pub fn free_address(&self, address: u64, pages: usize) {
        let page = (address >> PAGE_SHIFT)
            .checked_sub(self.shared.first_gfn)
            .and_then(|page| usize::try_from(page).ok());
        if let Some(page) = page {
            self.free_at(page, pages);
        }
    }

    /// Looks at all freed memory.
    ///
    /// # Errors
    /// The first change seen, now or earlier.
    pub fn check_poison(&self) -> Result<(), PoisonBroken> {
        let mut state = self.shared.lock();
        for page in 0..state.states.len() {
            if state.states.get(page) == Some(&State::Freed) {
                self.shared.check_page(&mut state, page);
            }
        }
        state.broken.map_or(Ok(()), Err)
    }

    /// Pages given out.
    #[must_use]
    pub fn used(&self) -> usize {
        let state = self.shared.lock();
        state
            .states
            .iter()
            .filter(|page| **page == State::Used)
            .count()
    }

    fn free_at(&self, page: usize, pages: usize) {
        let mut state = self.shared.lock();
        for at in page..page.saturating_add(pages) {
            if let Some(slot) = state
                .states
                .get_mut(at)
                .filter(|slot| **slot == State::Used)
            {
                *slot = State::Freed;
                self.shared.fill(at, self.shared.poison(at));
            }
        }
    }
}

impl Run {
    /// The first guest frame.
    #[must_use]
    pub fn gfn(&self) -> u64 {
        self.shared.first_gfn + self.page as u64
    }

    /// The guest-physical address.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.gfn() << PAGE_SHIFT
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// The run's bytes.
    #[must_use]
    pub fn volatile(&self) -> VolatileSlice<'_> {
        self.shared.slice(self.page, self.pages)
    }

    /// Where the run is in this process, for drivers that work on pointers.
    /// It stays mapped while the heap or a run of it lives.
    #[must_use]
    pub fn host(&self) -> NonNull<u8> {
        NonNull::new(self.volatile().ptr_guard_mut().as_ptr()).unwrap_or(NonNull::dangling())
    }
}

impl Pages {
    fn find(&self, from: usize, pages: usize) -> Option<usize> {
        let mut run = 0;
        for (at, state) in self.states.iter().enumerate().skip(from) {
            run = if *state == State::Used { 0 } else { run + 1 };
            if run >= pages.max(1) {
                return Some(at + 1 - run);
            }
        }
        None
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poison(&self, page: usize) -> u64 {
        POISON ^ (self.first_gfn + page as u64)
    }

    fn slice(&self, page: usize, pages: usize) -> VolatileSlice<'_> {
        let all = self.mapping.volatile();
        // Runs lie within the mapping; one that did not would be empty.
        all.subslice(page * PAGE_SIZE, pages * PAGE_SIZE)
            .or_else(|_| all.subslice(0, 0))
            .unwrap_or(all)
    }

    fn fill(&self, page: usize, word: u64) {
        let words = [word; WORDS];
        self.slice(page, 1).copy_from(&words);
    }

    fn check_page(&self, state: &mut Pages, page: usize) {
        let expected = self.poison(page);
        // looked at again and again, thousands of pages at a time: in one copy
        let mut bytes = [0; PAGE_SIZE];
        self.slice(page, 1).copy_to(&mut bytes);
        let (words, _) = bytes.as_chunks::<{ size_of::<u64>() }>();
        let poison = expected.to_ne_bytes();
        let changed = words.iter().position(|word| *word != poison);
        let changed = changed.and_then(|index| {
            let found = u64::from_ne_bytes(*words.get(index)?);
            Some((index * size_of::<u64>(), found))
        });
        if let Some((offset, found)) = changed {
            state.broken.get_or_insert(PoisonBroken {
                gfn: self.first_gfn + page as u64,
                offset,
                found,
            });
        }
    }
}

impl fmt::Debug for GuestHeap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestHeap")
            .field("first_gfn", &self.shared.first_gfn)
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("gfn", &self.gfn())
            .field("pages", &self.pages)
            .finish_non_exhaustive()
    }
}
