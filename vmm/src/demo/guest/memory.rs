//! Pages that a fake guest's driver shares with its device.
//!
//! Rings and buffers live in the guest's heap. With grants, each is granted
//! when it is shared and the grant ended when it is taken back, as Linux's
//! `drivers/xen/grant-dma-ops.c` does; a grant that the back end still holds
//! then is counted, and its page lost.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use swiotlb::range::{GRANT_BIT, PAGE_SIZE};
use thiserror::Error;
use vm_memory::VolatileSlice;
use xen::fake::{Domain, GrantError, GuestHeap, HeapError, Run};

/// How the guest names its memory to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addresses {
    /// By grant references.
    Grants,
    /// By guest-physical addresses.
    Plain,
}

/// What the guest's own memory refused.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The heap has no pages, or freed ones were written to.
    #[error(transparent)]
    Heap(#[from] HeapError),
    /// The grant table.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// Nothing is shared there.
    #[error("nothing is shared at {0:#x}")]
    Unknown(u64),
    /// The bytes do not fit.
    #[error("{len} bytes do not fit at {address:#x}")]
    Bounds {
        /// Where.
        address: u64,
        /// How many.
        len: usize,
    },
}

/// Pages handed to the device.
struct Held {
    run: Run,
    grant: Option<u32>,
}

#[derive(Default)]
struct State {
    /// By the address of their first byte, as the device sees it.
    held: BTreeMap<u64, Held>,
    /// Grants that were still in use.
    broken: u64,
    failures: Vec<MemoryError>,
}

/// A driver's memory; clones are the same.
#[derive(Clone)]
pub struct DriverMemory {
    domain: Domain,
    heap: GuestHeap,
    addresses: Addresses,
    state: Arc<Mutex<State>>,
}

impl DriverMemory {
    /// Memory out of `heap`.
    #[must_use]
    pub fn new(domain: &Domain, heap: &GuestHeap, addresses: Addresses) -> Self {
        DriverMemory {
            domain: domain.clone(),
            heap: heap.clone(),
            addresses,
            state: Arc::default(),
        }
    }

    /// How it names its memory.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The guest's heap.
    #[must_use]
    pub fn heap(&self) -> &GuestHeap {
        &self.heap
    }

    /// The guest.
    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Shares `pages` zeroed pages; gives the address of the first byte as the
    /// device has it.
    ///
    /// # Errors
    /// No pages, no references, or freed memory that was written to.
    pub fn alloc(&self, pages: usize, read_only: bool) -> Result<u64, MemoryError> {
        let run = self.heap.alloc(pages)?;
        let count = u32::try_from(pages).unwrap_or(u32::MAX);
        let (address, grant) = match self.addresses {
            Addresses::Plain => (run.address(), None),
            Addresses::Grants => match self.domain.grant_range(run.gfn(), count, read_only) {
                Ok(first) => (GRANT_BIT | (u64::from(first) * PAGE_SIZE), Some(first)),
                Err(error) => {
                    self.heap.free(run);
                    return Err(error.into());
                }
            },
        };
        self.lock().held.insert(address, Held { run, grant });
        Ok(address)
    }

    /// Takes shared pages back and frees them at once. A grant that is still
    /// in use is counted, and its pages are lost.
    ///
    /// # Errors
    /// [`MemoryError::Unknown`].
    pub fn free(&self, address: u64) -> Result<(), MemoryError> {
        let held = self.lock().held.remove(&page_of(address));
        let Held { run, grant } = held.ok_or(MemoryError::Unknown(address))?;
        let count = u32::try_from(run.pages()).unwrap_or(u32::MAX);
        match grant.map(|first| self.domain.end_access_range(first, count)) {
            None | Some(Ok(())) => self.heap.free(run),
            Some(Err(error)) => {
                let mut state = self.lock();
                state.broken += 1;
                state.failures.push(error.into());
            }
        }
        Ok(())
    }

    /// Shares a copy of a buffer, at the offset in its page that the buffer
    /// has. `bytes` is what the device may read; `len` the buffer's length.
    ///
    /// # Errors
    /// As [`DriverMemory::alloc`].
    pub fn share(
        &self,
        offset: usize,
        len: usize,
        bytes: &[u8],
        read_only: bool,
    ) -> Result<u64, MemoryError> {
        let page = usize::try_from(PAGE_SIZE).unwrap_or(usize::MAX);
        let offset = offset % page;
        let first = self.alloc((offset + len).div_ceil(page), read_only)?;
        let address = first + offset as u64;
        self.write(address, bytes)?;
        Ok(address)
    }

    /// Writes into shared pages.
    ///
    /// # Errors
    /// [`MemoryError::Unknown`], [`MemoryError::Bounds`].
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.at(address, bytes.len(), |slice| slice.copy_from(bytes))
    }

    /// Reads from shared pages.
    ///
    /// # Errors
    /// As [`DriverMemory::write`].
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        self.at(address, bytes.len(), |slice| {
            slice.copy_to(bytes);
        })
    }

    /// Where shared pages are in this process: they stay mapped while the heap
    /// lives, whatever becomes of the sharing.
    ///
    /// # Errors
    /// [`MemoryError::Unknown`].
    pub fn host(&self, address: u64) -> Result<NonNull<u8>, MemoryError> {
        let state = self.lock();
        let held = state.held.get(&page_of(address));
        Ok(held.ok_or(MemoryError::Unknown(address))?.run.host())
    }

    /// Grants that were still in use when they were taken back.
    #[must_use]
    pub fn broken(&self) -> u64 {
        self.lock().broken
    }

    /// Notes a failure where virtio-drivers has no way to tell of it.
    pub(super) fn failed(&self, error: MemoryError) {
        tracing::error!(%error, "the guest's memory");
        self.lock().failures.push(error);
    }

    /// What went wrong so far, in words; empty if nothing did.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        self.lock()
            .failures
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// Runs `f` on the bytes at `address`, which may lie anywhere in what was
    /// shared as one.
    fn at<R>(
        &self,
        address: u64,
        len: usize,
        f: impl FnOnce(VolatileSlice<'_>) -> R,
    ) -> Result<R, MemoryError> {
        let state = self.lock();
        let bounds = || MemoryError::Bounds { address, len };
        let (first, held) = state
            .held
            .range(..=address)
            .next_back()
            .ok_or(MemoryError::Unknown(address))?;
        let offset = usize::try_from(address - first).map_err(|_| bounds())?;
        let memory = held.run.volatile();
        let slice = memory.subslice(offset, len).map_err(|_| bounds())?;
        Ok(f(slice))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for DriverMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DriverMemory")
            .field("domain", &self.domain.id())
            .field("addresses", &self.addresses)
            .field("heap", &self.heap)
            .finish_non_exhaustive()
    }
}

fn page_of(address: u64) -> u64 {
    address - address % PAGE_SIZE
}
