//! Descriptors of types that know only their number.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// Borrows the descriptor of an eventfd.
#[must_use]
pub fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: `event`, borrowed for as long as the result, owns the descriptor
    // and keeps it open.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
