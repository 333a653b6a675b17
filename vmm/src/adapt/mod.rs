//! The traits of `swiotlb` and `devices`, implemented over `xen`.
//!
//! Each is a newtype, made when a guest or a device is set up and used by the
//! device's queue workers.

mod grants;
mod interrupt;
mod plain;
mod provider;
#[cfg(test)]
mod tests;

use swiotlb::HostRange;
use vm_memory::VolatileSlice;
use xen::memory::MappedRange;

pub(crate) use devices::virtio::descriptor::borrow;
pub use grants::GrantMemory;
pub use interrupt::Line;
pub use plain::{ForeignMemory, OneToOneMemory};
pub use provider::DeviceMemory;

/// A mapped part of a ring, foreign or granted.
struct RingPart(MappedRange);

impl HostRange for RingPart {
    fn volatile(&self) -> VolatileSlice<'_> {
        self.0.volatile()
    }
}
