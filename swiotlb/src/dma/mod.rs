//! The one way of guest DMA: map, hand to an engine, finish.
//!
//! A [`Dma`] belongs to the worker thread of one queue. Whatever it maps by
//! grants it maps per batch, read-only and read-write apart (the protection of
//! a grant mapping is that of its mmap), and gives back per batch. What its
//! consumer cannot use where it is, or what is cheaper to copy, goes through
//! the queue's pool, and all grant copies of a batch are one call.

mod bounce;
mod carry;
mod copies;
mod flight;
mod loans;
mod place;
mod policy;
#[cfg(test)]
mod tests;
mod transfer;

use std::sync::Arc;

use smallvec::SmallVec;

pub use carry::Carry;
pub use flight::{Done, InFlight, Job, JobRanges, Mapped, Rejected};
pub use policy::{GrantClass, GrantMode, GrantPolicy, GrantPolicySnapshot};

use crate::allocator::Settings;
use crate::counters::Counters;
use crate::device::Worker;
use crate::fault::Fault;
use crate::features::Kind;
use crate::memory::PoolMemory;
use crate::range::{Access, Need, Range};
use crate::segment::Segments;
use crate::source::{Grants, RingMapping, Translation};
use bounce::Pool;
use copies::Copying;
use flight::Hold;
use loans::{GrantSlot, Lender};
use place::{Place, Placed};

/// The most bytes of a job: no driver that we know asks for more in one request.
/// With up to 1536 ranges, each of which touches a page more than it fills at
/// either end, it is a loan at most.
pub const JOB_BYTES: u64 = 4 << 20;

/// The data path of one queue.
pub struct Dma {
    kind: Kind,
    plain: Option<Box<dyn Translation>>,
    grants: Option<Box<dyn Grants>>,
    counters: Arc<Counters>,
    pool: Pool,
    policy: Arc<GrantPolicy>,
    /// A request of the batch at hand waits for room in the pool.
    crowded: bool,
    tally: Tally,
}

/// What the batch at hand has counted: counters that all queues share are asked
/// for once a batch.
#[derive(Default)]
struct Tally {
    direct: usize,
    lookups: usize,
    segments: usize,
}

impl Dma {
    /// A data path over plain addresses, grants or both. What is `None` is
    /// refused to the guest, and what would have to be bounced is.
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
            pool: Pool::None,
            policy: Arc::new(GrantPolicy::new(GrantMode::Map)),
            crowded: false,
            tally: Tally::default(),
        }
    }

    /// The same with a pool of its own, which is made when something has to be
    /// bounced; `noforce` in its options leaves the path without one. `policy`
    /// says what becomes of granted data that need not be bounced.
    #[must_use]
    pub fn with_pool(self, settings: Settings, policy: Arc<GrantPolicy>) -> Self {
        Dma {
            pool: Pool::wanted(settings),
            policy,
            ..self
        }
    }

    /// The same with a pool that is there already and that no other path
    /// waits for.
    #[must_use]
    pub fn with_worker(self, worker: Worker, policy: Arc<GrantPolicy>) -> Self {
        Dma {
            pool: Pool::Made(worker),
            policy,
            ..self
        }
    }

    /// The most bytes that a job may have. Whoever has more makes several jobs of
    /// them, one after the other.
    ///
    /// More than the pool holds could never be bounced; without a pool what would
    /// have to be bounced is refused, however short it is. More than
    /// [`JOB_BYTES`] would be one loan, one list of segments and one request of
    /// an engine that nobody can stop.
    pub fn most(&self, need: Need) -> u64 {
        match (need.pinned || self.pool.forces(), self.pool.bytes()) {
            (true, bytes @ 1..) => bytes.min(JOB_BYTES),
            _ => JOB_BYTES,
        }
    }

    /// Slots of the pool that are in use.
    pub fn pool_in_use(&self) -> u64 {
        self.pool.used()
    }

    /// The memory of the pool, to be registered with an engine; makes it.
    /// Nothing if there is none.
    pub fn pool_memory(&mut self) -> Vec<PoolMemory> {
        let mut memory = Vec::new();
        if let Some(worker) = self.pool.worker() {
            let allocator = worker.device().allocator();
            allocator.each_memory(|pool| memory.push(pool.clone()));
        }
        memory
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

    /// Makes the memory of a batch of requests reachable for a consumer.
    ///
    /// The results are in the order of the jobs. All grants of the batch are
    /// mapped by one call per protection, and all that are copied by one call;
    /// if one of them is refused, each request is mapped by itself, so that a
    /// bad request fails alone. A request for which there is no room in the
    /// pool comes back to be tried again ([`Rejected::retry`]), and so do those
    /// behind it that need the pool.
    pub fn map<T>(
        &mut self,
        jobs: impl IntoIterator<Item = Job<T>>,
        need: Need,
    ) -> Vec<Result<Mapped<T>, Rejected<T>>> {
        let policy = Arc::clone(&self.policy);
        let mut plan = policy.plan();
        let mut lender = Lender::default();
        self.crowded = false;
        self.hold();
        let mut placed: Vec<_> = jobs
            .into_iter()
            .map(|job| {
                let mark = lender.mark();
                match self.place(&job, need, &mut lender, &mut plan) {
                    Ok(placed) => Ok((job.token, placed)),
                    Err(fault) => {
                        lender.rewind(mark);
                        if let Fault::PoolFull { .. } = fault {
                            self.crowded = true;
                            return Err(Rejected::waiting(job, fault));
                        }
                        self.counters.rejected.add(1);
                        Err(Rejected::new(job.token, fault))
                    }
                }
            })
            .collect();
        self.release();
        self.fill(&mut placed);
        let lent = lender.lend(
            self.grants.as_deref_mut(),
            &self.counters,
            self.policy.learns(),
        );
        let mapped = placed
            .into_iter()
            .map(|placed| {
                let (token, placed) = placed?;
                self.assemble(token, placed, &lent).inspect_err(|_| {
                    self.counters.rejected.add(1);
                })
            })
            .collect();
        self.count();
        mapped
    }

    /// A batch of looked up ranges begins.
    fn hold(&mut self) {
        if let Some(plain) = &mut self.plain {
            plain.hold();
        }
    }

    /// It has ended.
    fn release(&mut self) {
        if let Some(plain) = &mut self.plain {
            plain.release();
        }
    }

    fn count(&mut self) {
        let Tally {
            direct,
            lookups,
            segments,
        } = std::mem::take(&mut self.tally);
        for (counter, n) in [
            (&self.counters.direct, direct),
            (&self.counters.lookups, lookups),
            (&self.counters.segments, segments),
        ] {
            if n > 0 {
                counter.add(n);
            }
        }
    }

    /// Copies into the bounce buffers what consumers will read there.
    fn fill<T>(&mut self, placed: &mut [Result<(T, Placed), Rejected<T>>]) {
        let runs = placed.iter().enumerate().flat_map(|(owner, placed)| {
            let holds = placed.as_ref().map(|(_, placed)| &placed.holds[..]);
            holds.unwrap_or_default().iter().filter_map(move |hold| {
                let Hold::Bounced(run) = hold else {
                    return None;
                };
                (run.access() == Access::Read).then_some(Copying {
                    owner,
                    run,
                    most: run.len(),
                })
            })
        });
        let runs: Vec<_> = runs.collect();
        if runs.is_empty() {
            return;
        }
        let faults = copies::copy(
            &runs,
            self.grants.as_deref_mut(),
            &self.counters,
            &self.policy,
        );
        drop(runs);
        for (owner, fault) in faults {
            if let Some(Ok((_, placed))) = placed.get_mut(owner) {
                placed.fault = Some(fault);
            }
        }
    }

    /// Puts the segments of one request together.
    fn assemble<T>(
        &mut self,
        token: T,
        placed: Placed,
        lent: &loans::Lent,
    ) -> Result<Mapped<T>, Rejected<T>> {
        let Placed {
            places,
            mut holds,
            fault,
        } = placed;
        if let Some(fault) = fault {
            return Err(Rejected::new(token, fault));
        }
        let mut segments = Segments::new();
        let slots: SmallVec<[GrantSlot; 4]> = places
            .iter()
            .filter_map(|place| match place {
                Place::Granted(slot) => Some(*slot),
                Place::Plain(_) | Place::Bounced(_) => None,
            })
            .collect();
        let loan = match lent.of(&slots, self.grants.as_deref_mut(), &self.counters) {
            Ok(loan) => loan,
            Err(fault) => return Err(Rejected::new(token, fault)),
        };
        for place in places {
            match place {
                Place::Plain(mut plain) => segments.append(&mut plain),
                Place::Bounced(hold) => {
                    if let Some(Hold::Bounced(run)) = holds.get(hold) {
                        segments.extend(run.segments());
                    }
                }
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
        self.tally.segments += segments.len();
        Ok(Mapped::new(token, segments, holds))
    }

    /// Copies back what engines have written into bounce buffers, gives back
    /// what was lent for the completed requests, and makes them [`Done`], in no
    /// particular order. All grant copies are one call.
    ///
    /// Requests whose grants were mapped together are given back together: one
    /// that shares its loan with a request still in flight stays in
    /// `completed`, to be passed again with the next completions.
    pub fn finish<T>(&mut self, completed: &mut Vec<InFlight<T>>) -> Vec<Done<T>> {
        let ready = loans::ready(completed);
        let mut faults = self.copy_back(&ready).into_iter().peekable();
        let mut done = Vec::with_capacity(ready.len());
        for (index, flight) in ready.into_iter().enumerate() {
            let fault = faults.next_if(|(owner, _)| *owner == index);
            let (finished, loan) = flight.dissolve(fault.map(|(_, fault)| fault));
            done.push(finished);
            // the last of those who share it gives it back
            if let Some(loan) = loan.and_then(Arc::into_inner) {
                loan.give_back(&self.counters, &self.policy);
            }
        }
        done
    }

    fn copy_back<T>(&mut self, ready: &[InFlight<T>]) -> Vec<(usize, Fault)> {
        let runs: Vec<_> = ready
            .iter()
            .enumerate()
            .flat_map(|(owner, flight)| {
                let written = flight.written();
                flight.runs().map(move |run| Copying {
                    owner,
                    run,
                    most: run.written(written),
                })
            })
            .filter(|copying| copying.most > 0)
            .collect();
        if runs.is_empty() {
            return Vec::new();
        }
        copies::copy(
            &runs,
            self.grants.as_deref_mut(),
            &self.counters,
            &self.policy,
        )
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
