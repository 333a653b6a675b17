//! Runs of free slots in a segment: 128 bits, two words of the machine.

/// `len` ones from bit 0 on, 0 to 128.
#[inline(always)]
pub(crate) fn run(len: u32) -> u128 {
    match len {
        0 => 0,
        1..128 => (1 << len) - 1,
        _ => u128::MAX,
    }
}

/// `len` ones from bit `from` on, 1 to 128 of them and none beyond the top.
#[inline(always)]
pub(crate) fn span(from: u32, len: u32) -> u128 {
    let (word, bit) = (from / 64, from % 64);
    if bit + len > 64 {
        return run(len) << from;
    }
    // most runs are in one of the machine's words
    let ones = u128::from((u64::MAX >> (64 - len)) << bit);
    if word == 0 { ones } else { ones << 64 }
}

/// Where runs of `len` ones start in `bits`, 1 to 128. Shift-and: the work
/// grows with the logarithm of `len`. Zeroes come in at the top, so that no run
/// leaves the segment.
#[inline(always)]
pub(crate) fn starts(mut bits: u128, len: u32) -> u128 {
    let mut have = 1;
    while have < len {
        let more = have.min(len - have);
        bits &= bits >> more;
        have += more;
    }
    bits
}

/// The longest run of ones in `bits`.
pub(crate) fn longest(mut bits: u128) -> u32 {
    let mut longest = 0;
    while bits != 0 {
        bits >>= bits.trailing_zeros();
        let ones = bits.trailing_ones();
        longest = longest.max(ones);
        bits = bits.checked_shr(ones).unwrap_or(0);
    }
    longest
}

/// Patterns with a one every 1, 2, 4, … 64 bits.
const EVERY: [u128; 7] = [
    every_bits(1),
    every_bits(2),
    every_bits(4),
    every_bits(8),
    every_bits(16),
    every_bits(32),
    every_bits(64),
];

/// Ones at all multiples of `period`, a power of two below 128.
const fn every_bits(period: u32) -> u128 {
    u128::MAX / ((1 << period) - 1)
}

/// The bits `at`, `at` + period, …, where the period is `stride` plus one, a
/// power of two, and `at` less than it.
#[inline(always)]
pub(crate) fn every(stride: u64, at: u64) -> u128 {
    if stride == 0 {
        return u128::MAX;
    }
    let shift = stride.trailing_ones() as usize;
    match (EVERY.get(shift), u32::try_from(at)) {
        // `at` is less than the period: nothing falls out at the top that
        // would not come back in
        (Some(pattern), Ok(at)) => pattern << at,
        (None, Ok(at @ 0..128)) => 1 << at,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_a_run_that_was_moved() {
        for from in 0..128 {
            for len in 1..=128 - from {
                assert_eq!(span(from, len), run(len) << from, "{len} from {from} on");
            }
        }
    }
}
