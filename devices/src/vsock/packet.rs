//! The header of every packet, and what it may say. virtio 1.3 §5.10.6

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The host's address. virtio 1.3 §5.10.4
pub(super) const HOST_CID: u64 = 2;
/// A stream socket, the only type that is offered. virtio 1.3 §5.10.6
pub(super) const TYPE_STREAM: u16 = 1;
/// The sender will receive no more. virtio 1.3 §5.10.6.5
pub(super) const SHUTDOWN_RECEIVE: u32 = 1 << 0;
/// The sender will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 1 << 1;
/// Both.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// Bytes of a header.
pub(super) const HEADER_LEN: usize = size_of::<Header>();
/// Most bytes of one packet, as Linux has it.
pub(super) const PAYLOAD_MAX: usize = 64 << 10;

/// `struct virtio_vsock_hdr`. virtio 1.3 §5.10.6
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub(super) struct Header {
    pub src_cid: U64,
    pub dst_cid: U64,
    pub src_port: U32,
    pub dst_port: U32,
    /// Bytes behind the header.
    pub len: U32,
    pub kind: U16,
    pub op: U16,
    pub flags: U32,
    /// Bytes of the sender's receive buffer for this connection.
    pub buf_alloc: U32,
    /// Bytes that have left this buffer, modulo 2³².
    pub fwd_cnt: U32,
}

/// What a packet is for. virtio 1.3 §5.10.6
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Grants it.
    Response = 2,
    /// Ends it, or says that there is none.
    Reset = 3,
    /// One side, or both, will not be used any more.
    Shutdown = 4,
    /// Bytes.
    ReadWrite = 5,
    /// Tells how much may be sent.
    CreditUpdate = 6,
    /// Asks for that.
    CreditRequest = 7,
}

impl Op {
    /// The operation of this number.
    pub fn of(number: u16) -> Option<Op> {
        [
            Op::Request,
            Op::Response,
            Op::Reset,
            Op::Shutdown,
            Op::ReadWrite,
            Op::CreditUpdate,
            Op::CreditRequest,
        ]
        .into_iter()
        .find(|op| *op as u16 == number)
    }
}

/// A connection of a guest: addresses are the device's and the guest's, always.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The host's port.
    pub host: u32,
    /// The guest's port.
    pub guest: u32,
}

impl Header {
    /// Whether it comes from the guest `cid` and goes to the host.
    pub fn is_addressed(&self, cid: u64) -> bool {
        self.src_cid.get() == cid && self.dst_cid.get() == HOST_CID
    }

    /// Whose it is, of a packet from the guest.
    pub fn key(&self) -> Key {
        Key {
            host: self.dst_port.get(),
            guest: self.src_port.get(),
        }
    }

    /// A packet to the guest `cid` without bytes and without credit.
    pub fn to_guest(cid: u64, key: Key, op: Op) -> Header {
        Header {
            src_cid: HOST_CID.into(),
            dst_cid: cid.into(),
            src_port: key.host.into(),
            dst_port: key.guest.into(),
            kind: TYPE_STREAM.into(),
            op: (op as u16).into(),
            ..Header::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use virtio_queue::{Queue, QueueT};
    use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};
    use vm_memory::GuestAddress;

    use super::*;
    use crate::testing::{Buffer, DriverRing, GuestRam};

    #[test]
    fn a_header_is_the_one_that_virtio_vsock_reads() {
        let key = Key {
            host: 0x4000_0001,
            guest: 1024,
        };
        let header = Header {
            len: 3.into(),
            flags: SHUTDOWN_BOTH.into(),
            buf_alloc: 0x1_0000.into(),
            fwd_cnt: 77.into(),
            ..Header::to_guest(3, key, Op::CreditUpdate)
        };
        let ram = GuestRam::new(16);
        let mut ring = DriverRing::new(&ram, 8);
        let address = ram.alloc_bytes(header.as_bytes());
        let payload = ram.alloc_bytes(b"abc");
        ring.add(&[
            Buffer::readable(address, HEADER_LEN as u32),
            Buffer::readable(payload, 3),
        ]);
        let layout = ring.layout();
        let mut queue = Queue::new(8).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(layout.desc))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(layout.avail))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(layout.used))
            .unwrap();
        queue.set_size(8);
        queue.set_ready(true);

        let mut chain = queue.pop_descriptor_chain(ram.memory()).unwrap();
        let read = VsockPacket::from_tx_virtq_chain(ram.memory(), &mut chain, 64 << 10).unwrap();

        assert_eq!(HEADER_LEN, PKT_HEADER_SIZE);
        assert_eq!((read.src_cid(), read.dst_cid()), (2, 3));
        assert_eq!((read.src_port(), read.dst_port()), (key.host, key.guest));
        assert_eq!((read.len(), read.type_(), read.op()), (3, 1, 6));
        assert_eq!(
            (read.flags(), read.buf_alloc(), read.fwd_cnt()),
            (3, 0x1_0000, 77)
        );
    }

    #[test]
    fn operations_have_their_numbers_and_no_others() {
        let known: Vec<_> = (0..10).filter_map(Op::of).map(|op| op as u16).collect();

        assert_eq!(known, [1, 2, 3, 4, 5, 6, 7]);
    }
}
