//! Files that a front end has sent.
//!
//! The one file of the transport with `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use vmm_sys_util::eventfd::EventFd;

/// Whether a file is an eventfd. It has no type, as all anonymous files, and
/// takes a number: a timer or an epoll does not, and a worker could not be woken
/// by it. Zero changes nothing, and is taken however full it is.
/// Linux eventfd(2)
fn is_event(file: &File) -> io::Result<bool> {
    let anonymous = FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::Unknown;
    Ok(anonymous && matches!(rustix::io::write(file, &0_u64.to_ne_bytes()), Ok(8)))
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
    Ok(is_event(&file)?.then_some(file))
}
