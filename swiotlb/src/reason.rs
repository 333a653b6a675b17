//! Why a mapping is bounced.

use std::fmt;

/// The first reason that was found, in the order in which they are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Everything is bounced.
    Forced,
    /// The original is out of the device's reach.
    OutOfReach,
    /// The original is not one piece on the bus.
    Straddles,
    /// The original is somebody else's frame, the device does not see caches
    /// and the hypervisor does not flush them.
    ForeignCache,
    /// The device is not trusted and would see more than the mapping.
    Granule,
    /// The device does not see caches and the original is not whole lines.
    CacheLine,
    /// The device reaches shared memory alone and the original is private.
    Sharing,
    /// Not a mapping: coherent memory from the pool.
    Coherent,
}

impl Reason {
    /// All reasons, in their order.
    pub const ALL: [Reason; Reason::COUNT] = [
        Reason::Forced,
        Reason::OutOfReach,
        Reason::Straddles,
        Reason::ForeignCache,
        Reason::Granule,
        Reason::CacheLine,
        Reason::Sharing,
        Reason::Coherent,
    ];
    /// How many there are.
    pub(crate) const COUNT: usize = 8;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Forced => "forced",
            Reason::OutOfReach => "out-of-reach",
            Reason::Straddles => "straddles",
            Reason::ForeignCache => "foreign-cache",
            Reason::Granule => "granule",
            Reason::CacheLine => "cache-line",
            Reason::Sharing => "sharing",
            Reason::Coherent => "coherent",
        })
    }
}
