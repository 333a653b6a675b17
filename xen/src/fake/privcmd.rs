//! An open `/dev/xen/privcmd` of the fake.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::dm_op::check_buffers;
use super::errno::Errno;
use super::faults::Call;
use super::foreign;
use super::irqfd::Irqfds;
use super::state::{Inner, World};
use crate::memory::SharedRun;
use crate::privcmd::IoeventfdRequest;
use crate::sys::reservation::Reservation;
use crate::{DomId, Mapping};

/// `XENMEM_resource_ioreq_server`.
const RESOURCE_IOREQ_SERVER: u32 = 0;
/// No restriction (`DOMID_INVALID`).
const UNRESTRICTED: u32 = 0x7ff4;

/// The file.
pub struct PrivcmdFile {
    inner: Arc<Inner>,
    id: u64,
    restricted: AtomicU32,
    irqfds: Mutex<Option<Irqfds>>,
}

impl fmt::Debug for PrivcmdFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivcmdFile").finish_non_exhaustive()
    }
}

impl PrivcmdFile {
    pub(super) fn open(inner: &Arc<Inner>) -> PrivcmdFile {
        let tied = inner.with(|world| world.config.privcmd_domain);
        PrivcmdFile {
            inner: Arc::clone(inner),
            id: inner.with(World::fresh_id),
            restricted: AtomicU32::new(tied.map_or(UNRESTRICTED, |dom| u32::from(dom.0))),
            irqfds: Mutex::new(None),
        }
    }

    /// dom0's feature word.
    ///
    /// # Errors
    /// `EPERM` on a restricted file, `EINVAL` for a submap other than 0.
    pub(crate) fn features(&self, submap: u32) -> io::Result<u32> {
        self.hypercall(Call::Features, |world| {
            if submap != 0 {
                return Err(Errno(libc::EINVAL));
            }
            Ok(world.config.features)
        })
    }

    /// Xen's version, major and minor.
    ///
    /// # Errors
    /// `EPERM` on a restricted file.
    pub(crate) fn version(&self) -> io::Result<(u16, u16)> {
        self.hypercall(Call::Version, |world| Ok(world.config.version))
    }

    /// The highest guest frame of a domain.
    ///
    /// # Errors
    /// `EPERM` on a restricted file, `ESRCH`: no such domain.
    pub(crate) fn maximum_gpfn(&self, dom: DomId) -> io::Result<u64> {
        self.hypercall(Call::MaximumGpfn, |world| {
            world.domain(dom).map(|domain| domain.ram.maximum_gfn())
        })
    }

    /// How many pages a domain may have.
    ///
    /// # Errors
    /// As [`PrivcmdFile::maximum_gpfn`].
    pub(crate) fn maximum_reservation(&self, dom: DomId) -> io::Result<u64> {
        self.hypercall(Call::MaximumReservation, |world| {
            world.domain(dom).map(|domain| domain.ram.frames())
        })
    }

    /// How many pages a domain has. In Xen those that it gave back count for as
    /// long as somebody has them mapped; here they do not.
    ///
    /// # Errors
    /// As [`PrivcmdFile::maximum_gpfn`].
    pub(crate) fn current_reservation(&self, dom: DomId) -> io::Result<u64> {
        self.hypercall(Call::CurrentReservation, |world| {
            world.domain(dom).map(|domain| domain.ram.present())
        })
    }

    /// One device-model operation; `bufs[0]` is `struct xen_dm_op`.
    ///
    /// # Errors
    /// As Linux and Xen give them; see the module `dm_op` of the fake.
    pub(crate) fn dm_op(&self, dom: DomId, bufs: &mut [&mut [u8]]) -> io::Result<()> {
        self.guarded(Call::DmOp, dom, |world| {
            check_buffers(bufs)?;
            match bufs.first_mut() {
                Some(op) => world.dm_op(dom, op),
                None => Ok(()),
            }
        })
    }

    /// Maps pages that Xen keeps for a domain.
    ///
    /// # Errors
    /// `ESRCH`, `ENOENT`: no such domain or server. `EINVAL`: no such kind
    /// or frame. `EPERM`: the file is restricted to another domain.
    pub(crate) fn mmap_resource(
        &self,
        dom: DomId,
        kind: u32,
        id: u32,
        frame: u32,
        count: u64,
    ) -> io::Result<Mapping> {
        self.guarded(Call::MmapResource, dom, |_| Ok(()))?;
        foreign::map_resource(&self.inner, dom, |world| {
            if kind != RESOURCE_IOREQ_SERVER {
                world.remote(dom)?;
                return Err(Errno(libc::EINVAL));
            }
            world.server_frames(dom, id, frame, count)
        })
    }

    /// Maps guest frames one by one; a frame's failure is a negative errno in
    /// `errors`, and its page stays inaccessible.
    ///
    /// # Errors
    /// `EINVAL`: no frames. `EFAULT`: `errors` is too short. `EPERM`: the
    /// file is restricted to another domain.
    pub(crate) fn mmap_batch(
        &self,
        dom: DomId,
        gfns: &[u64],
        errors: &mut [i32],
        write: bool,
    ) -> io::Result<Mapping> {
        self.guarded(Call::MmapBatch, dom, |_| Ok(()))?;
        foreign::map_batch(&self.inner, dom, gfns, errors, write)
    }

    /// The memory file of a domain, and which of its frames are where in it.
    ///
    /// # Errors
    /// `ESRCH`: no such domain. `EPERM`: restricted to another domain.
    pub(crate) fn memory_file(&self, dom: DomId) -> io::Result<(Arc<File>, Vec<SharedRun>)> {
        self.guarded(Call::MmapBatch, dom, |world| {
            let ram = &world.domain(dom)?.ram;
            Ok((ram.file(), ram.runs()))
        })
    }

    /// As [`PrivcmdFile::mmap_batch`], writable and to place `at` of a
    /// reservation; where no page is there, the place stays as it is.
    ///
    /// # Errors
    /// As [`PrivcmdFile::mmap_batch`]. `EINVAL`: the place lies outside.
    pub(crate) fn mmap_batch_into(
        &self,
        dom: DomId,
        gfns: &[u64],
        errors: &mut [i32],
        into: &Reservation,
        at: usize,
    ) -> io::Result<()> {
        self.guarded(Call::MmapBatch, dom, |_| Ok(()))?;
        foreign::map_batch_into(&self.inner, dom, gfns, errors, into, at)
    }

    /// Ties the file to one domain, for good.
    ///
    /// # Errors
    /// `EINVAL`: tied to another already.
    pub(crate) fn restrict(&self, dom: DomId) -> io::Result<()> {
        self.inner
            .call(|world| world.faults.check(Call::PrivcmdRestrict))?;
        let dom = u32::from(dom.0);
        match self.restricted.compare_exchange(
            UNRESTRICTED,
            dom,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Err(other) if other != dom => Err(Errno(libc::EINVAL).into()),
            _ => Ok(()),
        }
    }

    /// Has the kernel run the operation `op` whenever the eventfd fires, or
    /// stops that.
    ///
    /// # Errors
    /// `EBUSY`: the eventfd is in use. `EINVAL`: no eventfd. `EOPNOTSUPP` or
    /// `ENOTTY`: the kernel cannot. `EPERM`: restricted to another domain.
    pub(crate) fn irqfd(
        &self,
        dom: DomId,
        op: &[u8],
        fd: BorrowedFd<'_>,
        assign: bool,
    ) -> io::Result<()> {
        self.eventfd_call(Call::Irqfd, dom, |_| Ok(()))?;
        let mut irqfds = self.irqfds.lock().unwrap_or_else(PoisonError::into_inner);
        if irqfds.is_none() {
            *irqfds = Some(Irqfds::start(&self.inner, self.id)?);
        }
        let irqfds = irqfds.as_ref().ok_or(Errno(libc::ENOMEM))?;
        if assign {
            irqfds.assign(dom, op, fd)
        } else {
            irqfds.deassign(fd)
        }
    }

    /// Has the kernel answer one queue's kicks with an eventfd, or stops that.
    ///
    /// # Errors
    /// `EFAULT`: no ioreq page at that address. `EBUSY`: the eventfd is in
    /// use. `EINVAL`: the domain or the number of vCPUs differs from an
    /// earlier call's. `ENODEV`: nothing to stop. Otherwise as
    /// [`PrivcmdFile::irqfd`].
    pub(crate) fn ioeventfd(&self, request: &IoeventfdRequest<'_>, assign: bool) -> io::Result<()> {
        self.eventfd_call(Call::Ioeventfd, request.dom, |world| {
            if assign {
                world.assign_ioeventfd(self.id, request)
            } else {
                world.deassign_ioeventfd(request)
            }
        })
    }

    // privcmd_ioctl_hypercall: refused altogether once the file is restricted.
    fn hypercall<R>(
        &self,
        call: Call,
        f: impl FnOnce(&mut World) -> Result<R, Errno>,
    ) -> io::Result<R> {
        self.inner.call(|world| {
            world.faults.check(call)?;
            if self.restricted.load(Ordering::Acquire) != UNRESTRICTED {
                return Err(Errno(libc::EPERM));
            }
            f(world)
        })
    }

    // The ioctls that name a domain.
    fn guarded<R>(
        &self,
        call: Call,
        dom: DomId,
        f: impl FnOnce(&mut World) -> Result<R, Errno>,
    ) -> io::Result<R> {
        self.inner.call(|world| {
            world.faults.check(call)?;
            let restricted = self.restricted.load(Ordering::Acquire);
            if restricted != UNRESTRICTED && restricted != u32::from(dom.0) {
                return Err(Errno(libc::EPERM));
            }
            f(world)
        })
    }

    fn eventfd_call<R>(
        &self,
        call: Call,
        dom: DomId,
        f: impl FnOnce(&mut World) -> Result<R, Errno>,
    ) -> io::Result<R> {
        let refusal = self
            .inner
            .with(|world| world.config.privcmd_eventfd.refusal());
        if let Some(errno) = refusal {
            return Err(Errno(errno).into());
        }
        self.guarded(call, dom, f)
    }
}

impl Drop for PrivcmdFile {
    fn drop(&mut self) {
        // The kernel keeps both until their eventfds close; for the fake the
        // file's end stands for the process's.
        self.irqfds
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.inner.with(|world| world.drop_ioeventfds(self.id));
    }
}
