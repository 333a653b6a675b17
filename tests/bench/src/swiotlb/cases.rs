//! What is measured of pairs of map and unmap, and what is expected of them
//! (the crate's specification, section 17).

use serde::Serialize;
use swiotlb::allocator::PadPolicy;
use swiotlb::sizing::SLOT_SIZE;
use swiotlb::{Consumer, Direction};

/// The sizes, bytes.
pub const SIZES: [u64; 4] = [512, 4096, 65_536, 262_144];

/// A direction, with what its consumer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Way {
    /// Copied in when it is mapped.
    ToDevice,
    /// Copied in when it is mapped and back when it is unmapped.
    FromDevice,
    /// The same.
    Bidirectional,
    /// Its consumer states what it has written: copied back.
    FromDeclared,
}

/// Where the slots of two threads come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Areas {
    /// Each thread's own area.
    Own,
    /// One area.
    Shared,
}

/// One pair under one set of conditions.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Case {
    /// The direction.
    pub way: Way,
    /// Bytes.
    pub size: u64,
    /// Threads that do the same at the same time.
    pub threads: usize,
    /// Whose area.
    pub areas: Areas,
    /// Whether originals are out of the caches.
    pub cold: bool,
    /// Mappings that are open at a time.
    pub depth: u64,
    /// Whether the bytes of the slots around the mapping are zeroed.
    pub zeroed: bool,
}

impl Way {
    /// How often the data is copied.
    pub fn copies(self) -> u32 {
        match self {
            Way::ToDevice | Way::FromDeclared => 1,
            Way::FromDevice | Way::Bidirectional => 2,
        }
    }

    /// The direction.
    pub fn direction(self) -> Direction {
        match self {
            Way::ToDevice => Direction::ToDevice,
            Way::FromDevice | Way::FromDeclared => Direction::FromDevice,
            Way::Bidirectional => Direction::Bidirectional,
        }
    }

    /// The consumer.
    pub fn consumer(self) -> Consumer {
        match self {
            Way::FromDeclared => Consumer::Declaring,
            _ => Consumer::Trusted,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Way::ToDevice => "to",
            Way::FromDevice => "from",
            Way::Bidirectional => "both",
            Way::FromDeclared => "from, declared",
        }
    }
}

impl Case {
    fn one(way: Way, size: u64) -> Self {
        Case {
            way,
            size,
            threads: 1,
            areas: Areas::Own,
            cold: false,
            depth: 1,
            zeroed: true,
        }
    }

    /// Everything that the table has, in its order.
    pub fn all() -> Vec<Case> {
        let ways = [
            Way::ToDevice,
            Way::FromDevice,
            Way::Bidirectional,
            Way::FromDeclared,
        ];
        let places = [(1, Areas::Own), (2, Areas::Own), (2, Areas::Shared)];
        let mut cases = Vec::new();
        for (threads, areas) in places {
            for cold in [false, true] {
                for way in ways {
                    for size in SIZES {
                        let case = Case {
                            threads,
                            areas,
                            cold,
                            ..Case::one(way, size)
                        };
                        cases.push(case);
                        if case.padding() > 0 && !cold && areas == Areas::Own {
                            cases.push(Case {
                                zeroed: false,
                                ..case
                            });
                        }
                    }
                }
            }
        }
        // many at a time: bounce buffers no longer stay in the nearest cache
        for threads in [1, 2] {
            for way in [Way::ToDevice, Way::FromDevice] {
                for size in SIZES {
                    cases.push(Case {
                        threads,
                        depth: 32,
                        ..Case::one(way, size)
                    });
                }
            }
        }
        cases
    }

    /// The bytes of its slots around the mapping.
    pub fn padding(&self) -> u64 {
        match self.zeroed {
            true => self.size.next_multiple_of(SLOT_SIZE) - self.size,
            false => 0,
        }
    }

    /// The pool's policy.
    pub fn pad(&self) -> PadPolicy {
        match self.zeroed {
            true => PadPolicy::Zero,
            false => PadPolicy::Trusted,
        }
    }

    /// Whether the gate is stated for it: for one mapping at a time, and not for
    /// threads that share an area: they wait for each other, which memcpy does
    /// not.
    pub fn is_gated(&self) -> bool {
        self.areas == Areas::Own && self.depth == 1
    }

    /// Section 17.4's figure for this pair, nanoseconds on its machine.
    pub fn target(&self) -> Option<f64> {
        if self.threads != 1 || self.cold || self.depth != 1 {
            return None;
        }
        let targets = match self.way {
            Way::ToDevice => [40.0, 110.0, 1600.0, 7200.0],
            Way::FromDevice => [50.0, 170.0, 2800.0, 12_500.0],
            Way::FromDeclared => [42.0, 115.5, 1680.0, 7560.0],
            Way::Bidirectional => return None,
        };
        let of_size = SIZES
            .iter()
            .zip(targets)
            .find(|&(&size, _)| size == self.size);
        // the figures at 512 bytes are without zeroing, which may add 15 ns
        let zeroing = if self.padding() > 0 { 15.0 } else { 0.0 };
        of_size.map(|(_, target)| target + zeroing)
    }

    /// What Linux takes for this pair, as a multiple of memcpy (section 17.5).
    pub fn linux(&self) -> Option<f64> {
        let plain = self.way == Way::ToDevice && self.threads == 1 && !self.cold && self.depth == 1;
        let ratios = SIZES.iter().zip([35.0, 4.7, 2.4, 2.0]);
        let of_size = ratios.into_iter().find(|&(&size, _)| size == self.size);
        of_size.filter(|_| plain).map(|(_, ratio)| ratio)
    }

    /// What is done about its padding.
    pub fn padding_name(&self) -> &'static str {
        match (self.zeroed, self.padding()) {
            (false, _) => "left",
            (true, 0) => "none",
            (true, _) => "zeroed",
        }
    }

    /// Its name in the table.
    pub fn name(&self) -> String {
        let size = match self.size {
            size if size < 1024 => format!("{size} B"),
            size => format!("{} KiB", size / 1024),
        };
        let place = match (self.threads, self.areas) {
            (1, _) => "1 thread",
            (_, Areas::Own) => "2 threads, own areas",
            (_, Areas::Shared) => "2 threads, one area",
        };
        let warmth = if self.cold { "cold" } else { "hot" };
        format!(
            "{size:>7} {:<14} {warmth:<4} qd{:<2} {place}",
            self.way.name(),
            self.depth
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_what_the_slots_have_more() {
        assert_eq!(Case::one(Way::ToDevice, 512).padding(), 1536);
        assert_eq!(Case::one(Way::ToDevice, 4096).padding(), 0);
        let trusted = Case {
            zeroed: false,
            ..Case::one(Way::ToDevice, 512)
        };
        assert_eq!(trusted.padding(), 0);
    }

    #[test]
    fn every_case_is_there_once_and_linux_is_compared_at_each_size() {
        let mut names: Vec<_> = Case::all().iter().map(|c| (c.name(), c.zeroed)).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        let mut compared = Case::all();
        compared.retain(|case| case.zeroed && case.linux().is_some());
        assert_eq!(compared.len(), SIZES.len());
    }
}
