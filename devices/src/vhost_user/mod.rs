//! vhost-user: one protocol, and the side of it that serves a device.
//!
//! [`backend`] serves the devices of this crate to any VMM.
//!
//! Specification: QEMU `docs/interop/vhost-user.rst`.

pub mod backend;
