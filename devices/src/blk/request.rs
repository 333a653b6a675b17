//! Requests: from a chain's bytes to a typed [`Request`]. virtio 1.3 §5.2.6
//!
//! Nothing is assumed about framing (virtio 1.3 §2.7.4): the header is the
//! first 16 bytes that the device reads, the status the last byte that it
//! writes, however many descriptors they are spread over, and data is what
//! lies between. Pure: whoever calls fetches the bytes.

use swiotlb::Range;
use thiserror::Error;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::config::SECTOR;
use crate::virtio::queue::DescriptorRanges;
use crate::virtio::{Chain, Head, QueueError};

/// Bytes of a device's ID string. virtio 1.3 §5.2.6, VIRTIO_BLK_T_GET_ID
pub(super) const ID_BYTES: usize = 20;
/// Most extents of one discard.
pub(super) const DISCARD_EXTENTS: u32 = 32;
/// Most sectors of one extent of a discard: 2 GiB.
pub(super) const DISCARD_SECTORS: u32 = 1 << 22;
/// Most extents of one write-zeroes.
pub(super) const ZERO_EXTENTS: u32 = 8;
/// Most sectors of one extent of a write-zeroes: 32 MiB, which may have to be
/// written in full while a reset waits.
pub(super) const ZERO_SECTORS: u32 = 1 << 16;

/// virtio 1.3 §5.2.6, struct virtio_blk_req without data and status
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Header {
    pub kind: U32,
    pub reserved: U32,
    pub sector: U64,
}

/// virtio 1.3 §5.2.6, struct virtio_blk_discard_write_zeroes
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct WireExtent {
    pub sector: U64,
    pub sectors: U32,
    pub flags: U32,
}

/// What a driver is told of its request. virtio 1.3 §5.2.6
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// It was carried out.
    Ok,
    /// It failed, or breaks a rule.
    IoErr,
    /// The device has no such request.
    Unsupported,
}

impl Status {
    /// The byte that the driver finds.
    pub(super) fn byte(self) -> u8 {
        let [byte, ..] = match self {
            Status::Ok => VIRTIO_BLK_S_OK,
            Status::IoErr => VIRTIO_BLK_S_IOERR,
            Status::Unsupported => VIRTIO_BLK_S_UNSUPP,
        }
        .to_le_bytes();
        byte
    }
}

/// The parts of a chain.
#[derive(Debug)]
pub(super) struct Frame {
    /// The chain's head.
    pub head: Head,
    /// Where the header stands.
    pub header: DescriptorRanges,
    /// Data for the device to read.
    pub data_out: DescriptorRanges,
    /// Data for the device to write.
    pub data_in: DescriptorRanges,
    /// Where the status byte goes.
    pub status: Range,
}

impl Frame {
    /// Takes a chain apart.
    ///
    /// # Errors
    /// [`QueueError::Request`] for one without a whole header or without room
    /// for a status: nothing can be told to its driver in the request.
    pub(super) fn of(chain: Chain) -> Result<Self, QueueError> {
        let head = chain.head;
        let broken = |head: &Head, why: &str| QueueError::Request {
            head: head.index(),
            why: why.into(),
        };
        let Some((data_in, status)) = split_last_byte(chain.writable) else {
            return Err(broken(&head, "a request without room for its status"));
        };
        let Some((header, data_out)) = split_front(chain.readable, size_of::<Header>()) else {
            return Err(broken(&head, "a request without a whole header"));
        };
        Ok(Frame {
            head,
            header,
            data_out,
            data_in,
            status,
        })
    }
}

/// Bytes of `ranges` together.
pub(super) fn total(ranges: &[Range]) -> u64 {
    ranges.iter().map(|range| u64::from(range.len())).sum()
}

/// The first `count` bytes of `ranges`, and the rest.
fn split_front(
    ranges: DescriptorRanges,
    count: usize,
) -> Option<(DescriptorRanges, DescriptorRanges)> {
    let mut missing = u32::try_from(count).ok()?;
    if let [first] = ranges[..]
        && first.len() == missing
    {
        return Some((ranges, DescriptorRanges::new()));
    }
    let (mut front, mut rest) = (DescriptorRanges::new(), DescriptorRanges::new());
    for range in ranges {
        front.extend(range.part(0, missing));
        rest.extend(range.part(missing.min(range.len()), u32::MAX));
        missing = missing.saturating_sub(range.len());
    }
    (missing == 0).then_some((front, rest))
}

/// All but the last byte of `ranges`, and that byte.
fn split_last_byte(mut ranges: DescriptorRanges) -> Option<(DescriptorRanges, Range)> {
    let last = ranges.pop()?;
    if last.len() == 1 {
        return Some((ranges, last));
    }
    let before = last.len() - 1; // a range has a byte at least
    ranges.extend(last.part(0, before));
    Some((ranges, last.part(before, 1)?))
}

/// A part of the image that a discard or write-zeroes concerns, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// From where.
    pub offset: u64,
    /// How much; never zero.
    pub len: u64,
    /// Whether it may lose its space in the image.
    pub unmap: bool,
}

/// The extents of a request. Apart from it: a read or a write has none.
pub(super) type Extents = Box<[Extent]>;

/// A request that passed all checks. Offsets and lengths are bytes, and lie
/// inside of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Reads from the image into the guest's memory.
    Read {
        /// From where.
        offset: u64,
        /// How much; as much as the request's memory has.
        len: u64,
    },
    /// Writes to the image.
    Write {
        /// To where.
        offset: u64,
        /// How much; as much as the request's memory has.
        len: u64,
    },
    /// Makes everything that was written before durable.
    Flush,
    /// Tells the serial number.
    GetId,
    /// Gives up what the extents hold.
    Discard(Extents),
    /// Makes the extents read as zeroes.
    WriteZeroes(Extents),
}

/// What a header says, with what else must be fetched to know the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// All of it.
    Ready(Request),
    /// A discard whose extents stand in its data.
    Discard,
    /// A write-zeroes whose extents stand in its data.
    WriteZeroes,
}

/// A request that is answered with an error status. The guest's doing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum BadRequest {
    /// A type that the device does not have, or did not offer.
    #[error("request type {0} is not supported")]
    Unsupported(u32),
    /// A flag that the device does not have.
    #[error("flags {0:#x} are not supported")]
    Flags(u32),
    /// A write to a disk that cannot be written.
    #[error("write to a read-only disk")]
    ReadOnly,
    /// Data that goes the other way than the request.
    #[error("{bytes} bytes of data go the wrong way for request type {kind}")]
    Direction {
        /// The request's type.
        kind: u32,
        /// Bytes of such data.
        bytes: u64,
    },
    /// A length that this request cannot have.
    #[error("{len} bytes of data for request type {kind}")]
    Length {
        /// The request's type.
        kind: u32,
        /// The length.
        len: u64,
    },
    /// Sectors that the disk does not have.
    #[error("{sectors} sectors at {sector} on a disk of {capacity}")]
    BeyondEnd {
        /// The first.
        sector: u64,
        /// How many.
        sectors: u64,
        /// How many there are.
        capacity: u64,
    },
    /// An extent above the limit that the driver was told.
    #[error("extent of {sectors} sectors above the limit of {limit}")]
    ExtentLength {
        /// Its length.
        sectors: u32,
        /// The limit.
        limit: u32,
    },
    /// Its memory cannot be read or written.
    #[error("its memory cannot be reached: {0}")]
    Memory(String),
}

impl BadRequest {
    /// What the driver is told.
    pub(super) fn status(&self) -> Status {
        match self {
            // virtio 1.3 §5.2.6.2: unknown flags are UNSUPP, too
            BadRequest::Unsupported(_) | BadRequest::Flags(_) => Status::Unsupported,
            _ => Status::IoErr,
        }
    }
}

/// What requests are checked against: the disk, and what was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Capacity in sectors.
    pub sectors: u64,
    /// The guest may not write.
    pub readonly: bool,
    /// Discard was negotiated.
    pub discard: bool,
    /// Write-zeroes was negotiated.
    pub write_zeroes: bool,
}

impl Limits {
    /// Judges a header together with the lengths of its request's data.
    ///
    /// # Errors
    /// [`BadRequest`]
    pub(super) fn parse(&self, header: &Header, frame: &Frame) -> Result<Parsed, BadRequest> {
        let kind = header.kind.get();
        let (out, into) = (total(&frame.data_out), total(&frame.data_in));
        let only = |wrong_way: u64| match wrong_way {
            0 => Ok(()),
            bytes => Err(BadRequest::Direction { kind, bytes }),
        };
        match kind {
            VIRTIO_BLK_T_IN => {
                only(out)?;
                let (offset, len) = self.data(kind, header.sector.get(), into)?;
                Ok(Parsed::Ready(Request::Read { offset, len }))
            }
            VIRTIO_BLK_T_OUT => {
                self.check_writable()?;
                only(into)?;
                let (offset, len) = self.data(kind, header.sector.get(), out)?;
                Ok(Parsed::Ready(Request::Write { offset, len }))
            }
            // virtio 1.3 §5.2.6.1: a flush should not have data; it is ignored
            VIRTIO_BLK_T_FLUSH => Ok(Parsed::Ready(Request::Flush)),
            VIRTIO_BLK_T_GET_ID => {
                only(out)?;
                check(into == ID_BYTES as u64, kind, into)?;
                Ok(Parsed::Ready(Request::GetId))
            }
            VIRTIO_BLK_T_DISCARD if self.discard => {
                self.check_writable()?;
                only(into)?;
                check_array(kind, out, DISCARD_EXTENTS)?;
                Ok(Parsed::Discard)
            }
            VIRTIO_BLK_T_WRITE_ZEROES if self.write_zeroes => {
                self.check_writable()?;
                only(into)?;
                check_array(kind, out, ZERO_EXTENTS)?;
                Ok(Parsed::WriteZeroes)
            }
            other => Err(BadRequest::Unsupported(other)),
        }
    }

    /// Judges the extents of a discard.
    ///
    /// # Errors
    /// [`BadRequest`]
    pub(super) fn parse_discard(&self, bytes: &[u8]) -> Result<Request, BadRequest> {
        // virtio 1.3 §5.2.6.2: unmap is a flag of write-zeroes alone
        self.extents(bytes, DISCARD_SECTORS, 0)
            .map(Request::Discard)
    }

    /// Judges the extents of a write-zeroes.
    ///
    /// # Errors
    /// [`BadRequest`]
    pub(super) fn parse_write_zeroes(&self, bytes: &[u8]) -> Result<Request, BadRequest> {
        self.extents(bytes, ZERO_SECTORS, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)
            .map(Request::WriteZeroes)
    }

    fn extents(&self, bytes: &[u8], limit: u32, flags: u32) -> Result<Extents, BadRequest> {
        let (array, _) = bytes.as_chunks::<{ size_of::<WireExtent>() }>();
        let mut extents = Vec::with_capacity(array.len());
        for raw in array {
            let wire: WireExtent = zerocopy::transmute!(*raw);
            let set = wire.flags.get();
            if set & !flags != 0 {
                return Err(BadRequest::Flags(set));
            }
            let sectors = wire.sectors.get();
            if sectors > limit {
                return Err(BadRequest::ExtentLength { sectors, limit });
            }
            let offset = self.offset(wire.sector.get(), sectors.into())?;
            if sectors > 0 {
                extents.push(Extent {
                    offset,
                    len: u64::from(sectors) * SECTOR,
                    unmap: set & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
                });
            }
        }
        Ok(extents.into())
    }

    fn check_writable(&self) -> Result<(), BadRequest> {
        match self.readonly {
            true => Err(BadRequest::ReadOnly),
            false => Ok(()),
        }
    }

    /// Offset and length in bytes of a read's or write's data.
    fn data(&self, kind: u32, sector: u64, len: u64) -> Result<(u64, u64), BadRequest> {
        check(len.is_multiple_of(SECTOR), kind, len)?;
        Ok((self.offset(sector, len / SECTOR)?, len))
    }

    /// Offset in bytes of sectors that the disk has.
    fn offset(&self, sector: u64, sectors: u64) -> Result<u64, BadRequest> {
        match sector.checked_add(sectors) {
            // the capacity in bytes fits, hence so does this
            Some(end) if end <= self.sectors => Ok(sector * SECTOR),
            _ => Err(BadRequest::BeyondEnd {
                sector,
                sectors,
                capacity: self.sectors,
            }),
        }
    }
}

fn check(right: bool, kind: u32, len: u64) -> Result<(), BadRequest> {
    match right {
        true => Ok(()),
        false => Err(BadRequest::Length { kind, len }),
    }
}

/// virtio 1.3 §5.2.6.1: whole extents, as many as the driver was told.
fn check_array(kind: u32, len: u64, extents: u32) -> Result<(), BadRequest> {
    let size = size_of::<WireExtent>() as u64;
    let most = u64::from(extents) * size;
    check(
        len > 0 && len <= most && len.is_multiple_of(size),
        kind,
        len,
    )
}
