//! The copies of bounced requests: all that a batch needs of the hypervisor in
//! one call, the rest by the processor.

use std::time::Instant;

use super::bounce::{Piece, Run};
use super::policy::{GrantPolicy, Way, class_of};
use crate::counters::Counters;
use crate::fault::Fault;
use crate::range::{Access, GRANT_BIT};
use crate::source::{CopyBytes, GrantCopy, Grants};

/// A run to be copied: whose it is, and how many of its bytes.
pub(super) struct Copying<'a> {
    pub owner: usize,
    pub run: &'a Run,
    pub most: u64,
}

/// Copies runs into their buffers or back; returns the first fault of each
/// owner that has one, by owner.
pub(super) fn copy(
    runs: &[Copying<'_>],
    grants: Option<&mut (dyn Grants + '_)>,
    counters: &Counters,
    policy: &GrantPolicy,
) -> Vec<(usize, Fault)> {
    let mut faults = Vec::new();
    let mut copies = Vec::new();
    let mut owners = Vec::new();
    let mut granted = 0;
    for Copying { owner, run, most } in runs {
        let moved = match run.access() {
            Access::Read => &counters.bounced_bytes_in,
            Access::Write => &counters.bounced_bytes_out,
        };
        moved.add_bytes(*most);
        if run.granted() < run.len() {
            run.move_plain(*most);
        }
        if run.granted() == 0 {
            continue;
        }
        granted += weight(run);
        run.pieces(*most, |piece| {
            let Piece::Granted(range, slice) = piece else {
                return;
            };
            match range.grant() {
                Ok(Some(grant)) => {
                    owners.push(*owner);
                    copies.push(GrantCopy {
                        grant,
                        bytes: match run.access() {
                            Access::Read => CopyBytes::FromGuestToPool(slice),
                            Access::Write => CopyBytes::ToGuestFromPool(slice),
                        },
                        result: Ok(()),
                    });
                }
                Ok(None) => {}
                Err(fault) => faults.push((*owner, fault)),
            }
        });
    }
    if copies.is_empty() {
        return faults;
    }
    counters.grant_copies.add(copies.len());
    let began = policy.learns().then(Instant::now);
    carry_out(grants, &mut copies);
    let mut failed = !faults.is_empty();
    for (owner, copy) in owners.into_iter().zip(copies) {
        if let Err(fault) = copy.result {
            failed = true;
            faults.push((owner, fault));
        }
    }
    if let Some(began) = began
        && !failed
    {
        let took = began.elapsed();
        for Copying { run, .. } in runs.iter().filter(|copying| copying.run.granted() > 0) {
            let share = u32::try_from(weight(run)).unwrap_or(u32::MAX);
            let whole = u32::try_from(granted).unwrap_or(u32::MAX).max(1);
            let cost = took.saturating_mul(share) / whole;
            policy.learn(class_of(run.granted()), Way::Copy, cost);
        }
    }
    faults.sort_by_key(|(owner, _)| *owner);
    faults.dedup_by_key(|(owner, _)| *owner);
    faults
}

/// What a run counts in a batch's cost: its operations and its bytes.
fn weight(run: &Run) -> u64 {
    1 + run.granted() / 1024
}

/// Has grants copied, or says why none is.
pub(super) fn carry_out(grants: Option<&mut (dyn Grants + '_)>, copies: &mut [GrantCopy<'_>]) {
    match grants {
        Some(grants) => grants.copy(copies),
        None => copies.iter_mut().for_each(|copy| {
            copy.result = Err(Fault::GrantRefused {
                address: GRANT_BIT | u64::from(copy.grant.first) << 12,
            });
        }),
    }
}
