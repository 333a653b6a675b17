//! A device's interrupt line: a hypercall, or an eventfd that the kernel
//! turns into one.

use std::io;
use std::os::fd::BorrowedFd;

use devices::virtio::Interrupt;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use xen::DomId;
use xen::privcmd::{Irqfd, Privcmd};

use super::borrow;

/// An edge-triggered SPI of a guest.
#[derive(Debug)]
pub enum Line {
    /// `XEN_DMOP_set_irq_level`, each time.
    Hypercall {
        /// Where to.
        privcmd: Privcmd,
        /// The guest.
        domid: DomId,
        /// Its SPI.
        irq: u32,
    },
    /// An eventfd, assigned once.
    Irqfd {
        /// Signalled for each edge.
        event: EventFd,
        /// Ends the assignment when dropped.
        assignment: Irqfd,
    },
}

impl Line {
    /// A line that is raised by hypercall.
    #[must_use]
    pub fn hypercall(privcmd: &Privcmd, domid: DomId, irq: u32) -> Self {
        Line::Hypercall {
            privcmd: privcmd.clone(),
            domid,
            irq,
        }
    }

    /// A line that the kernel raises.
    ///
    /// # Errors
    /// [`xen::privcmd::Error::NotInKernel`], or what the kernel says; no event
    /// file is [`xen::privcmd::Error::Failed`].
    pub fn irqfd(privcmd: &Privcmd, domid: DomId, irq: u32) -> xen::privcmd::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| {
            xen::privcmd::Error::Failed {
                call: "eventfd",
                subject: format!("interrupt {irq} of domain {domid}"),
                source,
            }
        })?;
        let assignment = privcmd.irqfd(domid, irq, borrow(&event))?;
        Ok(Line::Irqfd { event, assignment })
    }
}

impl Interrupt for Line {
    fn raise(&self) -> io::Result<()> {
        match self {
            // Arm's virtio lines are edge-rising (libxl_arm.c): level 1 is the
            // edge, and nothing has to be lowered
            Line::Hypercall {
                privcmd,
                domid,
                irq,
            } => privcmd
                .set_irq_level(*domid, *irq, true)
                .map_err(io::Error::other),
            Line::Irqfd { event, .. } => match event.write(1) {
                // so many edges are still to come that one more says nothing
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                result => result,
            },
        }
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Line::Hypercall { .. } => None,
            Line::Irqfd { event, .. } => Some(borrow(event)),
        }
    }
}
