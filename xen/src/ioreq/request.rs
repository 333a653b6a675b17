//! A guest's access, and the duty to answer it.

use std::fmt;
use std::sync::Arc;

use super::Result;
use super::server::Shared;
use crate::sys::abi::ioreq as abi;

/// Kind of a request (`IOREQ_TYPE_*`).
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum IoreqKind {
    /// x86 port access.
    Pio,
    /// Memory access.
    Copy,
    /// PCI configuration access.
    PciConfig,
    /// The guest set its clock (x86).
    TimeOffset,
    /// Memory left the guest: cached foreign mappings are to be dropped. It
    /// comes with address 0, usually as a guest's very first request.
    Invalidate,
    /// Something newer than this crate.
    Unknown(u8),
}

impl IoreqKind {
    pub(super) fn from_raw(kind: u8) -> IoreqKind {
        match kind {
            abi::TYPE_PIO => IoreqKind::Pio,
            abi::TYPE_COPY => IoreqKind::Copy,
            abi::TYPE_PCI_CONFIG => IoreqKind::PciConfig,
            abi::TYPE_TIMEOFFSET => IoreqKind::TimeOffset,
            abi::TYPE_INVALIDATE => IoreqKind::Invalidate,
            other => IoreqKind::Unknown(other),
        }
    }
}

/// Direction of an access, as the guest sees it.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Direction {
    /// The guest reads.
    Read,
    /// The guest writes.
    Write,
}

/// A request, copied out of the page once.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Ioreq {
    /// Index of the vCPU that waits.
    pub vcpu: u32,
    /// Guest-physical address, port, or PCI function and register.
    pub address: u64,
    /// What the guest writes; or a guest address, see `data_is_ptr`.
    pub data: u64,
    /// Repetitions; 1 but for x86's `rep`.
    pub count: u32,
    /// Bytes of one access.
    pub size: u32,
    /// Direction.
    pub direction: Direction,
    /// Kind.
    pub kind: IoreqKind,
    /// Whether a repeated access goes downwards.
    pub df: bool,
    /// Whether `data` is the guest address of the values (x86's `rep`
    /// string operations). An answer of data has no effect then.
    pub data_is_ptr: bool,
}

impl Ioreq {
    /// What an access to nothing gives: all ones in `size` bytes.
    #[must_use]
    pub fn all_ones(&self) -> u64 {
        match self.size {
            0 => 0,
            1..=7 => (1 << (8 * self.size)) - 1,
            _ => u64::MAX,
        }
    }

    /// Whether an answer carries data.
    fn takes_data(&self) -> bool {
        let access = matches!(
            self.kind,
            IoreqKind::Pio | IoreqKind::Copy | IoreqKind::PciConfig
        );
        access && self.direction == Direction::Read && !self.data_is_ptr
    }
}

/// A request that a vCPU waits for. It may be answered later and elsewhere;
/// dropped without an answer it is answered as an access to nothing, and
/// logged.
#[must_use = "the vCPU waits until the request is answered"]
pub struct Pending {
    shared: Arc<Shared>,
    request: Ioreq,
    answered: bool,
}

impl Pending {
    pub(super) fn new(shared: Arc<Shared>, request: Ioreq) -> Pending {
        Pending {
            shared,
            request,
            answered: false,
        }
    }

    /// The request.
    #[must_use]
    pub fn request(&self) -> &Ioreq {
        &self.request
    }

    /// Answers with `data`, of which a write takes none, and lets the vCPU
    /// run on.
    ///
    /// # Errors
    /// [`Error::Stale`](super::Error::Stale) if the server was destroyed
    /// meanwhile; [`Error::Events`](super::Error::Events) if the vCPU could
    /// not be notified.
    pub fn respond(mut self, data: u64) -> Result<()> {
        self.answer(data)
    }

    /// Answers as an access to nothing: all ones for a read.
    ///
    /// # Errors
    /// As [`Pending::respond`].
    pub fn reject(mut self) -> Result<()> {
        self.answer(self.request.all_ones())
    }

    fn answer(&mut self, data: u64) -> Result<()> {
        self.answered = true;
        let data = self.request.takes_data().then_some(data);
        self.shared.answer(&self.request, data)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        tracing::warn!(
            domain = %self.shared.dom(),
            request = ?self.request,
            "a request was dropped; answered as an access to nothing"
        );
        if let Err(error) = self.answer(self.request.all_ones()) {
            tracing::warn!(%error, "the answer to a dropped request");
        }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pending").field(&self.request).finish()
    }
}
