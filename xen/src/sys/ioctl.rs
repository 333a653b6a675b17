//! One ioctl, with its argument as a value.
//!
//! Used by the device files of `sys` alone.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use zerocopy::IntoBytes;

/// Makes the ioctl `request` with `argument`, which the kernel may write to.
/// Gives what the call returned, with the full width of a register (libc's
/// `ioctl` would cut frame numbers to 32 bits).
///
/// # Safety
/// The structures of `argument`'s type hold addresses, as integers, of
/// memory that the kernel reads and writes during the call: each must be
/// valid for what `request` does with it. The size of `argument` must be at
/// least what the kernel takes for `request`.
pub(super) unsafe fn ioctl<T: IntoBytes>(
    fd: BorrowedFd<'_>,
    request: u64,
    argument: &mut T,
) -> io::Result<u64> {
    // SAFETY: `argument` is a live, initialised value without padding, so any
    // bytes may be read and written; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), request, argument) };
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// As [`ioctl`], for a structure followed by an array: `words` are both.
///
/// # Safety
/// As for [`ioctl`]; the array's length is stated in the words themselves.
pub(super) unsafe fn ioctl_words(
    fd: BorrowedFd<'_>,
    request: u64,
    words: &mut [u64],
) -> io::Result<u64> {
    // SAFETY: the caller's promise; the pointer is to live, initialised words.
    let result =
        unsafe { libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), request, words.as_mut_ptr()) };
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// An ioctl without argument.
pub(super) fn ioctl_none(fd: BorrowedFd<'_>, request: u64) -> io::Result<u64> {
    // SAFETY: no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), request, 0) };
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}
