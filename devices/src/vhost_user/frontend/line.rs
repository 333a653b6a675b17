//! A queue's requests and where they are: waiting, or with the back end.

use smallvec::SmallVec;
use swiotlb::sizing::SEGMENT_SIZE;
use swiotlb::{Access, Carry, Range};
use vm_memory::VolatileSlice;

use super::error::Violation;
use super::pool::{CELL, CELL_REST, SMALL_TABLE_BYTES};
use super::shadow::{DESCRIPTOR, ShadowRing};
use super::shared::Lane;
use super::slots::{Berths, Slots};
use crate::virtio::{Chain, Head, QueueError};

/// The longest piece that lies in its head's cell, bytes. What is longer may be
/// a part of pages.
const SHORT: u32 = 256;
/// Alignment of pieces in a cell: that of the structures that are in them.
const CELL_ALIGN: u64 = 16;

/// A buffer of the guest, or a part of a long one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// The guest's side.
    pub range: Range,
    pub access: Access,
    /// Where the back end finds it, once it has a place.
    pub address: u64,
}

/// Those of a request; most have few.
pub(super) type Pieces = SmallVec<[Piece; 4]>;

/// A chain of the guest's. What it takes to have it done again is kept.
pub(super) struct Request {
    pub head: Head,
    pub pieces: Pieces,
    /// Its place in the order of the guest's ring.
    pub number: u64,
    /// Bytes that the device reads.
    pub asked: u64,
    /// Bytes that the device may write.
    pub room: u64,
}

impl Request {
    /// The `number`th chain of a queue whose pool has `most` bytes.
    ///
    /// # Errors
    /// [`QueueError::Request`]: it is larger, and is not cut into pieces, of
    /// which there could be millions.
    pub(super) fn new(chain: Chain, number: u64, most: u64) -> Result<Self, QueueError> {
        let (asked, room) = (length(&chain.readable), length(&chain.writable));
        let bytes = asked + room;
        if bytes > most {
            return Err(QueueError::Request {
                head: chain.head.index(),
                why: format!("its {bytes} bytes are more than its pool has: raise pool-mib"),
            });
        }
        let mut pieces = Pieces::new();
        for range in &chain.readable {
            cut(&mut pieces, range, Access::Read);
        }
        for range in &chain.writable {
            cut(&mut pieces, range, Access::Write);
        }
        Ok(Request {
            head: chain.head,
            pieces,
            number,
            asked,
            room,
        })
    }

    /// Whether it asks the device for something, and not only takes what comes.
    pub(super) fn asks(&self) -> bool {
        self.asked > 0
    }
}

/// Bytes of ranges.
fn length(ranges: &[Range]) -> u64 {
    ranges.iter().map(|range| u64::from(range.len())).sum()
}

/// Appends a range, in pieces that can be bounced.
fn cut(pieces: &mut Pieces, range: &Range, access: Access) {
    let most = u32::try_from(SEGMENT_SIZE).unwrap_or(u32::MAX);
    let mut skip = 0;
    while let Some(range) = range.part(skip, most) {
        skip += range.len();
        pieces.push(Piece {
            range,
            access,
            address: 0,
        });
    }
}

/// A request that the back end has.
struct Flight {
    request: Request,
    /// Its longer pieces' buffers, and behind them its table's if that is long.
    berths: Berths,
}

/// The back end's side of the queue.
pub(super) struct Line {
    pub lane: Lane,
    pub ring: ShadowRing,
    slots: Slots,
    /// By shadow head.
    flights: Vec<Option<Flight>>,
}

/// Why a request has no place.
pub(super) enum NoPlace {
    /// There will be room when others are done.
    Now,
    /// There never will be.
    Ever(String),
}

impl Line {
    /// `None` if the lane was used already.
    pub(super) fn new(mut lane: Lane) -> Option<Self> {
        let memory = &mut lane.memory;
        let worker = memory.worker.take()?;
        let size = usize::from(memory.layout.size);
        Some(Line {
            ring: ShadowRing::new(memory.rings.clone(), memory.layout, lane.features),
            slots: Slots::new(worker, size),
            flights: std::iter::repeat_with(|| None).take(size).collect(),
            lane,
        })
    }

    /// Finds places for the pieces of a request. What the back end is to write
    /// is zero there.
    pub(super) fn place(&mut self, request: &mut Request) -> Result<Berths, NoPlace> {
        let count = request.pieces.len();
        let Some(cost) = self.ring.cost(count) else {
            return Err(NoPlace::Ever(format!(
                "it has {count} buffers, which neither a ring of {} nor the back end takes",
                self.lane.memory.layout.size
            )));
        };
        if cost > self.ring.room() {
            return Err(NoPlace::Now);
        }
        let Some(cell) = self.ring.next_cell() else {
            return Err(NoPlace::Now);
        };
        let mut berths = Berths::new();
        if self.find_places(request, cell, &mut berths).is_none() {
            self.slots.give_back(berths);
            return Err(NoPlace::Now);
        }
        Ok(berths)
    }

    fn find_places(&mut self, request: &mut Request, cell: u64, berths: &mut Berths) -> Option<()> {
        let mut used = SMALL_TABLE_BYTES;
        for piece in &mut request.pieces {
            let len = u64::from(piece.range.len());
            let next = used + len.next_multiple_of(CELL_ALIGN);
            if piece.range.len() <= SHORT && next <= CELL {
                piece.address = cell + used;
                used = next;
            } else {
                let berth = self.slots.take(len, piece.access)?;
                piece.address = berth.dma_address();
                berths.push(berth);
            }
        }
        if used > SMALL_TABLE_BYTES {
            let rest = self.bytes(cell + SMALL_TABLE_BYTES, CELL_REST as u64)?;
            rest.copy_from(&[0_u8; CELL_REST]);
        }
        let count = request.pieces.len();
        if self.ring.needs_table(count) {
            let len = (count * DESCRIPTOR) as u64;
            berths.push(self.slots.take(len, Access::Read)?);
        }
        Some(())
    }

    /// Writes a request that has its places into the ring; returns its shadow
    /// head.
    ///
    /// # Errors
    /// [`Violation::Memory`].
    pub(super) fn add(&mut self, request: Request, berths: Berths) -> Result<u16, Violation> {
        let table = match self.ring.needs_table(request.pieces.len()) {
            true => berths
                .last()
                .and_then(|berth| Some((berth.bytes()?, berth.dma_address()))),
            false => None,
        };
        let head = self.ring.add(&request.pieces, table)?;
        let place = self.flights.get_mut(usize::from(head));
        *place.ok_or(Violation::Memory)? = Some(Flight { request, berths });
        Ok(head)
    }

    /// The request at a shadow head.
    pub(super) fn request(&self, head: u16) -> Option<&Request> {
        let flight = self.flights.get(usize::from(head))?.as_ref();
        flight.map(|flight| &flight.request)
    }

    /// What is copied into the pool for the request at `head`.
    pub(super) fn copies_in(&self, head: u16) -> impl Iterator<Item = Carry<'_>> {
        let pieces = self.request(head).map(|request| &request.pieces[..]);
        let pieces = pieces.unwrap_or_default().iter();
        pieces
            .take_while(|piece| piece.access == Access::Read)
            .filter_map(move |piece| self.carry(head, piece, piece.range.len().into()))
    }

    /// What is copied back of the request at `head`, of which the back end has
    /// written the first `written` bytes of its room.
    pub(super) fn copies_back(&self, head: u16, written: u64) -> impl Iterator<Item = Carry<'_>> {
        let pieces = self.request(head).map(|request| &request.pieces[..]);
        let pieces = pieces.unwrap_or_default().iter();
        pieces
            .filter(|piece| piece.access == Access::Write)
            .scan(written, |left, piece| {
                let now = u64::from(piece.range.len()).min(*left);
                *left -= now;
                (now > 0).then_some((piece, now))
            })
            .filter_map(move |(piece, now)| self.carry(head, piece, now))
    }

    fn carry(&self, head: u16, piece: &Piece, len: u64) -> Option<Carry<'_>> {
        Some(Carry {
            owner: usize::from(head),
            range: piece.range,
            access: piece.access,
            place: self.bytes(piece.address, len)?,
        })
    }

    /// Memory of the pool by the back end's addresses.
    fn bytes(&self, address: u64, len: u64) -> Option<VolatileSlice<'_>> {
        let memory = &self.lane.memory.whole;
        memory.slice(address.checked_sub(memory.base())?, len)
    }

    /// The request at a shadow head, which the back end is done with; its
    /// places are free.
    pub(super) fn end(&mut self, head: u16) -> Option<Request> {
        let flight = self.flights.get_mut(usize::from(head))?.take()?;
        self.slots.give_back(flight.berths);
        Some(flight.request)
    }

    /// What the back end has not done.
    pub(super) fn left(self) -> impl Iterator<Item = Request> {
        let flights = self.flights.into_iter().flatten();
        flights.map(|flight| flight.request)
    }
}
