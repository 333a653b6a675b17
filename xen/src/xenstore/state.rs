//! The states a device's two ends show each other.

use std::fmt;

use super::node::NodeValue;

/// A `state` node's value (`enum xenbus_state`,
/// `xen/include/public/io/xenbus.h`).
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
#[repr(u8)]
pub enum XenbusState {
    /// 0: nothing is known.
    Unknown = 0,
    /// 1: the toolstack made the node.
    Initialising = 1,
    /// 2: the back end is there and waits; libxl waits for this when it
    /// adds a disk.
    InitWait = 2,
    /// 3: the front end has written its part.
    Initialised = 3,
    /// 4: in use.
    Connected = 4,
    /// 5: to be given up; the toolstack asks with this, and `online` 0.
    Closing = 5,
    /// 6: given up.
    Closed = 6,
    /// 7: being changed.
    Reconfiguring = 7,
    /// 8: has been changed.
    Reconfigured = 8,
}

impl XenbusState {
    /// The state with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Unknown,
            1 => Self::Initialising,
            2 => Self::InitWait,
            3 => Self::Initialised,
            4 => Self::Connected,
            5 => Self::Closing,
            6 => Self::Closed,
            7 => Self::Reconfiguring,
            8 => Self::Reconfigured,
            _ => return None,
        })
    }

    /// The number in the node.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Initialising => 1,
            Self::InitWait => 2,
            Self::Initialised => 3,
            Self::Connected => 4,
            Self::Closing => 5,
            Self::Closed => 6,
            Self::Reconfiguring => 7,
            Self::Reconfigured => 8,
        }
    }
}

/// The decimal number, as it stands in the node.
impl fmt::Display for XenbusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

impl NodeValue for XenbusState {
    const EXPECTED: &'static str = "a xenbus state, 0 to 8";

    fn parse(text: &str) -> Option<Self> {
        u8::parse(text).and_then(Self::from_number)
    }
}
