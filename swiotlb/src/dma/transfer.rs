//! Small copies between guest memory and private bytes: tables, headers,
//! statuses.

use std::sync::Arc;

use super::copies::carry_out;
use super::{Dma, plain};
use crate::fault::Fault;
use crate::range::Range;
use crate::source::{GrantCopy, Transfer, TransferBytes, Translation};

impl Dma {
    /// Carries out a batch of small copies; each has its own result. All
    /// copies from and to grants of the batch are one system call.
    pub fn transfer(&mut self, batch: &mut [Transfer<'_>]) {
        self.hold();
        match self.grants.is_some() {
            true => self.transfer_both(batch),
            false => self.transfer_plain(batch),
        }
        self.release();
    }

    fn transfer_both(&mut self, batch: &mut [Transfer<'_>]) {
        let counters = Arc::clone(&self.counters);
        counters.transfers.add(batch.len());
        let mut copies: Vec<GrantCopy<'_>> = Vec::new();
        let mut owners: Vec<usize> = Vec::new(); // whose each copy is
        let mut results: Vec<Result<(), Fault>> = Vec::with_capacity(batch.len());
        for (index, transfer) in batch.iter_mut().enumerate() {
            let mut bytes = transfer.bytes.reborrow();
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
                            bytes: now.into(),
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
            carry_out(self.grants.as_deref_mut(), &mut copies);
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

    /// The same where nothing is granted: there is no call to be shared.
    fn transfer_plain(&mut self, batch: &mut [Transfer<'_>]) {
        self.counters.transfers.add(batch.len());
        for transfer in batch {
            let mut left = transfer.bytes.reborrow();
            transfer.result = transfer.ranges.iter().try_for_each(|range| {
                if range.grant()?.is_some() {
                    return Err(Fault::GrantRefused {
                        address: range.address(),
                    });
                }
                let bytes = std::mem::replace(&mut left, TransferBytes::ToGuest(&[]));
                let len = bytes.len().min(range.len() as usize);
                let (now, rest) = split(bytes, len);
                left = rest;
                match range.part(0, u32::try_from(len).unwrap_or(u32::MAX)) {
                    Some(range) => copy_plain(&mut self.plain, range, now),
                    None => Ok(()),
                }
            });
        }
    }
}

fn copy_plain(
    source: &mut Option<Box<dyn Translation>>,
    range: Range,
    bytes: TransferBytes<'_>,
) -> Result<(), Fault> {
    plain(source, range)?.copy(range, bytes)
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
