//! Cutting ranges where pages end, for operations that must not cross them.

use crate::error::Error;
use crate::range::PAGE_SIZE;

/// A piece of a copy that crosses no page on either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyPiece {
    /// Where it is read.
    pub from: u64,
    /// Where it is written.
    pub to: u64,
    /// Bytes, at most a page; never 0.
    pub len: u64,
}

/// Cuts a copy at every page boundary of its source and of its destination.
/// `xen/include/public/grant_table.h`, `GNTTABOP_copy`: a granted side must not
/// cross a page.
///
/// # Errors
/// [`Error::AddressOverflow`] for a side that wraps around.
pub fn copy_pieces(from: u64, to: u64, len: u64) -> Result<impl Iterator<Item = CopyPiece>, Error> {
    for address in [from, to] {
        if address.checked_add(len).is_none() {
            return Err(Error::AddressOverflow { address, len });
        }
    }
    let mut done = 0;
    Ok(std::iter::from_fn(move || {
        let (from, to) = (from + done, to + done);
        let len = to_page_end(from).min(to_page_end(to)).min(len - done);
        done += len;
        (len > 0).then_some(CopyPiece { from, to, len })
    }))
}

/// Cuts `len` bytes at `address` into pieces of one page each: their addresses
/// and lengths. A piece after the first one starts where its page does.
///
/// # Errors
/// [`Error::AddressOverflow`] for a range that wraps around.
pub fn page_pieces(address: u64, len: u64) -> Result<impl Iterator<Item = (u64, u64)>, Error> {
    let pieces = copy_pieces(address, address, len)?;
    Ok(pieces.map(|piece| (piece.from, piece.len)))
}

fn to_page_end(address: u64) -> u64 {
    PAGE_SIZE - address % PAGE_SIZE
}
