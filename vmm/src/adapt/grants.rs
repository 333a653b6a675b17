//! Granted pages: mapped batch by batch, copied batch by batch.

use std::io;

use swiotlb::range::GRANT_BIT;
use swiotlb::{
    Access, CopyBytes, Fault, GrantAddress, GrantCopy, GrantLoan, Grants, PAGE_SIZE, RingMapping,
    Segment,
};
use vm_memory::VolatileSlice;
use xen::DomId;
use xen::gntdev::{self, CopySegment, Gntdev, GrantMapping};
use xen::memory;

use super::RingPart;

/// One queue's way to what a guest grants.
#[derive(Debug)]
pub struct GrantMemory {
    gntdev: Gntdev,
    domid: DomId,
}

impl GrantMemory {
    /// What `domid` grants, through `gntdev`.
    #[must_use]
    pub fn new(gntdev: Gntdev, domid: DomId) -> Self {
        GrantMemory { gntdev, domid }
    }
}

impl Grants for GrantMemory {
    fn copy(&mut self, batch: &mut [GrantCopy<'_>]) {
        // The kernel takes memory that it could write; private bytes that go to
        // the guest are borrowed read-only here, so they go by way of a copy.
        // All of these are headers, tables and status bytes.
        let outgoing: usize = batch.iter().map(|copy| outgoing(copy).len()).sum();
        let mut scratch = vec![0; outgoing];
        let mut free = scratch.as_mut_slice();
        let mut segments = Vec::with_capacity(batch.len());
        let mut results = Vec::with_capacity(batch.len());
        for copy in batch.iter_mut() {
            let GrantAddress { first, offset, .. } = copy.grant;
            results.push((&mut copy.result, first));
            segments.push(match &mut copy.bytes {
                CopyBytes::FromGuest(bytes) => {
                    let local = VolatileSlice::from(&mut **bytes);
                    CopySegment::from_grant(local, self.domid, first, offset)
                }
                CopyBytes::FromGuestToPool(slice) => {
                    CopySegment::from_grant(*slice, self.domid, first, offset)
                }
                CopyBytes::ToGuestFromPool(slice) => {
                    CopySegment::to_grant(*slice, self.domid, first, offset)
                }
                CopyBytes::ToGuest(bytes) => {
                    let at = bytes.len().min(free.len());
                    let (now, rest) = std::mem::take(&mut free).split_at_mut(at);
                    now.copy_from_slice(bytes.get(..at).unwrap_or_default());
                    free = rest;
                    CopySegment::to_grant(VolatileSlice::from(now), self.domid, first, offset)
                }
            });
        }
        let refused = self.gntdev.copy(&mut segments).err();
        for ((result, reference), segment) in results.into_iter().zip(&segments) {
            *result = match (&refused, segment.result()) {
                (None, Ok(())) => Ok(()),
                (None, Err(status)) => Err(Fault::GrantRefusedByXen {
                    reference,
                    reason: status.to_string(),
                }),
                // the whole batch: no fault of any one reference
                (Some(error), _) => Err(host(reference, copy_of(error))),
            };
        }
    }

    fn map(
        &mut self,
        ranges: &[(GrantAddress, u32)],
        access: Access,
    ) -> Result<Box<dyn GrantLoan>, Fault> {
        let first = ranges.first().map_or(0, |(grant, _)| grant.first);
        let refs: Vec<(DomId, u32)> = ranges
            .iter()
            .flat_map(|(grant, _)| references(grant))
            .map(|reference| (self.domid, reference))
            .collect();
        let mapping = self
            .gntdev
            .map(&refs, access == Access::Write)
            .map_err(|error| refused(first, error))?;
        let segments = segments(&mapping, ranges).ok_or_else(|| {
            host(
                first,
                io::Error::other("the mapping is shorter than its references"),
            )
        })?;
        Ok(Box::new(Loan { mapping, segments }))
    }

    fn map_ring(
        &mut self,
        grant: GrantAddress,
        len: u32,
        access: Access,
    ) -> Result<RingMapping, Fault> {
        let bytes = usize::try_from(len).unwrap_or(usize::MAX);
        let range = memory::GrantAddress::new(grant.first, grant.offset)
            .and_then(|address| address.range(bytes).ok())
            .ok_or(Fault::GrantRange {
                address: address(grant.first) | u64::from(grant.offset),
                len,
            })?;
        match range.map(&self.gntdev, self.domid, access == Access::Write) {
            Ok(mapped) => Ok(RingMapping::new(Box::new(RingPart(mapped)))),
            Err(memory::GrantError::Map { source, .. }) => Err(refused(grant.first, source)),
            Err(error) => Err(host(grant.first, io::Error::other(error))),
        }
    }
}

/// A batch of mapped grants.
struct Loan {
    mapping: GrantMapping,
    segments: Vec<Segment>,
}

impl GrantLoan for Loan {
    fn segment(&self, index: usize) -> Option<Segment> {
        self.segments.get(index).copied()
    }

    fn give_back(self: Box<Self>) -> Result<(), Fault> {
        let Loan { mapping, .. } = *self;
        mapping.unmap().map_err(|error| {
            let reference = match &error {
                gntdev::Error::Unmap { first, .. } => *first,
                _ => 0,
            };
            host(reference, io::Error::other(error))
        })
    }
}

/// Where each range lies in the mapping of all their pages.
fn segments(mapping: &GrantMapping, ranges: &[(GrantAddress, u32)]) -> Option<Vec<Segment>> {
    let memory = mapping.volatile();
    let page = usize::try_from(PAGE_SIZE).ok()?;
    let mut start = 0usize;
    ranges
        .iter()
        .map(|(grant, len)| {
            let at = start.checked_add(usize::from(grant.offset))?;
            let slice = memory.subslice(at, usize::try_from(*len).ok()?).ok()?;
            let pages = usize::try_from(grant.count).ok()?;
            start = start.checked_add(pages.checked_mul(page)?)?;
            Some(Segment::of(&slice))
        })
        .collect()
}

/// The references of a range; that they do not wrap was checked when it was
/// made.
fn references(grant: &GrantAddress) -> impl Iterator<Item = u32> + use<> {
    let first = grant.first;
    (0..grant.count).filter_map(move |i| first.checked_add(i))
}

fn outgoing<'a>(copy: &'a GrantCopy<'_>) -> &'a [u8] {
    match &copy.bytes {
        CopyBytes::ToGuest(bytes) => bytes,
        CopyBytes::FromGuest(_) | CopyBytes::FromGuestToPool(_) | CopyBytes::ToGuestFromPool(_) => {
            &[]
        }
    }
}

fn address(reference: u32) -> u64 {
    GRANT_BIT | u64::from(reference) << 12
}

fn host(reference: u32, source: io::Error) -> Fault {
    Fault::Host {
        address: address(reference),
        source,
    }
}

/// An error for each of several results.
fn copy_of(error: &gntdev::Error) -> io::Error {
    let source = std::error::Error::source(error);
    io::Error::other(match source {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    })
}

/// Whose fault it is that grants could not be mapped: gntdev says EINVAL for a
/// reference that is bad, read-only, or one too many.
fn refused(reference: u32, error: gntdev::Error) -> Fault {
    let (gntdev::Error::Map { source, .. } | gntdev::Error::Announce { source, .. }) = &error
    else {
        return host(reference, io::Error::other(error));
    };
    match source.raw_os_error() {
        Some(libc::EINVAL) => Fault::GrantRefusedByXen {
            reference,
            reason: error.to_string(),
        },
        _ => host(reference, copy_of(&error)),
    }
}
