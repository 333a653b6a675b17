//! `/dev/xen/evtchn` by raw ioctls.
//!
//! Called by [`Evtchn`](crate::evtchn::Evtchn) only.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use zerocopy::IntoBytes;

use super::abi::ioctl::{self as abi, EvtchnBindInterdomain};
use super::ioctl::{ioctl, ioctl_none};
use crate::domid::DomId;

/// Where the file is.
pub(crate) const PATH: &str = "/dev/xen/evtchn";

/// The open file; reads do not block.
#[derive(Debug)]
pub(crate) struct EvtchnFile {
    file: File,
}

impl EvtchnFile {
    pub(crate) fn open() -> io::Result<EvtchnFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(PATH)?;
        Ok(EvtchnFile { file })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn bind_interdomain(&self, dom: DomId, remote_port: u32) -> io::Result<u32> {
        let mut call = EvtchnBindInterdomain {
            remote_domain: u32::from(dom.0),
            remote_port,
        };
        // SAFETY: the structure holds no address.
        let port = unsafe { ioctl(self.fd(), abi::EVTCHN_BIND_INTERDOMAIN, &mut call) }?;
        u32::try_from(port).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))
    }

    pub(crate) fn unbind(&self, port: u32) -> io::Result<()> {
        self.with_port(abi::EVTCHN_UNBIND, port)
    }

    pub(crate) fn notify(&self, port: u32) -> io::Result<()> {
        self.with_port(abi::EVTCHN_NOTIFY, port)
    }

    fn with_port(&self, request: u64, mut port: u32) -> io::Result<()> {
        // SAFETY: the kernel reads the port's four bytes.
        unsafe { ioctl(self.fd(), request, &mut port) }?;
        Ok(())
    }

    pub(crate) fn read(&self, ports: &mut [u32]) -> io::Result<usize> {
        let bytes = (&self.file).read(ports.as_mut_bytes())?;
        Ok(bytes / size_of::<u32>())
    }

    pub(crate) fn unmask(&self, port: u32) -> io::Result<()> {
        (&self.file).write_all(port.as_bytes())
    }

    pub(crate) fn reset(&self) -> io::Result<()> {
        ioctl_none(self.fd(), abi::EVTCHN_RESET)?;
        Ok(())
    }

    pub(crate) fn restrict(&self, dom: DomId) -> io::Result<()> {
        let mut domid = dom.0;
        // SAFETY: the kernel reads the two bytes of the id.
        unsafe { ioctl(self.fd(), abi::EVTCHN_RESTRICT_DOMID, &mut domid) }?;
        Ok(())
    }
}
