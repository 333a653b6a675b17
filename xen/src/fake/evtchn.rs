//! An open `/dev/xen/evtchn` of the fake.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::errno::Errno;
use super::events::Ring;
use super::faults::Call;
use super::state::{Inner, World};
use crate::DomId;

/// The file; dropped, it closes every port it has bound.
pub struct EvtchnFile {
    inner: Arc<Inner>,
    id: u64,
    poll: UnixStream,
}

impl fmt::Debug for EvtchnFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EvtchnFile").finish_non_exhaustive()
    }
}

impl EvtchnFile {
    pub(super) fn open(inner: &Arc<Inner>) -> io::Result<EvtchnFile> {
        let (wake, poll) = UnixStream::pair()?;
        let drain = poll.try_clone()?;
        let id = inner.with(|world| {
            let id = world.fresh_id();
            world.local.rings.insert(id, Ring::new(wake, drain));
            id
        });
        Ok(EvtchnFile {
            inner: Arc::clone(inner),
            id,
            poll,
        })
    }

    /// Readable while a port waits to be read, and after an overflow. To be
    /// polled only: reading goes through [`EvtchnFile::read`].
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    /// Binds a local port to a domain's; the local port fires at once.
    ///
    /// # Errors
    /// `ESRCH`: no such domain. `EINVAL`: no such port, or bound already.
    /// `EACCES`: the file is restricted to another domain.
    pub(crate) fn bind_interdomain(&self, dom: DomId, remote_port: u32) -> io::Result<u32> {
        self.call(Call::Bind, |world| world.bind(self.id, dom, remote_port))
    }

    /// Closes a local port.
    ///
    /// # Errors
    /// `ENOTCONN`: not one of this file's.
    pub(crate) fn unbind(&self, port: u32) -> io::Result<()> {
        self.call(Call::Unbind, |world| world.unbind(self.id, port))
    }

    /// Notifies the other end, if it is still there.
    ///
    /// # Errors
    /// `ENOTCONN`: not one of this file's.
    pub(crate) fn notify(&self, port: u32) -> io::Result<()> {
        self.call(Call::Notify, |world| world.notify_from(self.id, port))
    }

    /// Takes ports that fired, as a file opened with `O_NONBLOCK` does.
    ///
    /// # Errors
    /// `EAGAIN`: none. `EFBIG`: the ring has overflowed.
    pub(crate) fn read(&self, ports: &mut [u32]) -> io::Result<usize> {
        self.call(Call::Read, |world| world.ring(self.id)?.pop(ports))
    }

    /// Writes a port back, so that it can fire again. Others' ports are
    /// ignored, as the driver does.
    ///
    /// # Errors
    /// None of its own.
    pub(crate) fn unmask(&self, port: u32) -> io::Result<()> {
        self.call(Call::Unmask, |world| {
            world.unmask(self.id, port);
            Ok(())
        })
    }

    /// Empties the ring and forgets its overflow; masked ports stay masked.
    ///
    /// # Errors
    /// None of its own.
    pub(crate) fn reset(&self) -> io::Result<()> {
        self.call(Call::Reset, |world| {
            world.ring(self.id)?.reset();
            Ok(())
        })
    }

    /// Lets the file bind ports of one domain only, for good.
    ///
    /// # Errors
    /// `EACCES`: restricted before. `EINVAL`: dom0 or a reserved id.
    pub(crate) fn restrict(&self, dom: DomId) -> io::Result<()> {
        self.call(Call::EvtchnRestrict, |world| {
            let ring = world.ring(self.id)?;
            if ring.restricted.is_some() {
                return Err(Errno(libc::EACCES));
            }
            if dom == DomId(0) || !dom.is_ordinary() {
                return Err(Errno(libc::EINVAL));
            }
            ring.restricted = Some(dom);
            Ok(())
        })
    }

    fn call<R>(&self, call: Call, f: impl FnOnce(&mut World) -> Result<R, Errno>) -> io::Result<R> {
        self.inner.call(|world| {
            world.faults.check(call)?;
            f(world)
        })
    }
}

impl Drop for EvtchnFile {
    fn drop(&mut self) {
        self.inner.with(|world| world.close_file(self.id));
    }
}
