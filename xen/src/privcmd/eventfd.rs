//! Interrupts and kicks handled by the kernel: irqfd and ioeventfd.
//!
//! Set up by whoever wires a device, on the control thread; the returned
//! guards undo it when dropped. Both need `CONFIG_XEN_PRIVCMD_EVENTFD`
//! (Linux 6.7), which distributions' kernels lack, so ask first.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};
use zerocopy::IntoBytes;

use super::{Backend, Error, Privcmd, Result};
use crate::dm_op;
use crate::domid::DomId;

const NEEDS: &str = "Linux 6.7 with CONFIG_XEN_PRIVCMD_EVENTFD has it";

/// Whether the kernel has irqfd or ioeventfd.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum EventfdSupport {
    /// It is there.
    Available,
    /// The kernel knows the call but was built without
    /// `CONFIG_XEN_PRIVCMD_EVENTFD`.
    NotConfigured,
    /// The kernel does not know the call (before 6.7).
    Unknown,
}

impl EventfdSupport {
    fn of(probe: io::Result<()>) -> EventfdSupport {
        match probe.err().and_then(|e| e.raw_os_error()) {
            // privcmd.c: `default: ret = -ENOTTY`.
            Some(libc::ENOTTY | libc::ENOSYS) => EventfdSupport::Unknown,
            // privcmd.c: the inline stubs of an unset option.
            Some(libc::EOPNOTSUPP) => EventfdSupport::NotConfigured,
            // Refused flags, a restricted file, or no such assignment: the
            // code that refuses is there.
            _ => EventfdSupport::Available,
        }
    }

    /// Whether it can be used.
    #[must_use]
    pub fn is_available(self) -> bool {
        self == EventfdSupport::Available
    }
}

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

impl Privcmd {
    /// Asks the kernel for irqfd, without changing anything.
    #[must_use]
    pub fn irqfd_support(&self) -> EventfdSupport {
        EventfdSupport::of(match &*self.0 {
            Backend::Kernel(file) => file.probe_irqfd(),
            Backend::Fake(file) => EventFd::new(EFD_CLOEXEC).and_then(|fd| {
                let op = dm_op::set_irq_level_op(0, true);
                file.irqfd(
                    DomId::SELF,
                    op.as_bytes(),
                    crate::sys::borrow_fd(&fd),
                    false,
                )
            }),
        })
    }

    /// Asks the kernel for ioeventfd, without changing anything.
    #[must_use]
    pub fn ioeventfd_support(&self) -> EventfdSupport {
        EventfdSupport::of(match &*self.0 {
            Backend::Kernel(file) => file.probe_ioeventfd(),
            Backend::Fake(file) => EventFd::new(EFD_CLOEXEC).and_then(|fd| {
                let request = IoeventfdRequest {
                    dom: DomId::SELF,
                    ioreq_page: 0,
                    ports: &[],
                    address: 0,
                    queue: 0,
                    event_fd: crate::sys::borrow_fd(&fd),
                };
                file.ioeventfd(&request, false)
            }),
        })
    }

    /// Has the kernel raise interrupt `irq` of `dom` whenever `event` is
    /// signalled. The level is set to 1 each time; an edge-triggered
    /// interrupt needs no lowering.
    ///
    /// # Errors
    /// [`Error::NotInKernel`], see [`Privcmd::irqfd_support`];
    /// [`Error::Failed`] with EBUSY if the eventfd has been assigned already.
    pub fn irqfd(&self, dom: DomId, irq: u32, event: BorrowedFd<'_>) -> Result<Irqfd> {
        const CALL: &str = "IOCTL_PRIVCMD_IRQFD";
        let subject = || format!("domain {dom}, interrupt {irq}");
        let event = event
            .try_clone_to_owned()
            .map_err(|e| failed(CALL, subject(), e))?;
        assign_irqfd(self, dom, irq, event.as_fd(), true)
            .map_err(|e| failed(CALL, subject(), e))?;
        Ok(Irqfd {
            privcmd: self.clone(),
            dom,
            irq,
            event,
        })
    }

    /// Has the kernel answer the writes that `request` describes, and signal
    /// its eventfd.
    ///
    /// # Errors
    /// [`Error::NotInKernel`], see [`Privcmd::ioeventfd_support`];
    /// [`Error::Failed`] with EBUSY if the eventfd has been assigned already.
    pub fn ioeventfd(&self, request: &IoeventfdRequest<'_>) -> Result<Ioeventfd> {
        const CALL: &str = "IOCTL_PRIVCMD_IOEVENTFD";
        let subject = || {
            format!(
                "domain {}, device at {:#x}, queue {}",
                request.dom, request.address, request.queue
            )
        };
        let event = request
            .event_fd
            .try_clone_to_owned()
            .map_err(|e| failed(CALL, subject(), e))?;
        assign_ioeventfd(self, request, true).map_err(|e| failed(CALL, subject(), e))?;
        Ok(Ioeventfd {
            privcmd: self.clone(),
            dom: request.dom,
            ioreq_page: request.ioreq_page,
            ports: request.ports.into(),
            address: request.address,
            queue: request.queue,
            event,
        })
    }
}

fn assign_irqfd(
    privcmd: &Privcmd,
    dom: DomId,
    irq: u32,
    event: BorrowedFd<'_>,
    assign: bool,
) -> io::Result<()> {
    let op = dm_op::set_irq_level_op(irq, true);
    match &*privcmd.0 {
        Backend::Kernel(file) => file.irqfd(dom, op.as_bytes(), event, assign),
        Backend::Fake(file) => file.irqfd(dom, op.as_bytes(), event, assign),
    }
}

fn assign_ioeventfd(
    privcmd: &Privcmd,
    request: &IoeventfdRequest<'_>,
    assign: bool,
) -> io::Result<()> {
    match &*privcmd.0 {
        Backend::Kernel(file) => file.ioeventfd(request, assign),
        Backend::Fake(file) => file.ioeventfd(request, assign),
    }
}

fn failed(call: &'static str, subject: String, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::ENOTTY | libc::ENOSYS | libc::EOPNOTSUPP) => Error::NotInKernel {
            call,
            needs: NEEDS,
            source,
        },
        _ => Error::new(call, subject, source),
    }
}

/// An interrupt raised by the kernel, until dropped.
#[derive(Debug)]
pub struct Irqfd {
    privcmd: Privcmd,
    dom: DomId,
    irq: u32,
    event: OwnedFd,
}

impl Irqfd {
    /// The interrupt.
    #[must_use]
    pub fn irq(&self) -> u32 {
        self.irq
    }
}

impl Drop for Irqfd {
    fn drop(&mut self) {
        let done = assign_irqfd(&self.privcmd, self.dom, self.irq, self.event.as_fd(), false);
        if let Err(error) = done {
            tracing::warn!(domain = %self.dom, irq = self.irq, %error, "irqfd not taken back");
        }
    }
}

/// Kicks answered by the kernel, until dropped.
#[derive(Debug)]
pub struct Ioeventfd {
    privcmd: Privcmd,
    dom: DomId,
    ioreq_page: usize,
    ports: Box<[u32]>,
    address: u64,
    queue: u32,
    event: OwnedFd,
}

impl Drop for Ioeventfd {
    fn drop(&mut self) {
        let request = IoeventfdRequest {
            dom: self.dom,
            ioreq_page: self.ioreq_page,
            ports: &self.ports,
            address: self.address,
            queue: self.queue,
            event_fd: self.event.as_fd(),
        };
        if let Err(error) = assign_ioeventfd(&self.privcmd, &request, false) {
            tracing::warn!(
                domain = %self.dom, address = self.address, queue = self.queue, %error,
                "ioeventfd not taken back"
            );
        }
    }
}
