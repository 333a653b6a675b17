//! A guest's memory by frame number, with generations.
//!
//! One [`ForeignRam`] per guest. Queue workers ask it for the current
//! [`Generation`], or, for a guest that is mapped 1:1, the current [`Window`];
//! the ioreq thread starts new ones when Xen says that memory left the guest.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::generation::Generation;
use super::window::{Miss, Window};
use super::{CHUNK_FRAMES, Error, MappedRange, Pages, pages_of};
use crate::domid::DomId;
use crate::privcmd::{self, ForeignPages, Privcmd};
use crate::sys::abi::{PAGE_SHIFT, PAGE_SIZE};
use crate::sys::reservation::Reservation;

/// Frames above this are on no machine (52-bit addresses).
const LAST_FRAME: u64 = (1 << (52 - PAGE_SHIFT)) - 1;
/// What is taken for the highest frame where Xen may not be asked: the end of
/// a guest's second RAM bank on Arm (`xen/include/public/arch-arm.h`).
pub(super) const ASSUMED_HIGHEST: u64 = (1 << (40 - PAGE_SHIFT)) - 1;

/// What a guest is taken to have where Xen may not be asked: 64 GiB. The process
/// is then for this guest alone.
const ASSUMED_FRAMES: u64 = 1 << (36 - PAGE_SHIFT);
/// Mappings that a generation may have beyond one for each chunk: of chunks at
/// the ends of banks, and of pages that came back later.
const SLACK: u64 = 256;
/// Mappings that requests in flight may hold of generations of before, beyond
/// another whole one: a guest that balloons starts a generation with each page.
const HELD: u64 = 2048;

/// The most mappings that a guest of `bytes` has in this process for its data,
/// reached by chunks. The kernel lets a process have so many
/// (`vm.max_map_count`), and all guests share them.
#[must_use]
pub fn most_mappings(bytes: u64) -> u64 {
    most_of(budget(bytes >> PAGE_SHIFT))
}

/// Mappings of one generation.
fn budget(frames: u64) -> u64 {
    frames.div_ceil(CHUNK_FRAMES).saturating_add(SLACK)
}

/// Mappings of all generations together.
fn most_of(budget: u64) -> u64 {
    budget.saturating_mul(2).saturating_add(HELD)
}

/// What every generation of a guest's memory knows.
#[derive(Debug)]
pub(super) struct Guest {
    privcmd: Privcmd,
    dom: DomId,
    /// Highest frame when last asked for.
    highest: AtomicU64,
    /// Mappings that a generation is worth, of as many pages as Xen said last.
    budget: AtomicU64,
    /// The most pages that Xen said.
    most: AtomicU64,
    /// Mappings of all generations that there are.
    mappings: AtomicU64,
}

impl Guest {
    pub(super) fn dom(&self) -> DomId {
        self.dom
    }

    /// Checks that a frame can exist; asks Xen anew if it lies above what the
    /// guest had last.
    pub(super) fn check(&self, gfn: u64) -> Result<(), Error> {
        if gfn <= self.highest.load(Ordering::Relaxed) {
            return Ok(());
        }
        let highest = self.ask().map_err(|source| Error::Map {
            dom: self.dom,
            gfn,
            source,
        })?;
        if gfn <= highest {
            return Ok(());
        }
        Err(Error::TooHigh {
            dom: self.dom,
            gfn,
            highest,
        })
    }

    pub(super) fn privcmd(&self) -> &Privcmd {
        &self.privcmd
    }

    pub(super) fn ask(&self) -> privcmd::Result<u64> {
        let highest = match self.privcmd.maximum_gpfn(self.dom) {
            Ok(highest) => highest.min(LAST_FRAME),
            // A restricted file may map but not ask; each page tells by itself.
            Err(privcmd::Error::Restricted { .. }) => ASSUMED_HIGHEST,
            Err(error) => return Err(error),
        };
        self.highest.store(highest, Ordering::Relaxed);
        Ok(highest)
    }

    /// Asks how many pages the guest may have.
    fn ask_size(&self) {
        let frames = match self.privcmd.maximum_reservation(self.dom) {
            // dom0's is all that a word can say
            Ok(frames) => frames.min(self.highest().saturating_add(1)),
            Err(privcmd::Error::Restricted { .. }) => ASSUMED_FRAMES,
            Err(error) => {
                tracing::debug!(dom = %self.dom, %error, "size unknown; as before");
                return;
            }
        };
        self.budget.store(budget(frames), Ordering::Relaxed);
        self.most.fetch_max(frames, Ordering::Relaxed);
    }

    /// The most pages that the guest was ever seen to be allowed, or is taken to be.
    pub(super) fn most(&self) -> u64 {
        self.ask_size();
        match self.most.load(Ordering::Relaxed) {
            0 => ASSUMED_FRAMES,
            most => most,
        }
    }

    /// Whether a generation of so many mappings is to be followed by one that
    /// has its chunks whole.
    pub(super) fn is_crowded(&self, mappings: u64) -> bool {
        mappings >= self.budget.load(Ordering::Relaxed)
    }

    /// Mappings of all generations that there are.
    pub(super) fn mappings(&self) -> u64 {
        self.mappings.load(Ordering::Relaxed)
    }

    /// Counts a mapping of a generation.
    pub(super) fn count(&self) {
        self.mappings.fetch_add(1, Ordering::Relaxed);
    }

    /// So many mappings of a generation are gone.
    pub(super) fn uncount(&self, mappings: u64) {
        self.mappings.fetch_sub(mappings, Ordering::Relaxed);
    }

    /// Maps frames that follow each other for a generation, which counts it if
    /// it keeps it.
    pub(super) fn map_more(&self, first: u64, count: usize) -> Result<ForeignPages, Error> {
        let most = most_of(self.budget.load(Ordering::Relaxed));
        if self.mappings() >= most {
            return Err(Error::TooMany {
                dom: self.dom,
                gfn: first,
                most,
            });
        }
        self.map(first, count, true)
    }

    /// The highest frame that the guest had when last asked for.
    pub(super) fn highest(&self) -> u64 {
        self.highest.load(Ordering::Relaxed)
    }

    /// Maps frames that follow each other.
    pub(super) fn map(&self, first: u64, count: usize, write: bool) -> Result<ForeignPages, Error> {
        let gfns: Vec<u64> = (first..).take(count).collect();
        self.map_those(&gfns, write)
    }

    /// Maps frames, to see which there are.
    pub(super) fn map_each(&self, gfns: &[u64]) -> Result<ForeignPages, Error> {
        self.map_those(gfns, false)
    }

    fn map_those(&self, gfns: &[u64], write: bool) -> Result<ForeignPages, Error> {
        self.privcmd
            .map_foreign(self.dom, gfns, write)
            .map_err(|source| Error::Map {
                dom: self.dom,
                gfn: gfns.first().copied().unwrap_or_default(),
                source,
            })
    }
}

impl Guest {
    /// Maps frames that follow each other to place `at` of a reservation.
    /// Gives the negative errno of each, or 0.
    pub(super) fn map_into(
        &self,
        first: u64,
        count: u64,
        into: &Reservation,
        at: usize,
    ) -> Result<Vec<i32>, Error> {
        let gfns: Vec<u64> = (first..first.saturating_add(count)).collect();
        self.privcmd
            .map_foreign_into(self.dom, &gfns, into, at)
            .map_err(|source| Error::Map {
                dom: self.dom,
                gfn: first,
                source,
            })
    }
}

/// A guest's memory, mapped in chunks as it is touched: each where there is
/// room ([`ForeignRam::current`]), or all in one window ([`ForeignRam::reach`]).
#[derive(Debug)]
pub struct ForeignRam {
    guest: Arc<Guest>,
    current: Mutex<Views>,
    number: AtomicU64,
    /// Where another process was told that its RAM is: first frames, frames.
    seen: Mutex<Vec<(u64, u64)>>,
}

/// What is mapped since the last INVALIDATE; a guest's devices use one of the
/// two, and the other one stays empty.
#[derive(Debug)]
struct Views {
    chunks: Arc<Generation>,
    window: Arc<Window>,
}

impl Views {
    fn new(guest: &Arc<Guest>, number: u64) -> Views {
        Views {
            chunks: Arc::new(Generation::new(Arc::clone(guest), number)),
            window: Arc::new(Window::new(Arc::clone(guest), number)),
        }
    }
}

impl ForeignRam {
    /// The memory of `dom`; nothing is mapped yet.
    ///
    /// # Errors
    /// [`privcmd::Error::NoDomain`], or that the highest frame could not be
    /// asked for.
    pub fn new(privcmd: &Privcmd, dom: DomId) -> privcmd::Result<ForeignRam> {
        let guest = Arc::new(Guest {
            privcmd: privcmd.clone(),
            dom,
            highest: AtomicU64::new(0),
            budget: AtomicU64::new(budget(ASSUMED_FRAMES)),
            most: AtomicU64::new(0),
            mappings: AtomicU64::new(0),
        });
        guest.ask()?;
        guest.ask_size();
        Ok(ForeignRam {
            current: Mutex::new(Views::new(&guest, 0)),
            guest,
            number: AtomicU64::new(0),
            seen: Mutex::default(),
        })
    }

    /// The guest.
    #[must_use]
    pub fn dom(&self) -> DomId {
        self.guest.dom
    }

    /// The current generation. What is reached through it stays mapped for as
    /// long as the caller keeps it, even when memory has left the guest.
    ///
    /// Pages that come one by one are a mapping each: a generation with more of
    /// them than it is worth is followed by one that maps their chunks whole.
    #[must_use]
    pub fn current(&self) -> Arc<Generation> {
        let chunks = Arc::clone(&self.views().chunks);
        match self.guest.is_crowded(chunks.mappings()) {
            false => chunks,
            true => self.after(&chunks),
        }
    }

    /// The generation that follows a crowded one.
    #[cold]
    fn after(&self, crowded: &Generation) -> Arc<Generation> {
        // its user may have given it more memory
        self.guest.ask_size();
        if self.guest.is_crowded(crowded.mappings()) {
            let mappings = crowded.mappings();
            tracing::debug!(dom = %self.guest.dom, mappings, "mapped in pieces; a new generation");
            self.renew(crowded.number());
        }
        Arc::clone(&self.views().chunks)
    }

    /// The current window, with a range of the guest's mapped in it:
    /// [`Window::slice`] gives it as one piece. What is reached through it
    /// stays mapped for as long as the caller keeps it.
    ///
    /// # Errors
    /// [`Error::NotThere`] names the first frame that the guest lacks; the
    /// other errors.
    pub fn reach(&self, address: u64, len: usize) -> Result<Arc<Window>, Error> {
        let window = self.window();
        let gfn = match window.cover(address, len) {
            Ok(()) => return Ok(window),
            Err(Miss::Error(error)) => return Err(error),
            Err(Miss::Outdated { gfn }) => gfn,
        };
        tracing::debug!(dom = %self.guest.dom, gfn, "memory has come since; a new window");
        self.renew(window.number());
        let window = self.window();
        match window.cover(address, len) {
            Ok(()) => Ok(window),
            Err(Miss::Error(error)) => Err(error),
            // it goes and comes while we look
            Err(Miss::Outdated { gfn }) => Err(window.not_there(gfn, libc::ESTALE)),
        }
    }

    pub(super) fn guest(&self) -> &Guest {
        &self.guest
    }

    pub(super) fn seen(&self) -> &Mutex<Vec<(u64, u64)>> {
        &self.seen
    }

    /// The current window: [`ForeignRam::current`] for guests that are mapped 1:1.
    /// [`ForeignRam::reach`] has a newer one for what it does not show.
    #[must_use]
    pub fn window(&self) -> Arc<Window> {
        Arc::clone(&self.views().window)
    }

    fn views(&self) -> MutexGuard<'_, Views> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of the current generation: a cheap way to see whether the one
    /// in hand ([`Generation::number`]) is still it.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// Starts a new generation and a new window, without mappings. To be called for every
    /// INVALIDATE before it is answered; the old mappings go with the last
    /// request that uses them.
    pub fn invalidate(&self) {
        self.renew_if(|_| true);
    }

    /// The same, unless somebody has done so since generation `number`.
    fn renew(&self, number: u64) {
        self.renew_if(|current| current == number);
    }

    fn renew_if(&self, wanted: impl FnOnce(u64) -> bool) {
        let mut current = self.views();
        let number = current.chunks.number();
        if !wanted(number) {
            return;
        }
        let number = number + 1;
        let old = std::mem::replace(&mut *current, Views::new(&self.guest, number));
        self.number.store(number, Ordering::Release);
        drop(current);
        // Unmapping takes a while; nobody need wait for it at the lock.
        drop(old);
    }

    /// Maps the pages of a range for themselves, contiguously, independent of
    /// generations.
    ///
    /// # Errors
    /// [`Error::NotThere`], naming the first frame that the guest lacks; the
    /// other errors.
    pub fn map_range(&self, address: u64, len: usize, write: bool) -> Result<MappedRange, Error> {
        let no_range = || Error::NoRange {
            dom: self.guest.dom,
            address,
            len,
        };
        let last = u64::try_from(len)
            .ok()
            .and_then(|len| len.checked_sub(1))
            .and_then(|more| address.checked_add(more))
            .ok_or_else(no_range)?;
        self.guest.check(last >> PAGE_SHIFT)?;
        let first = address >> PAGE_SHIFT;
        let offset = usize::try_from(address & (PAGE_SIZE as u64 - 1)).map_err(|_| no_range())?;
        let count = pages_of(offset, len).ok_or_else(no_range)?;
        let pages = self.guest.map(first, count, write)?;
        match pages.into_complete() {
            Ok(mapping) => Ok(MappedRange {
                pages: Pages::Foreign(mapping),
                offset,
                len,
            }),
            Err(pages) => Err(not_there(self.guest.dom, first, &pages)),
        }
    }
}

/// The error for the first page that is missing.
fn not_there(dom: DomId, first: u64, pages: &ForeignPages) -> Error {
    let (index, source) = pages
        .first_error()
        .unwrap_or((0, std::io::Error::from_raw_os_error(libc::EFAULT)));
    Error::NotThere {
        dom,
        gfn: first + index as u64,
        source,
    }
}
