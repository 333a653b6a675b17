//! The crate's file of this name, with the bytes that it zeroes watched.

#[path = "../../src/segment.rs"]
mod real;

pub(crate) use real::bring_near;
pub use real::{Segment, Segments};
use vm_memory::VolatileSlice;

/// Writes zeroes over `slice`.
pub(crate) fn zero(slice: &VolatileSlice<'_>) {
    crate::shadow::write(slice);
    real::zero(slice);
}
