//! A domain as its guest and the toolstack have it.

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex};

use super::config::DomainConfig;
use super::errno::Errno;
use super::grants::{GrantError, GrantTable};
use super::interrupts::Interrupts;
use super::ram::{PAGE_SHIFT, Ram, read_pieces, write_pieces};
use super::state::{DomainState, Inner, VcpuState};
use super::vcpu::{AccessFault, Vcpu};
use crate::{DomId, Mapping};

/// vCPUs whose slots fit the ioreq page.
const MAX_VCPUS: u32 = 128;

/// A domain; clones are the same one. It goes on existing without handles.
#[derive(Clone)]
pub struct Domain {
    inner: Arc<Inner>,
    id: DomId,
}

impl Domain {
    pub(super) fn create(inner: &Arc<Inner>, config: DomainConfig) -> io::Result<Domain> {
        if config.vcpus == 0 || config.vcpus > MAX_VCPUS {
            return Err(Errno(libc::EINVAL).into());
        }
        let state = DomainState {
            ram: Ram::new(&config.banks, &config.holes)?,
            servers: Default::default(),
            ports: Default::default(),
            vcpus: (0..config.vcpus).map(|_| VcpuState::new()).collect(),
            grants: GrantTable::new(config.grant_frames),
            interrupts: Arc::new(Interrupts::default()),
            pauses: u32::from(config.paused),
            dying: false,
            crashed: false,
            started: false,
            foreign_pages: 0,
            resource_pages: 0,
            changed: Arc::new(Condvar::new()),
            config,
        };
        let id = inner.call(|world| {
            let id = DomId(world.next_domid);
            if !id.is_ordinary() {
                return Err(Errno(libc::ENOMEM));
            }
            world.next_domid += 1;
            world.domains.insert(id, state);
            Ok(id)
        })?;
        Ok(Domain::handle(inner, id))
    }

    pub(super) fn handle(inner: &Arc<Inner>, id: DomId) -> Domain {
        Domain {
            inner: Arc::clone(inner),
            id,
        }
    }

    /// The domain's id.
    #[must_use]
    pub fn id(&self) -> DomId {
        self.id
    }

    /// A virtual CPU; what it does fails if there is none of that number.
    #[must_use]
    pub fn vcpu(&self, number: u32) -> Vcpu {
        Vcpu::new(&self.inner, self.id, number)
    }

    /// The feature word that the guest sees.
    ///
    /// # Errors
    /// `ESRCH` when the domain is gone.
    pub fn features(&self) -> io::Result<u32> {
        self.state(|domain| Ok(domain.config.features))
    }

    /// The interrupts raised in it.
    ///
    /// # Errors
    /// `ESRCH` when the domain is gone.
    pub fn interrupts(&self) -> io::Result<Arc<Interrupts>> {
        self.state(|domain| Ok(Arc::clone(&domain.interrupts)))
    }

    /// Reads guest memory as the guest does.
    ///
    /// # Errors
    /// `EFAULT` where there is no page, `ESRCH` when the domain is gone.
    pub fn read_memory(&self, address: u64, into: &mut [u8]) -> io::Result<()> {
        let len = into.len();
        let (file, pieces) =
            self.state(|domain| Ok((domain.ram.file(), domain.ram.pieces(address, len)?)))?;
        read_pieces(&file, &pieces, into)
    }

    /// Writes guest memory as the guest does.
    ///
    /// # Errors
    /// As [`Domain::read_memory`].
    pub fn write_memory(&self, address: u64, from: &[u8]) -> io::Result<()> {
        let (file, pieces) =
            self.state(|domain| Ok((domain.ram.file(), domain.ram.pieces(address, from.len())?)))?;
        write_pieces(&file, &pieces, from)
    }

    /// The guest's own view of frames, as one range of this process; not a
    /// foreign mapping, and counted nowhere.
    ///
    /// # Errors
    /// `EFAULT` where there is no page, `ESRCH` when the domain is gone.
    pub fn map_memory(&self, first_gfn: u64, frames: u64) -> io::Result<Mapping> {
        use std::os::fd::AsFd;
        let (file, offsets) = self.state(|domain| {
            let offsets: Option<Vec<Option<u64>>> = (first_gfn..first_gfn.saturating_add(frames))
                .map(|gfn| domain.ram.offset(gfn).map(Some))
                .collect();
            Ok((domain.ram.file(), offsets.ok_or(Errno(libc::EFAULT))?))
        })?;
        Mapping::of_pages(file.as_fd(), &offsets, true)
    }

    /// vCPU 0 gives frames back: see [`Vcpu::balloon_out`].
    ///
    /// # Errors
    /// See [`AccessFault`].
    pub fn balloon_out(&self, first_gfn: u64, frames: u64) -> Result<u64, AccessFault> {
        self.vcpu(0).balloon_out(first_gfn, frames)
    }

    /// [`Vcpu::exchange`](super::Vcpu::exchange) on vCPU 0.
    ///
    /// # Errors
    /// See there.
    pub fn exchange(&self, first_gfn: u64, frames: u64) -> Result<u64, AccessFault> {
        self.vcpu(0).exchange(first_gfn, frames)
    }

    /// Frames get new, zeroed pages.
    ///
    /// # Errors
    /// `EINVAL` for frames that never were RAM, `EEXIST` for one that has its
    /// page, `ESRCH` when the domain is gone.
    pub fn balloon_in(&self, first_gfn: u64, frames: u64) -> io::Result<()> {
        self.state(|domain| {
            (first_gfn..first_gfn.saturating_add(frames))
                .try_for_each(|gfn| domain.ram.populate(gfn))
        })
    }

    /// Grants one frame to dom0.
    ///
    /// # Errors
    /// See [`GrantError`].
    pub fn grant(&self, gfn: u64, read_only: bool) -> Result<u32, GrantError> {
        self.grant_range(gfn, 1, read_only)
    }

    /// Grants consecutive frames to dom0 by consecutive references, and gives
    /// the first.
    ///
    /// # Errors
    /// See [`GrantError`].
    pub fn grant_range(
        &self,
        first_gfn: u64,
        count: u32,
        read_only: bool,
    ) -> Result<u32, GrantError> {
        self.grants(|domain| {
            let missing = (first_gfn..first_gfn.saturating_add(u64::from(count)))
                .find(|gfn| domain.ram.offset(*gfn).is_none());
            if let Some(gfn) = missing {
                return Err(GrantError::NoPage { gfn });
            }
            domain.grants.grant_range(first_gfn, count, read_only)
        })
    }

    /// Takes a grant back.
    ///
    /// # Errors
    /// [`GrantError::StillInUse`] while dom0 holds a map of it: the reference
    /// and the page are lost for good, and the device with them.
    pub fn end_access(&self, gref: u32) -> Result<(), GrantError> {
        self.grants(|domain| domain.grants.end_access(gref))
    }

    /// Takes consecutive grants back; all are tried.
    ///
    /// # Errors
    /// The first error.
    pub fn end_access_range(&self, first: u32, count: u32) -> Result<(), GrantError> {
        let mut result = Ok(());
        for gref in first..first.saturating_add(count) {
            result = result.and(self.end_access(gref));
        }
        result
    }

    /// How often the guest found a grant still in use.
    ///
    /// # Errors
    /// [`GrantError::NoDomain`].
    pub fn broken_grants(&self) -> Result<u64, GrantError> {
        self.grants(|domain| Ok(domain.grants.broken()))
    }

    /// References that are granted now.
    ///
    /// # Errors
    /// [`GrantError::NoDomain`].
    pub fn granted(&self) -> Result<usize, GrantError> {
        self.grants(|domain| Ok(domain.grants.granted()))
    }

    /// Has the next grant copies through `gref` get these `GNTST_*` values
    /// instead of being made (0 lets one through).
    ///
    /// # Errors
    /// [`GrantError::NotGranted`].
    pub fn fail_copies(&self, gref: u32, statuses: &[i16]) -> Result<(), GrantError> {
        self.grants(|domain| domain.grants.plan_statuses(gref, statuses))
    }

    /// Stops the vCPUs before their next access; counted.
    ///
    /// # Errors
    /// `ESRCH` when the domain is gone.
    pub fn pause(&self) -> io::Result<()> {
        self.state(|domain| {
            domain.pauses += 1;
            Ok(())
        })
    }

    /// Undoes one [`Domain::pause`], or the paused creation.
    ///
    /// # Errors
    /// `EINVAL` when it is not paused, `ESRCH` when the domain is gone.
    pub fn unpause(&self) -> io::Result<()> {
        self.state(|domain| {
            domain.pauses = domain.pauses.checked_sub(1).ok_or(Errno(libc::EINVAL))?;
            domain.changed.notify_all();
            Ok(())
        })
    }

    /// Kills the domain: its vCPUs, servers and event channels go at once,
    /// xenstored is told, and its memory goes when dom0 holds none of it any
    /// more. A second time does nothing.
    pub fn destroy(&self) {
        let found = self.inner.with(|world| {
            let Some(domain) = world.domains.get_mut(&self.id) else {
                return false;
            };
            if std::mem::replace(&mut domain.dying, true) {
                return false;
            }
            for server in &mut domain.servers {
                *server = None;
            }
            let ports: Vec<u32> = domain.ports.keys().copied().collect();
            domain.wake_all();
            for port in ports {
                world.close_xen_port(self.id, port);
            }
            world.reap(self.id);
            true
        });
        if found {
            self.inner.store.release(self.id);
        }
    }

    /// Whether the domain was destroyed and dom0 still holds a page of it.
    #[must_use]
    pub fn is_zombie(&self) -> bool {
        self.state(|domain| Ok(domain.dying)).unwrap_or(false)
    }

    /// Whether Xen still knows the domain.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.state(|_| Ok(())).is_ok()
    }

    /// Whether Xen crashed it for what the device model did.
    #[must_use]
    pub fn is_crashed(&self) -> bool {
        self.state(|domain| Ok(domain.crashed)).unwrap_or(false)
    }

    /// The guest-physical address of frame `gfn`.
    #[must_use]
    pub fn address_of(gfn: u64) -> u64 {
        gfn << PAGE_SHIFT
    }

    fn state<R>(&self, f: impl FnOnce(&mut DomainState) -> Result<R, Errno>) -> io::Result<R> {
        self.inner.call(|world| f(world.domain(self.id)?))
    }

    fn grants<R>(
        &self,
        f: impl FnOnce(&mut DomainState) -> Result<R, GrantError>,
    ) -> Result<R, GrantError> {
        self.inner.with(|world| {
            let domain = world
                .domains
                .get_mut(&self.id)
                .ok_or(GrantError::NoDomain)?;
            f(domain)
        })
    }
}

impl VcpuState {
    fn new() -> VcpuState {
        VcpuState {
            wakeups: 0,
            woken: Arc::new(Condvar::new()),
            invalidate: false,
            busy: Arc::new(Mutex::new(())),
        }
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
