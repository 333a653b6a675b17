//! The guest's memory, for virtio-drivers.
//!
//! virtio-drivers asks for memory through functions without an object, so the
//! memory is the thread's: [`enter`] sets it for a thread that plays a vCPU.
//! What the driver makes on such a thread is used and dropped there.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use super::memory::{DriverMemory, MemoryError};

thread_local! {
    static MEMORY: RefCell<Option<DriverMemory>> = const { RefCell::new(None) };
}

/// Makes `memory` this thread's; gives what was it before.
pub fn enter(memory: DriverMemory) -> Option<DriverMemory> {
    MEMORY.with_borrow_mut(|current| current.replace(memory))
}

fn with<R>(f: impl FnOnce(&DriverMemory) -> Result<R, MemoryError>) -> Option<R> {
    MEMORY.with_borrow(|current| {
        let memory = current.as_ref()?;
        match f(memory) {
            Ok(value) => Some(value),
            Err(error) => {
                memory.failed(error);
                None
            }
        }
    })
}

/// virtio-drivers' way to this thread's [`DriverMemory`].
#[derive(Clone, Copy, Debug)]
pub struct GuestHal;

// SAFETY: `dma_alloc` gives pages of the guest's heap, which are page-aligned,
// zeroed, mapped as long as the heap lives and given to nobody else until they
// are freed; `share` and `unshare` touch the buffer during the call alone and
// as far as the direction allows.
unsafe impl Hal for GuestHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // Linux grants what it keeps for long read-write, whatever its use
        let allocated = with(|memory| {
            let address = memory.alloc(pages, false)?;
            Ok((address, memory.host(address)?))
        });
        // address 0 means "none" to the caller
        allocated.unwrap_or((0, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, _pages: usize) -> i32 {
        // freed at once: a device that goes on writing is found out
        with(|memory| memory.free(paddr)).map_or(-1, |()| 0)
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        // asked for by the PCI transport alone, which nobody uses here
        NonNull::dangling()
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let offset = buffer.cast::<u8>().addr().get() % PAGE_SIZE;
        let read_only = direction == BufferDirection::DriverToDevice;
        let bytes: &[u8] = match direction {
            BufferDirection::DeviceToDriver => &[],
            // SAFETY: the caller says that the buffer is valid and that nobody
            // else accesses it during this call.
            _ => unsafe { buffer.as_ref() },
        };
        with(|memory| memory.share(offset, buffer.len(), bytes, read_only)).unwrap_or(0)
    }

    unsafe fn unshare(paddr: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        with(|memory| {
            if direction != BufferDirection::DriverToDevice {
                // SAFETY: as in `share`, and the direction says that it may be
                // written.
                memory.read(paddr, unsafe { buffer.as_mut() })?;
            }
            memory.free(paddr)
        });
    }
}
