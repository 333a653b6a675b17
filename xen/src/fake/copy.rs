//! GRANT_COPY: gntdev's batches (`gntdev_grant_copy_seg`) and Xen's check of
//! each piece (`gnttab_copy_one`).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::errno::Errno;
use super::grants::{BAD_DOMAIN, BAD_PAGE, GENERAL_ERROR, OKAY};
use super::state::World;
use crate::DomId;
use crate::abi::PAGE_SIZE;
use crate::gntdev::{CopyDirection, CopySegment};

/// Pieces that gntdev hands to Xen at a time (`GNTDEV_COPY_BATCH`).
const BATCH: usize = 16;

/// A piece of a segment that crosses no page on either side.
struct Piece {
    segment: usize,
    at: usize,
    len: usize,
}

impl World {
    /// The ioctl.
    pub(super) fn grant_copy(&mut self, segments: &mut [CopySegment<'_>]) -> Result<(), Errno> {
        let mut batch: Vec<Piece> = Vec::new();
        for index in 0..segments.len() {
            let Some(segment) = segments.get_mut(index) else {
                break;
            };
            self.check_segment(segment)?;
            segment.status = OKAY;
            let (mut at, total) = (0, segment.local.len());
            let address = segment.local.ptr_guard().as_ptr().addr();
            while at < total {
                if batch.len() >= BATCH {
                    self.run_batch(segments, &mut batch);
                }
                let room = PAGE_SIZE - (address + at) % PAGE_SIZE;
                let len = room.min(total - at);
                batch.push(Piece {
                    segment: index,
                    at,
                    len,
                });
                at += len;
            }
        }
        self.run_batch(segments, &mut batch);
        Ok(())
    }

    fn check_segment(&self, segment: &CopySegment<'_>) -> Result<(), Errno> {
        let len = segment.local.len();
        if len > usize::from(u16::MAX) || usize::from(segment.offset) + len > PAGE_SIZE {
            return Err(Errno(libc::EINVAL));
        }
        // The kernel pins the local side.
        let address = segment.local.ptr_guard().as_ptr().addr();
        self.regions.pinnable(address, len)?;
        Ok(())
    }

    // gntdev_copy: a segment keeps the first failure of its pieces.
    fn run_batch(&mut self, segments: &mut [CopySegment<'_>], batch: &mut Vec<Piece>) {
        for piece in batch.drain(..) {
            let Some(segment) = segments.get_mut(piece.segment) else {
                continue;
            };
            let status = match self.copy_piece(segment, &piece) {
                Ok(()) => OKAY,
                Err(status) => status,
            };
            if segment.status == OKAY {
                segment.status = status;
            }
        }
    }

    // gnttab_copy_one; the error is a GNTST_* value.
    fn copy_piece(&mut self, segment: &CopySegment<'_>, piece: &Piece) -> Result<(), i16> {
        let write = segment.direction == CopyDirection::ToGrant;
        let (file, page) = self.copy_page(segment.dom, segment.gref, write)?;
        let within = usize::from(segment.offset) + piece.at;
        let local = segment
            .local
            .subslice(piece.at, piece.len)
            .map_err(|_| GENERAL_ERROR)?;
        transfer(&file, page + within as u64, local, write)
    }

    // acquire_grant_for_copy
    fn copy_page(&mut self, dom: DomId, gref: u32, write: bool) -> Result<(Arc<File>, u64), i16> {
        let domain = self.domains.get_mut(&dom).ok_or(BAD_DOMAIN)?;
        if let Some(status) = domain.grants.planned_status(gref)
            && status != OKAY
        {
            return Err(status);
        }
        let gfn = domain.grants.page(gref, write)?;
        let offset = domain
            .ram
            .offset(gfn)
            .filter(|_| !domain.dying)
            .ok_or(BAD_PAGE)?;
        Ok((domain.ram.file(), offset))
    }
}

// Xen copies through its own mapping of both pages; here one side is the
// memfd and goes through a buffer of our own.
fn transfer(file: &File, at: u64, local: VolatileSlice<'_>, to_grant: bool) -> Result<(), i16> {
    let mut buffer = [0; PAGE_SIZE];
    let bytes = buffer.get_mut(..local.len()).ok_or(GENERAL_ERROR)?;
    let done = if to_grant {
        local.copy_to(bytes);
        file.write_all_at(bytes, at)
    } else {
        file.read_exact_at(bytes, at)
            .map(|()| local.copy_from(bytes))
    };
    done.map_err(|_| GENERAL_ERROR)
}
