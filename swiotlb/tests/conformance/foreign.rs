//! Foreign frames, and ranges of any length across them.

use proptest::prelude::*;
use swiotlb::contiguity::FrameTranslation;
use swiotlb::foreign::ForeignFrames;

/// The words of the specification, frame by frame.
fn straddles(frames: &ForeignFrames, address: u64, len: u64) -> bool {
    let first = address / 4096;
    let last = (address + len - 1) / 4096;
    let bfn = |gfn| frames.gfn_to_bfn(gfn).unwrap();
    (first..=last).any(|gfn| bfn(gfn) != bfn(first) + (gfn - first))
}

proptest! {
    #[test]
    fn a_range_is_judged_by_runs_as_it_would_be_by_frames(
        // some of them where the next one goes on, some that stand for themselves
        runs in proptest::collection::vec((0u64..40, prop_oneof![0u64..40, Just(100)], 1u64..8), 0..8),
        address in 0u64..50 * 4096,
        len in 1u64..20 * 4096,
    ) {
        let frames = ForeignFrames::new();
        for (gfn, by, count) in runs {
            let _ = frames.insert(gfn, gfn + by % 3 * 100, count);
        }
        prop_assert_eq!(frames.straddles_at(address, len), Ok(straddles(&frames, address, len)));
    }
}

/// 2⁵² frames: looking at each of them would take days.
#[test]
fn inv35_the_length_of_a_range_is_no_amount_of_work() {
    let frames = ForeignFrames::new();
    frames.insert(0x1000, 0x2000, 1).unwrap();
    assert_eq!(
        frames.straddles_at(0x2000_0000, u64::MAX - 0x2000_0000),
        Ok(false)
    );
    assert_eq!(frames.straddles_at(0, u64::MAX), Ok(true));
    frames.insert(0x2000, 0x3000, (1 << 51) - 1).unwrap();
    assert_eq!(frames.straddles_at(0x200_0000, 1 << 62), Ok(false));
    assert_eq!(frames.straddles_at(0x1ff_ffff, 2), Ok(true));
}
