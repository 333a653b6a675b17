//! The server: its life in Xen, and the draining of fired ports.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::page::{Look, Page, Vcpu};
use super::request::{Ioreq, Pending};
use super::{Drained, Error, Result};
use crate::dm_op::{IoRange, ServerId};
use crate::domid::DomId;
use crate::evtchn::{Evtchn, Fired};
use crate::privcmd::Privcmd;
use crate::sys::abi::ioreq as abi;

/// Looks at a slot that the kernel holds before the loop is told to come
/// back. The kernel holds one for the time of a few list entries.
const SPINS: u32 = 64;
/// Looks that give up the CPU in between.
const YIELDS: u32 = 4;
/// When the loop shall come back.
const LOOK_AGAIN: Duration = Duration::from_micros(50);
/// How long the end of a server waits for its vCPUs to run on.
const SETTLE: Duration = Duration::from_millis(100);
/// Fired ports taken from the kernel at once.
const PORTS_AT_ONCE: usize = 64;

/// What the server and the tickets it has given out share.
#[derive(Debug)]
pub(super) struct Shared {
    page: Page,
    /// Set when the server is enabled, for good.
    vcpus: OnceLock<Box<[Vcpu]>>,
}

impl Shared {
    pub(super) fn dom(&self) -> DomId {
        self.page.dom
    }

    fn vcpus(&self) -> &[Vcpu] {
        self.vcpus.get().map_or(&[], |vcpus| vcpus)
    }

    fn vcpu(&self, index: u32) -> Option<&Vcpu> {
        self.vcpus().get(usize::try_from(index).ok()?)
    }

    pub(super) fn answer(&self, request: &Ioreq, data: Option<u64>) -> Result<()> {
        let vcpu = self.vcpu(request.vcpu).ok_or(Error::Stale {
            dom: self.dom(),
            vcpu: request.vcpu,
        })?;
        self.page.answer(request.vcpu, vcpu, Some(request), data)
    }

    /// Looks at a slot, for a while if the kernel holds it.
    fn look_patiently(&self, index: u32, vcpu: &Vcpu) -> Look {
        for attempt in 0..SPINS + YIELDS {
            match self.page.look(index, vcpu) {
                Look::Busy if attempt < SPINS => std::hint::spin_loop(),
                Look::Busy => std::thread::yield_now(),
                look => return look,
            }
        }
        Look::Busy
    }
}

/// An ioreq server of a guest; destroyed when dropped.
///
/// The order of a life: [`create`](Self::create), claim ranges with
/// [`map_range`](Self::map_range), [`enable`](Self::enable), then
/// [`pending`](Self::pending) again and again. Ranges may come and go at any
/// time.
#[derive(Debug)]
pub struct IoreqServer {
    privcmd: Privcmd,
    evtchn: Evtchn,
    id: ServerId,
    nr_vcpus: u32,
    ranges: Vec<IoRange>,
    /// vCPUs whose slot the kernel held at the last look; their ports are
    /// masked.
    again: Vec<u32>,
    /// The event channels have failed: any port may have fired, and be masked.
    suspect: bool,
    shared: Arc<Shared>,
    destroyed: bool,
}

impl IoreqServer {
    /// Makes a server for `dom`, without ranges and disabled. `evtchn` should
    /// be its own: it reads every port of that file.
    ///
    /// # Errors
    /// [`Error::DmOp`] with [`NoIoreqServer`](crate::dm_op::Error::NoIoreqServer)
    /// on a Xen that has none; [`Error::Vcpus`]; [`Error::Page`].
    pub fn create(privcmd: &Privcmd, evtchn: Evtchn, dom: DomId) -> Result<IoreqServer> {
        let id = privcmd.create_ioreq_server(dom)?;
        let built = Self::build(privcmd, evtchn, dom, id);
        if built.is_err()
            && let Err(error) = privcmd.destroy_ioreq_server(dom, id)
        {
            tracing::warn!(domain = %dom, server = %id, %error, "a server stays behind");
        }
        built
    }

    fn build(privcmd: &Privcmd, evtchn: Evtchn, dom: DomId, id: ServerId) -> Result<IoreqServer> {
        let nr_vcpus = privcmd.nr_vcpus(dom)?;
        if nr_vcpus == 0 || usize::try_from(nr_vcpus).map_or(true, |n| n > abi::MAX_VCPUS) {
            return Err(Error::Vcpus {
                dom,
                vcpus: nr_vcpus,
            });
        }
        privcmd.ioreq_server_info(dom, id)?;
        let mapping = privcmd
            .mmap_resource(
                dom,
                abi::RESOURCE_IOREQ_SERVER,
                u32::from(id.0),
                abi::RESOURCE_FRAME_IOREQ,
                1,
            )
            .map_err(|source| Error::Page { dom, id, source })?;
        Ok(IoreqServer {
            privcmd: privcmd.clone(),
            evtchn,
            id,
            nr_vcpus,
            ranges: Vec::new(),
            again: Vec::new(),
            suspect: false,
            shared: Arc::new(Shared {
                page: Page::new(dom, mapping),
                vcpus: OnceLock::new(),
            }),
            destroyed: false,
        })
    }

    /// The guest.
    #[must_use]
    pub fn dom(&self) -> DomId {
        self.shared.dom()
    }

    /// The server's id, to be noted where a later process finds it: Xen does
    /// not destroy the server of a process that dies.
    #[must_use]
    pub fn id(&self) -> ServerId {
        self.id
    }

    /// The guest's number of vCPUs.
    #[must_use]
    pub fn nr_vcpus(&self) -> u32 {
        self.nr_vcpus
    }

    /// The ranges claimed.
    #[must_use]
    pub fn ranges(&self) -> &[IoRange] {
        &self.ranges
    }

    /// Address of the ioreq page, for
    /// [`IoeventfdRequest`](crate::privcmd::IoeventfdRequest).
    #[must_use]
    pub fn page_address(&self) -> usize {
        self.shared.page.address()
    }

    /// The local event channel of every vCPU, in order; empty until enabled.
    #[must_use]
    pub fn ports(&self) -> Vec<u32> {
        let vcpus = self.shared.vcpus().iter();
        vcpus.map(|vcpu| vcpu.channel.port()).collect()
    }

    /// Claims a range.
    ///
    /// # Errors
    /// [`Error::DmOp`].
    pub fn map_range(&mut self, range: IoRange) -> Result<()> {
        self.privcmd.map_io_range(self.dom(), self.id, range)?;
        self.ranges.push(range);
        Ok(())
    }

    /// Gives a range up that was claimed exactly so.
    ///
    /// # Errors
    /// [`Error::DmOp`].
    pub fn unmap_range(&mut self, range: IoRange) -> Result<()> {
        self.privcmd.unmap_io_range(self.dom(), self.id, range)?;
        self.ranges.retain(|claimed| *claimed != range);
        Ok(())
    }

    /// Lets requests come, and binds the event channel of every vCPU, which
    /// Xen names only now.
    ///
    /// # Errors
    /// [`Error::State`] when enabled already; [`Error::DmOp`];
    /// [`Error::NoPort`] or [`Error::Events`], after which the server is
    /// disabled again.
    pub fn enable(&mut self) -> Result<()> {
        let (dom, id) = (self.dom(), self.id);
        let state = |enabled| Error::State { dom, id, enabled };
        if self.is_enabled() {
            return Err(state(true));
        }
        self.privcmd.set_ioreq_server_state(dom, id, true)?;
        let bound = (0..self.nr_vcpus)
            .map(|vcpu| self.bind(vcpu))
            .collect::<Result<Box<[Vcpu]>>>();
        match bound {
            Ok(vcpus) => {
                // Requests may have come before their channel was bound; an
                // event that was sent then is pending on it, but a look costs
                // nothing.
                self.again = (0..self.nr_vcpus).collect();
                self.shared.vcpus.set(vcpus).map_err(|_| state(true))
            }
            Err(error) => {
                if let Err(error) = self.privcmd.set_ioreq_server_state(dom, id, false) {
                    tracing::warn!(domain = %dom, server = %id, %error, "server stays enabled");
                }
                Err(error)
            }
        }
    }

    fn bind(&self, vcpu: u32) -> Result<Vcpu> {
        let (dom, id) = (self.dom(), self.id);
        let remote = match self.shared.page.remote_port(vcpu) {
            None | Some(0) => return Err(Error::NoPort { dom, id, vcpu }),
            Some(port) => port,
        };
        let channel = self
            .evtchn
            .bind_interdomain(dom, remote)
            .map_err(|source| Error::Events { dom, source })?;
        Ok(Vcpu::new(channel))
    }

    /// Whether requests come.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.shared.vcpus.get().is_some()
    }

    /// Appends every request that waits to `out`; what is appended must be
    /// answered. To be called when the descriptor is readable, and after the
    /// time that the last call gave.
    ///
    /// # Errors
    /// [`Error::State`] before the server is enabled; [`Error::Events`], after
    /// which it is to be called again, even if the descriptor stays silent.
    /// Requests that were appended before a failure are to be answered too.
    pub fn pending(&mut self, out: &mut Vec<Pending>) -> Result<Drained> {
        if !self.is_enabled() {
            return Err(Error::State {
                dom: self.dom(),
                id: self.id,
                enabled: false,
            });
        }
        let again = std::mem::take(&mut self.again);
        let looked = again
            .into_iter()
            .map(|vcpu| self.look(vcpu, out))
            .fold(Ok(()), Result::and);
        let drained = self.drain(out).and(looked);
        self.suspect = drained.is_err();
        drained?;
        Ok(if self.again.is_empty() {
            Drained::Idle
        } else {
            Drained::LookAgain(LOOK_AGAIN)
        })
    }

    /// Takes all that has fired.
    fn drain(&mut self, out: &mut Vec<Pending>) -> Result<()> {
        if self.suspect {
            self.all_fired(out)?;
        }
        let mut ports = [0; PORTS_AT_ONCE];
        loop {
            let fired = self.evtchn.read(&mut ports).map_err(|e| self.events(e))?;
            match fired {
                Fired::Ports(0) => return Ok(()),
                Fired::Ports(count) => {
                    self.each_fired(ports.iter().take(count).copied(), out)?;
                    // A vCPU that is answered while we look fires again; the
                    // descriptor stays readable, so that the loop comes back.
                    if count < ports.len() {
                        return Ok(());
                    }
                }
                Fired::Overflow => {
                    tracing::warn!(domain = %self.dom(), "event channels overflowed");
                    self.all_fired(out)?;
                }
            }
        }
    }

    fn events(&self, source: crate::evtchn::Error) -> Error {
        Error::Events {
            dom: self.dom(),
            source,
        }
    }

    /// Looks at the vCPUs of several ports, whatever becomes of each port: it
    /// was read and will not be told again.
    fn each_fired(
        &mut self,
        ports: impl IntoIterator<Item = u32>,
        out: &mut Vec<Pending>,
    ) -> Result<()> {
        ports
            .into_iter()
            .map(|port| self.fired(port, out))
            .fold(Ok(()), Result::and)
    }

    /// After an overflow or a failure any port may have fired, and be masked.
    fn all_fired(&mut self, out: &mut Vec<Pending>) -> Result<()> {
        self.each_fired(self.ports(), out)
    }

    /// An event of a port.
    fn fired(&mut self, port: u32, out: &mut Vec<Pending>) -> Result<()> {
        let vcpus = self.shared.vcpus();
        let index = (0u32..)
            .zip(vcpus)
            .find(|(_, vcpu)| vcpu.channel.port() == port)
            .map(|(index, _)| index);
        match index {
            Some(index) => self.look(index, out),
            None => {
                tracing::debug!(domain = %self.dom(), port, "an event of no vCPU");
                self.evtchn.unmask(port).map_err(|e| self.events(e))
            }
        }
    }

    /// Looks, then unmasks the port: an event that came in between is pending
    /// and fires then. The other way round an ioeventfd's handler, which runs
    /// for each event of the port on any CPU and has no care for others, would
    /// be at the same slot at the same time. A slot that it still has in hand
    /// keeps its port masked for the same reason.
    fn look(&mut self, index: u32, out: &mut Vec<Pending>) -> Result<()> {
        let Some(vcpu) = self.shared.vcpu(index) else {
            return Ok(());
        };
        let port = vcpu.channel.port();
        match self.shared.look_patiently(index, vcpu) {
            Look::Nothing => {}
            Look::Taken(request) => out.push(Pending::new(Arc::clone(&self.shared), request)),
            Look::Busy => {
                if !self.again.contains(&index) {
                    self.again.push(index);
                }
                return Ok(());
            }
        }
        self.evtchn.unmask(port).map_err(|e| self.events(e))
    }

    /// Ends the server: what still waits is answered as an access to
    /// nothing, requests end, the ranges are given up, and Xen forgets the
    /// server. Assigned ioeventfds must be gone before.
    ///
    /// # Errors
    /// [`Error::DmOp`] of the first step that failed; the others are tried.
    pub fn destroy(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.destroyed, true) {
            return Ok(());
        }
        let (dom, id) = (self.dom(), self.id);
        // A vCPU that waits for an answer would go on waiting for a server
        // that is gone.
        self.release_vcpus();
        let mut result = Ok(());
        if self.is_enabled() {
            result = self.privcmd.set_ioreq_server_state(dom, id, false);
            // What came in before requests ended.
            self.release_vcpus();
            self.settle();
        }
        for range in std::mem::take(&mut self.ranges) {
            result = result.and(self.privcmd.unmap_io_range(dom, id, range));
        }
        Ok(result.and(self.privcmd.destroy_ioreq_server(dom, id))?)
    }

    /// Waits a little until the vCPUs have taken their answers: one that was
    /// woken but has not run yet still looks at the page that Xen frees with
    /// the server. The vCPUs of a domain that is paused, or being destroyed,
    /// do not run, which is why the wait ends.
    fn settle(&self) {
        let deadline = Instant::now() + SETTLE;
        let free = |vcpu| self.shared.page.is_free(vcpu);
        while !(0..self.nr_vcpus).all(free) && Instant::now() < deadline {
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Answers every request, those included that tickets are out for.
    fn release_vcpus(&self) {
        for (index, vcpu) in (0u32..).zip(self.shared.vcpus()) {
            if !Page::is_held(vcpu) {
                let _ = self.shared.look_patiently(index, vcpu);
            }
            if Page::is_held(vcpu)
                && let Err(error) = self.shared.page.answer(index, vcpu, None, Some(u64::MAX))
            {
                tracing::debug!(domain = %self.dom(), vcpu = index, %error, "last answer");
            }
        }
    }
}

impl Drop for IoreqServer {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            // Usual when the domain died first.
            tracing::info!(domain = %self.dom(), server = %self.id, %error, "end of the ioreq server");
        }
    }
}

impl AsFd for IoreqServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.evtchn.as_fd()
    }
}

/// For event loops; readable when a vCPU waits.
impl AsRawFd for IoreqServer {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
