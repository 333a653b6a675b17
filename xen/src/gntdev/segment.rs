//! What one grant copy moves, and what Xen says of it.
//!
//! Filled in by a consumer's data path, passed down through
//! [`Gntdev::copy`](super::Gntdev::copy) on its worker thread.

use vm_memory::VolatileSlice;

use super::GrantStatus;
use crate::domid::DomId;
use crate::sys::abi::PAGE_SIZE;

/// Which way a grant copy goes.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum CopyDirection {
    /// From the granted page to local memory.
    FromGrant,
    /// From local memory to the granted page.
    ToGrant,
}

/// One run of bytes to copy between local memory and granted pages.
///
/// Its length is the local slice's. The local memory must be ordinary memory
/// of this process (the kernel pins it): a foreign mapping will not do.
#[derive(Debug)]
pub struct CopySegment<'a> {
    /// The local side.
    pub local: VolatileSlice<'a>,
    /// The granting domain.
    pub dom: DomId,
    /// The reference of the (first) granted page.
    pub gref: u32,
    /// Offset in the granted page, below 4096. A copy that goes past the
    /// page's end goes on in the page of the next reference.
    pub offset: u16,
    /// Which way.
    pub direction: CopyDirection,
    /// `GNTST_*` of this segment, written by the copy: see
    /// [`CopySegment::result`]. [`CopySegment::NOT_RUN`] until then.
    pub status: i16,
}

impl<'a> CopySegment<'a> {
    /// [`CopySegment::status`] of a segment that no copy has reached yet; not
    /// a value of Xen's.
    pub const NOT_RUN: i16 = i16::MIN;

    /// A segment from a granted page to `local`.
    #[must_use]
    pub fn from_grant(local: VolatileSlice<'a>, dom: DomId, gref: u32, offset: u16) -> Self {
        Self::new(local, dom, gref, offset, CopyDirection::FromGrant)
    }

    /// A segment from `local` to a granted page.
    #[must_use]
    pub fn to_grant(local: VolatileSlice<'a>, dom: DomId, gref: u32, offset: u16) -> Self {
        Self::new(local, dom, gref, offset, CopyDirection::ToGrant)
    }

    fn new(
        local: VolatileSlice<'a>,
        dom: DomId,
        gref: u32,
        offset: u16,
        direction: CopyDirection,
    ) -> Self {
        CopySegment {
            local,
            dom,
            gref,
            offset,
            direction,
            status: Self::NOT_RUN,
        }
    }

    /// The same copy, not run.
    pub(super) fn again(&self) -> Self {
        CopySegment {
            status: Self::NOT_RUN,
            ..*self
        }
    }

    /// Appends this copy as pieces that stay within their granted pages.
    /// Gives whether the references sufficed; none follows the last `u32`.
    pub(super) fn split(&self, pieces: &mut Vec<Self>) -> bool {
        let mut gref = self.gref;
        let mut offset = usize::from(self.offset);
        let mut done = 0;
        while done < self.local.len() {
            let room = PAGE_SIZE.saturating_sub(offset);
            let len = room.min(self.local.len() - done);
            let (Ok(local), Ok(at)) = (self.local.subslice(done, len), u16::try_from(offset))
            else {
                return false;
            };
            if len == 0 {
                return false;
            }
            pieces.push(CopySegment {
                local,
                gref,
                offset: at,
                ..self.again()
            });
            done += len;
            offset = 0;
            if done < self.local.len() {
                let Some(next) = gref.checked_add(1) else {
                    return false;
                };
                gref = next;
            }
        }
        true
    }

    /// What became of the segment.
    ///
    /// # Errors
    /// The status that Xen gave it.
    pub fn result(&self) -> Result<(), GrantStatus> {
        GrantStatus::from_raw(self.status)
    }
}
