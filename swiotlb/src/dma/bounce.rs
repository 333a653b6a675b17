//! Requests' data in bounce buffers: the pool of one queue, and what lies in it.
//!
//! A run is what of a request goes the same way without a gap: it lies in one
//! buffer after the other, whatever ranges the guest cut it into. Only the
//! queue's own process sees the pool, and its consumers state what they have
//! written: nothing is filled in before that nobody reads. A pool that another
//! process sees is made by whoever shares it, for an untrusted consumer.

use std::sync::Arc;

use smallvec::SmallVec;
use vm_memory::VolatileSlice;

use crate::allocator::{Allocator, BringUp, Settings};
use crate::constraints::{Consumer, DeviceConstraints};
use crate::device::{Attrs, Device, Lease, Worker};
use crate::direction::Direction;
use crate::error::Error;
use crate::memory::Anonymous;
use crate::options::Bouncing;
use crate::range::{Access, Range};
use crate::segment::{self, Segment, Segments};
use crate::sizing::{SEGMENT_SIZE, SLOT_SIZE};
use crate::source::Keep;
use crate::space::AddressSpace;

/// The pool of one queue. Made when the first buffer is wanted: most queues
/// never want one.
pub(super) enum Pool {
    /// Nothing is bounced.
    None,
    /// To be made.
    Wanted(Settings),
    Made(Worker),
}

/// Why there is no buffer.
pub(super) enum NoRoom {
    /// All of the pool is in use, or what is free of it is in pieces.
    Full,
    /// Even when it is empty.
    TooLarge {
        /// Bytes that a buffer, or all of them together, can have.
        most: u64,
    },
    /// There is no pool.
    NoPool,
}

impl Pool {
    /// A pool as `settings` want it.
    pub(super) fn wanted(settings: Settings) -> Self {
        match settings.options.bouncing {
            Bouncing::Suppressed => Pool::None,
            Bouncing::Needed | Bouncing::Forced => Pool::Wanted(settings),
        }
    }

    /// Whether everything is bounced.
    pub(super) fn forces(&self) -> bool {
        match self {
            Pool::None => false,
            Pool::Wanted(settings) => settings.options.bouncing == Bouncing::Forced,
            Pool::Made(worker) => worker.device().allocator().forces(),
        }
    }

    /// Bytes of it, so that an empty pool holds as many of one request.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Pool::None => 0,
            Pool::Wanted(settings) => settings.options.sizing(settings.workers).bytes(),
            Pool::Made(worker) => worker.device().allocator().nslots() * SLOT_SIZE,
        }
    }

    /// Slots of it that are in use.
    pub(super) fn used(&self) -> u64 {
        match self {
            Pool::None | Pool::Wanted(_) => 0,
            Pool::Made(worker) => worker.device().allocator().used(),
        }
    }

    /// The worker; makes the pool.
    pub(super) fn worker(&mut self) -> Option<&Worker> {
        if let Pool::Wanted(settings) = self {
            *self = match make(settings.clone()) {
                Ok(worker) => Pool::Made(worker),
                Err(error) => {
                    tracing::error!(%error, "no memory for a bounce pool; what has to be bounced is refused");
                    Pool::None
                }
            };
        }
        match self {
            Pool::Made(worker) => Some(worker),
            Pool::None | Pool::Wanted(_) => None,
        }
    }

    /// Buffers for `len` bytes: one, or several where `scatter` allows it and
    /// the data is longer than a buffer can be or the room is in pieces.
    pub(super) fn take(
        &mut self,
        address: u64,
        len: u64,
        access: Access,
        align: u32,
        scatter: bool,
    ) -> Result<Leases, NoRoom> {
        self.worker().ok_or(NoRoom::NoPool)?;
        let all = self.bytes();
        let worker = self.worker().ok_or(NoRoom::NoPool)?;
        let most = if scatter { all } else { all.min(SEGMENT_SIZE) };
        if len > most {
            return Err(NoRoom::TooLarge { most });
        }
        let attrs = Attrs {
            align: u64::from(align.max(1)),
            no_warn: true, // the queue waits: that is no news
            ..Attrs::default()
        };
        let direction = match access {
            Access::Read => Direction::ToDevice,
            Access::Write => Direction::FromDevice,
        };
        let mut leases = Leases::new();
        let mut left = len;
        let mut most = SEGMENT_SIZE;
        while left > 0 {
            let now = left.min(most);
            match worker.lease(address, now, direction, &attrs) {
                Ok(lease) => {
                    hide(&lease, access);
                    leases.push(lease);
                    left -= now;
                }
                Err(Error::Full {
                    largest_free_run, ..
                }) if scatter => {
                    // what is taken has to end where the next may start
                    let run = u64::from(largest_free_run) * SLOT_SIZE;
                    let unit = u64::from(align.max(1)).max(SLOT_SIZE);
                    let piece = run.min(now.saturating_sub(1)) / unit * unit;
                    if piece == 0 {
                        return Err(NoRoom::Full);
                    }
                    most = piece;
                }
                Err(Error::NoPool) => return Err(NoRoom::NoPool),
                Err(_) => return Err(NoRoom::Full),
            }
        }
        Ok(leases)
    }
}

/// Zeroes what a consumer that must not see it is to overwrite. Others state
/// what they have written, and the rest is read by nobody.
fn hide(lease: &Lease<Arc<Device>>, access: Access) {
    let untrusted = matches!(
        lease.device().constraints().consumer,
        Consumer::Untrusted { .. }
    );
    if untrusted
        && access == Access::Write
        && let Some(bytes) = lease.bytes()
    {
        segment::zero(&bytes);
    }
}

fn make(settings: Settings) -> Result<Worker, Error> {
    // the consumer is this process: its own addresses are what it emits
    let allocator = Allocator::new(settings, AddressSpace::Plain);
    allocator.ensure_default_pool(BringUp {
        source: &mut Anonymous,
        limit: None,
        remap: None,
        probe: &mut || false,
        pv_pci: false,
    })?;
    let constraints = DeviceConstraints {
        name: allocator.settings().name.clone(),
        consumer: Consumer::Declaring,
        ..DeviceConstraints::default()
    };
    Ok(Device::attach(&allocator, constraints)?.worker(0))
}

/// Buffers of one run.
pub(super) type Leases = SmallVec<[Lease<Arc<Device>>; 1]>;

/// A part of a run on the guest's side.
pub(super) enum Source {
    /// Reached by plain addresses.
    Plain {
        segments: Segments,
        #[expect(dead_code, reason = "held for its Drop")]
        keep: Keep,
    },
    /// To be copied by the hypervisor.
    Granted(Range),
}

/// A part of a run and its place in a buffer.
pub(super) enum Piece<'a> {
    Plain(Segment, VolatileSlice<'a>),
    Granted(Range, VolatileSlice<'a>),
}

/// A run in bounce buffers.
pub(super) struct Run {
    leases: Leases,
    sources: SmallVec<[Source; 4]>,
    access: Access,
    len: u64,
    /// Bytes that the request's consumer writes before it writes these.
    before: u64,
    /// Bytes of it that are granted.
    granted: u64,
}

impl Run {
    pub(super) fn new(
        leases: Leases,
        sources: SmallVec<[Source; 4]>,
        access: Access,
        len: u64,
        before: u64,
    ) -> Self {
        let granted = sources
            .iter()
            .map(|source| match source {
                Source::Plain { .. } => 0,
                Source::Granted(range) => u64::from(range.len()),
            })
            .sum();
        Run {
            leases,
            sources,
            access,
            len,
            before,
            granted,
        }
    }

    pub(super) fn access(&self) -> Access {
        self.access
    }

    /// Bytes of it that the hypervisor copies.
    pub(super) fn granted(&self) -> u64 {
        self.granted
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Its buffers, as a consumer is given them.
    pub(super) fn segments(&self) -> impl Iterator<Item = Segment> {
        self.leases.iter().filter_map(Lease::segment)
    }

    /// How many of its bytes are to be copied back, of `written` bytes that the
    /// consumer has written of the request.
    pub(super) fn written(&self, written: u64) -> u64 {
        match self.access {
            Access::Read => 0,
            Access::Write => written.saturating_sub(self.before).min(self.len),
        }
    }

    /// Calls `visit` with the pieces of its first `most` bytes, in order.
    pub(super) fn pieces<'a>(&'a self, most: u64, mut visit: impl FnMut(Piece<'a>)) {
        let mut buffers = Buffers {
            leases: &self.leases,
            skip: 0,
        };
        let mut left = most;
        for source in &self.sources {
            match source {
                Source::Plain { segments, .. } => {
                    for segment in segments {
                        let mut done = 0;
                        let end = (segment.len() as u64).min(left);
                        while done < end {
                            let Some(slice) = buffers.next(end - done) else {
                                return;
                            };
                            let len = slice.len() as u64;
                            if let Some(part) = segment.part(done, len) {
                                visit(Piece::Plain(part, slice));
                            }
                            done += len;
                        }
                        left -= end;
                    }
                }
                Source::Granted(range) => {
                    let mut done = 0;
                    let end = u64::from(range.len()).min(left);
                    while done < end {
                        let Some(slice) = buffers.next(end - done) else {
                            return;
                        };
                        let len = slice.len() as u64;
                        let at = u32::try_from(done).unwrap_or(u32::MAX);
                        let bytes = u32::try_from(len).unwrap_or(u32::MAX);
                        if let Some(part) = range.part(at, bytes) {
                            visit(Piece::Granted(part, slice));
                        }
                        done += len;
                    }
                    left -= end;
                }
            }
        }
    }

    /// Moves what is reached by plain addresses, of its first `most` bytes: into
    /// the buffers if the consumer reads, back if it writes.
    pub(super) fn move_plain(&self, most: u64) {
        self.pieces(most, |piece| {
            if let Piece::Plain(guest, slice) = piece {
                let buffer = Segment::of(&slice);
                match self.access {
                    Access::Read => segment::move_bytes(&guest, &buffer),
                    Access::Write => segment::move_bytes(&buffer, &guest),
                }
            }
        });
    }
}

/// The way through a run's buffers.
struct Buffers<'a> {
    leases: &'a [Lease<Arc<Device>>],
    skip: u64,
}

impl<'a> Buffers<'a> {
    /// The next bytes, at most `most`, of one buffer.
    fn next(&mut self, most: u64) -> Option<VolatileSlice<'a>> {
        let (lease, rest) = self.leases.split_first()?;
        let left = lease.len().checked_sub(self.skip)?;
        let now = left.min(most);
        let skip = usize::try_from(self.skip).ok()?;
        let slice = lease
            .bytes()?
            .subslice(skip, usize::try_from(now).ok()?)
            .ok()?;
        if now == left {
            self.leases = rest;
            self.skip = 0;
        } else {
            self.skip += now;
        }
        Some(slice)
    }
}
