//! The pool's options: `[nslots][,nareas][,force|noforce][,track_hiwater]`.
//!
//! Read once, at start, from the embedder's configuration. Tokens are matched
//! exactly; Linux matches prefixes.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;
use crate::sizing::{MAX_SLOTS, SEGMENT_SLOTS, Sizing};

/// Slots of a pool where nothing else is said: 64 MiB.
pub const DEFAULT_SLOTS: u32 = 32_768;

/// Whether mappings are bounced that need not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bouncing {
    /// Where needed.
    #[default]
    Needed,
    /// Always.
    Forced,
    /// Never: no pool is made.
    Suppressed,
}

/// The options of a pool.
///
/// ```
/// use swiotlb::options::{Bouncing, Options};
/// let options: Options = "65536,3,force".parse()?;
/// assert_eq!(options.bouncing, Bouncing::Forced);
/// let sizing = options.sizing(8);
/// assert_eq!((sizing.nslots(), sizing.nareas()), (65_536, 4));
/// # Ok::<(), swiotlb::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    nslots: Option<u32>,
    nareas: Option<u32>,
    /// Whether to bounce what need not be.
    pub bouncing: Bouncing,
    /// Whether the highest number of used slots is recorded.
    pub track_hiwater: bool,
}

impl Options {
    /// The slots and areas of the pool on a machine with `workers` threads
    /// that map (at least one is assumed).
    pub fn sizing(&self, workers: u32) -> Sizing {
        let nareas = self.nareas.unwrap_or(workers);
        Sizing::raised(self.nslots.unwrap_or(DEFAULT_SLOTS), nareas)
    }

    /// The same options with another say about bouncing.
    #[must_use]
    pub fn with_bouncing(self, bouncing: Bouncing) -> Self {
        Options { bouncing, ..self }
    }

    /// Lets the platform set the number of slots, which counts only where the
    /// options left it alone. Returns whether it did.
    pub fn adjust_size(&mut self, nslots: u32) -> bool {
        if self.nslots.is_some_and(|slots| slots != DEFAULT_SLOTS) {
            return false;
        }
        self.nslots = Some(round_slots(u64::from(nslots)).unwrap_or(MAX_SLOTS));
        true
    }

    fn set_slots(&mut self, token: &str) -> Result<(), Error> {
        let slots = number(token)?;
        self.nslots = Some(round_slots(slots).ok_or_else(|| bad(token, "is too many slots"))?);
        Ok(())
    }

    fn set_areas(&mut self, token: &str) -> Result<(), Error> {
        let too_many = || bad(token, "is too many areas");
        let areas = u32::try_from(number(token)?).map_err(|_| too_many())?;
        let areas = areas.max(1).checked_next_power_of_two();
        let most = MAX_SLOTS / SEGMENT_SLOTS;
        self.nareas = Some(areas.filter(|&n| n <= most).ok_or_else(too_many)?);
        Ok(())
    }
}

impl FromStr for Options {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut options = Options::default();
        if text.is_empty() {
            return Ok(options);
        }
        // what may still come: 0 slots, 1 areas, 2 force, 3 hiwater, 4 nothing
        let mut place = 0;
        let mut tokens = text.split(',').peekable();
        while let Some(token) = tokens.next() {
            let is_number = token.starts_with(|c: char| c.is_ascii_digit());
            place = match (token, place) {
                ("", 0 | 1) if tokens.peek().is_some() => place + 1,
                ("", _) => return Err(bad(token, "is empty")),
                ("force", 0..=2) => {
                    options.bouncing = Bouncing::Forced;
                    3
                }
                ("noforce", 0..=2) => {
                    options.bouncing = Bouncing::Suppressed;
                    3
                }
                ("track_hiwater", 0..=3) => {
                    options.track_hiwater = true;
                    4
                }
                ("force" | "noforce" | "track_hiwater", _) => {
                    return Err(bad(token, "comes twice, too late or beside its opposite"));
                }
                (_, 0) if is_number => {
                    options.set_slots(token)?;
                    1
                }
                (_, 1) if is_number => {
                    options.set_areas(token)?;
                    2
                }
                _ => return Err(bad(token, "is not known there")),
            };
        }
        Ok(options)
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        match (self.nslots, self.nareas) {
            (None, None) => {}
            (Some(slots), None) => parts.push(slots.to_string()),
            (slots, Some(areas)) => {
                parts.push(slots.map(|n| n.to_string()).unwrap_or_default());
                parts.push(areas.to_string());
            }
        }
        match self.bouncing {
            Bouncing::Needed => {}
            Bouncing::Forced => parts.push("force".into()),
            Bouncing::Suppressed => parts.push("noforce".into()),
        }
        if self.track_hiwater {
            parts.push("track_hiwater".into());
        }
        f.write_str(&parts.join(","))
    }
}

fn bad(option: &str, reason: &'static str) -> Error {
    Error::BadOption {
        option: option.into(),
        reason,
    }
}

/// Decimal, hexadecimal with `0x` or octal with `0`.
fn number(token: &str) -> Result<u64, Error> {
    let parsed = if let Some(hex) = token.strip_prefix("0x") {
        u64::from_str_radix(hex, 16)
    } else if let Some(octal) = token.strip_prefix('0').filter(|rest| !rest.is_empty()) {
        u64::from_str_radix(octal, 8)
    } else {
        token.parse()
    };
    // from_str_radix takes a sign
    let signed = token.contains(['+', '-']);
    parsed
        .ok()
        .filter(|_| !signed)
        .ok_or_else(|| bad(token, "is not a number of 64 bits"))
}

/// Up to whole segments; `None` where no pool can be so large.
fn round_slots(slots: u64) -> Option<u32> {
    let slots = slots.checked_next_multiple_of(u64::from(SEGMENT_SLOTS))?;
    u32::try_from(slots)
        .ok()
        .filter(|&slots| slots <= MAX_SLOTS)
}
