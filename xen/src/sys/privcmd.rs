//! `/dev/xen/privcmd` by raw ioctls.
//!
//! Called by [`Privcmd`](crate::privcmd::Privcmd) only. Methods give errno
//! values as the kernel or Xen does; naming them is the caller's part.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use vm_memory::Bytes;
use zerocopy::IntoBytes;

use super::abi::ioctl::{
    self as abi, FeatureInfo, PrivcmdDmOp, PrivcmdDmOpBuf, PrivcmdHypercall, PrivcmdIoeventfd,
    PrivcmdIrqfd, PrivcmdMmapResource, PrivcmdMmapbatchV2,
};
use super::abi::{PAGE_SIZE, ioctl::IOEVENTFD_DEASSIGN, ioctl::IRQFD_DEASSIGN};
use super::ioctl::ioctl;
use super::mapping::Mapping;
use super::reservation::Reservation;
use crate::domid::DomId;
use crate::privcmd::IoeventfdRequest;

/// Where the file is.
pub(crate) const PATH: &str = "/dev/xen/privcmd";
/// `VIRTIO_MMIO_QUEUE_NOTIFY` is written with 4 bytes; Linux's match on it
/// compares this size.
const QUEUE_NOTIFY_LEN: u32 = 4;

/// The open file.
#[derive(Debug)]
pub(crate) struct PrivcmdFile {
    file: File,
    /// The page that hypercalls pass their structures in.
    page: Mutex<Mapping>,
}

impl PrivcmdFile {
    pub(crate) fn open() -> io::Result<PrivcmdFile> {
        let file = OpenOptions::new().read(true).write(true).open(PATH)?;
        Ok(PrivcmdFile {
            file,
            page: Mutex::new(Mapping::for_hypercalls()?),
        })
    }

    /// A file for whoever may map one domain's memory and do nothing else.
    pub(crate) fn open_restricted(dom: DomId) -> io::Result<File> {
        let opened = PrivcmdFile::open()?;
        opened.restrict(dom)?;
        Ok(opened.file)
    }

    /// Makes a hypercall whose second argument is a structure, given as
    /// bytes and handed back as Xen left it.
    fn hypercall(&self, op: u64, command: u64, data: &mut [u8]) -> io::Result<u64> {
        let page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        let slice = page.volatile();
        slice.write_slice(data, 0).map_err(io::Error::other)?;
        let mut call = PrivcmdHypercall {
            op,
            args: [command, page.address() as u64, 0, 0, 0],
        };
        // SAFETY: the commands this file passes (`features`, `version`,
        // `maximum_gpfn`, `maximum_reservation`, `current_reservation`) write nowhere but to the page,
        // which is locked here.
        let result = unsafe { ioctl(self.file.as_fd(), abi::PRIVCMD_HYPERCALL, &mut call) }?;
        slice.read_slice(data, 0).map_err(io::Error::other)?;
        Ok(result)
    }

    pub(crate) fn features(&self, submap: u32) -> io::Result<u32> {
        let mut info = FeatureInfo {
            submap_idx: submap,
            submap: 0,
        };
        self.hypercall(
            abi::HYPERVISOR_XEN_VERSION,
            abi::XENVER_GET_FEATURES,
            info.as_mut_bytes(),
        )?;
        Ok(info.submap)
    }

    pub(crate) fn version(&self) -> io::Result<(u16, u16)> {
        let word = self.hypercall(abi::HYPERVISOR_XEN_VERSION, abi::XENVER_VERSION, &mut [])?;
        let half = |v: u64| u16::try_from(v & 0xffff).unwrap_or(u16::MAX);
        Ok((half(word >> 16), half(word)))
    }

    pub(crate) fn maximum_gpfn(&self, dom: DomId) -> io::Result<u64> {
        let mut domid = dom.0;
        self.hypercall(
            abi::HYPERVISOR_MEMORY_OP,
            abi::XENMEM_MAXIMUM_GPFN,
            domid.as_mut_bytes(),
        )
    }

    pub(crate) fn maximum_reservation(&self, dom: DomId) -> io::Result<u64> {
        let mut domid = dom.0;
        self.hypercall(
            abi::HYPERVISOR_MEMORY_OP,
            abi::XENMEM_MAXIMUM_RESERVATION,
            domid.as_mut_bytes(),
        )
    }

    pub(crate) fn current_reservation(&self, dom: DomId) -> io::Result<u64> {
        let mut domid = dom.0;
        self.hypercall(
            abi::HYPERVISOR_MEMORY_OP,
            abi::XENMEM_CURRENT_RESERVATION,
            domid.as_mut_bytes(),
        )
    }

    pub(crate) fn dm_op(&self, dom: DomId, bufs: &mut [&mut [u8]]) -> io::Result<()> {
        let descriptors: Vec<PrivcmdDmOpBuf> = bufs
            .iter_mut()
            .map(|buf| PrivcmdDmOpBuf {
                data_ptr: buf.as_mut_ptr().expose_provenance() as u64,
                size: buf.len() as u64,
            })
            .collect();
        let mut call = PrivcmdDmOp {
            dom: dom.0,
            num: u16::try_from(descriptors.len())
                .map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
            pad: 0,
            bufs_ptr: descriptors.as_ptr().expose_provenance() as u64,
        };
        // SAFETY: the array of descriptors lives until after the call, each
        // names a buffer borrowed mutably for this call, with its length.
        unsafe { ioctl(self.file.as_fd(), abi::PRIVCMD_DM_OP, &mut call) }?;
        Ok(())
    }

    pub(crate) fn mmap_resource(
        &self,
        dom: DomId,
        kind: u32,
        id: u32,
        frame: u32,
        count: u64,
    ) -> io::Result<Mapping> {
        let len = page_bytes(count)?;
        let mapping = Mapping::of_file(self.file.as_fd(), 0, len, true)?;
        let mut call = PrivcmdMmapResource {
            dom: dom.0,
            pad: 0,
            kind,
            id,
            idx: frame,
            num: count,
            addr: mapping.address() as u64,
        };
        // SAFETY: the kernel fills `count` pages of a mapping of just this
        // file and size, made above and known to nobody else.
        unsafe { ioctl(self.file.as_fd(), abi::PRIVCMD_MMAP_RESOURCE, &mut call) }?;
        Ok(mapping)
    }

    pub(crate) fn mmap_batch(
        &self,
        dom: DomId,
        gfns: &[u64],
        errors: &mut [i32],
        write: bool,
    ) -> io::Result<Mapping> {
        let len = batch_bytes(gfns, errors)?;
        let mapping = Mapping::of_file(self.file.as_fd(), 0, len, write)?;
        // SAFETY: a mapping of just this file and size, made above.
        unsafe { self.fill(dom, gfns, errors, mapping.address()) }?;
        Ok(mapping)
    }

    /// As [`PrivcmdFile::mmap_batch`], to place `at` of a reservation. The
    /// whole batch is one mapping of the kernel's, which must not be cut later
    /// (it would give its pages back twice): it is replaced or unmapped whole.
    pub(crate) fn mmap_batch_into(
        &self,
        dom: DomId,
        gfns: &[u64],
        errors: &mut [i32],
        into: &Reservation,
        at: usize,
    ) -> io::Result<()> {
        let len = batch_bytes(gfns, errors)?;
        into.map_file(at, self.file.as_fd(), 0, len)?;
        let address = into.place(at, len)?.addr();
        // SAFETY: a mapping of just this file and size, made above; it can be
        // neither merged with another one nor known to anybody.
        let filled = unsafe { self.fill(dom, gfns, errors, address) };
        if filled.is_err() {
            into.clear(at, len)?;
        }
        filled
    }

    /// Fills a mapping with frames.
    ///
    /// # Safety
    /// At `address` is a mapping of just this file with `gfns.len()` pages
    /// that nobody looks at yet.
    unsafe fn fill(
        &self,
        dom: DomId,
        gfns: &[u64],
        errors: &mut [i32],
        address: usize,
    ) -> io::Result<()> {
        let mut call = PrivcmdMmapbatchV2 {
            num: u32::try_from(gfns.len())
                .map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
            dom: dom.0,
            pad: 0,
            addr: address as u64,
            gfns_ptr: gfns.as_ptr().expose_provenance() as u64,
            errors_ptr: errors.as_mut_ptr().expose_provenance() as u64,
        };
        // SAFETY: the kernel fills the caller's mapping, reads `num` frame
        // numbers and writes `num` errors; both arrays have that length
        // (`batch_bytes`) and are borrowed for the call.
        let result = unsafe { ioctl(self.file.as_fd(), abi::PRIVCMD_MMAPBATCH_V2, &mut call) };
        match result {
            Ok(_) => Ok(()),
            // Some page is paged out; which one, the array says.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn restrict(&self, dom: DomId) -> io::Result<()> {
        let mut domid = dom.0;
        // SAFETY: the kernel reads the two bytes of the id.
        unsafe { ioctl(self.file.as_fd(), abi::PRIVCMD_RESTRICT, &mut domid) }?;
        Ok(())
    }

    pub(crate) fn irqfd(
        &self,
        dom: DomId,
        op: &[u8],
        fd: BorrowedFd<'_>,
        assign: bool,
    ) -> io::Result<()> {
        let mut call = PrivcmdIrqfd {
            dm_op_ptr: op.as_ptr().expose_provenance() as u64,
            size: u32::try_from(op.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
            fd: raw_fd(fd)?,
            flags: if assign { 0 } else { IRQFD_DEASSIGN },
            dom: dom.0,
            pad: [0; 2],
        };
        // SAFETY: the kernel copies `size` bytes of the operation, whose
        // length that is.
        unsafe { ioctl(self.file.as_fd(), abi::PRIVCMD_IRQFD, &mut call) }?;
        Ok(())
    }

    pub(crate) fn ioeventfd(&self, req: &IoeventfdRequest<'_>, assign: bool) -> io::Result<()> {
        let mut call = PrivcmdIoeventfd {
            ioreq_ptr: req.ioreq_page as u64,
            ports_ptr: req.ports.as_ptr().expose_provenance() as u64,
            addr: req.address,
            addr_len: QUEUE_NOTIFY_LEN,
            event_fd: raw_fd(req.event_fd)?,
            vcpus: u32::try_from(req.ports.len())
                .map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
            vq: req.queue,
            flags: if assign { 0 } else { IOEVENTFD_DEASSIGN },
            dom: req.dom.0,
            pad: [0; 2],
        };
        // SAFETY: the kernel copies `vcpus` ports, the array's length; the
        // ioreq page is looked up in the address space and refused if it is
        // no mapping of this driver's.
        unsafe { ioctl(self.file.as_fd(), abi::PRIVCMD_IOEVENTFD, &mut call) }?;
        Ok(())
    }

    /// Passes flags that no kernel knows: EINVAL means the call is there.
    pub(crate) fn probe_irqfd(&self) -> io::Result<()> {
        let mut call = PrivcmdIrqfd {
            flags: !0,
            ..PrivcmdIrqfd::default()
        };
        // SAFETY: the structure holds no address; unknown flags are refused.
        unsafe { ioctl(self.file.as_fd(), abi::PRIVCMD_IRQFD, &mut call) }?;
        Ok(())
    }

    /// As [`PrivcmdFile::probe_irqfd`].
    pub(crate) fn probe_ioeventfd(&self) -> io::Result<()> {
        let mut call = PrivcmdIoeventfd {
            flags: !0,
            ..PrivcmdIoeventfd::default()
        };
        // SAFETY: the structure holds no address; unknown flags are refused.
        unsafe { ioctl(self.file.as_fd(), abi::PRIVCMD_IOEVENTFD, &mut call) }?;
        Ok(())
    }
}

fn raw_fd(fd: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))
}

/// Bytes of a batch's pages; there is an error for each.
fn batch_bytes(gfns: &[u64], errors: &[i32]) -> io::Result<usize> {
    if gfns.is_empty() || gfns.len() != errors.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    page_bytes(gfns.len() as u64)
}

fn page_bytes(pages: u64) -> io::Result<usize> {
    usize::try_from(pages)
        .ok()
        .and_then(|pages| pages.checked_mul(PAGE_SIZE))
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}
