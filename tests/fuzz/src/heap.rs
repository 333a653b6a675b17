//! Memory with AddressSanitizer's red zones around it, as regions of vm-memory.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{MmapRegion, VolatileSlice};

/// Zeroed pages.
#[derive(Debug)]
pub struct Heap {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory, which nothing ties to a thread.
unsafe impl Send for Heap {}

impl Heap {
    /// At least one byte.
    pub fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len, 4096).expect("a size");
        assert!(len > 0);
        // SAFETY: the layout has a size.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) });
        let start = start.unwrap_or_else(|| handle_alloc_error(layout));
        Heap { start, layout }
    }

    /// The region that is all of it. Whoever has it must be gone before this
    /// is dropped.
    pub fn region(&self) -> Arc<MmapRegion> {
        let (start, len) = (self.start.as_ptr(), self.layout.size());
        // SAFETY: these pages exist; the caller keeps them.
        let region = unsafe { MmapRegion::build_raw(start, len, 3, 0x22) };
        Arc::new(region.expect("page-aligned"))
    }

    /// As a device or a guest sees it.
    pub fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: the bytes are there as long as the slice is.
        unsafe { VolatileSlice::new(self.start.as_ptr(), self.layout.size()) }
    }

    /// Its bytes, while nobody writes them.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: as above; there is one thread.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    /// Where a slice of it starts, in bytes from its own start.
    pub fn offset_of(&self, slice: &VolatileSlice<'_>) -> Option<usize> {
        let address = slice.ptr_guard().as_ptr() as usize;
        let offset = address.checked_sub(self.start.as_ptr() as usize)?;
        (offset < self.layout.size()).then_some(offset)
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// A slice's bytes at this moment.
pub fn copy_of(slice: &VolatileSlice<'_>) -> Vec<u8> {
    let mut bytes = vec![0; slice.len()];
    slice.copy_to(&mut bytes);
    bytes
}
