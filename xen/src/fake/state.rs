//! What the fake hypervisor and dom0's kernel know of everything, under one
//! lock.
//!
//! Every call of a device file, of a vCPU or of a test takes the lock of
//! [`World`], decides, and lets go; what must happen without the lock (a
//! kernel handler that is made to linger) is queued in `World::deferred` and
//! run by [`Inner::with`] afterwards, on the caller's thread.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::config::{DomainConfig, MachineConfig};
use super::errno::Errno;
use super::events::{LocalPorts, XenPort};
use super::faults::Faults;
use super::foreign::Regions;
use super::gntdev::{Closing, GrantMap};
use super::grants::GrantTable;
use super::interrupts::Interrupts;
use super::ioeventfd::{Finish, KernelIoreq};
use super::ioreq::Server;
use super::ram::Ram;
use super::xenstored::Store;
use crate::DomId;

/// `MAX_NR_IOREQ_SERVERS` (`xen/include/xen/ioreq.h`).
pub(super) const MAX_SERVERS: usize = 8;

/// What handles of a machine share.
pub(super) struct Inner {
    world: Mutex<World>,
    pub(super) store: Store,
}

/// All state of a machine.
pub(super) struct World {
    pub(super) config: MachineConfig,
    pub(super) domains: BTreeMap<DomId, DomainState>,
    pub(super) local: LocalPorts,
    pub(super) regions: Regions,
    pub(super) maps: BTreeMap<u64, GrantMap>,
    pub(super) ioeventfds: Vec<KernelIoreq>,
    /// irqfds by the eventfd's id, with their domain and privcmd file.
    pub(super) irqfds: BTreeMap<String, (DomId, u64)>,
    pub(super) faults: Faults,
    pub(super) deferred: Vec<Finish>,
    /// Files whose last holder let go under the lock.
    pub(super) closing: Vec<Closing>,
    pub(super) next_domid: u16,
    next_id: u64,
}

/// One domain.
pub(super) struct DomainState {
    pub(super) config: DomainConfig,
    pub(super) ram: Ram,
    pub(super) servers: [Option<Server>; MAX_SERVERS],
    pub(super) ports: BTreeMap<u32, XenPort>,
    pub(super) vcpus: Vec<VcpuState>,
    pub(super) grants: GrantTable,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) pauses: u32,
    pub(super) dying: bool,
    pub(super) crashed: bool,
    pub(super) started: bool,
    /// Pages of the domain that dom0 has mapped, RAM and ioreq pages.
    pub(super) foreign_pages: u64,
    pub(super) resource_pages: u64,
    /// Told of unpausing, destruction and crash.
    pub(super) changed: Arc<Condvar>,
}

/// What Xen knows of a vCPU.
pub(super) struct VcpuState {
    /// Notifications of its Xen-consumed event channels so far.
    pub(super) wakeups: u64,
    /// Told of each.
    pub(super) woken: Arc<Condvar>,
    /// An INVALIDATE is to be sent before the vCPU goes on
    /// (`mapcache_invalidate`, `xen/common/ioreq.c`).
    pub(super) invalidate: bool,
    /// Held through an access: a vCPU does one thing at a time.
    pub(super) busy: Arc<Mutex<()>>,
}

impl Inner {
    pub(super) fn new(config: MachineConfig, store: Store) -> Inner {
        Inner {
            world: Mutex::new(World {
                config,
                domains: BTreeMap::new(),
                local: LocalPorts::default(),
                regions: Regions::default(),
                maps: BTreeMap::new(),
                ioeventfds: Vec::new(),
                irqfds: BTreeMap::new(),
                faults: Faults::default(),
                deferred: Vec::new(),
                closing: Vec::new(),
                next_domid: 1,
                next_id: 1,
            }),
            store,
        }
    }

    /// The lock, for those who wait on a condition with it.
    pub(super) fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` under the lock, and what it deferred after it.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut World) -> R) -> R {
        let mut world = self.lock();
        let result = f(&mut world);
        self.finish(world);
        result
    }

    /// As [`Inner::with`], with an error number as [`io::Error`].
    pub(super) fn call<R>(&self, f: impl FnOnce(&mut World) -> Result<R, Errno>) -> io::Result<R> {
        self.with(f).map_err(io::Error::from)
    }

    /// Lets go of the lock and runs what was deferred.
    pub(super) fn finish(&self, mut world: MutexGuard<'_, World>) {
        let deferred = std::mem::take(&mut world.deferred);
        let closing = std::mem::take(&mut world.closing);
        drop(world);
        drop(closing);
        for step in deferred {
            step.run(self);
        }
    }
}

impl World {
    /// A number that was not given before.
    pub(super) fn fresh_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// A domain, dying ones included.
    ///
    /// # Errors
    /// `ESRCH` when there is none.
    pub(super) fn domain(&mut self, dom: DomId) -> Result<&mut DomainState, Errno> {
        self.domains.get_mut(&dom).ok_or(Errno(libc::ESRCH))
    }

    /// A domain that is not the caller's own (`rcu_lock_remote_domain_by_id`).
    ///
    /// # Errors
    /// `EPERM` for dom0 itself, `ESRCH` when there is none.
    pub(super) fn remote(&mut self, dom: DomId) -> Result<&mut DomainState, Errno> {
        if dom == DomId(0) {
            return Err(Errno(libc::EPERM));
        }
        self.domain(dom)
    }

    /// Lets a destroyed domain go whose last page reference is gone.
    pub(super) fn reap(&mut self, dom: DomId) {
        if self
            .domains
            .get(&dom)
            .is_some_and(|domain| domain.dying && !domain.referenced())
        {
            self.domains.remove(&dom);
        }
    }
}

impl DomainState {
    /// Whether dom0 still holds a page of the domain.
    pub(super) fn referenced(&self) -> bool {
        self.foreign_pages > 0 || self.resource_pages > 0 || self.grants.mapped() > 0
    }

    /// A vCPU's state.
    pub(super) fn vcpu(&mut self, vcpu: u32) -> Option<&mut VcpuState> {
        self.vcpus.get_mut(usize::try_from(vcpu).ok()?)
    }

    /// The server with `id`.
    pub(super) fn server(&mut self, id: u16) -> Result<&mut Server, Errno> {
        self.servers
            .get_mut(usize::from(id))
            .and_then(Option::as_mut)
            .ok_or(Errno(libc::ENOENT))
    }
}
