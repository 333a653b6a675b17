//! What a request asks of the slots it is given: how many, and at which
//! addresses. Pure arithmetic, once per request.

use crate::error::{Error, Unsatisfiable};
use crate::pool::bits;
use crate::sizing::{SEGMENT_SIZE, SEGMENT_SLOTS, SLOT_SHIFT, SLOT_SIZE};

/// The window of a device without boundaries: all slots that there can be.
const NO_WINDOW: u64 = (u64::MAX >> SLOT_SHIFT) + 1;

/// The slots that a request needs, and which of them may be its first one.
///
/// All addresses are those on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Slots, padding included; 1 to 128.
    pub slots: u32,
    /// Bytes between the first slot's start and the data.
    pub before: u32,
    /// Low bits of a slot's number that are given, a power of two less one…
    stride: u64,
    /// …and their value.
    residue: u64,
    /// Slots between two boundaries, a power of two.
    window: u64,
}

/// The parameters of a request. Masks are powers of two less one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// The original's address; `None` for coherent memory.
    pub orig: Option<u64>,
    /// Bytes.
    pub len: u64,
    /// Of the allocation's first byte, less one.
    pub align_mask: u64,
    /// The device's.
    pub min_align_mask: u64,
    /// The device's.
    pub seg_boundary: u64,
    /// The largest mapping, for the error's text.
    pub max: u64,
}

impl Placement {
    /// What [`Placement::of`] gives for `len` bytes, at most a segment, of a
    /// device without constraints.
    #[inline(always)]
    pub(crate) fn of_len(len: u64) -> Self {
        Placement {
            slots: u32::try_from(len.div_ceil(SLOT_SIZE)).unwrap_or(SEGMENT_SLOTS),
            before: 0,
            // whole pages start at one
            stride: u64::from(len >= 4096),
            residue: 0,
            window: NO_WINDOW,
        }
    }

    /// Works the request out.
    pub(crate) fn of(asked: &Asked) -> Result<Self, Error> {
        const OFFSET: u64 = SLOT_SIZE - 1;
        let &Asked {
            len,
            align_mask,
            min_align_mask,
            ..
        } = asked;
        let orig = asked.orig.unwrap_or(0);
        let before = orig & min_align_mask & (align_mask | OFFSET);
        // `align_mask + 1` is a power of two, so rounding up is a mask
        let total = len
            .checked_add(before)
            .and_then(|bytes| bytes.checked_add(align_mask))
            .map(|bytes| bytes & !align_mask);
        let total = match total {
            Some(total) if total <= SEGMENT_SIZE => total,
            _ => {
                return Err(Error::TooLarge {
                    len,
                    max: asked.max,
                });
            }
        };
        let whole_pages = align_mask == 0 && min_align_mask == 0 && total >= 4096;
        let zero = OFFSET | if whole_pages { 4095 } else { align_mask };
        let equal = match asked.orig {
            Some(_) => min_align_mask & !zero,
            None => 0,
        };
        // at most 128, as `total` is at most a segment
        let slots = u32::try_from(total.div_ceil(SLOT_SIZE)).unwrap_or(SEGMENT_SLOTS);
        let window = (asked.seg_boundary >> SLOT_SHIFT) + 1;
        if u64::from(slots) > window {
            let boundary = Unsatisfiable::Boundary { slots, window };
            return Err(Error::Unsatisfiable(boundary));
        }
        Ok(Placement {
            slots,
            // less than a segment
            before: u32::try_from(before).unwrap_or(0),
            stride: (zero | equal) >> SLOT_SHIFT,
            residue: (orig & equal) >> SLOT_SHIFT,
            window,
        })
    }

    /// Which slots of a segment may be the first one, where the segment's
    /// first slot has the number `first` on the bus and all follow it there.
    #[inline(always)]
    pub(crate) fn eligible(self, first: u64) -> u128 {
        match (self.stride, self.window) {
            (0, NO_WINDOW) => u128::MAX,
            // those of one parity
            (1, NO_WINDOW) if first & 1 == self.residue => bits::EVEN,
            (1, NO_WINDOW) => !bits::EVEN,
            _ => self.eligible_within(first),
        }
    }

    #[inline(never)]
    fn eligible_within(self, first: u64) -> u128 {
        let to_residue = self.residue.wrapping_sub(first) & self.stride;
        let aligned = bits::every(self.stride, to_residue);
        if self.window == NO_WINDOW {
            return aligned;
        }
        aligned & self.inside_windows(first)
    }

    /// Which slots of a segment leave room up to the next boundary.
    fn inside_windows(self, first: u64) -> u128 {
        let into = first & (self.window - 1);
        if let Ok(window @ 1..=64) = u32::try_from(self.window) {
            // `slots` is at most the window
            let room = bits::run(window - self.slots + 1);
            let pattern = bits::every(self.window - 1, 0).wrapping_mul(room);
            return pattern.rotate_right(u32::try_from(into).unwrap_or(0));
        }
        match u32::try_from(self.window - into) {
            Ok(next @ 1..SEGMENT_SLOTS) => {
                // starts from which the boundary would be inside the run
                let low = next.saturating_sub(self.slots - 1);
                !(bits::run(next - low) << low)
            }
            _ => u128::MAX,
        }
    }

    /// Bytes beyond the slots' own that hold a place for them wherever they
    /// start.
    pub(crate) fn slack(&self) -> u64 {
        let boundary = match self.window {
            NO_WINDOW => 0,
            _ => u64::from(self.slots),
        };
        (self.stride + boundary).saturating_mul(SLOT_SIZE)
    }

    /// Whether the slot with the number `slot` on the bus may be the first.
    pub(crate) fn accepts(&self, slot: u64) -> bool {
        slot & self.stride == self.residue
            && (slot & (self.window - 1)) + u64::from(self.slots) <= self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_alone_is_placed_as_without_constraints() {
        for len in (1..=SEGMENT_SIZE)
            .step_by(511)
            .chain([2048, 4095, 4096, SEGMENT_SIZE])
        {
            let asked = Asked {
                orig: Some(0x1234_5678),
                len,
                align_mask: 0,
                min_align_mask: 0,
                seg_boundary: u64::MAX,
                max: SEGMENT_SIZE,
            };
            assert_eq!(Placement::of_len(len), Placement::of(&asked).unwrap());
        }
    }

    #[test]
    fn a_length_alone_is_eligible_where_masks_say() {
        for len in [1, 2048, 4096, SEGMENT_SIZE] {
            for residue in [0, 1] {
                let placement = Placement {
                    residue: residue & Placement::of_len(len).stride,
                    ..Placement::of_len(len)
                };
                for first in [0, 1, 128, 129] {
                    let masks = placement.eligible_within(first);
                    assert_eq!(placement.eligible(first), masks, "{placement:?} at {first}");
                }
            }
        }
    }
}
