//! Anonymous files that stand for a domain's memory on the fake.
//!
//! Called by the fake when it creates a domain, on any thread.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// A sparse anonymous file of `len` bytes, closed on exec.
///
/// # Errors
/// What `memfd_create` and `ftruncate` give.
pub(crate) fn memfd(len: u64) -> io::Result<File> {
    // SAFETY: the name is a NUL-terminated string that the call only reads.
    let fd = unsafe { libc::memfd_create(c"xen-fake-domain".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(len)?;
    Ok(file)
}
