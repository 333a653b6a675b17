//! Addresses of this process that are kept for a guest's memory and filled
//! piece by piece.
//!
//! A [`Reservation`] is made by a [`Window`](crate::memory::Window) and filled
//! through `sys::privcmd` or the fake, on queue workers. As with
//! [`Mapping`](super::mapping::Mapping), what it shows is shared with a guest
//! and seen through [`VolatileSlice`] only.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use vm_memory::VolatileSlice;

use super::abi::PAGE_SIZE;
use super::mapping::{file_offset, protection, runs};

type Hook = Box<dyn FnOnce() + Send>;

/// A range of addresses; those that nothing was mapped to are inaccessible.
/// Unmapped as a whole when dropped.
pub(crate) struct Reservation {
    address: NonNull<u8>,
    len: usize,
    hooks: Mutex<Vec<Hook>>,
}

// SAFETY: the reservation is a range of the process's address space, the same
// for every thread; all access goes through volatile operations.
unsafe impl Send for Reservation {}
// SAFETY: as above; pieces are replaced by the kernel, whose lock orders that.
unsafe impl Sync for Reservation {}

impl Reservation {
    /// Reserves `len` bytes, a multiple of the page size. It takes no memory.
    ///
    /// # Errors
    /// What `mmap` gives: ENOMEM where there are not as many addresses.
    pub(crate) fn new(len: usize) -> io::Result<Reservation> {
        // SAFETY: a new mapping at an address of the kernel's choice touches
        // no existing memory.
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
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast::<u8>())
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
        Ok(Reservation {
            address,
            len,
            hooks: Mutex::default(),
        })
    }

    /// Maps `len` bytes of `fd` from `offset` on, shared and writable, to
    /// place `at` of the reservation, in place of what was there.
    ///
    /// # Errors
    /// EINVAL for a place outside, or what `mmap` gives.
    pub(crate) fn map_file(
        &self,
        at: usize,
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
    ) -> io::Result<()> {
        let place = self.place(at, len)?;
        let offset = file_offset(offset)?;
        // SAFETY: the place lies within the reservation, whose addresses are
        // nobody else's; slices of it stay valid, as its pages are replaced
        // and never unmapped before `self` is dropped.
        let mapped = unsafe {
            libc::mmap(
                place.cast(),
                len,
                protection(true),
                libc::MAP_SHARED | libc::MAP_FIXED,
                fd.as_raw_fd(),
                offset,
            )
        };
        done(mapped)
    }

    /// Maps single pages of `fd`, in the order given, from place `at` on; an
    /// entry without offset leaves its page as it is.
    ///
    /// # Errors
    /// As [`Reservation::map_file`].
    pub(crate) fn map_pages(
        &self,
        at: usize,
        fd: BorrowedFd<'_>,
        offsets: &[Option<u64>],
    ) -> io::Result<()> {
        for run in runs(offsets) {
            let at = at.saturating_add(run.page.saturating_mul(PAGE_SIZE));
            self.map_file(at, fd, run.offset, run.pages.saturating_mul(PAGE_SIZE))?;
        }
        Ok(())
    }

    /// Takes away what was mapped to a place.
    ///
    /// # Errors
    /// As [`Reservation::map_file`].
    pub(crate) fn clear(&self, at: usize, len: usize) -> io::Result<()> {
        let place = self.place(at, len)?;
        // SAFETY: as in `map_file`.
        let mapped = unsafe {
            libc::mmap(
                place.cast(),
                len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        done(mapped)
    }

    /// The address of a place in this process, for ioctls.
    ///
    /// # Errors
    /// EINVAL for a place outside.
    pub(crate) fn place(&self, at: usize, len: usize) -> io::Result<*mut u8> {
        match at.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.address.as_ptr().wrapping_add(at)),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    /// A piece of it, if it lies within. Touching a page that nothing was
    /// mapped to ends the process with a signal.
    pub(crate) fn slice(&self, at: usize, len: usize) -> Option<VolatileSlice<'_>> {
        let place = self.place(at, len).ok()?;
        // SAFETY: the range stays mapped as long as `self` lives, to which the
        // slice's lifetime is bound; the guest's and our accesses are volatile.
        Some(unsafe { VolatileSlice::new(place, len) })
    }

    /// Bytes of it.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Has `hook` run after the range was unmapped, beside earlier ones.
    pub(crate) fn on_drop(&self, hook: Hook) {
        let mut hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        hooks.push(hook);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, is unmapped only here, and no
        // slice of it outlives `self`.
        let result = unsafe { libc::munmap(self.address.as_ptr().cast(), self.len) };
        if result != 0 {
            let error = io::Error::last_os_error();
            tracing::error!(len = self.len, %error, "munmap of a reservation");
        }
        let hooks = self.hooks.get_mut().unwrap_or_else(PoisonError::into_inner);
        for hook in hooks.drain(..) {
            hook();
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("address", &self.address)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

fn done(mapped: *mut libc::c_void) -> io::Result<()> {
    match mapped == libc::MAP_FAILED {
        true => Err(io::Error::last_os_error()),
        false => Ok(()),
    }
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

    /// A file of four pages that begin with their number.
    fn numbered() -> std::fs::File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 * PAGE).unwrap();
        for page in 0..4_u8 {
            file.write_all_at(&[page], PAGE * u64::from(page)).unwrap();
        }
        file
    }

    fn byte(reservation: &Reservation, at: usize) -> u8 {
        let slice = reservation.slice(at, 1).unwrap();
        slice.read_obj(0).unwrap()
    }

    #[test]
    fn pieces_stand_where_they_were_put() {
        let file = numbered();
        let reservation = Reservation::new(1 << 40).unwrap();

        reservation
            .map_file(1 << 30, file.as_fd(), PAGE, PAGE_SIZE)
            .unwrap();
        let pages = [Some(3 * PAGE), None, Some(2 * PAGE)];
        reservation
            .map_pages(1 << 21, file.as_fd(), &pages)
            .unwrap();

        assert_eq!(byte(&reservation, 1 << 30), 1);
        assert_eq!(byte(&reservation, 1 << 21), 3);
        assert_eq!(byte(&reservation, (1 << 21) + 2 * PAGE_SIZE), 2);
    }

    #[test]
    fn a_piece_that_was_cleared_can_be_filled_again() {
        let file = numbered();
        let reservation = Reservation::new(8 * PAGE_SIZE).unwrap();
        let fill = |page: u64| reservation.map_file(0, file.as_fd(), page * PAGE, PAGE_SIZE);
        fill(1).unwrap();

        reservation.clear(0, PAGE_SIZE).unwrap();
        fill(2).unwrap();

        assert_eq!(byte(&reservation, 0), 2);
    }

    #[test]
    fn nothing_is_put_or_seen_outside() {
        let file = numbered();
        let reservation = Reservation::new(2 * PAGE_SIZE).unwrap();

        let beyond = reservation.map_file(PAGE_SIZE, file.as_fd(), 0, 2 * PAGE_SIZE);
        let wrapped = reservation.clear(usize::MAX, PAGE_SIZE);

        assert_eq!(beyond.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(wrapped.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert!(reservation.slice(PAGE_SIZE, PAGE_SIZE + 1).is_none());
        assert!(Reservation::new(0).is_err());
    }

    #[test]
    fn every_hook_runs_once_at_the_end() {
        let count = Arc::new(AtomicUsize::new(0));
        let reservation = Reservation::new(PAGE_SIZE).unwrap();
        for _ in 0..2 {
            let hook = Arc::clone(&count);
            reservation.on_drop(Box::new(move || {
                hook.fetch_add(1, Ordering::Relaxed);
            }));
        }
        let before = count.load(Ordering::Relaxed);

        drop(reservation);

        assert_eq!((before, count.load(Ordering::Relaxed)), (0, 2));
    }
}
