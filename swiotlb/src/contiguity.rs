//! Frame translation and contiguity: whether a range of the guest is one piece
//! in the consumer's address space.

use thiserror::Error;

use crate::range::{PAGE_SIZE, Range};

/// A frame that has no translation. Never to be taken for the identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("frame {0:#x} has no translation")]
pub struct NoTranslation(pub u64);

/// Looks guest frames up in the consumer's address space. Frames are of
/// [`PAGE_SIZE`] bytes on both sides.
pub trait FrameTranslation {
    /// The consumer's frame for guest frame `gfn`.
    ///
    /// # Errors
    /// [`NoTranslation`] for a frame that is not there.
    fn gfn_to_bfn(&self, gfn: u64) -> Result<u64, NoTranslation>;

    /// Whether `range` is not one contiguous piece in the consumer's address
    /// space. A range inside one frame never straddles.
    ///
    /// # Errors
    /// [`NoTranslation`] for the first frame of the range that is not there.
    fn straddles(&self, range: Range) -> Result<bool, NoTranslation> {
        self.straddles_at(range.address(), u64::from(range.len()))
    }

    /// As [`FrameTranslation::straddles`], for `len` bytes at `address`, which
    /// are neither none nor wrap around.
    ///
    /// # Errors
    /// As [`FrameTranslation::straddles`].
    fn straddles_at(&self, address: u64, len: u64) -> Result<bool, NoTranslation> {
        let first = address / PAGE_SIZE;
        let end = u128::from(address % PAGE_SIZE) + u128::from(len);
        let frames = end.div_ceil(u128::from(PAGE_SIZE));
        let base = self.gfn_to_bfn(first)?;
        // look at every frame even after a break: a hole must be an error
        let mut broken = false;
        for i in 1..u64::try_from(frames).unwrap_or(u64::MAX) {
            let gfn = first.checked_add(i).ok_or(NoTranslation(first))?;
            broken |= Some(self.gfn_to_bfn(gfn)?) != base.checked_add(i);
        }
        Ok(broken)
    }

    /// The local guest frame behind the consumer's frame `bfn`: only if it is
    /// local, and only if [`FrameTranslation::gfn_to_bfn`] leads back. A frame
    /// of somebody else may have the number of a local one.
    fn bfn_to_local_gfn(&self, bfn: u64) -> Option<u64> {
        // without an inverse, only the identity can be verified
        (self.gfn_to_bfn(bfn) == Ok(bfn)).then_some(bfn)
    }
}

/// The translation of a domain whose frames are the machine's: the identity,
/// with no lookup and no range that straddles.
#[derive(Clone, Copy, Debug, Default)]
pub struct OneToOne;

impl FrameTranslation for OneToOne {
    fn gfn_to_bfn(&self, gfn: u64) -> Result<u64, NoTranslation> {
        Ok(gfn)
    }

    fn straddles_at(&self, _address: u64, _len: u64) -> Result<bool, NoTranslation> {
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table that the conformance vectors V-18 to V-22 share.
    struct P2m;

    impl FrameTranslation for P2m {
        fn gfn_to_bfn(&self, gfn: u64) -> Result<u64, NoTranslation> {
            match gfn {
                0x100 => Ok(0x8000),
                0x101 => Ok(0x8001),
                0x102 => Ok(0x9000),
                0x103 => Ok(0x8fff),
                _ => Err(NoTranslation(gfn)),
            }
        }
    }

    fn straddles(address: u64, len: u32) -> Result<bool, NoTranslation> {
        P2m.straddles(Range::new(address, len).unwrap())
    }

    #[test]
    fn v18_contiguous_across_pages() {
        assert_eq!(straddles(0x10_0ff0, 0x20), Ok(false));
    }

    #[test]
    fn v19_discontiguous() {
        assert_eq!(straddles(0x10_1ff0, 0x20), Ok(true));
    }

    #[test]
    fn v20_a_single_page_never_straddles_up_to_its_exact_end() {
        assert_eq!(straddles(0x10_2000, 0x1000), Ok(false));
        assert_eq!(straddles(0x10_2ff0, 0x10), Ok(false));
    }

    #[test]
    fn descending_frames_straddle() {
        assert_eq!(straddles(0x10_2ff0, 0x20), Ok(true));
    }

    #[test]
    fn a_hole_is_an_error_and_never_the_identity() {
        assert_eq!(straddles(0x10_3ff0, 0x20), Err(NoTranslation(0x104)));
        // even behind a break
        assert_eq!(straddles(0x10_1ff0, 0x3000), Err(NoTranslation(0x104)));
        assert_eq!(straddles(0x1000, 1), Err(NoTranslation(1)));
    }

    #[test]
    fn one_to_one_is_the_identity_and_never_straddles() {
        assert_eq!(OneToOne.gfn_to_bfn(0x8_0000), Ok(0x8_0000));
        let range = Range::new(0x8000_0ff0, 0x10_0000).unwrap();
        assert_eq!(OneToOne.straddles(range), Ok(false));
    }
}
