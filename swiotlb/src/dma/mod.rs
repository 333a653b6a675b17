//! The one way of guest DMA: map, hand to an engine, finish.
//!
//! A [`Dma`] belongs to the worker thread of one queue. Whatever it maps by
//! grants it maps per batch, read-only and read-write apart (the protection of
//! a grant mapping is that of its mmap), and gives back per batch.

mod flight;
mod loans;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use smallvec::SmallVec;

pub use flight::{Done, InFlight, Job, Mapped, Rejected};

use crate::counters::Counters;
use crate::fault::{BounceReason, Fault};
use crate::features::Kind;
use crate::range::{Access, GRANT_BIT, Need, Range};
use crate::segment::{self, Segment, Segments};
use crate::source::{GrantCopy, Grants, RingMapping, Transfer, TransferBytes, Translation};
use flight::Hold;
use loans::{GrantSlot, Lender};

/// The data path of one queue.
pub struct Dma {
    kind: Kind,
    plain: Option<Box<dyn Translation>>,
    grants: Option<Box<dyn Grants>>,
    counters: Arc<Counters>,
}

/// Where one range of a job will find its segment.
enum Place {
    Plain(Segments),
    Granted(GrantSlot),
}

impl Dma {
    /// A data path over plain addresses, grants or both. What is `None` is
    /// refused to the guest.
    pub fn new(
        kind: Kind,
        plain: Option<Box<dyn Translation>>,
        grants: Option<Box<dyn Grants>>,
        counters: Arc<Counters>,
    ) -> Self {
        Dma {
            kind,
            plain,
            grants,
            counters,
        }
    }

    /// The guest's kind of mapping.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What happened so far.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Maps a part of a ring until the result is dropped.
    ///
    /// # Errors
    /// The guest's or the host's fault.
    pub fn map_ring(&mut self, range: Range, access: Access) -> Result<RingMapping, Fault> {
        match range.grant()? {
            Some(grant) => self
                .grants
                .as_mut()
                .ok_or(Fault::GrantRefused {
                    address: range.address(),
                })?
                .map_ring(grant, range.len(), access),
            None => plain(&mut self.plain, range)?.map_ring(range, access),
        }
    }

    /// Carries out a batch of small copies; each has its own result. All
    /// copies from and to grants of the batch are one system call.
    pub fn transfer(&mut self, batch: &mut [Transfer<'_>]) {
        let counters = Arc::clone(&self.counters);
        counters.transfers.add(batch.len());
        let mut copies: Vec<GrantCopy<'_>> = Vec::new();
        let mut owners: Vec<usize> = Vec::new(); // whose each copy is
        let mut results: Vec<Result<(), Fault>> = Vec::with_capacity(batch.len());
        for (index, transfer) in batch.iter_mut().enumerate() {
            let mut bytes = match &mut transfer.bytes {
                TransferBytes::FromGuest(bytes) => TransferBytes::FromGuest(bytes),
                TransferBytes::ToGuest(bytes) => TransferBytes::ToGuest(bytes),
            };
            let mut result = Ok(());
            for range in &transfer.ranges {
                let len = bytes.len().min(range.len() as usize);
                let (now, rest) = split(bytes, len);
                bytes = rest;
                let Some(range) = range.part(0, u32::try_from(len).unwrap_or(u32::MAX)) else {
                    break;
                };
                match range.grant() {
                    Ok(Some(grant)) => {
                        owners.push(index);
                        copies.push(GrantCopy {
                            grant,
                            bytes: now,
                            result: Ok(()),
                        });
                    }
                    Ok(None) => result = copy_plain(&mut self.plain, range, now),
                    Err(fault) => result = Err(fault),
                }
                if result.is_err() {
                    break;
                }
            }
            results.push(result);
        }
        if !copies.is_empty() {
            counters.grant_copies.add(copies.len());
            match &mut self.grants {
                Some(grants) => grants.copy(&mut copies),
                None => copies.iter_mut().for_each(|copy| {
                    copy.result = Err(Fault::GrantRefused {
                        address: GRANT_BIT | u64::from(copy.grant.first) << 12,
                    });
                }),
            }
            for (index, copy) in owners.into_iter().zip(copies) {
                if let (Some(result @ Ok(())), Err(fault)) = (results.get_mut(index), copy.result) {
                    *result = Err(fault);
                }
            }
        }
        for (transfer, result) in batch.iter_mut().zip(results) {
            transfer.result = result;
        }
    }

    /// Makes the memory of a batch of requests reachable for a consumer.
    ///
    /// The results are in the order of the jobs. All grants of the batch are
    /// mapped by one call per protection; if one of them is refused, each
    /// request is mapped by itself, so that a bad request fails alone.
    pub fn map<T>(
        &mut self,
        jobs: impl IntoIterator<Item = Job<T>>,
        need: Need,
    ) -> Vec<Result<Mapped<T>, Rejected<T>>> {
        let mut lender = Lender::default();
        let placed: Vec<_> = jobs
            .into_iter()
            .map(|job| {
                let mark = lender.mark();
                match self.place(&job, need, &mut lender) {
                    Ok((places, keeps)) => Ok((job.token, places, keeps)),
                    Err(fault) => {
                        lender.rewind(mark);
                        Err(Rejected::new(job.token, fault))
                    }
                }
            })
            .collect();
        let lent = lender.lend(self.grants.as_deref_mut(), &self.counters);
        let mapped: Vec<_> = placed
            .into_iter()
            .map(|placed| {
                let (token, places, keeps) = placed?;
                self.assemble(token, places, keeps, need, &lent)
            })
            .collect();
        let rejected = mapped.iter().filter(|result| result.is_err()).count();
        self.counters.rejected.add(rejected);
        mapped
    }

    /// Decides for each range of `job`, and reaches the plain ones.
    #[expect(clippy::type_complexity, reason = "private, destructured at once")]
    fn place<T>(
        &mut self,
        job: &Job<T>,
        need: Need,
        lender: &mut Lender,
    ) -> Result<(SmallVec<[Place; 4]>, SmallVec<[Hold; 1]>), Fault> {
        let mut places = SmallVec::new();
        let mut holds: SmallVec<[Hold; 1]> = SmallVec::new();
        for &(range, access) in &job.ranges {
            match range.grant()? {
                Some(grant) => {
                    if need.pinned {
                        // unmapping is deferred while the kernel holds a page,
                        // and the guest would find its grant still in use
                        return Err(self.bounce(range, BounceReason::Pinned));
                    }
                    let slot = lender.add(grant, range.len(), access);
                    places.push(Place::Granted(slot));
                }
                None => {
                    let source = plain(&mut self.plain, range)?;
                    if need.pinned && !source.pinnable() {
                        return Err(self.bounce(range, BounceReason::Pinned));
                    }
                    let mut segments = Segments::new();
                    let keep = source.translate(range, access, &mut segments)?;
                    if self.kind == Kind::Translated {
                        self.counters.lookups.add(1);
                    }
                    if !need.scatter && segments.len() > 1 {
                        return Err(self.bounce(range, BounceReason::Straddles));
                    }
                    self.counters.direct.add(1);
                    places.push(Place::Plain(segments));
                    holds.push(Hold::Keep(keep));
                }
            }
        }
        Ok((places, holds))
    }

    /// Puts the segments of one request together.
    fn assemble<T>(
        &mut self,
        token: T,
        places: SmallVec<[Place; 4]>,
        mut holds: SmallVec<[Hold; 1]>,
        need: Need,
        lent: &loans::Lent,
    ) -> Result<Mapped<T>, Rejected<T>> {
        let mut segments = Segments::new();
        let slots: SmallVec<[GrantSlot; 4]> = places
            .iter()
            .filter_map(|place| match place {
                Place::Granted(slot) => Some(*slot),
                Place::Plain(_) => None,
            })
            .collect();
        let loan = match lent.of(&slots, self.grants.as_deref_mut(), &self.counters) {
            Ok(loan) => loan,
            Err(fault) => return Err(Rejected::new(token, fault)),
        };
        for place in places {
            match place {
                Place::Plain(mut plain) => segments.append(&mut plain),
                Place::Granted(slot) => match loan.as_ref().and_then(|l| l.segment(slot)) {
                    Some(segment) => {
                        self.counters.granted.add(1);
                        segments.push(segment);
                    }
                    None => {
                        let fault = Fault::Host {
                            address: slot.address(),
                            source: std::io::Error::other("the loan has no segment for it"),
                        };
                        return Err(Rejected::new(token, fault));
                    }
                },
            }
        }
        if let Some(loan) = loan {
            holds.push(Hold::Loan(loan));
        }
        if let Err((address, reason)) = check_segments(&segments, need) {
            self.counters.bounce(reason);
            return Err(Rejected::new(token, Fault::NoPool { address, reason }));
        }
        self.counters.segments.add(segments.len());
        Ok(Mapped::new(token, segments, holds))
    }

    /// There is no pool behind this path: what must be bounced is refused.
    fn bounce(&self, range: Range, reason: BounceReason) -> Fault {
        self.counters.bounce(reason);
        Fault::NoPool {
            address: range.address(),
            reason,
        }
    }

    /// Gives back what was lent for the completed requests and makes them
    /// [`Done`], in no particular order.
    ///
    /// Requests whose grants were mapped together are given back together: one
    /// that shares its loan with a request still in flight stays in
    /// `completed`, to be passed again with the next completions.
    pub fn finish<T>(&mut self, completed: &mut Vec<InFlight<T>>) -> Vec<Done<T>> {
        loans::finish(completed, &self.counters)
    }

    /// Finishes a request that was never mapped.
    pub fn reject<T>(&mut self, rejected: Rejected<T>) -> (Done<T>, Fault) {
        rejected.into_done()
    }
}

impl std::fmt::Debug for Dma {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dma")
            .field("kind", &self.kind)
            .field("plain", &self.plain.is_some())
            .field("grants", &self.grants.is_some())
            .finish_non_exhaustive()
    }
}

fn plain(
    source: &mut Option<Box<dyn Translation>>,
    range: Range,
) -> Result<&mut Box<dyn Translation>, Fault> {
    source.as_mut().ok_or(Fault::PlainRefused {
        address: range.address(),
    })
}

fn copy_plain(
    source: &mut Option<Box<dyn Translation>>,
    range: Range,
    bytes: TransferBytes<'_>,
) -> Result<(), Fault> {
    let access = match bytes {
        TransferBytes::FromGuest(_) => Access::Read,
        TransferBytes::ToGuest(_) => Access::Write,
    };
    let mut segments = Segments::new();
    // `_keep` holds the segments mapped until the copy is done
    let _keep = plain(source, range)?.translate(range, access, &mut segments)?;
    match bytes {
        TransferBytes::FromGuest(bytes) => segment::copy_out(&segments, bytes),
        TransferBytes::ToGuest(bytes) => segment::copy_in(&segments, bytes),
    };
    Ok(())
}

fn split(bytes: TransferBytes<'_>, at: usize) -> (TransferBytes<'_>, TransferBytes<'_>) {
    match bytes {
        TransferBytes::FromGuest(bytes) => {
            let (now, rest) = bytes.split_at_mut(at);
            (
                TransferBytes::FromGuest(now),
                TransferBytes::FromGuest(rest),
            )
        }
        TransferBytes::ToGuest(bytes) => {
            let (now, rest) = bytes.split_at(at);
            (TransferBytes::ToGuest(now), TransferBytes::ToGuest(rest))
        }
    }
}

/// Whether the consumer can use these segments as they are; else where not,
/// and why.
fn check_segments(segments: &[Segment], need: Need) -> Result<(), (u64, BounceReason)> {
    for segment in segments {
        let address = segment.address() as u64;
        let last = address.saturating_add((segment.len() as u64).saturating_sub(1));
        let reason = match need.limit {
            Some(limit) if last > limit => BounceReason::Limit(limit),
            _ if !segment.is_aligned(need.align) => BounceReason::Misaligned(need.align),
            _ => continue,
        };
        return Err((address, reason));
    }
    Ok(())
}
