//! Who may read and write a node, as `GET_PERMS` and `SET_PERMS` spell it.
//!
//! Used by [`super::Tree`] and by the fake daemon, on any thread.

use std::fmt;
use std::str::FromStr;

use crate::DomId;

/// What a domain may do with a node.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum Access {
    /// `n`: nothing.
    None,
    /// `r`: read it.
    Read,
    /// `w`: write it.
    Write,
    /// `b`: read and write it.
    Both,
}

impl Access {
    /// Whether reading is included.
    #[must_use]
    pub fn reads(self) -> bool {
        matches!(self, Access::Read | Access::Both)
    }

    /// Whether writing is included.
    #[must_use]
    pub fn writes(self) -> bool {
        matches!(self, Access::Write | Access::Both)
    }
}

/// One entry of a node's permission list.
///
/// The first entry of a list names the node's owner, who may do everything;
/// its access is what domains without an entry of their own get
/// (`docs/misc/xenstore.txt`).
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct Permission {
    /// The domain the entry is about.
    pub domain: DomId,
    /// What it may do.
    pub access: Access,
}

impl Permission {
    /// An entry for `domain`.
    #[must_use]
    pub const fn new(domain: DomId, access: Access) -> Self {
        Self { domain, access }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.access {
            Access::None => 'n',
            Access::Read => 'r',
            Access::Write => 'w',
            Access::Both => 'b',
        };
        write!(f, "{letter}{}", self.domain.0)
    }
}

/// A text that is no permission entry.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} is no xenstore permission: n, r, w or b and a domain id was expected")]
pub struct PermissionError {
    /// The text.
    pub text: String,
}

impl FromStr for Permission {
    type Err = PermissionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || PermissionError {
            text: text.to_owned(),
        };
        let mut characters = text.chars();
        let access = match characters.next() {
            Some('n') => Access::None,
            Some('r') => Access::Read,
            Some('w') => Access::Write,
            Some('b') => Access::Both,
            _ => return Err(refused()),
        };
        let domain = characters.as_str();
        if !domain.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refused());
        }
        let domain = domain.parse().map_err(|_| refused())?;
        Ok(Self {
            domain: DomId(domain),
            access,
        })
    }
}
