//! A request on its way: the token that goes through `Dma` and engine, and
//! what becomes of it.

use std::time::Instant;

use smallvec::SmallVec;
use swiotlb::{Access, Job, JobRanges, Range};

use super::limit::Cost;
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

/// A request on its way. One that is larger than what can be bounced at once
/// goes the way several times, a part of its data each time.
///
/// Boxed: it changes hands a dozen times on its way, which costs more than to
/// find a place for it.
#[derive(Debug)]
pub(super) struct Op(Box<State>);

#[derive(Debug)]
struct State {
    head: Head,
    /// When it was taken from the ring.
    taken: Instant,
    status_at: Range,
    data_in_len: u64,
    /// It has been charged to the disk's limits.
    paid: bool,
    /// What is asked of the engine now.
    request: Result<Request, BadRequest>,
    outcome: Outcome,
    /// The parts before this one and behind it; only of a request in parts.
    parts: Option<Box<Parts>>,
}

#[derive(Debug)]
struct Parts {
    /// The request.
    whole: Request,
    /// Bytes of its data that are done.
    done: u64,
    /// The memory of the data behind this part.
    rest: JobRanges,
}

impl Op {
    /// The job of a request that was taken from the ring at `taken`, and taken
    /// apart: its token, and the memory that an engine needs for it, at most
    /// `most` bytes at once.
    pub(super) fn job(
        frame: Frame,
        request: Result<Request, BadRequest>,
        taken: Instant,
        most: u64,
    ) -> Job<Self> {
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
        let op = Op(Box::new(State {
            head: frame.head,
            taken,
            status_at: frame.status,
            data_in_len,
            paid: false,
            request,
            outcome,
            parts: None,
        }));
        op.cut(ranges, most)
    }

    /// A job of the first `most` bytes of `ranges`; the rest is to come.
    fn cut(mut self, mut ranges: JobRanges, most: u64) -> Job<Self> {
        let rest = split_off(&mut ranges, most);
        if rest.is_empty() && self.0.parts.is_none() {
            return Job {
                token: self,
                ranges,
            };
        }
        let len = ranges.iter().map(|(range, _)| u64::from(range.len())).sum();
        let whole = match (&self.0.parts, &self.0.request) {
            (Some(parts), _) => parts.whole.clone(),
            (None, Ok(request)) => request.clone(),
            // it has no memory
            (None, Err(_)) => Request::Flush,
        };
        let done = self.0.parts.as_ref().map_or(0, |parts| parts.done);
        self.0.request = Ok(match whole {
            Request::Read { offset, .. } => Request::Read {
                offset: offset + done,
                len,
            },
            Request::Write { offset, .. } => Request::Write {
                offset: offset + done,
                len,
            },
            ref other => other.clone(),
        });
        self.0.parts = Some(Box::new(Parts { whole, done, rest }));
        Job {
            token: self,
            ranges,
        }
    }

    /// Goes on to the next part of a request in parts, or to the request's end.
    ///
    /// # Errors
    /// The whole request, which is finished.
    pub(super) fn next(mut self, most: u64) -> Result<Job<Self>, Self> {
        let Some(parts) = &mut self.0.parts else {
            return Err(self);
        };
        let outcome = self.0.outcome;
        let moved = match &self.0.request {
            Ok(Request::Read { len, .. } | Request::Write { len, .. }) => *len,
            _ => 0,
        };
        if outcome.status == Status::Ok && !parts.rest.is_empty() {
            parts.done += moved;
            self.0.paid = false;
            let rest = std::mem::take(&mut parts.rest);
            return Ok(self.cut(rest, most));
        }
        if let Request::Read { .. } = parts.whole {
            self.0.outcome.written = parts.done.saturating_add(outcome.written);
        }
        if self.0.request.is_ok() {
            self.0.request = Ok(parts.whole.clone());
        }
        self.0.parts = None;
        Err(self)
    }

    /// The request, or why it was refused.
    pub(super) fn request(&self) -> Result<&Request, &BadRequest> {
        self.0.request.as_ref()
    }

    /// The request, if an engine has something to do for it.
    pub(super) fn for_engine(&self) -> Option<&Request> {
        match self.request() {
            Ok(Request::GetId) | Err(_) => None,
            Ok(request) => Some(request),
        }
    }

    /// Bytes of the disk that are concerned by what is asked of the engine now.
    pub(super) fn bytes(&self) -> u64 {
        match self.request() {
            Ok(Request::Read { len, .. } | Request::Write { len, .. }) => *len,
            Ok(Request::Discard(list) | Request::WriteZeroes(list)) => list
                .iter()
                .fold(0, |sum, extent| sum.saturating_add(extent.len)),
            Ok(Request::Flush | Request::GetId) | Err(_) => 0,
        }
    }

    /// What it is still to be charged for what is asked of the engine now.
    pub(super) fn unpaid(&self) -> Option<Cost> {
        let first = self.0.parts.as_ref().is_none_or(|parts| parts.done == 0);
        let request = self.for_engine().filter(|_| !self.0.paid)?;
        Some(Cost::of(request, first))
    }

    /// It has been charged.
    pub(super) fn pay(&mut self) {
        self.0.paid = true;
    }

    /// Refuses it after all.
    pub(super) fn refuse(&mut self, why: BadRequest) {
        self.0.outcome = Outcome::of(why.status());
        self.0.request = Err(why);
    }

    /// Notes what became of it.
    pub(super) fn complete(&mut self, outcome: Outcome) {
        self.0.outcome = outcome;
    }

    /// What became of it.
    pub(super) fn outcome(&self) -> Outcome {
        self.0.outcome
    }

    /// Where its status byte goes.
    pub(super) fn status_at(&self) -> Range {
        self.0.status_at
    }

    /// When it was taken from the ring.
    pub(super) fn taken(&self) -> Instant {
        self.0.taken
    }

    /// Index of its first descriptor.
    pub(super) fn head(&self) -> u16 {
        self.0.head.index()
    }

    /// How many bytes the used ring may claim: those written without a gap
    /// from the start of the device-writable part. virtio 1.3 §2.7.8.2
    pub(super) fn used_len(&self) -> u32 {
        let written = self.0.outcome.written;
        let whole = written == self.0.data_in_len; // then the status follows
        let len = written.saturating_add(u64::from(whole));
        u32::try_from(len).unwrap_or(u32::MAX)
    }
}

impl From<Op> for Head {
    fn from(op: Op) -> Head {
        op.0.head
    }
}

/// Cuts `ranges` after `most` bytes; returns what is behind.
fn split_off(ranges: &mut JobRanges, most: u64) -> JobRanges {
    let whole: u64 = ranges.iter().map(|(range, _)| u64::from(range.len())).sum();
    if whole <= most {
        return JobRanges::new();
    }
    let mut left = most;
    let mut rest = JobRanges::new();
    let mut first = JobRanges::new();
    for (range, access) in std::mem::take(ranges) {
        let now = u32::try_from(left).unwrap_or(u32::MAX).min(range.len());
        first.extend(range.part(0, now).map(|part| (part, access)));
        rest.extend(range.part(now, u32::MAX).map(|part| (part, access)));
        left -= u64::from(now);
    }
    *ranges = first;
    rest
}

fn with_access(ranges: DescriptorRanges, access: Access) -> JobRanges {
    ranges.into_iter().map(|range| (range, access)).collect()
}
