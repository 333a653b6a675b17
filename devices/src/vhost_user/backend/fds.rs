//! Files that a front end has sent.
//!
//! The one file of the transport with `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use vmm_sys_util::eventfd::EventFd;

/// Whether a file may be an eventfd: it has no type, as all anonymous files.
/// Pipes, sockets and files on disks would be read as if they were.
fn is_anonymous(file: &File) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::Unknown)
}

/// A kick: an eventfd that does not block when it is read. `None` if it is
/// none.
pub(super) fn kick(file: File) -> io::Result<Option<EventFd>> {
    let Some(file) = event(file)? else {
        return Ok(None);
    };
    let flags = fcntl_getfl(&file)?;
    fcntl_setfl(&file, flags | OFlags::NONBLOCK)?;
    // SAFETY: the descriptor is open and owned by `file`, which gives it up.
    Ok(Some(unsafe { EventFd::from_raw_fd(file.into_raw_fd()) }))
}

/// A call or an error: an eventfd as it is, for the front end reads it.
/// `None` if it is none.
pub(super) fn event(file: File) -> io::Result<Option<File>> {
    Ok(is_anonymous(&file)?.then_some(file))
}
