//! The number Xen knows a domain by.
//!
//! Used by every module of this crate and by its callers, on any thread.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

/// A domain's id (`domid_t`, `xen/include/public/xen.h`).
///
/// Ordinary domains have ids below [`DomId::FIRST_RESERVED`].
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct DomId(pub u16);

impl DomId {
    /// The first id that names no ordinary domain (`DOMID_FIRST_RESERVED`).
    pub const FIRST_RESERVED: u16 = 0x7ff0;
    /// The caller's own domain (`DOMID_SELF`).
    pub const SELF: DomId = DomId(0x7ff0);

    /// Whether the id can belong to an ordinary domain.
    #[must_use]
    pub const fn is_ordinary(self) -> bool {
        self.0 < Self::FIRST_RESERVED
    }
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<u16> for DomId {
    fn from(id: u16) -> Self {
        DomId(id)
    }
}

impl FromStr for DomId {
    type Err = ParseIntError;

    /// Parses a decimal id, as xenstore and command lines write it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(DomId)
    }
}
