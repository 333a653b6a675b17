//! A queue's requests and where they are: waiting, or with the back end.

use std::sync::Arc;

use smallvec::SmallVec;
use swiotlb::sizing::SEGMENT_SIZE;
use swiotlb::{Access, Device, InFlight, JobRanges, Lease, Mapped};

use super::shadow::{Part, ShadowRing};
use super::shared::Lane;
use crate::virtio::Head;
use crate::virtio::queue::DescriptorRanges;

/// A chain of the guest's. What it takes to have it done again is kept.
pub(super) struct Request {
    pub head: Head,
    pub readable: DescriptorRanges,
    pub writable: DescriptorRanges,
    /// Its place in the order of the guest's ring.
    pub number: u64,
    /// Pieces that the device reads, of those that it was bounced in.
    pub read: usize,
    /// Bytes that the guest is told.
    pub declared: u32,
}

impl From<Request> for Head {
    fn from(request: Request) -> Head {
        request.head
    }
}

impl Request {
    /// Its ranges, none longer than can be bounced in one piece.
    pub(super) fn ranges(&self) -> JobRanges {
        let most = u32::try_from(SEGMENT_SIZE).unwrap_or(u32::MAX);
        let sides = [
            (&self.readable, Access::Read),
            (&self.writable, Access::Write),
        ];
        let mut ranges = JobRanges::new();
        for (side, access) in sides {
            for range in side {
                let mut skip = 0;
                while let Some(part) = range.part(skip, most) {
                    ranges.push((part, access));
                    skip += part.len();
                }
            }
        }
        ranges
    }

    /// Bytes that the device may write.
    pub(super) fn room(&self) -> u64 {
        let lens = self.writable.iter().map(|range| u64::from(range.len()));
        lens.sum()
    }
}

/// The buffers of a request; most have few.
pub(super) type Parts = SmallVec<[Part; 8]>;

/// A request that the back end has.
pub(super) struct Flight {
    pub data: InFlight<Request>,
    pub room: u64,
    /// Held for its Drop.
    pub table: Table,
}

/// Memory of an indirect table that is not small.
pub(super) type Table = Option<Lease<Arc<Device>>>;

/// The back end's side of the queue.
pub(super) struct Line {
    pub lane: Lane,
    pub ring: ShadowRing,
    /// By shadow head.
    pub flights: Vec<Option<Flight>>,
    /// From this process's addresses to the back end's.
    host: u64,
    base: u64,
}

impl Line {
    pub(super) fn new(lane: Lane) -> Self {
        let memory = &lane.memory;
        let ring = ShadowRing::new(memory.rings.clone(), memory.layout, lane.features);
        let host = memory.slots.segment();
        Line {
            ring,
            flights: std::iter::repeat_with(|| None)
                .take(usize::from(memory.layout.size))
                .collect(),
            host: host.map_or(0, |segment| segment.address() as u64),
            base: memory.slots.base(),
            lane,
        }
    }

    /// The buffers of a mapped request, as the back end is to see them.
    pub(super) fn parts(&self, mapped: &Mapped<Request>) -> Parts {
        let read = mapped.token().read;
        let parts = mapped.segments().iter().enumerate();
        parts
            .map(|(index, segment)| Part {
                address: (segment.address() as u64)
                    .wrapping_sub(self.host)
                    .wrapping_add(self.base),
                len: u32::try_from(segment.len()).unwrap_or(u32::MAX),
                writable: index >= read,
            })
            .collect()
    }
}
