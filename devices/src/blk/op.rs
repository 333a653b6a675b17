//! A request on its way: the token that goes through `Dma` and engine, and
//! what becomes of it.

use smallvec::SmallVec;
use swiotlb::{Access, Range};

use super::request::{BadRequest, Frame, Request, Status, total};
use crate::virtio::Head;
use crate::virtio::queue::DescriptorRanges;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// What the driver is told.
    pub status: Status,
    /// Bytes written to the guest, from the start of the request's data.
    pub written: u64,
}

impl Outcome {
    /// Nothing was written, and `status`.
    pub(super) fn of(status: Status) -> Self {
        Outcome { status, written: 0 }
    }
}

/// A request on its way.
#[derive(Debug)]
pub(super) struct Op {
    head: Head,
    status_at: Range,
    data_in_len: u64,
    request: Result<Request, BadRequest>,
    outcome: Outcome,
}

impl Op {
    /// The token of a request that was taken apart, and the memory that an
    /// engine needs for it.
    pub(super) fn new(
        frame: Frame,
        request: Result<Request, BadRequest>,
    ) -> (Self, SmallVec<[(Range, Access); 4]>) {
        let data_in_len = total(&frame.data_in);
        let ranges = match &request {
            Ok(Request::Read { .. }) => with_access(frame.data_in, Access::Write),
            Ok(Request::Write { .. }) => with_access(frame.data_out, Access::Read),
            _ => SmallVec::new(),
        };
        let outcome = Outcome {
            status: request
                .as_ref()
                .map_or_else(BadRequest::status, |_| Status::Ok),
            // the ID was written where the request was parsed
            written: match request {
                Ok(Request::GetId) => data_in_len,
                _ => 0,
            },
        };
        let op = Op {
            head: frame.head,
            status_at: frame.status,
            data_in_len,
            request,
            outcome,
        };
        (op, ranges)
    }

    /// The request, or why it was refused.
    pub(super) fn request(&self) -> Result<&Request, &BadRequest> {
        self.request.as_ref()
    }

    /// The request, if an engine has something to do for it.
    pub(super) fn for_engine(&self) -> Option<&Request> {
        match self.request() {
            Ok(Request::GetId) | Err(_) => None,
            Ok(request) => Some(request),
        }
    }

    /// Refuses it after all.
    pub(super) fn refuse(&mut self, why: BadRequest) {
        self.outcome = Outcome::of(why.status());
        self.request = Err(why);
    }

    /// Notes what became of it.
    pub(super) fn complete(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }

    /// What became of it.
    pub(super) fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Where its status byte goes.
    pub(super) fn status_at(&self) -> Range {
        self.status_at
    }

    /// Index of its first descriptor.
    pub(super) fn head(&self) -> u16 {
        self.head.index()
    }

    /// How many bytes the used ring may claim: those written without a gap
    /// from the start of the device-writable part. virtio 1.3 §2.7.8.2
    pub(super) fn used_len(&self) -> u32 {
        let written = self.outcome.written;
        let whole = written == self.data_in_len; // then the status follows
        let len = written.saturating_add(u64::from(whole));
        u32::try_from(len).unwrap_or(u32::MAX)
    }
}

impl From<Op> for Head {
    fn from(op: Op) -> Head {
        op.head
    }
}

fn with_access(ranges: DescriptorRanges, access: Access) -> SmallVec<[(Range, Access); 4]> {
    ranges.into_iter().map(|range| (range, access)).collect()
}
