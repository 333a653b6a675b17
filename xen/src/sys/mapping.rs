//! Owned memory mappings of device files and of the fake's memory.
//!
//! A [`Mapping`] is made by `sys` and the fake and kept by whoever uses the
//! memory, on any thread. What it shows is shared with a guest that may
//! write at any time, so it is only ever seen through
//! [`VolatileSlice`]; no Rust reference to its bytes is formed.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use vm_memory::VolatileSlice;

use super::abi::PAGE_SIZE;

/// A memory mapping, unmapped when dropped.
pub struct Mapping {
    address: NonNull<u8>,
    len: usize,
    writable: bool,
    hook: Option<Box<dyn FnOnce() + Send + Sync>>,
}

// SAFETY: the mapping is a range of the process's address space, valid from
// every thread; all access goes through volatile or atomic operations.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared reference gives nothing but volatile access.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes (a multiple of the page size) of `fd` from `offset`
    /// on, shared, with one `mmap`.
    ///
    /// # Errors
    /// What `mmap` gives; for gntdev this is where a bad reference shows.
    pub(crate) fn of_file(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        write: bool,
    ) -> io::Result<Mapping> {
        let offset = file_offset(offset)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches
        // no existing memory.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection(write),
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                offset,
            )
        };
        Self::own(address, len, write)
    }

    /// Maps single pages of `fd`, in the order given, as one contiguous
    /// range; an entry without offset stays inaccessible. Offsets that
    /// follow each other are mapped by one call.
    ///
    /// # Errors
    /// What `mmap` gives; nothing stays mapped then.
    #[allow(dead_code)] // the fake's way to show a domain's pages
    pub(crate) fn of_pages(
        fd: BorrowedFd<'_>,
        offsets: &[Option<u64>],
        write: bool,
    ) -> io::Result<Mapping> {
        let len = offsets
            .len()
            .checked_mul(PAGE_SIZE)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: as in `of_file`.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let reservation = Self::own(address, len, write)?;
        for run in runs(offsets) {
            let at = reservation
                .address
                .as_ptr()
                .wrapping_add(run.page * PAGE_SIZE);
            let offset = file_offset(run.offset)?;
            // SAFETY: the run lies within the reservation made above, which
            // nobody else knows yet; replacing its pages harms no one.
            let mapped = unsafe {
                libc::mmap(
                    at.cast(),
                    run.pages * PAGE_SIZE,
                    protection(write),
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    fd.as_raw_fd(),
                    offset,
                )
            };
            if mapped == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(reservation)
    }

    /// A page of ordinary memory for hypercalls' structures: present before
    /// the call (Xen does not wait for a page fault), locked where the
    /// process may lock memory, and not shared with a forked child.
    ///
    /// # Errors
    /// What `mmap` gives.
    pub(crate) fn for_hypercalls() -> io::Result<Mapping> {
        // SAFETY: as in `of_file`.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE_SIZE,
                protection(true),
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        let page = Self::own(address, PAGE_SIZE, true)?;
        let at: *const libc::c_void = page.address.as_ptr().cast_const().cast();
        // SAFETY: the page was mapped above; locking it has no effect on its
        // content.
        if unsafe { libc::mlock(at, PAGE_SIZE) } != 0 {
            // Under RLIMIT_MEMLOCK 0 the page is present but could be
            // reclaimed; the hypercall then fails with EFAULT.
            tracing::debug!(error = %io::Error::last_os_error(), "mlock of the hypercall page");
        }
        // SAFETY: as above; a child simply lacks the page.
        unsafe { libc::madvise(at.cast_mut(), PAGE_SIZE, libc::MADV_DONTFORK) };
        Ok(page)
    }

    /// Has `hook` run after the range was unmapped, in place of any earlier one.
    #[must_use]
    pub(crate) fn on_drop(mut self, hook: Box<dyn FnOnce() + Send + Sync>) -> Mapping {
        self.hook = Some(hook);
        self
    }

    fn own(address: *mut libc::c_void, len: usize, writable: bool) -> io::Result<Mapping> {
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast::<u8>())
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
        Ok(Mapping {
            address,
            len,
            writable,
            hook: None,
        })
    }

    /// The whole mapping. Writing through the slice of a mapping that is not
    /// writable, or touching a page that is not there, ends the process with
    /// a signal: ask [`Mapping::is_writable`] first.
    #[must_use]
    pub fn volatile(&self) -> VolatileSlice<'_> {
        // SAFETY: the range stays mapped as long as `self` lives, to which
        // the slice's lifetime is bound; the guest's and our accesses are
        // volatile or atomic.
        unsafe { VolatileSlice::new(self.address.as_ptr(), self.len) }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the mapping has no bytes; never true, as `mmap` refuses it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the memory may be written to.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Address in this process, for ioctls and iovecs.
    #[must_use]
    pub fn address(&self) -> usize {
        self.address.as_ptr().addr()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `own`'s callers, is unmapped only
        // here, and no slice of it outlives `self`.
        let result = unsafe { libc::munmap(self.address.as_ptr().cast(), self.len) };
        if result != 0 {
            let error = io::Error::last_os_error();
            tracing::error!(address = self.address(), len = self.len, %error, "munmap");
        }
        if let Some(hook) = self.hook.take() {
            hook();
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("address", &format_args!("{:#x}", self.address()))
            .field("len", &self.len)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

/// Pages that follow each other both in the mapping and in the file.
pub(super) struct Run {
    pub(super) page: usize,
    pub(super) offset: u64,
    pub(super) pages: usize,
}

pub(super) fn runs(offsets: &[Option<u64>]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (page, offset) in offsets.iter().enumerate() {
        let Some(offset) = *offset else { continue };
        match runs.last_mut() {
            Some(run)
                if run.page + run.pages == page
                    && run.offset + (run.pages * PAGE_SIZE) as u64 == offset =>
            {
                run.pages += 1;
            }
            _ => runs.push(Run {
                page,
                offset,
                pages: 1,
            }),
        }
    }
    runs
}

pub(super) fn protection(write: bool) -> libc::c_int {
    if write {
        libc::PROT_READ | libc::PROT_WRITE
    } else {
        libc::PROT_READ
    }
}

pub(super) fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use vm_memory::Bytes;

    use super::*;

    const PAGE: u64 = PAGE_SIZE as u64;

    /// A file whose pages begin with their number.
    fn numbered(pages: u8) -> std::fs::File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGE * u64::from(pages)).unwrap();
        for page in 0..pages {
            file.write_all_at(&[page], PAGE * u64::from(page)).unwrap();
        }
        file
    }

    #[test]
    fn pages_come_in_the_order_given() {
        let file = numbered(4);
        let offsets = [Some(3 * PAGE), None, Some(0), Some(PAGE)];

        let mapping = Mapping::of_pages(file.as_fd(), &offsets, false).unwrap();

        let first = |page: usize| mapping.volatile().read_obj::<u8>(page * PAGE_SIZE).unwrap();
        assert_eq!([first(0), first(2), first(3)], [3, 0, 1]);
        assert_eq!(mapping.len(), 4 * PAGE_SIZE);
        assert!(!mapping.is_writable() && !mapping.is_empty());
    }

    #[test]
    fn pages_that_follow_each_other_are_one_run() {
        let offsets = [Some(0), Some(PAGE), None, Some(2 * PAGE), Some(4 * PAGE)];

        let runs: Vec<_> = runs(&offsets)
            .iter()
            .map(|run| (run.page, run.offset / PAGE, run.pages))
            .collect();

        assert_eq!(runs, [(0, 0, 2), (3, 2, 1), (4, 4, 1)]);
    }

    #[test]
    fn what_is_written_reaches_the_file() {
        let file = numbered(2);
        let mapping = Mapping::of_file(file.as_fd(), PAGE, PAGE_SIZE, true).unwrap();

        mapping.volatile().write_slice(b"shared", 1).unwrap();

        let mut seen = [0; 7];
        file.read_exact_at(&mut seen, PAGE).unwrap();
        assert_eq!(&seen, b"\x01shared");
    }

    #[test]
    fn the_hook_runs_once_at_the_end() {
        let file = numbered(1);
        let count = Arc::new(AtomicUsize::new(0));
        let hook = Arc::clone(&count);
        let mapping = Mapping::of_file(file.as_fd(), 0, PAGE_SIZE, false)
            .unwrap()
            .on_drop(Box::new(move || {
                hook.fetch_add(1, Ordering::Relaxed);
            }));
        let before = count.load(Ordering::Relaxed);

        drop(mapping);

        assert_eq!((before, count.load(Ordering::Relaxed)), (0, 1));
    }

    #[test]
    fn a_mapping_of_nothing_is_refused() {
        let file = numbered(1);

        assert!(Mapping::of_file(file.as_fd(), 0, 0, false).is_err());
        assert!(Mapping::of_pages(file.as_fd(), &[], false).is_err());
    }
}
