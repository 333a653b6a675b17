//! Whether granted data is mapped or copied: set, or learned from what each has
//! cost.
//!
//! One policy for all queues of a device: a queue's worker asks it once a batch
//! and tells it what the batch has cost. Costs are kept by size, one class for
//! each power of two.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::Error;

/// The smallest size with a class of its own, `log2` of bytes.
const FIRST: u32 = 9;
/// Classes: 512 bytes and less, 1 KiB, …, 1 MiB and more.
pub(super) const CLASSES: usize = 12;
/// What both ways are tried for, at first, before they are compared.
const TRIALS: u64 = 4;
/// The dearer way is tried again once in this many batches, times how much
/// dearer it is: that costs less than a fiftieth, whatever it costs.
const AGAIN: u64 = 64;
/// The dearer way is tried again after this many batches at the latest.
const AGAIN_MOST: u64 = 4096;
/// A new cost counts for an eighth.
const WEIGHT: u64 = 8;
/// What one sample may be, times what is known: whoever lost the processor in
/// the middle has measured that.
const OUTLIER: u64 = 4;

/// How granted data that a consumer could use by either way is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GrantMode {
    /// By the way that has been cheaper for data of that size.
    #[default]
    Adaptive,
    /// Mapped.
    Map,
    /// Copied through the pool.
    Copy,
    /// Copied up to this many bytes, else mapped.
    CopyUpTo(u32),
}

impl std::fmt::Display for GrantMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            GrantMode::Adaptive => f.write_str("adaptive"),
            GrantMode::Map => f.write_str("map"),
            GrantMode::Copy => f.write_str("copy"),
            GrantMode::CopyUpTo(bytes) => write!(f, "copy-up-to:{bytes}"),
        }
    }
}

impl FromStr for GrantMode {
    type Err = Error;

    /// `adaptive`, `map`, `copy` or `copy-up-to:BYTES`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "adaptive" => return Ok(GrantMode::Adaptive),
            "map" => return Ok(GrantMode::Map),
            "copy" => return Ok(GrantMode::Copy),
            _ => {}
        }
        let bytes = text.strip_prefix("copy-up-to:");
        let bytes = bytes.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        bytes
            .and_then(|digits| digits.parse().ok())
            .map(GrantMode::CopyUpTo)
            .ok_or_else(|| Error::BadOption {
                option: text.to_owned(),
                reason: "is none of adaptive, map, copy, copy-up-to:BYTES",
            })
    }
}

/// One way to granted data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Map,
    Copy,
}

/// The class of data of `bytes` bytes.
pub(super) fn class_of(bytes: u64) -> usize {
    // the power of two that is not below it
    let log = bytes.max(1).next_power_of_two().trailing_zeros();
    usize::try_from(log.saturating_sub(FIRST))
        .unwrap_or(CLASSES)
        .min(CLASSES - 1)
}

/// The largest data of a class, bytes; the last class has no end.
fn most_of(class: usize) -> u64 {
    1 << (class as u64 + u64::from(FIRST))
}

/// What one way has cost, per request.
#[derive(Debug, Default)]
struct Cost {
    /// Nanoseconds, times 16.
    mean: AtomicU64,
    samples: AtomicU64,
}

impl Cost {
    /// Queues may overwrite each other's samples: they are samples.
    fn add(&self, nanoseconds: u64) {
        let sample = nanoseconds.saturating_mul(16);
        let count = self.samples.fetch_add(1, Ordering::Relaxed);
        let mean = self.mean.load(Ordering::Relaxed);
        let next = match count {
            0 => sample,
            // the first ones pay for what is done once
            1..TRIALS => mean.min(sample),
            _ => {
                let sample = sample.min(mean.saturating_mul(OUTLIER));
                mean - mean / WEIGHT + sample / WEIGHT
            }
        };
        self.mean.store(next.max(1), Ordering::Relaxed);
    }

    fn nanoseconds(&self) -> u64 {
        self.mean.load(Ordering::Relaxed) / 16
    }

    fn samples(&self) -> u64 {
        self.samples.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct Class {
    map: Cost,
    copy: Cost,
    /// Batches since the dearer way was tried.
    since: AtomicU64,
}

impl Class {
    fn better(&self) -> Way {
        match self.copy.mean.load(Ordering::Relaxed) <= self.map.mean.load(Ordering::Relaxed) {
            true => Way::Copy,
            false => Way::Map,
        }
    }

    /// The way of this batch.
    fn choose(&self) -> Way {
        let (copies, maps) = (self.copy.samples(), self.map.samples());
        if copies.min(maps) < TRIALS {
            return if copies <= maps { Way::Copy } else { Way::Map };
        }
        let (copy, map) = (self.copy.nanoseconds(), self.map.nanoseconds());
        let dearer = copy.max(map) / copy.min(map).max(1);
        let interval = AGAIN.saturating_mul(dearer.max(1)).min(AGAIN_MOST);
        let better = self.better();
        if self.since.fetch_add(1, Ordering::Relaxed) < interval {
            return better;
        }
        self.since.store(0, Ordering::Relaxed);
        match better {
            Way::Copy => Way::Map,
            Way::Map => Way::Copy,
        }
    }
}

/// A device's way to granted data.
#[derive(Debug)]
pub struct GrantPolicy {
    mode: GrantMode,
    classes: [Class; CLASSES],
}

impl Default for GrantPolicy {
    fn default() -> Self {
        GrantPolicy::new(GrantMode::default())
    }
}

impl GrantPolicy {
    /// A policy that has learned nothing yet.
    #[must_use]
    pub fn new(mode: GrantMode) -> Self {
        GrantPolicy {
            mode,
            classes: Default::default(),
        }
    }

    /// What it was set to.
    #[must_use]
    pub fn mode(&self) -> GrantMode {
        self.mode
    }

    /// Whether it wants to know what batches cost.
    pub(super) fn learns(&self) -> bool {
        self.mode == GrantMode::Adaptive
    }

    /// The ways of one batch.
    pub(super) fn plan(&self) -> Plan<'_> {
        Plan {
            policy: self,
            chosen: [None; CLASSES],
        }
    }

    /// A request's share of what a batch has cost.
    pub(super) fn learn(&self, class: usize, way: Way, cost: Duration) {
        let Some(class) = self.classes.get(class) else {
            return;
        };
        let nanoseconds = u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX);
        match way {
            Way::Map => class.map.add(nanoseconds),
            Way::Copy => class.copy.add(nanoseconds),
        }
    }

    /// What it does now, and what it knows.
    #[must_use]
    pub fn snapshot(&self) -> GrantPolicySnapshot {
        let classes = self.classes.iter().enumerate().map(|(index, class)| {
            let (copies, maps) = (class.copy.samples(), class.map.samples());
            GrantClass {
                bytes: most_of(index),
                copies,
                copy_nanoseconds: class.copy.nanoseconds(),
                maps,
                map_nanoseconds: class.map.nanoseconds(),
                copied: match self.mode {
                    GrantMode::Map => false,
                    GrantMode::Copy => true,
                    GrantMode::CopyUpTo(most) => most_of(index) <= u64::from(most),
                    GrantMode::Adaptive => {
                        copies.min(maps) >= TRIALS && class.better() == Way::Copy
                    }
                },
            }
        });
        GrantPolicySnapshot {
            mode: self.mode,
            classes: classes.collect(),
        }
    }
}

/// The ways of one batch: all data of a class goes the same one, so that it is
/// measured as it is used.
pub(super) struct Plan<'a> {
    policy: &'a GrantPolicy,
    chosen: [Option<Way>; CLASSES],
}

impl Plan<'_> {
    /// The way for granted data of `bytes` bytes.
    pub(super) fn way(&mut self, bytes: u64) -> Way {
        let set = match self.policy.mode {
            GrantMode::Map => Some(Way::Map),
            GrantMode::Copy => Some(Way::Copy),
            GrantMode::CopyUpTo(most) if bytes <= u64::from(most) => Some(Way::Copy),
            GrantMode::CopyUpTo(_) => Some(Way::Map),
            GrantMode::Adaptive => None,
        };
        if let Some(way) = set {
            return way;
        }
        let class = class_of(bytes);
        let Some((class, chosen)) = self
            .policy
            .classes
            .get(class)
            .zip(self.chosen.get_mut(class))
        else {
            return Way::Map;
        };
        *chosen.get_or_insert_with(|| class.choose())
    }
}

/// What a policy does, and what it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantPolicySnapshot {
    /// What it was set to.
    pub mode: GrantMode,
    /// By size.
    pub classes: Vec<GrantClass>,
}

impl GrantPolicySnapshot {
    /// Up to how many bytes data is copied; 0 if none is. Of a learned policy
    /// that is as far as copying has been cheaper at every size that was seen.
    #[must_use]
    pub fn copies_up_to(&self) -> u64 {
        match self.mode {
            GrantMode::Map => 0,
            GrantMode::Copy => u64::MAX,
            GrantMode::CopyUpTo(most) => u64::from(most),
            GrantMode::Adaptive => {
                let seen = self.classes.iter().filter(|class| class.is_known());
                seen.take_while(|class| class.copied)
                    .last()
                    .map_or(0, |class| class.bytes)
            }
        }
    }
}

/// Data of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantClass {
    /// Up to how many bytes, and more than half of that. The last class has no
    /// end, the first no beginning.
    pub bytes: u64,
    /// Requests whose copies were measured.
    pub copies: u64,
    /// What copying has cost of late, nanoseconds a request.
    pub copy_nanoseconds: u64,
    /// Requests whose mapping and unmapping was measured.
    pub maps: u64,
    /// What these have cost of late, nanoseconds a request.
    pub map_nanoseconds: u64,
    /// Whether such data is copied.
    pub copied: bool,
}

impl GrantClass {
    /// Whether both ways have been measured often enough to be compared.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.copies.min(self.maps) >= TRIALS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `batches` of one request each, at these costs; how many were copied.
    fn run(policy: &GrantPolicy, batches: u64, bytes: u64, copy: u64, map: u64) -> u64 {
        let mut copied = 0;
        for _ in 0..batches {
            let way = policy.plan().way(bytes);
            let cost = match way {
                Way::Copy => copy,
                Way::Map => map,
            };
            copied += u64::from(way == Way::Copy);
            policy.learn(class_of(bytes), way, Duration::from_nanos(cost));
        }
        copied
    }

    #[test]
    fn sizes_belong_to_the_power_of_two_above_them() {
        let classes = [
            0,
            1,
            512,
            513,
            1024,
            4096,
            4097,
            1 << 20,
            1 << 21,
            u64::MAX / 2,
        ]
        .map(class_of);

        assert_eq!(classes, [0, 0, 0, 1, 1, 3, 4, 11, 11, 11]);
    }

    #[test]
    fn the_cheaper_way_is_found_and_the_other_one_costs_less_than_a_twentieth() {
        for (copy, map) in [(1_000, 10_000), (10_000, 1_000), (5_000, 6_000)] {
            let policy = GrantPolicy::default();
            run(&policy, 8, 4096, copy, map);

            let copied = run(&policy, 10_000, 4096, copy, map);

            let spent = copied * copy + (10_000 - copied) * map;
            let best = 10_000 * copy.min(map);
            assert!(spent * 20 <= best * 21, "{spent} of {best}");
            assert!(spent > best, "the other way is never tried again");
        }
    }

    #[test]
    fn what_becomes_cheaper_is_noticed() {
        let policy = GrantPolicy::default();
        run(&policy, 1_000, 8192, 1_000, 2_000);

        run(&policy, 5_000, 8192, 8_000, 2_000);

        let copied = run(&policy, 1_000, 8192, 8_000, 2_000);
        assert!(copied < 50, "{copied} of 1000 are still copied");
    }

    #[test]
    fn one_sample_that_lost_the_processor_changes_nothing() {
        let policy = GrantPolicy::default();
        run(&policy, 1_000, 4096, 1_000, 3_000);

        policy.learn(class_of(4096), Way::Copy, Duration::from_secs(1));

        assert_eq!(policy.snapshot().copies_up_to(), 4096);
    }

    #[test]
    fn all_data_of_a_class_goes_one_way_in_a_batch() {
        let policy = GrantPolicy::default();
        let mut plan = policy.plan();

        let ways: Vec<_> = (0..10).map(|_| plan.way(4096)).collect();

        assert!(ways.iter().all(|way| *way == ways[0]));
    }

    #[test]
    fn modes_are_read_as_they_are_shown_and_nothing_else_is() {
        let modes = [
            GrantMode::Adaptive,
            GrantMode::Map,
            GrantMode::Copy,
            GrantMode::CopyUpTo(8192),
        ];
        let wrong = [
            "",
            "maps",
            "copy-up-to:",
            "copy-up-to:-1",
            "copy-up-to:5000000000",
        ];

        for mode in modes {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        for text in wrong {
            assert!(text.parse::<GrantMode>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_set_is_done_and_told() {
        let ways = |mode| {
            let policy = GrantPolicy::new(mode);
            let mut plan = policy.plan();
            let ways = [512, 4096, 4097].map(|bytes| plan.way(bytes) == Way::Copy);
            (ways, policy.snapshot().copies_up_to())
        };

        assert_eq!(ways(GrantMode::Map), ([false; 3], 0));
        assert_eq!(ways(GrantMode::Copy), ([true; 3], u64::MAX));
        assert_eq!(ways(GrantMode::CopyUpTo(4096)), ([true, true, false], 4096));
    }
}
