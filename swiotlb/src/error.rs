//! Every way in which the TLB can refuse.
//!
//! An error leaves slots, memory and gauges as they were before the call, with
//! one exception: an unmap whose copy-back fails has freed its slots.

use thiserror::Error;

use crate::contiguity::NoTranslation;
use crate::direction::Direction;
use crate::features::FeatureError;

/// Why no slots can ever be found for a request, whatever is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unsatisfiable {
    /// It is longer than the windows that it must not leave.
    #[error("{slots} slots do not fit a boundary window of {window}")]
    Boundary {
        /// Slots that the request takes.
        slots: u32,
        /// Slots between two boundaries.
        window: u64,
    },
}

/// What the TLB refused, and with which value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// Nothing to map.
    #[error("a mapping of no bytes at {address:#x}")]
    ZeroLength {
        /// Its address.
        address: u64,
    },
    /// More than a mapping can hold.
    #[error("{len} bytes are more than a mapping's {max}")]
    TooLarge {
        /// Bytes asked for.
        len: u64,
        /// The device's largest mapping, bytes.
        max: u64,
    },
    /// A range that wraps around.
    #[error("range at {address:#x} of {len} bytes wraps around")]
    AddressOverflow {
        /// Its address.
        address: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// A mapping for nobody.
    #[error("a mapping without a direction")]
    BadDirection,
    /// Another direction than the mapping has.
    #[error("mapped {mapped:?}, and not {given:?}")]
    DirectionMismatch {
        /// The mapping's direction.
        mapped: Direction,
        /// What the call named.
        given: Direction,
    },
    /// No mapping starts there.
    #[error("no mapping at {address:#x}")]
    NotMapped {
        /// The address.
        address: u64,
    },
    /// A mapping has another length.
    #[error("the mapping at {address:#x} has {mapped} bytes, and not {given}")]
    LengthMismatch {
        /// Its address.
        address: u64,
        /// Its length, bytes.
        mapped: u64,
        /// The length that the call named.
        given: u64,
    },
    /// A range that is not wholly inside its mapping.
    #[error("{len} bytes at {address:#x} are not inside one mapping")]
    OutOfRange {
        /// Where it starts.
        address: u64,
        /// Its length, bytes.
        len: u64,
    },
    /// No room.
    #[error(
        "no room for {wanted_slots} slots: {used} of {total} are used, \
         the longest free run is {largest_free_run}"
    )]
    Full {
        /// Slots asked for.
        wanted_slots: u32,
        /// Slots there are.
        total: u64,
        /// Slots in use.
        used: u64,
        /// The longest run of free slots.
        largest_free_run: u32,
    },
    /// No state of the pool has room.
    #[error("the request can never be satisfied")]
    Unsatisfiable(#[source] Unsatisfiable),
    /// It must be bounced and there is no pool.
    #[error("it must be bounced and there is no pool")]
    NoPool,
    /// A frame without translation.
    #[error("an address cannot be translated")]
    NoTranslation(
        #[from]
        #[source]
        NoTranslation,
    ),
    /// Out of the device's reach, and never bounced.
    #[error("{len} bytes at {address:#x} are out of the device's reach, which ends at {limit:#x}")]
    NotCapable {
        /// The device's address.
        address: u64,
        /// Length, bytes.
        len: u64,
        /// The last address the device reaches.
        limit: u64,
    },
    /// It must be bounced and must not be.
    #[error("it must be bounced and {0} forbids it")]
    BounceForbidden(&'static str),
    /// The slots found are out of the device's reach.
    #[error("the bounce buffer at {address:#x} is out of reach, which ends at {limit:#x}")]
    BounceUnreachable {
        /// Its address.
        address: u64,
        /// The last address the device reaches.
        limit: u64,
    },
    /// The pool is out of the device's reach.
    #[error("the pool goes up to {max_bus:#x}, the device reaches {limit:#x}")]
    PoolUnreachable {
        /// The last address the device reaches.
        limit: u64,
        /// The pool's highest address, over all of its frames.
        max_bus: u64,
    },
    /// The host has no memory.
    #[error("no memory for a pool of {bytes} bytes (error {os_error})")]
    NoMemory {
        /// Bytes asked for.
        bytes: u64,
        /// What the system said; 0 where it said nothing.
        os_error: i32,
    },
    /// A pool could not be moved below the limit.
    #[error("the pool's memory could not be exchanged: {0}")]
    Remap(String),
    /// Still in use.
    #[error("{used} slots are in use or bouncing is forced")]
    Busy {
        /// Slots in use.
        used: u64,
    },
    /// An option that does not exist, or not there.
    #[error("option {option:?} {reason}")]
    BadOption {
        /// The option's text.
        option: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A region that cannot be a pool.
    #[error("region at {base:#x} of {size} bytes {reason}")]
    BadRegion {
        /// Where it starts.
        base: u64,
        /// Its length, bytes.
        size: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The domain's features do not tell its kind.
    #[error("the domain's kind is not known")]
    Features(
        #[from]
        #[source]
        FeatureError,
    ),
    /// A part of the original cannot be reached.
    #[error("the original cannot be reached {offset} bytes in")]
    OrigFault {
        /// Offset of the first such byte in the mapping.
        offset: u64,
    },
    /// References beyond the last one.
    #[error("{count} grants from reference {first} on run past the last reference")]
    GrantRange {
        /// The first reference.
        first: u32,
        /// How many.
        count: u64,
    },
    /// Xen refused a copy.
    #[error("a grant copy failed with status {0}")]
    GrantCopy(i16),
    /// A peer did not give a grant back; the device is not used any more.
    #[error("the device is broken: a peer holds on to its grants")]
    Broken,
    /// A parameter out of its range.
    #[error("{what} cannot be {value:#x}")]
    Invalid {
        /// Which parameter.
        what: &'static str,
        /// Its value.
        value: u64,
    },
}
