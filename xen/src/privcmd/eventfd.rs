//! Interrupts and kicks handled by the kernel: irqfd and ioeventfd.

use std::os::fd::BorrowedFd;

use crate::domid::DomId;

/// What an ioeventfd shall match: a 4-byte write of a queue's number to a
/// virtio-mmio device's QueueNotify register.
///
/// Linux adds the register's offset (`VIRTIO_MMIO_QUEUE_NOTIFY`, 0x50) to
/// `address` itself.
#[derive(Copy, Clone, Debug)]
pub struct IoeventfdRequest<'a> {
    /// The guest.
    pub dom: DomId,
    /// Address in this process of the mapped ioreq page
    /// ([`Mapping::address`](crate::Mapping::address)).
    pub ioreq_page: usize,
    /// The local event channel of every vCPU, in their order.
    pub ports: &'a [u32],
    /// Guest-physical address of the device's register block.
    pub address: u64,
    /// The queue's number, as the guest writes it.
    pub queue: u32,
    /// What fires.
    pub event_fd: BorrowedFd<'a>,
}
