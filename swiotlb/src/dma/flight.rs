//! A request's states on the data path, as types.

use std::sync::Arc;

use smallvec::SmallVec;

use super::bounce::Run;
use super::loans::Loan;
use crate::fault::Fault;
use crate::range::{Access, Range};
use crate::segment::{self, Segment, Segments};
use crate::source::Keep;

/// The ranges of a request, in order, and who may write each.
pub type JobRanges = SmallVec<[(Range, Access); 2]>;

/// A request whose memory is to be reached. `T` is the caller's: it comes back
/// in [`Done`] or [`Rejected`].
#[derive(Debug)]
pub struct Job<T> {
    /// What the caller knows the request by.
    pub token: T,
    /// Its ranges, in order.
    pub ranges: JobRanges,
}

/// What keeps a mapping's memory alive.
pub(super) enum Hold {
    /// Plain memory: dropped with the mapping.
    Keep(#[expect(dead_code, reason = "held for its Drop")] Keep),
    /// Lent by the guest: given back by `finish`.
    Loan(Arc<Loan>),
    /// Bounce buffers: copied back and freed by `finish`.
    Bounced(Box<Run>),
}

/// A request whose memory is reachable and that no engine has seen yet.
///
/// Dropping it unsubmitted gives everything back, but loses the token and with
/// it the guest's request.
#[must_use = "a mapped request is submitted or its guest waits for ever"]
pub struct Mapped<T> {
    flight: InFlight<T>,
}

impl<T> Mapped<T> {
    pub(super) fn new(token: T, segments: Segments, holds: SmallVec<[Hold; 1]>) -> Self {
        Mapped {
            flight: InFlight {
                token,
                segments,
                holds,
                written: 0,
            },
        }
    }

    /// The caller's token.
    pub fn token(&self) -> &T {
        &self.flight.token
    }

    /// Its memory, in the order of its ranges.
    pub fn segments(&self) -> &[Segment] {
        &self.flight.segments
    }

    /// Hands it to an engine. From here on nobody but the engine's completion
    /// gives it back.
    pub fn submit(self) -> InFlight<T> {
        self.flight
    }
}

/// A request that an engine owns.
#[must_use = "a request in flight is finished or its guest waits for ever"]
pub struct InFlight<T> {
    token: T,
    segments: Segments,
    pub(super) holds: SmallVec<[Hold; 1]>,
    written: u64,
}

impl<T> InFlight<T> {
    /// The caller's token.
    pub fn token(&self) -> &T {
        &self.token
    }

    /// The caller's token, to note the outcome in.
    pub fn token_mut(&mut self) -> &mut T {
        &mut self.token
    }

    /// Its memory, in the order of its ranges. The guest can write it at any
    /// time; it stays mapped as long as `self` lives.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// States how many bytes the engine has written: of the ranges that were
    /// mapped with [`Access::Write`], from the first byte of the first one on.
    /// What is not stated does not reach a guest whose memory was bounced.
    pub fn set_written(&mut self, bytes: u64) {
        self.written = bytes;
    }

    /// Bytes stated as written.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Copies `bytes` into the memory, as much as fits; returns how much, and
    /// states it. For requests whose ranges were all mapped with
    /// [`Access::Write`].
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let count = segment::copy_in(&self.segments, bytes);
        self.written = self.written.max(count as u64);
        count
    }

    /// Copies the memory into `bytes`, as much as fits; returns how much.
    pub fn read(&self, bytes: &mut [u8]) -> usize {
        segment::copy_out(&self.segments, bytes)
    }

    /// The loan that it shares with its batch, if it has one.
    pub(super) fn loan(&self) -> Option<&Arc<Loan>> {
        self.holds.iter().find_map(|hold| match hold {
            Hold::Loan(loan) => Some(loan),
            Hold::Keep(_) | Hold::Bounced(_) => None,
        })
    }

    /// What of it lies in bounce buffers.
    pub(super) fn runs(&self) -> impl Iterator<Item = &Run> {
        self.holds.iter().filter_map(|hold| match hold {
            Hold::Bounced(run) => Some(&**run),
            Hold::Keep(_) | Hold::Loan(_) => None,
        })
    }

    /// Takes the request apart; its memory may be unmapped from here on.
    pub(super) fn dissolve(self, fault: Option<Fault>) -> (Done<T>, Option<Arc<Loan>>) {
        let loan = self.holds.into_iter().find_map(|hold| match hold {
            Hold::Loan(loan) => Some(loan),
            Hold::Keep(_) | Hold::Bounced(_) => None,
        });
        let done = Done {
            token: self.token,
            fault,
        };
        (done, loan)
    }
}

/// A request with nothing lent for it any more: it may be shown to the guest.
#[must_use = "a finished request is pushed or its guest waits for ever"]
#[derive(Debug)]
pub struct Done<T> {
    token: T,
    fault: Option<Fault>,
}

impl<T> Done<T> {
    /// The caller's token.
    pub fn token(&self) -> &T {
        &self.token
    }

    /// Takes the token out.
    pub fn into_token(self) -> T {
        self.token
    }

    /// Why what its engine wrote has not reached the guest, if it has not: the
    /// guest took its memory back meanwhile, or the host failed.
    pub fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    /// Turns the token into another, keeping the proof.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Done<U> {
        Done {
            token: f(self.token),
            fault: self.fault,
        }
    }
}

impl<T, E> Done<Result<T, E>> {
    /// What is not finished after all, without the proof, or what is.
    ///
    /// # Errors
    /// The finished request.
    pub fn unfinished(self) -> Result<T, Done<E>> {
        let fault = self.fault;
        match self.token {
            Ok(token) => Ok(token),
            Err(token) => Err(Done { token, fault }),
        }
    }
}

/// A request whose memory could not be reached; nothing is held for it.
#[must_use = "a rejected request is answered or its guest waits for ever"]
#[derive(Debug)]
pub struct Rejected<T> {
    token: T,
    fault: Fault,
    /// Of a request that is to be tried again. Boxed: such are few.
    ranges: Option<Box<JobRanges>>,
}

impl<T> Rejected<T> {
    pub(super) fn new(token: T, fault: Fault) -> Self {
        Rejected {
            token,
            fault,
            ranges: None,
        }
    }

    /// A request for which there is no room in the pool now.
    pub(super) fn waiting(job: Job<T>, fault: Fault) -> Self {
        Rejected {
            token: job.token,
            fault,
            ranges: Some(Box::new(job.ranges)),
        }
    }

    /// The caller's token.
    pub fn token(&self) -> &T {
        &self.token
    }

    /// Why.
    pub fn fault(&self) -> &Fault {
        &self.fault
    }

    /// The request, if it is only to be tried again when others of this path
    /// have been finished ([`Fault::PoolFull`]); itself otherwise.
    ///
    /// # Errors
    /// A request that is to be answered.
    pub fn retry(self) -> Result<Job<T>, Self> {
        match self.ranges {
            Some(ranges) => Ok(Job {
                token: self.token,
                ranges: *ranges,
            }),
            None => Err(self),
        }
    }

    pub(super) fn into_done(self) -> (Done<T>, Fault) {
        let done = Done {
            token: self.token,
            fault: None,
        };
        (done, self.fault)
    }
}
