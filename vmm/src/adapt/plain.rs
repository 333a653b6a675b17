//! Plain addresses: the guest's frames, mapped as foreign memory, one way for
//! each kind of guest.

use std::io;
use std::sync::Arc;

use swiotlb::{Access, Fault, Keep, Range, RingMapping, Segment, Segments, Translation};
use xen::memory::{Error, ForeignRam};

use super::RingPart;

/// One queue's view of a guest's memory, looked up by chunk; all queues of the
/// guest share what is mapped.
#[derive(Debug)]
pub struct ForeignMemory(Arc<ForeignRam>);

impl ForeignMemory {
    /// A view of `ram`.
    #[must_use]
    pub fn new(ram: Arc<ForeignRam>) -> Self {
        ForeignMemory(ram)
    }
}

impl Translation for ForeignMemory {
    fn translate(
        &mut self,
        range: Range,
        _access: Access,
        out: &mut Segments,
    ) -> Result<Keep, Fault> {
        // asked for anew each time: an idle queue must not keep memory mapped
        // that has left the guest
        let memory = self.0.current();
        for slice in memory.slices(range.address(), length(range)) {
            out.push(Segment::of(&slice.map_err(|error| fault(range, error))?));
        }
        Ok(memory)
    }

    fn map_ring(&mut self, range: Range, access: Access) -> Result<RingMapping, Fault> {
        map_ring(&self.0, range, access)
    }

    /// The kernel maps them as `VM_PFNMAP`.
    fn pinnable(&self) -> bool {
        false
    }
}

/// One queue's view of the memory of a guest that is mapped 1:1: no address is
/// looked up, every range is one segment.
#[derive(Debug)]
pub struct OneToOneMemory(Arc<ForeignRam>);

impl OneToOneMemory {
    /// A view of `ram`.
    #[must_use]
    pub fn new(ram: Arc<ForeignRam>) -> Self {
        OneToOneMemory(ram)
    }
}

impl Translation for OneToOneMemory {
    fn translate(
        &mut self,
        range: Range,
        _access: Access,
        out: &mut Segments,
    ) -> Result<Keep, Fault> {
        let (address, len) = (range.address(), length(range));
        let failed = |error| fault(range, error);
        let window = self.0.reach(address, len).map_err(failed)?;
        out.push(Segment::of(&window.slice(address, len).map_err(failed)?));
        Ok(window)
    }

    fn map_ring(&mut self, range: Range, access: Access) -> Result<RingMapping, Fault> {
        map_ring(&self.0, range, access)
    }

    /// As with chunks.
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
