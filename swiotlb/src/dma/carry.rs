//! Copies between guest memory and a pool whose slots their owner keeps by
//! itself: nothing of the guest's is held in between, and nothing is given back.

use vm_memory::VolatileSlice;

use super::copies::carry_out;
use super::{Dma, plain};
use crate::fault::{BounceReason, Fault};
use crate::range::{Access, Range};
use crate::source::{CopyBytes, GrantCopy};

/// A piece of a request and its place in a pool.
#[derive(Debug)]
pub struct Carry<'a> {
    /// Whose it is: a number of the caller's.
    pub owner: usize,
    /// The guest's side.
    pub range: Range,
    /// [`Access::Read`] for what the device reads: copied into the pool.
    /// [`Access::Write`] for what it has written: copied to the guest.
    pub access: Access,
    /// The pool's side. No more is copied than both have.
    pub place: VolatileSlice<'a>,
}

impl Dma {
    /// Carries out a batch of copies, all that the hypervisor has to do in one
    /// call; returns the first fault of each owner that has one, by owner.
    pub fn carry<'a>(&mut self, batch: impl IntoIterator<Item = Carry<'a>>) -> Vec<(usize, Fault)> {
        let mut faults = Vec::new();
        let (mut copies, mut owners) = (Vec::new(), Vec::new());
        let (mut pieces, mut bytes_in, mut bytes_out) = (0, 0, 0);
        self.hold();
        for carry in batch {
            pieces += 1;
            match carry.access {
                Access::Read => bytes_in += carry.place.len() as u64,
                Access::Write => bytes_out += carry.place.len() as u64,
            }
            let owner = carry.owner;
            match self.carry_one(carry) {
                Ok(None) => {}
                Ok(Some(copy)) => {
                    owners.push(owner);
                    copies.push(copy);
                }
                Err(fault) => faults.push((owner, fault)),
            }
        }
        self.release();
        if pieces > 0 {
            self.counters.bounce(pieces, BounceReason::Forced);
            self.counters.bounced_bytes_in.add_bytes(bytes_in);
            self.counters.bounced_bytes_out.add_bytes(bytes_out);
        }
        if !copies.is_empty() {
            self.counters.grant_copies.add(copies.len());
            carry_out(self.grants.as_deref_mut(), &mut copies);
            let results = copies.into_iter().map(|copy| copy.result);
            let failed = owners.into_iter().zip(results);
            faults.extend(failed.filter_map(|(owner, result)| Some((owner, result.err()?))));
        }
        faults.sort_by_key(|(owner, _)| *owner);
        faults.dedup_by_key(|(owner, _)| *owner);
        faults
    }

    /// Copies a piece that is reached by plain addresses; of another one says
    /// what is to be copied.
    #[inline]
    fn carry_one<'a>(&mut self, carry: Carry<'a>) -> Result<Option<GrantCopy<'a>>, Fault> {
        let Carry {
            range,
            access,
            place,
            ..
        } = carry;
        let most = u32::try_from(place.len()).unwrap_or(u32::MAX);
        let Some(range) = range.part(0, most) else {
            return Ok(None);
        };
        if let Some(grant) = range.grant()? {
            let place = place.subslice(0, range.len() as usize).unwrap_or(place);
            return Ok(Some(GrantCopy {
                grant,
                bytes: match access {
                    Access::Read => CopyBytes::FromGuestToPool(place),
                    Access::Write => CopyBytes::ToGuestFromPool(place),
                },
                result: Ok(()),
            }));
        }
        plain(&mut self.plain, range)?.exchange(range, access, &place)?;
        Ok(None)
    }
}
