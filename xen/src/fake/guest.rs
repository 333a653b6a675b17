//! The inside of a fake guest: memory that its driver hands to the device.

mod heap;

pub use heap::{GuestHeap, HeapError, PoisonBroken, Run};
