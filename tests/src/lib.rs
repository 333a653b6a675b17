//! Guest-side tests of xen-dm on the fake Xen.
//!
//! A [`Stand`] is a machine with one guest that is being served by the very
//! code that serves real ones. Its devices are driven by virtio-drivers
//! (`vmm::demo::guest`) or, for everything that a well-behaved driver would
//! never do, by [`raw`]. [`torture`] is what every device of the registry has
//! to endure. Each wait is bounded; a vCPU that is not answered, freed memory
//! that is written to, and anything held of the guest's at the end fail a test.

pub mod back_end;
pub mod console;
pub mod disk;
pub mod drivers;
pub mod qcow2;
pub mod raw;
pub mod socket;
pub mod stand;
pub mod subjects;
pub mod torture;

pub use stand::{Place, Stand};
