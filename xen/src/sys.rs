//! The boundary to the kernel: binary layouts, memory mappings and raw
//! ioctls, one file per device.
//!
//! This is the only place of the crate with `unsafe` code. What leaves it is
//! safe: owned mappings, owned descriptors, and errors as [`std::io::Error`].
//! Called by the device files (`privcmd`, `gntdev`, `evtchn`) and by the
//! fake, on any thread.

pub mod abi;
#[allow(unsafe_code)]
pub(crate) mod evtchn;
#[allow(unsafe_code)]
pub(crate) mod gntdev;
#[allow(unsafe_code)]
mod ioctl;
#[allow(unsafe_code)]
pub mod mapping;
#[allow(unsafe_code)]
pub(crate) mod memfd;
#[allow(unsafe_code)]
pub(crate) mod privcmd;
#[allow(unsafe_code)]
pub(crate) mod reservation;

/// Borrows the descriptor of a type that only knows its number, such as
/// vmm-sys-util's `EventFd`.
#[allow(unsafe_code)]
pub(crate) fn borrow_fd<T: std::os::fd::AsRawFd>(owner: &T) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the owner, borrowed for as long as the result, keeps the
    // descriptor open.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}
