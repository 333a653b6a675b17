//! Which way bytes go, seen from the device.

/// The direction of a streaming mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The device reads.
    ToDevice,
    /// The device writes.
    FromDevice,
    /// Both.
    Bidirectional,
    /// Neither; no mapping has it.
    None,
}

impl Direction {
    /// Whether the device may read.
    pub fn to_device(self) -> bool {
        matches!(self, Direction::ToDevice | Direction::Bidirectional)
    }

    /// Whether the device may write.
    pub fn from_device(self) -> bool {
        matches!(self, Direction::FromDevice | Direction::Bidirectional)
    }

    /// Whether a mapping of this direction may be synchronised or unmapped as
    /// `other`: the same, or a part of both.
    pub fn covers(self, other: Direction) -> bool {
        other != Direction::None && (self == other || self == Direction::Bidirectional)
    }
}

/// Whose turn it is after a synchronisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncFor {
    /// The processor's: what the device wrote is copied to the original.
    Cpu,
    /// The device's: what the processor wrote is copied to the bounce buffer.
    /// Never for [`Direction::FromDevice`]: that would overwrite what the
    /// device has written already.
    Device,
}
