//! Deciding for each request of a batch where its memory will be: where the
//! guest has it, in a loan, or in bounce buffers.

use smallvec::SmallVec;

use super::Dma;
use super::bounce::{NoRoom, Run, Source};
use super::flight::{Hold, Job};
use super::loans::{GrantSlot, Lender, Mark};
use super::policy::{Plan, Way, class_of};
use crate::fault::{BounceReason, Fault};
use crate::features::Kind;
use crate::range::{Access, GrantAddress, Need, Range};
use crate::segment::{Segment, Segments};
use crate::source::Keep;

/// Where a run of a job, or one range of it, will find its segments.
pub(super) enum Place {
    Plain(Segments),
    Granted(GrantSlot),
    /// In the run that is the hold of this number.
    Bounced(usize),
}

/// A request with its places.
#[derive(Default)]
pub(super) struct Placed {
    pub places: SmallVec<[Place; 1]>,
    pub holds: SmallVec<[Hold; 1]>,
    /// Why it cannot be served after all.
    pub fault: Option<Fault>,
}

/// A range as it was found.
enum Found {
    Plain(Segments, Keep),
    Granted(GrantAddress),
}

impl Dma {
    /// Decides for each range of `job`, and reaches the plain ones.
    pub(super) fn place<T>(
        &mut self,
        job: &Job<T>,
        need: Need,
        lender: &mut Lender,
        plan: &mut Plan<'_>,
    ) -> Result<Placed, Fault> {
        let mut placed = Placed::default();
        let mark = lender.mark();
        let mut written = 0;
        let mut rest: &[(Range, Access)] = &job.ranges;
        while let Some(&(_, access)) = rest.first() {
            let (run, others) = rest.split_at(run_length(rest, need));
            rest = others;
            let len: u64 = run.iter().map(|(range, _)| u64::from(range.len())).sum();
            let batch = (&mut *lender, mark, &mut *plan);
            self.place_run(run, access, len, written, need, batch, &mut placed)?;
            written += match access {
                Access::Read => 0,
                Access::Write => len,
            };
        }
        lender.close(mark);
        Ok(placed)
    }

    #[expect(clippy::too_many_arguments, reason = "private; a run and its batch")]
    fn place_run(
        &mut self,
        run: &[(Range, Access)],
        access: Access,
        len: u64,
        before: u64,
        need: Need,
        (lender, mark, plan): (&mut Lender, Mark, &mut Plan<'_>),
        placed: &mut Placed,
    ) -> Result<(), Fault> {
        let mut found: SmallVec<[(Range, Found); 1]> = SmallVec::new();
        let mut reason = self.pool.forces().then_some(BounceReason::Forced);
        let mut granted = 0;
        for &(range, access) in run {
            let (this, why) = self.find(range, access, need)?;
            if let Found::Granted(_) = this {
                granted += u64::from(range.len());
            }
            reason = reason.or(why);
            found.push((range, this));
        }
        let optional = reason.is_none();
        if optional && granted > 0 && plan.way(granted) == Way::Copy {
            reason = Some(BounceReason::Cheaper);
        }
        if let Some(reason) = reason {
            let address = run.first().map_or(0, |(range, _)| range.address());
            match self.leases(address, len, access, need, reason) {
                Ok(leases) => {
                    self.counters.bounce(run.len(), reason);
                    let sources = found.into_iter().map(source).collect();
                    let run = Run::new(leases, sources, access, len, before);
                    placed.places.push(Place::Bounced(placed.holds.len()));
                    placed.holds.push(Hold::Bounced(Box::new(run)));
                    return Ok(());
                }
                // a copy would have been cheaper, no more
                Err(_) if optional => {}
                Err(fault) => {
                    match fault {
                        Fault::PoolFull { .. } => self.counters.pool_full.add(1),
                        _ => self.counters.bounce(run.len(), reason),
                    }
                    return Err(fault);
                }
            }
        }
        let mut pages = 0;
        for (range, found) in found {
            match found {
                Found::Plain(segments, keep) => {
                    self.tally.direct += 1;
                    placed.places.push(Place::Plain(segments));
                    placed.holds.push(Hold::Keep(keep));
                }
                Found::Granted(grant) => {
                    let slot = lender.add(mark, grant, range.len(), access)?;
                    pages += grant.count; // a loan's at most
                    placed.places.push(Place::Granted(slot));
                }
            }
        }
        if pages > 0 {
            lender.share(class_of(granted), pages);
        }
        Ok(())
    }

    /// Looks a range up, and says why its consumer cannot use it there.
    fn find(
        &mut self,
        range: Range,
        access: Access,
        need: Need,
    ) -> Result<(Found, Option<BounceReason>), Fault> {
        if let Some(grant) = range.grant()? {
            if self.grants.is_none() {
                return Err(Fault::GrantRefused {
                    address: range.address(),
                });
            }
            let placed = u64::from(grant.offset) | u64::from(range.len());
            let reason = if need.pinned {
                // unmapping is deferred while the kernel holds a page, and the
                // guest would find its grant still in use
                Some(BounceReason::Pinned)
            } else if !placed.is_multiple_of(u64::from(need.align.max(1))) {
                Some(BounceReason::Misaligned(need.align))
            } else {
                // where the kernel will map it is not known before
                need.limit.map(BounceReason::Limit)
            };
            return Ok((Found::Granted(grant), reason));
        }
        let source = super::plain(&mut self.plain, range)?;
        let pinnable = source.pinnable();
        let mut segments = Segments::new();
        let keep = source.translate(range, access, &mut segments)?;
        // of a guest mapped 1:1 it is the address plus a constant
        if self.kind == Kind::Translated {
            self.tally.lookups += 1;
        }
        let reason = if need.pinned && !pinnable {
            Some(BounceReason::Pinned)
        } else if !need.scatter && segments.len() > 1 {
            Some(BounceReason::Straddles)
        } else {
            segments.iter().find_map(|segment| unusable(segment, need))
        };
        Ok((Found::Plain(segments, keep), reason))
    }

    fn leases(
        &mut self,
        address: u64,
        len: u64,
        access: Access,
        need: Need,
        reason: BounceReason,
    ) -> Result<super::bounce::Leases, Fault> {
        let full = Fault::PoolFull { address, reason };
        if self.crowded && reason != BounceReason::Cheaper {
            // those before it in the batch wait: it does not overtake them
            return Err(full);
        }
        let taken = self
            .pool
            .take(address, len, access, need.align, need.scatter);
        taken.map_err(|no_room| match no_room {
            NoRoom::NoPool => Fault::NoPool { address, reason },
            NoRoom::TooLarge { most } => Fault::TooLarge {
                address,
                len,
                most,
                reason,
            },
            NoRoom::Full => full,
        })
    }
}

fn source((range, found): (Range, Found)) -> Source {
    match found {
        Found::Plain(segments, keep) => Source::Plain { segments, keep },
        Found::Granted(_) => Source::Granted(range),
    }
}

/// How many of the ranges go the same way together: where the consumer takes
/// several segments for a range it takes one for several ranges, too.
fn run_length(ranges: &[(Range, Access)], need: Need) -> usize {
    let Some((_, access)) = ranges.first().filter(|_| need.scatter) else {
        return 1;
    };
    ranges.iter().take_while(|(_, own)| own == access).count()
}

/// Why a consumer cannot use a segment, if it cannot.
fn unusable(segment: &Segment, need: Need) -> Option<BounceReason> {
    let address = segment.address() as u64;
    let last = address.saturating_add((segment.len() as u64).saturating_sub(1));
    match need.limit {
        Some(limit) if last > limit => Some(BounceReason::Limit(limit)),
        _ if !segment.is_aligned(need.align) => Some(BounceReason::Misaligned(need.align)),
        _ => None,
    }
}
