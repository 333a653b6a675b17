//! ioeventfds: kicks that dom0's kernel answers itself, as
//! `ioeventfd_interrupt` of `drivers/xen/privcmd.c` does.
//!
//! The handler takes every write request of its vCPUs through INPROCESS; one
//! it does not know goes back to READY, so a device model can meet INPROCESS
//! in a slot whose port it has just read.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::errno::Errno;
use super::slot::{STATE_INPROCESS, STATE_READY, STATE_RESP_READY, Slot, TYPE_COPY};
use super::state::{Inner, World};
use crate::privcmd::IoeventfdRequest;
use crate::{DomId, Mapping};

/// `VIRTIO_MMIO_QUEUE_NOTIFY`.
const QUEUE_NOTIFY: u64 = 0x50;
/// `QUEUE_NOTIFY_VQ_MASK` of the driver.
const QUEUE_MASK: u64 = 0xffff;
/// Width of a kick.
const KICK_BYTES: u32 = 4;

/// The kernel's handlers of one ioreq page.
pub(super) struct KernelIoreq {
    pub(super) dom: DomId,
    /// Where user space has the page.
    address: usize,
    page: Arc<Mapping>,
    ports: Vec<u32>,
    kicks: Vec<Kick>,
    /// The privcmd file it came through, at whose end the fake clears it up.
    file: u64,
}

struct Kick {
    /// The kernel's identity of the eventfd.
    id: String,
    eventfd: File,
    address: u64,
    queue: u32,
}

/// The end of a handler that was made to linger.
pub(super) struct Finish {
    page: Arc<Mapping>,
    vcpu: u32,
    port: u32,
    state: u8,
}

impl Finish {
    /// Waits, sets the state and notifies.
    pub(super) fn run(self, inner: &Inner) {
        let linger = inner.with(|world| world.config.ioeventfd_linger);
        std::thread::sleep(linger);
        if let Some(slot) = Slot::of(&self.page, self.vcpu) {
            slot.set_state(self.state);
        }
        if self.state == STATE_RESP_READY {
            inner.with(|world| world.notify_remote(self.port));
        }
    }
}

impl KernelIoreq {
    /// Registered eventfds.
    pub(super) fn kicks(&self) -> usize {
        self.kicks.len()
    }
}

impl World {
    /// `privcmd_ioeventfd_assign`.
    pub(super) fn assign_ioeventfd(
        &mut self,
        file: u64,
        request: &IoeventfdRequest<'_>,
    ) -> Result<(), Errno> {
        if request.address.checked_add(u64::from(KICK_BYTES)).is_none() {
            return Err(Errno(libc::EINVAL));
        }
        if request.ports.is_empty() || request.ports.len() > 4096 {
            return Err(Errno(libc::EINVAL));
        }
        let id = eventfd_id(request.event_fd)?;
        let kick = Kick {
            id,
            eventfd: duplicate(request.event_fd)?,
            address: request.address,
            queue: request.queue,
        };
        let known = self
            .ioeventfds
            .iter_mut()
            .find(|kernel| kernel.address == request.ioreq_page);
        if let Some(kernel) = known {
            if kernel.dom != request.dom || kernel.ports.len() != request.ports.len() {
                return Err(Errno(libc::EINVAL));
            }
            if kernel.kicks.iter().any(|other| other.id == kick.id) {
                return Err(Errno(libc::EBUSY));
            }
            kernel.kicks.push(kick);
            return Ok(());
        }
        let page = self
            .regions
            .ioreq_page(request.ioreq_page)
            .ok_or(Errno(libc::EFAULT))?;
        if request
            .ports
            .iter()
            .any(|port| !self.local.ports.contains_key(port))
        {
            return Err(Errno(libc::EINVAL));
        }
        self.ioeventfds.push(KernelIoreq {
            dom: request.dom,
            address: request.ioreq_page,
            page,
            ports: request.ports.to_vec(),
            kicks: vec![kick],
            file,
        });
        Ok(())
    }

    /// `privcmd_ioeventfd_deassign`.
    pub(super) fn deassign_ioeventfd(
        &mut self,
        request: &IoeventfdRequest<'_>,
    ) -> Result<(), Errno> {
        let id = eventfd_id(request.event_fd)?;
        let kernel = self
            .ioeventfds
            .iter_mut()
            .find(|kernel| {
                kernel.dom == request.dom
                    && kernel.address == request.ioreq_page
                    && kernel.ports.len() == request.ports.len()
            })
            .ok_or(Errno(libc::ENODEV))?;
        let before = kernel.kicks.len();
        kernel.kicks.retain(|kick| kick.id != id);
        if kernel.kicks.len() == before {
            return Err(Errno(libc::ENODEV));
        }
        self.ioeventfds.retain(|kernel| !kernel.kicks.is_empty());
        Ok(())
    }

    /// Ends the handlers that came through a privcmd file.
    pub(super) fn drop_ioeventfds(&mut self, file: u64) {
        self.ioeventfds.retain(|kernel| kernel.file != file);
    }

    /// Takes the handlers off a port that is closed.
    pub(super) fn drop_handlers(&mut self, port: u32) {
        for kernel in &mut self.ioeventfds {
            for bound in &mut kernel.ports {
                if *bound == port {
                    *bound = 0;
                }
            }
        }
    }

    /// `ioeventfd_interrupt` of every handler of `port`.
    pub(super) fn run_ioeventfds(&mut self, port: u32) {
        let mut finished = Vec::new();
        for kernel in &self.ioeventfds {
            let place = (0u32..)
                .zip(&kernel.ports)
                .find(|(_, bound)| **bound == port);
            if let Some((vcpu, _)) = place {
                finished.extend(kernel.interrupt(vcpu, port));
            }
        }
        for finish in finished {
            if !self.config.ioeventfd_linger.is_zero() {
                self.deferred.push(finish);
                continue;
            }
            if let Some(slot) = Slot::of(&finish.page, finish.vcpu) {
                slot.set_state(finish.state);
            }
            if finish.state == STATE_RESP_READY {
                self.notify_remote(port);
            }
        }
    }
}

impl KernelIoreq {
    fn interrupt(&self, vcpu: u32, port: u32) -> Option<Finish> {
        let slot = Slot::of(&self.page, vcpu)?;
        if slot.state() != STATE_READY {
            return None;
        }
        let request = slot.request();
        if request.kind != TYPE_COPY || request.read {
            return None;
        }
        slot.set_state(STATE_INPROCESS);
        let kick = self.kicks.iter().find(|kick| {
            request.address == kick.address.wrapping_add(QUEUE_NOTIFY)
                && request.size == KICK_BYTES
                && request.data & QUEUE_MASK == u64::from(kick.queue)
        });
        let state = match kick {
            Some(kick) => {
                // As eventfd_signal: a full counter is not waited for.
                let _ = (&kick.eventfd).write_all(&1u64.to_ne_bytes());
                STATE_RESP_READY
            }
            None => STATE_READY,
        };
        Some(Finish {
            page: Arc::clone(&self.page),
            vcpu,
            port,
            state,
        })
    }
}

/// The kernel's number of the eventfd behind a descriptor, the same for
/// every duplicate of it.
///
/// # Errors
/// `EINVAL` when it is no eventfd (`eventfd_ctx_fileget`).
pub(super) fn eventfd_id(fd: BorrowedFd<'_>) -> Result<String, Errno> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let info = std::fs::read_to_string(path).map_err(|_| Errno(libc::EBADF))?;
    info.lines()
        .find_map(|line| line.strip_prefix("eventfd-id:"))
        .map(|id| id.trim().to_owned())
        .ok_or(Errno(libc::EINVAL))
}

/// A file of its own for a descriptor of the caller's.
pub(super) fn duplicate(fd: BorrowedFd<'_>) -> Result<File, Errno> {
    fd.try_clone_to_owned()
        .map(File::from)
        .map_err(|error: io::Error| Errno(error.raw_os_error().unwrap_or(libc::EBADF)))
}
