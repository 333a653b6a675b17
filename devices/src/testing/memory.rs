//! How a [`Dma`](swiotlb::Dma) reaches [`GuestRam`]: plain addresses, in pieces,
//! and grants.

use std::sync::atomic::Ordering;

use swiotlb::{
    Access, CopyBytes, Fault, GrantAddress, GrantCopy, GrantLoan, Grants, HostRange, Keep, Range,
    RingMapping, Segment, Segments, Translation,
};
use vm_memory::VolatileSlice;

use super::{CHUNK, GuestRam};

/// A ring's part, for as long as it is mapped.
pub(super) struct RingPart {
    pub ram: GuestRam,
    pub address: u64,
    pub len: usize,
}

impl HostRange for RingPart {
    fn volatile(&self) -> VolatileSlice<'_> {
        self.ram.slice(self.address, self.len)
    }
}

/// By plain addresses.
pub(super) struct Plain(pub GuestRam);

impl Translation for Plain {
    fn translate(
        &mut self,
        range: Range,
        _access: Access,
        out: &mut Segments,
    ) -> Result<Keep, Fault> {
        self.0.check(range)?;
        let mut at = range.address();
        let end = at + u64::from(range.len());
        while at < end {
            let next = end.min((at / CHUNK + 1) * CHUNK);
            out.push(Segment::of(&self.0.slice(at, (next - at) as usize)));
            at = next;
        }
        Ok(self.0.inner.clone())
    }

    fn map_ring(&mut self, range: Range, _access: Access) -> Result<RingMapping, Fault> {
        self.0.check(range)?;
        Ok(self.0.ring(range.address(), range.len()))
    }

    fn pinnable(&self) -> bool {
        false
    }
}

/// By grants.
pub(super) struct Granted(pub GuestRam);

impl Grants for Granted {
    fn copy(&mut self, batch: &mut [GrantCopy<'_>]) {
        for copy in batch {
            copy.result = self.0.check_grant(copy.grant).map(|address| {
                let slice = self.0.slice(address, copy.bytes.len());
                match &mut copy.bytes {
                    CopyBytes::FromGuest(bytes) => {
                        slice.copy_to(bytes);
                    }
                    CopyBytes::ToGuest(bytes) => slice.copy_from(bytes),
                    CopyBytes::FromGuestToPool(pool) => slice.copy_to_volatile_slice(*pool),
                    CopyBytes::ToGuestFromPool(pool) => pool.copy_to_volatile_slice(slice),
                }
            });
        }
    }

    fn map(
        &mut self,
        ranges: &[(GrantAddress, u32)],
        _access: Access,
    ) -> Result<Box<dyn GrantLoan>, Fault> {
        let mut segments = Vec::new();
        for &(grant, len) in ranges {
            let address = self.0.check_grant(grant)?;
            segments.push(Segment::of(&self.0.slice(address, len as usize)));
        }
        self.0
            .inner
            .lent
            .fetch_add(segments.len(), Ordering::SeqCst);
        let ram = self.0.clone();
        Ok(Box::new(Loan { ram, segments }))
    }

    fn map_ring(
        &mut self,
        grant: GrantAddress,
        len: u32,
        _access: Access,
    ) -> Result<RingMapping, Fault> {
        let address = self.0.check_grant(grant)?;
        Ok(self.0.ring(address, len))
    }
}

struct Loan {
    ram: GuestRam,
    segments: Vec<Segment>,
}

impl GrantLoan for Loan {
    fn segment(&self, index: usize) -> Option<Segment> {
        self.segments.get(index).copied()
    }

    fn give_back(self: Box<Self>) -> Result<(), Fault> {
        Ok(())
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let count = self.segments.len();
        self.ram.inner.lent.fetch_sub(count, Ordering::SeqCst);
    }
}
