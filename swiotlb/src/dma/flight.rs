//! A request's states on the data path, as types.

use std::sync::Arc;

use smallvec::SmallVec;

use super::loans::Loan;
use crate::fault::Fault;
use crate::range::{Access, Range};
use crate::segment::{self, Segment, Segments};
use crate::source::Keep;

/// A request whose memory is to be reached. `T` is the caller's: it comes back
/// in [`Done`] or [`Rejected`].
#[derive(Debug)]
pub struct Job<T> {
    /// What the caller knows the request by.
    pub token: T,
    /// Its ranges, in order.
    pub ranges: SmallVec<[(Range, Access); 4]>,
}

/// What keeps a mapping's memory alive.
pub(super) enum Hold {
    /// Plain memory: dropped with the mapping.
    Keep(#[expect(dead_code, reason = "held for its Drop")] Keep),
    /// Lent by the guest: given back by `finish`.
    Loan(Arc<Loan>),
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

    /// Copies `bytes` into the memory, as much as fits; returns how much. For
    /// requests whose ranges were mapped with [`Access::Write`].
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        segment::copy_in(&self.segments, bytes)
    }

    /// Copies the memory into `bytes`, as much as fits; returns how much.
    pub fn read(&self, bytes: &mut [u8]) -> usize {
        segment::copy_out(&self.segments, bytes)
    }

    /// The loan that it shares with its batch, if it has one.
    pub(super) fn loan(&self) -> Option<&Arc<Loan>> {
        self.holds.iter().find_map(|hold| match hold {
            Hold::Loan(loan) => Some(loan),
            Hold::Keep(_) => None,
        })
    }

    /// Takes the request apart; its memory may be unmapped from here on.
    pub(super) fn dissolve(self) -> (Done<T>, Option<Arc<Loan>>) {
        let loan = self.holds.into_iter().find_map(|hold| match hold {
            Hold::Loan(loan) => Some(loan),
            Hold::Keep(_) => None,
        });
        (Done { token: self.token }, loan)
    }
}

/// A request with nothing lent for it any more: it may be shown to the guest.
#[must_use = "a finished request is pushed or its guest waits for ever"]
#[derive(Debug)]
pub struct Done<T> {
    token: T,
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

    /// Turns the token into another, keeping the proof.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Done<U> {
        Done {
            token: f(self.token),
        }
    }
}

/// A request whose memory could not be reached; nothing is held for it.
#[must_use = "a rejected request is answered or its guest waits for ever"]
#[derive(Debug)]
pub struct Rejected<T> {
    token: T,
    fault: Fault,
}

impl<T> Rejected<T> {
    pub(super) fn new(token: T, fault: Fault) -> Self {
        Rejected { token, fault }
    }

    /// The caller's token.
    pub fn token(&self) -> &T {
        &self.token
    }

    /// Why.
    pub fn fault(&self) -> &Fault {
        &self.fault
    }

    pub(super) fn into_done(self) -> (Done<T>, Fault) {
        (Done { token: self.token }, self.fault)
    }
}
