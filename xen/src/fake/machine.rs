//! The machine: hypervisor, dom0's kernel, xenstored.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::census::Census;
use super::config::{DomainConfig, MachineConfig};
use super::domain::Domain;
use super::evtchn::EvtchnFile;
use super::faults::Target;
use super::foreign::Pin;
use super::gntdev::GntdevFile;
use super::privcmd::PrivcmdFile;
use super::state::Inner;
use super::xenstored::Store;
use crate::DomId;
use crate::host::HostFile;

/// A fake Xen with its dom0; clones are the same machine.
#[derive(Clone)]
pub struct Machine {
    inner: Arc<Inner>,
}

impl Machine {
    /// The machine of [`MachineConfig::default`].
    ///
    /// # Errors
    /// What starting xenstored gives.
    pub fn new() -> io::Result<Machine> {
        Machine::with_config(MachineConfig::default())
    }

    /// A machine of a given make.
    ///
    /// # Errors
    /// As [`Machine::new`].
    pub fn with_config(config: MachineConfig) -> io::Result<Machine> {
        Ok(Machine {
            inner: Arc::new(Inner::new(config, Store::new()?)),
        })
    }

    /// Creates a domain with the next free id, and introduces it to
    /// xenstored. A toolstack that makes nodes for it introduces it once
    /// more, when they are there.
    ///
    /// # Errors
    /// `EINVAL` for a domain without vCPU or with more than 128, `ENOMEM`
    /// for memory that cannot be had.
    pub fn create_domain(&self, config: DomainConfig) -> io::Result<Domain> {
        let domain = Domain::create(&self.inner, config)?;
        self.inner.store.introduce(domain.id());
        Ok(domain)
    }

    /// The domain with `id`, if it exists (a zombie does).
    #[must_use]
    pub fn domain(&self, id: DomId) -> Option<Domain> {
        self.inner
            .with(|world| world.domains.contains_key(&id))
            .then(|| Domain::handle(&self.inner, id))
    }

    /// What the machine is like now.
    #[must_use]
    pub fn config(&self) -> MachineConfig {
        self.inner.with(|world| world.config.clone())
    }

    /// Whether a device file can be opened.
    ///
    /// # Errors
    /// What [`MachineConfig::closed_files`] says.
    pub fn open(&self, file: HostFile) -> io::Result<()> {
        let closed = self.config().closed_files;
        match closed.iter().find(|(closed, _)| *closed == file) {
            Some((_, errno)) => Err(io::Error::from_raw_os_error(*errno)),
            None => Ok(()),
        }
    }

    /// Opens `/dev/xen/privcmd`.
    ///
    /// # Errors
    /// As [`Machine::open`].
    pub fn open_privcmd(&self) -> io::Result<PrivcmdFile> {
        self.open(HostFile::Privcmd)?;
        Ok(PrivcmdFile::open(&self.inner))
    }

    /// Opens `/dev/xen/gntdev`.
    ///
    /// # Errors
    /// As [`Machine::open`].
    pub fn open_gntdev(&self) -> io::Result<GntdevFile> {
        self.open(HostFile::Gntdev)?;
        Ok(GntdevFile::open(&self.inner))
    }

    /// Opens `/dev/xen/evtchn`.
    ///
    /// # Errors
    /// As [`Machine::open`]; `EMFILE` when no descriptor is left.
    pub fn open_evtchn(&self) -> io::Result<EvtchnFile> {
        self.open(HostFile::Evtchn)?;
        EvtchnFile::open(&self.inner)
    }

    /// Connects to xenstored as dom0.
    ///
    /// # Errors
    /// `EMFILE` when no descriptor is left.
    pub fn xenstore_stream(&self) -> io::Result<UnixStream> {
        self.inner.store.connect(DomId(0))
    }

    /// The xenstored of the machine.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// What dom0 holds of every domain that exists or is held.
    #[must_use]
    pub fn census(&self) -> BTreeMap<DomId, Census> {
        self.inner.with(|world| world.census())
    }

    /// Stands for get_user_pages: what the kernel does with memory that is
    /// handed to O_DIRECT, registered buffers or zero-copy sends.
    ///
    /// # Errors
    /// `EFAULT` when any page of the range came through privcmd.
    pub fn pin(&self, address: usize, len: usize) -> io::Result<Pin> {
        Pin::new(&self.inner, address, len)
    }

    /// Has the `nth` call of a kind from now on (1 is the next) fail with
    /// `errno`, once.
    pub fn fail(&self, target: Target, nth: u64, errno: i32) {
        self.inner
            .with(|world| world.faults.plan(target, nth, errno));
    }

    #[cfg(test)]
    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Changes the machine: what is asked for from now on follows it.
    pub fn reconfigure(&self, change: impl FnOnce(&mut MachineConfig)) {
        self.inner.with(|world| change(&mut world.config));
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}
