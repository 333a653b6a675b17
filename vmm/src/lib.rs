//! Wiring: what runs xen-dm, short of its command line.
//!
//! [`adapt`] joins `xen` to what `swiotlb` and `devices` ask for; [`guest`] is
//! one guest's life.

pub mod adapt;
pub mod guest;
