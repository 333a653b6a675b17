//! What can be wrong with a range of guest memory.

use thiserror::Error;

/// Why a range would have to be bounced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum BounceReason {
    /// The consumer pins pages and these cannot be pinned.
    #[error("its pages cannot be pinned")]
    Pinned,
    /// The consumer takes one piece and the range is several.
    #[error("it is not contiguous")]
    Straddles,
    /// It does not have the alignment that the consumer asks for.
    #[error("it is not aligned to {0} bytes")]
    Misaligned(u32),
    /// It lies above the consumer's limit.
    #[error("it lies above {0:#x}")]
    Limit(u64),
    /// Everything is bounced.
    #[error("everything is")]
    Forced,
    /// It is granted, and a copy is cheaper than a mapping.
    #[error("copying its grants is cheaper than mapping them")]
    Cheaper,
}

/// A range that could not be reached. All but [`Fault::Host`] are the guest's
/// doing (or its configuration's) and concern one request alone.
#[derive(Debug, Error)]
pub enum Fault {
    /// A range of no bytes.
    #[error("range at {address:#x} has no bytes")]
    ZeroLength {
        /// Its address.
        address: u64,
    },
    /// A range that wraps around the end of the address space.
    #[error("range at {address:#x} of {len} bytes wraps around")]
    AddressOverflow {
        /// Its address.
        address: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// A plain address from a guest whose memory may only be reached through
    /// grants.
    #[error("plain address {address:#x} from a guest that is served through grants only")]
    PlainRefused {
        /// The address.
        address: u64,
    },
    /// A grant address from a guest that has no grants.
    #[error("grant address {address:#x} from a guest that is served by plain addresses only")]
    GrantRefused {
        /// The address.
        address: u64,
    },
    /// A frame that the guest does not have.
    #[error("no memory at guest frame {frame:#x} (address {address:#x})")]
    NoTranslation {
        /// The address asked for.
        address: u64,
        /// The first frame that is not there.
        frame: u64,
    },
    /// References beyond the last possible one.
    #[error("grant address {address:#x} with {len} bytes runs past the last reference")]
    GrantRange {
        /// The address.
        address: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// A grant that cannot be mapped or copied with this access.
    #[error("grant reference {reference} refused: {reason}")]
    GrantRefusedByXen {
        /// The first reference of the failing range.
        reference: u32,
        /// What Xen or the kernel said.
        reason: String,
    },
    /// The range must be bounced and there is no pool to bounce it through.
    #[error("range at {address:#x} must be bounced ({reason}) and there is no pool")]
    NoPool {
        /// Its address.
        address: u64,
        /// Why it must.
        reason: BounceReason,
    },
    /// The range must be bounced and there is no room in the pool now: the
    /// request is to be tried again when others have been finished.
    #[error("range at {address:#x} must be bounced ({reason}) and the pool is in use")]
    PoolFull {
        /// Its address.
        address: u64,
        /// Why it must.
        reason: BounceReason,
    },
    /// The range must be bounced and no pool of this size could hold it.
    #[error(
        "{len} bytes at {address:#x} must be bounced ({reason}), and the pool holds {most} at most"
    )]
    TooLarge {
        /// Its address.
        address: u64,
        /// Bytes that must be bounced together.
        len: u64,
        /// Bytes that can be.
        most: u64,
        /// Why they must.
        reason: BounceReason,
    },
    /// A request with more granted pages than are mapped together.
    #[error(
        "{pages} granted pages up to {address:#x} are more than the {most} that are mapped together"
    )]
    LoanTooLarge {
        /// The range that is one too many.
        address: u64,
        /// Pages of the request, up to this range's last.
        pages: u32,
        /// Pages that can be.
        most: u32,
    },
    /// The host failed.
    #[error("host failed to reach guest memory at {address:#x}")]
    Host {
        /// The address asked for.
        address: u64,
        /// What failed.
        #[source]
        source: std::io::Error,
    },
}

impl Fault {
    /// Whether the host, rather than the guest, caused this.
    pub fn is_host(&self) -> bool {
        matches!(self, Fault::Host { .. })
    }
}
