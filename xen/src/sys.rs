//! The boundary to the kernel: binary layouts, memory mappings and raw
//! ioctls, one file per device.
//!
//! This is the only place of the crate with `unsafe` code. What leaves it is
//! safe: owned mappings, owned descriptors, and errors as [`std::io::Error`].
//! Called by the device files (`privcmd`, `gntdev`, `evtchn`) and by the
//! fake, on any thread.

pub mod abi;
#[allow(unsafe_code)]
pub mod mapping;
