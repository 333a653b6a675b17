//! Plain addresses: the guest's frames, mapped as foreign memory.

use std::io;
use std::sync::Arc;

use swiotlb::{Access, Fault, Keep, Range, RingMapping, Segment, Segments, Translation};
use xen::memory::{Error, ForeignRam};

use super::RingPart;

/// One queue's view of a guest's memory; all queues of the guest share what is
/// mapped.
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
        let write = access == Access::Write;
        let mapped = self
            .0
            .map_range(range.address(), length(range), write)
            .map_err(|error| fault(range, error))?;
        Ok(RingMapping::new(Box::new(RingPart(mapped))))
    }

    /// The kernel maps them as `VM_PFNMAP`.
    fn pinnable(&self) -> bool {
        false
    }
}

pub(super) fn length(range: Range) -> usize {
    usize::try_from(range.len()).unwrap_or(usize::MAX)
}

fn fault(range: Range, error: Error) -> Fault {
    let address = range.address();
    match error {
        Error::NotThere { gfn, .. } | Error::TooHigh { gfn, .. } => Fault::NoTranslation {
            address,
            frame: gfn,
        },
        Error::NoRange { .. } => Fault::AddressOverflow {
            address,
            len: range.len(),
        },
        error @ Error::Map { .. } => Fault::Host {
            address,
            source: io::Error::other(error),
        },
    }
}
