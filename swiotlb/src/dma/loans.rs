//! Grants of one batch: mapped together, given back together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::counters::Counters;
use crate::dma::flight::InFlight;
use crate::dma::policy::{GrantPolicy, Way};
use crate::fault::Fault;
use crate::range::{Access, GRANT_BIT, GrantAddress};
use crate::segment::Segment;
use crate::source::{GrantLoan, Grants};

/// Most pages of one loan: 16 MiB. A driver's requests are smaller, even a whole
/// batch of them mostly is; a chain may claim to be terabytes, and for each page
/// there is a reference to be kept before anybody says that it does not exist.
pub(super) const LOAN_PAGES: u32 = 4096;

/// Where a granted range stands in its batch.
#[derive(Clone, Copy)]
pub(super) struct GrantSlot {
    grant: GrantAddress,
    len: u32,
    access: Access,
    index: usize,
}

impl GrantSlot {
    pub(super) fn address(&self) -> u64 {
        GRANT_BIT | u64::from(self.grant.first) << 12 | u64::from(self.grant.offset)
    }
}

/// The two mappings of a batch, or of a part of a large one. Grants have the
/// protection of their mmap, and a driver grants what a device only reads
/// read-only.
#[derive(Default)]
pub(super) struct Loan {
    read: Option<Box<dyn GrantLoan>>,
    write: Option<Box<dyn GrantLoan>>,
    /// Where in the batch's lists it begins.
    from: Mark,
    /// What mapping has cost, if somebody wants to know.
    took: Option<Duration>,
    /// Whose it is.
    shares: Vec<Share>,
}

/// A run of granted data in a loan.
#[derive(Clone, Copy)]
struct Share {
    class: usize,
    pages: u32,
}

impl Loan {
    pub(super) fn segment(&self, slot: GrantSlot) -> Option<Segment> {
        let (loan, from) = match slot.access {
            Access::Read => (&self.read, self.from.read),
            Access::Write => (&self.write, self.from.write),
        };
        loan.as_ref()?.segment(slot.index.checked_sub(from)?)
    }

    pub(super) fn give_back(self, counters: &Counters, policy: &GrantPolicy) {
        let began = self.took.map(|took| (Instant::now(), took));
        for loan in [self.read, self.write].into_iter().flatten() {
            if let Err(fault) = loan.give_back() {
                counters.loans_lost.add(1);
                tracing::error!(%fault, "a batch of grants was not taken back cleanly");
            }
        }
        let Some((began, took)) = began else { return };
        let took = took + began.elapsed();
        let pages: u32 = self.shares.iter().map(|share| share.pages).sum();
        for share in self.shares {
            let cost = took.saturating_mul(share.pages) / pages.max(1);
            policy.learn(share.class, Way::Map, cost);
        }
    }
}

/// Collects the granted ranges of a batch.
#[derive(Default)]
pub(super) struct Lender {
    read: Vec<(GrantAddress, u32)>,
    write: Vec<(GrantAddress, u32)>,
    shares: Vec<Share>,
    /// Pages of all of it.
    pages: u32,
    /// Where loans begin, behind the first.
    cuts: SmallVec<[Mark; 1]>,
}

/// A point of a batch: to come back to, or where a loan begins.
#[derive(Clone, Copy, Default)]
pub(super) struct Mark {
    read: usize,
    write: usize,
    shares: usize,
    pages: u32,
}

impl Lender {
    /// Adds a range to the request that began at `mark`.
    ///
    /// # Errors
    /// [`Fault::LoanTooLarge`]: the request has more pages than a loan.
    pub(super) fn add(
        &mut self,
        mark: Mark,
        grant: GrantAddress,
        len: u32,
        access: Access,
    ) -> Result<GrantSlot, Fault> {
        let list = match access {
            Access::Read => &mut self.read,
            Access::Write => &mut self.write,
        };
        let slot = GrantSlot {
            grant,
            len,
            access,
            index: list.len(),
        };
        let pages = self.pages.saturating_add(grant.count);
        if pages.saturating_sub(mark.pages) > LOAN_PAGES {
            return Err(Fault::LoanTooLarge {
                address: slot.address(),
                pages: pages.saturating_sub(mark.pages),
                most: LOAN_PAGES,
            });
        }
        list.push((grant, len));
        self.pages = pages;
        Ok(slot)
    }

    /// The request that began at `mark` is complete: it has a loan of its own if
    /// there is no room for it in the one of those before.
    pub(super) fn close(&mut self, mark: Mark) {
        let start = self.cuts.last().copied().unwrap_or_default();
        if self.pages.saturating_sub(start.pages) > LOAN_PAGES {
            self.cuts.push(mark);
        }
    }

    /// Notes that `pages` pages of what was added are a run of this class.
    pub(super) fn share(&mut self, class: usize, pages: u32) {
        self.shares.push(Share { class, pages });
    }

    /// A point to come back to if the request at hand is rejected.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            read: self.read.len(),
            write: self.write.len(),
            shares: self.shares.len(),
            pages: self.pages,
        }
    }

    pub(super) fn rewind(&mut self, mark: Mark) {
        self.read.truncate(mark.read);
        self.write.truncate(mark.write);
        self.shares.truncate(mark.shares);
        self.pages = mark.pages;
    }

    /// Maps the batch, if it has grants at all; notes the time if `measure`.
    pub(super) fn lend(
        self,
        grants: Option<&mut (dyn Grants + '_)>,
        counters: &Counters,
        measure: bool,
    ) -> Lent {
        if self.read.is_empty() && self.write.is_empty() {
            return Lent::Nothing;
        }
        let Some(grants) = grants else {
            return Lent::NoGrants;
        };
        let ends = self.cuts.iter().copied().chain([self.mark()]);
        let mut from = Mark::default();
        let parts = ends.map(|to| {
            let part = self.lend_part(from, to, grants, counters, measure);
            from = to;
            part
        });
        Lent::Parts(parts.collect())
    }

    /// Maps what lies between two cuts.
    fn lend_part(
        &self,
        from: Mark,
        to: Mark,
        grants: &mut (dyn Grants + '_),
        counters: &Counters,
        measure: bool,
    ) -> Part {
        let read = self.read.get(from.read..to.read).unwrap_or_default();
        let write = self.write.get(from.write..to.write).unwrap_or_default();
        let shares = self.shares.get(from.shares..to.shares);
        let began = measure.then(Instant::now);
        let loan = match borrow(grants, read, write, counters) {
            Ok(loan) => Some(Arc::new(Loan {
                from,
                took: began.map(|began| began.elapsed()),
                shares: shares.unwrap_or_default().into(),
                ..loan
            })),
            Err(fault) => {
                counters.loans_split.add(1);
                tracing::debug!(%fault, "a batch of grants was refused; mapping one by one");
                None
            }
        };
        Part { to, loan }
    }
}

fn borrow(
    grants: &mut (dyn Grants + '_),
    read: &[(GrantAddress, u32)],
    write: &[(GrantAddress, u32)],
    counters: &Counters,
) -> Result<Loan, Fault> {
    let mut loan = Loan::default();
    if !read.is_empty() {
        loan.read = Some(grants.map(read, Access::Read)?);
        counters.loans.add(1);
    }
    if !write.is_empty() {
        loan.write = Some(grants.map(write, Access::Write)?);
        counters.loans.add(1);
    }
    Ok(loan)
}

/// How a batch's grants were mapped.
pub(super) enum Lent {
    /// It has none.
    Nothing,
    /// This guest has no grants.
    NoGrants,
    /// By one loan, mostly.
    Parts(SmallVec<[Part; 1]>),
}

/// What of a batch was to be mapped together.
pub(super) struct Part {
    /// Where it ends.
    to: Mark,
    /// Nothing if one reference was refused: each request maps its own.
    loan: Option<Arc<Loan>>,
}

impl Part {
    fn holds(&self, slot: &GrantSlot) -> bool {
        slot.index
            < match slot.access {
                Access::Read => self.to.read,
                Access::Write => self.to.write,
            }
    }
}

impl Lent {
    /// The loan of a request with these slots. Where the batch was refused,
    /// the slots' indices are into the request's own loan: hence the returned
    /// wrapper.
    pub(super) fn of(
        &self,
        slots: &[GrantSlot],
        grants: Option<&mut (dyn Grants + '_)>,
        counters: &Counters,
    ) -> Result<Option<Arc<Loan>>, Fault> {
        let Some(first) = slots.first() else {
            return Ok(None);
        };
        let parts = match self {
            Lent::Nothing => return Ok(None),
            Lent::NoGrants => &[][..],
            Lent::Parts(parts) => parts,
        };
        // a request is in one part, whole
        let part = parts.iter().find(|part| part.holds(first));
        match (part, grants) {
            (
                Some(Part {
                    loan: Some(loan), ..
                }),
                _,
            ) => Ok(Some(Arc::clone(loan))),
            (Some(_), Some(grants)) => {
                let mut own = Own::default();
                for slot in slots {
                    own.add(slot);
                }
                own.borrow(grants, counters).map(Some)
            }
            (None, _) | (_, None) => Err(Fault::GrantRefused {
                address: first.address(),
            }),
        }
    }
}

/// One request's own grants, addressed by the indices they had in the batch.
#[derive(Default)]
struct Own {
    read: Vec<(usize, (GrantAddress, u32))>,
    write: Vec<(usize, (GrantAddress, u32))>,
}

impl Own {
    fn add(&mut self, slot: &GrantSlot) {
        let entry = (slot.index, (slot.grant, slot.len));
        match slot.access {
            Access::Read => self.read.push(entry),
            Access::Write => self.write.push(entry),
        }
    }

    fn borrow(
        self,
        grants: &mut (dyn Grants + '_),
        counters: &Counters,
    ) -> Result<Arc<Loan>, Fault> {
        let ranges = |list: &[(usize, (GrantAddress, u32))]| -> Vec<_> {
            list.iter().map(|(_, range)| *range).collect()
        };
        let loan = borrow(grants, &ranges(&self.read), &ranges(&self.write), counters)?;
        let renamed = |loan: Option<Box<dyn GrantLoan>>, list: Vec<(usize, _)>| {
            loan.map(|loan| {
                let indices = list.into_iter().map(|(index, _)| index).collect();
                Box::new(Renamed { loan, indices }) as Box<dyn GrantLoan>
            })
        };
        Ok(Arc::new(Loan {
            read: renamed(loan.read, self.read),
            write: renamed(loan.write, self.write),
            ..Loan::default()
        }))
    }
}

/// A loan of one request, known by its indices in the batch that was refused.
struct Renamed {
    loan: Box<dyn GrantLoan>,
    indices: Vec<usize>,
}

impl GrantLoan for Renamed {
    fn segment(&self, index: usize) -> Option<Segment> {
        let own = self.indices.iter().position(|&i| i == index)?;
        self.loan.segment(own)
    }

    fn give_back(self: Box<Self>) -> Result<(), Fault> {
        self.loan.give_back()
    }
}

/// Takes those out of `completed` that hold no loan, or share it with none that
/// is still in flight.
pub(super) fn ready<T>(completed: &mut Vec<InFlight<T>>) -> Vec<InFlight<T>> {
    // A loan is given back when everyone who shares it is among the completed.
    // A batch has few loans, often one: a list is the right map.
    let mut sharing: Vec<(*const Loan, usize)> = Vec::new();
    for loan in completed.iter().filter_map(InFlight::loan) {
        let key = Arc::as_ptr(loan);
        match sharing.iter_mut().find(|(known, _)| *known == key) {
            Some((_, count)) => *count += 1,
            None => sharing.push((key, 1)),
        }
    }
    if sharing.is_empty() {
        return std::mem::take(completed);
    }
    let whole = |loan: &Arc<Loan>| {
        let key = Arc::as_ptr(loan);
        let here = sharing.iter().find(|(known, _)| *known == key);
        here.is_some_and(|(_, count)| Arc::strong_count(loan) == *count)
    };
    // judged before any is moved: each counts for the others
    let ready: Vec<bool> = completed
        .iter()
        .map(|flight| flight.loan().is_none_or(whole))
        .collect();
    let mut judged = ready.into_iter();
    completed
        .extract_if(.., |_| judged.next().unwrap_or(false))
        .collect()
}
