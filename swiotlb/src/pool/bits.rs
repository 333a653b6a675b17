//! Runs of free slots in a segment: 128 bits, two words of the machine.

/// The bits of a segment's slots, where one word is changed at a time: a shift
/// of 128 bits costs more than all else that a mapping does to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bits([u64; 2]);

impl Bits {
    /// `len` ones from bit 0 on, 0 to 128.
    pub(crate) fn run(len: u32) -> Self {
        let bits = run(len);
        // each half of it is a word
        let word = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or(u64::MAX);
        Bits([word(bits), word(bits >> 64)])
    }

    /// All of them.
    #[inline(always)]
    pub(crate) fn all(self) -> u128 {
        let [low, high] = self.0;
        u128::from(high) << 64 | u128::from(low)
    }

    /// Makes `len` bits from `from` on ones, 1 to 128 and none beyond the top.
    #[inline(always)]
    pub(crate) fn set(&mut self, from: u32, len: u32) {
        self.change(from, len, |word, ones| *word |= ones);
    }

    /// Makes them zeroes.
    #[inline(always)]
    pub(crate) fn clear(&mut self, from: u32, len: u32) {
        self.change(from, len, |word, ones| *word &= !ones);
    }

    #[inline(always)]
    fn change(&mut self, from: u32, len: u32, change: impl Fn(&mut u64, u64)) {
        let [low, high] = &mut self.0;
        let bit = from % 64;
        if bit + len <= 64 {
            // as most are, in one word
            let ones = (u64::MAX >> (64 - len)) << bit;
            change(if from < 64 { low } else { high }, ones);
        } else {
            // the low word's last bits and the high word's first ones
            change(low, u64::MAX << bit);
            change(high, u64::MAX >> (128 - len - bit));
        }
    }
}

/// `len` ones from bit 0 on, 0 to 128.
#[inline(always)]
pub(crate) fn run(len: u32) -> u128 {
    match len {
        0 => 0,
        1..128 => (1 << len) - 1,
        _ => u128::MAX,
    }
}

/// Where runs of `len` ones start in `bits`, 1 to 128. Shift-and: the work
/// grows with the logarithm of `len`. Zeroes come in at the top, so that no run
/// leaves the segment.
#[inline(always)]
pub(crate) fn starts(bits: u128, len: u32) -> u128 {
    match len {
        1 => bits,
        2 => bits & bits >> 1,
        len => long_starts(bits, len),
    }
}

#[inline(never)]
fn long_starts(mut bits: u128, len: u32) -> u128 {
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

/// A one for every other bit, from the lowest on.
pub(crate) const EVEN: u128 = every_bits(2);

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
    fn what_is_set_and_cleared_is_a_run_that_was_moved() {
        for from in 0..128 {
            for len in 1..=128 - from {
                let (mut set, mut cleared) = (Bits::default(), Bits::run(128));
                set.set(from, len);
                cleared.clear(from, len);
                assert_eq!(set.all(), run(len) << from, "{len} from {from} on");
                assert_eq!(cleared.all(), !set.all(), "{len} from {from} on");
            }
        }
    }

    #[test]
    fn short_runs_start_where_long_ones_would() {
        for bits in [
            0,
            1,
            0b1011,
            u128::MAX,
            EVERY[1],
            EVERY[2] * 3,
            3 << 63,
            1 << 127,
        ] {
            for len in 1..=2 {
                assert_eq!(
                    starts(bits, len),
                    long_starts(bits, len),
                    "{len} in {bits:#x}"
                );
            }
        }
    }
}
