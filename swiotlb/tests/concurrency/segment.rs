//! The crate's file of this name, with the bytes that it zeroes watched.

#[path = "../../src/segment.rs"]
mod real;

pub use real::{Segment, Segments};
pub(crate) use real::{bring_near, bring_near_to_write};
use vm_memory::VolatileSlice;

/// Writes zeroes over `slice`.
pub(crate) fn zero(slice: &VolatileSlice<'_>) {
    crate::shadow::write(slice);
    real::zero(slice);
}
