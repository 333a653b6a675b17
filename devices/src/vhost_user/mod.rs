//! vhost-user: one protocol, and both sides of it.
//!
//! [`backend`] serves the devices of this crate to any VMM; [`frontend`] makes
//! a device of any back end.
//!
//! Specification: QEMU `docs/interop/vhost-user.rst`.

pub mod backend;
pub mod frontend;
