//! Binary layouts and numbers shared with Xen and with Linux's Xen drivers.
//!
//! Every structure states its size and the offset of its fields in a
//! compile-time assertion; none has implicit padding, so each can be viewed
//! as bytes. Used by `sys`, by the typed layers above it and by the fake.

pub mod dm_op;
pub mod ioctl;
pub mod ioreq;

/// Size of a page of Xen's interfaces, in bytes (`XEN_PAGE_SIZE`). Guest
/// frames, grants and ioreq pages count in these, whatever the kernel's own
/// page size is.
pub const PAGE_SIZE: usize = 4096;
/// Binary logarithm of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// Asserts a structure's size and the offsets of named fields, at compile time.
macro_rules! assert_layout {
    ($type:ty, $size:expr $(, $field:ident @ $offset:expr)* $(,)?) => {
        const _: () = {
            assert!(size_of::<$type>() == $size);
            $(assert!(std::mem::offset_of!($type, $field) == $offset);)*
        };
    };
}
use assert_layout;

// Pointers travel in 64-bit fields of the ioctl structures.
const _: () = assert!(size_of::<usize>() == 8);

#[cfg(test)]
mod tests;
