//! Plain addresses: the guest's frames, mapped as foreign memory, one way for
//! each kind of guest.

use std::io;
use std::sync::Arc;

use swiotlb::{
    Access, Fault, Keep, Range, RingMapping, Segment, Segments, TransferBytes, Translation,
};
use vm_memory::VolatileSlice;
use xen::memory::{Error, ForeignRam, Generation, Window};

use super::RingPart;

/// One queue's view of a guest's memory, looked up by chunk; all queues of the
/// guest share what is mapped.
pub type ForeignMemory = PlainMemory<Generation>;

/// One queue's view of the memory of a guest that is mapped 1:1: no address is
/// looked up, every range is one segment.
pub type OneToOneMemory = PlainMemory<Window>;

/// What is mapped of a guest's memory, and replaced as memory leaves the guest.
pub trait View: Send + Sync + Sized + 'static {
    /// The one to be used now.
    fn current(ram: &ForeignRam) -> Arc<Self>;

    /// Gives the pieces of a range to `to`, in order, each with how many bytes
    /// came before it. Takes a newer view if this one does not have it all.
    ///
    /// # Errors
    /// What the guest lacks of it; `to` may have had some of it.
    fn each(
        view: &mut Arc<Self>,
        ram: &ForeignRam,
        range: Range,
        to: impl FnMut(VolatileSlice<'_>, usize),
    ) -> Result<(), Error>;
}

impl View for Generation {
    fn current(ram: &ForeignRam) -> Arc<Self> {
        ram.current()
    }

    fn each(
        view: &mut Arc<Self>,
        _ram: &ForeignRam,
        range: Range,
        mut to: impl FnMut(VolatileSlice<'_>, usize),
    ) -> Result<(), Error> {
        let mut before = 0;
        for slice in view.slices(range.address(), length(range)) {
            let slice = slice?;
            let len = slice.len();
            to(slice, before);
            before += len;
        }
        Ok(())
    }
}

impl View for Window {
    fn current(ram: &ForeignRam) -> Arc<Self> {
        ram.window()
    }

    fn each(
        view: &mut Arc<Self>,
        ram: &ForeignRam,
        range: Range,
        mut to: impl FnMut(VolatileSlice<'_>, usize),
    ) -> Result<(), Error> {
        let (address, len) = (range.address(), length(range));
        if let Ok(slice) = view.slice(address, len) {
            to(slice, 0);
            return Ok(());
        }
        // memory may have come since
        *view = ram.reach(address, len)?;
        to(view.slice(address, len)?, 0);
        Ok(())
    }
}

/// See [`ForeignMemory`] and [`OneToOneMemory`].
#[derive(Debug)]
pub struct PlainMemory<V> {
    ram: Arc<ForeignRam>,
    in_batch: bool,
    /// What the batch uses. An idle queue must not keep memory mapped that has
    /// left the guest.
    held: Option<Arc<V>>,
}

impl<V: View> PlainMemory<V> {
    /// A view of `ram`.
    #[must_use]
    pub fn new(ram: Arc<ForeignRam>) -> Self {
        PlainMemory {
            ram,
            in_batch: false,
            held: None,
        }
    }

    fn take(&mut self) -> Arc<V> {
        let held = self.held.take();
        held.unwrap_or_else(|| V::current(&self.ram))
    }

    /// Gives the pieces of a range to `to`.
    fn each(
        &mut self,
        range: Range,
        to: impl FnMut(VolatileSlice<'_>, usize),
    ) -> Result<(), Fault> {
        let mut view = self.take();
        let found = V::each(&mut view, &self.ram, range, to);
        if self.in_batch {
            self.held = Some(view);
        }
        found.map_err(|error| fault(range, error))
    }
}

impl<V: View> Translation for PlainMemory<V> {
    fn translate(
        &mut self,
        range: Range,
        _access: Access,
        out: &mut Segments,
    ) -> Result<Keep, Fault> {
        let mut view = self.take();
        let found = V::each(&mut view, &self.ram, range, |slice, _| {
            out.push(Segment::of(&slice));
        });
        if self.in_batch {
            self.held = Some(Arc::clone(&view));
        }
        found.map_err(|error| fault(range, error))?;
        Ok(view)
    }

    fn hold(&mut self) {
        self.in_batch = true;
    }

    fn release(&mut self) {
        self.in_batch = false;
        self.held = None;
    }

    fn copy(&mut self, range: Range, bytes: TransferBytes<'_>) -> Result<(), Fault> {
        match bytes {
            TransferBytes::FromGuest(bytes) => self.each(range, |slice, before| {
                if let Some(bytes) = bytes.get_mut(before..) {
                    slice.copy_to(bytes);
                }
            }),
            TransferBytes::ToGuest(bytes) => self.each(range, |slice, before| {
                if let Some(bytes) = bytes.get(before..) {
                    slice.copy_from(bytes);
                }
            }),
        }
    }

    fn exchange(
        &mut self,
        range: Range,
        access: Access,
        place: &VolatileSlice<'_>,
    ) -> Result<(), Fault> {
        self.each(range, |slice, before| {
            let Ok(place) = place.offset(before) else {
                return;
            };
            match access {
                Access::Read => slice.copy_to_volatile_slice(place),
                Access::Write => place.copy_to_volatile_slice(slice),
            }
        })
    }

    fn map_ring(&mut self, range: Range, access: Access) -> Result<RingMapping, Fault> {
        map_ring(&self.ram, range, access)
    }

    /// The kernel maps them as `VM_PFNMAP`.
    fn pinnable(&self) -> bool {
        false
    }
}

/// Rings outlive generations and windows, and have mappings of their own.
fn map_ring(ram: &ForeignRam, range: Range, access: Access) -> Result<RingMapping, Fault> {
    let write = access == Access::Write;
    let mapped = ram
        .map_range(range.address(), length(range), write)
        .map_err(|error| fault(range, error))?;
    Ok(RingMapping::new(Box::new(RingPart(mapped))))
}

pub(super) fn length(range: Range) -> usize {
    usize::try_from(range.len()).unwrap_or(usize::MAX)
}

fn fault(range: Range, error: Error) -> Fault {
    let address = range.address();
    match error {
        Error::NotThere { gfn, .. } | Error::TooHigh { gfn, .. } | Error::TooMany { gfn, .. } => {
            Fault::NoTranslation {
                address,
                frame: gfn,
            }
        }
        Error::NoRange { .. } => Fault::AddressOverflow {
            address,
            len: range.len(),
        },
        // the last one is not said of a range
        error @ (Error::Map { .. } | Error::Reserve { .. } | Error::Strewn { .. }) => Fault::Host {
            address,
            source: io::Error::other(error),
        },
    }
}
