//! What libxl does to xenstore for a guest's virtio devices.
//!
//! For tests and `xen-dm demo`: the same nodes in the same order and with the
//! same permissions, each device in one transaction (`libxl_device.c`,
//! `libxl_disk.c`, `libxl_virtio.c` in `tools/libs/light` of Xen 4.20), over
//! the real wire to the fake daemon. Its methods block, with a bound, on the
//! calling thread.

mod device;
#[cfg(test)]
mod tests;

use std::io;
use std::time::{Duration, Instant};

use crate::DomId;
use crate::xenstore::{
    Access, Error as XenstoreError, Permission, Transaction, Tree, XenbusState, Xenstore, path,
};

use super::xenstored::Store;

pub use device::{
    Device, DeviceId, Kind, VIRTIO_MMIO_BASE, VIRTIO_MMIO_SPI_FIRST, VIRTIO_MMIO_STRIDE,
    VirtioDevice, VirtioDisk, slot, vdev_number,
};

/// How long libxl waits for a back end, either way (`LIBXL_INIT_TIMEOUT` and
/// `LIBXL_DESTROY_TIMEOUT`, `libxl_internal.h`).
pub const LIBXL_TIMEOUT: Duration = Duration::from_secs(10);
/// A step of the toolstack that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection to the fake daemon.
    #[error("connecting to the fake xenstored")]
    Connect(#[source] io::Error),
    /// A request failed.
    #[error(transparent)]
    Xenstore(#[from] XenstoreError),
    /// The back end did not do its part in time.
    #[error("back end {path}: state is {found:?} after {after:?}, waited for {wanted:?}")]
    BackendState {
        /// The back end's directory.
        path: String,
        /// The state that was waited for.
        wanted: XenbusState,
        /// What the node held at the end, if it was there.
        found: Option<String>,
        /// How long was waited.
        after: Duration,
    },
}

/// The toolstack of a fake dom0.
#[derive(Debug)]
pub struct Toolstack {
    daemon: Store,
    store: Xenstore,
}

impl Toolstack {
    /// A toolstack connected to `daemon` as dom0.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Xenstore`].
    pub fn new(daemon: &Store) -> Result<Self, Error> {
        let store = connect(daemon)?;
        Ok(Self {
            daemon: daemon.clone(),
            store,
        })
    }

    /// Its connection.
    #[must_use]
    pub fn xenstore(&self) -> &Xenstore {
        &self.store
    }

    /// Makes a guest's own directories and has the daemon connect to it
    /// (`libxl__domain_make`, `libxl_create.c`).
    ///
    /// # Errors
    /// [`Error::Xenstore`].
    pub fn create_domain(&self, domain: DomId, name: &str) -> Result<(), Error> {
        let paths = DomainPaths::of(domain);
        self.store.transaction(|tx| -> Result<(), Error> {
            for path in [&paths.own, &paths.vm, &paths.libxl] {
                clean_rm(tx, path)?;
                tx.mkdir(path)?;
            }
            let private = Permission::new(DomId(0), Access::None);
            let readable = [private, Permission::new(domain, Access::Read)];
            let writable = [Permission::new(domain, Access::None)];
            tx.set_permissions(&paths.own, &readable)?;
            tx.set_permissions(&paths.vm, &readable)?;
            tx.set_permissions(&paths.libxl, &[private])?;
            let own = tx.at(paths.own.as_str());
            own.write("vm", &paths.vm)?;
            own.write("name", name)?;
            own.write("domid", domain)?;
            for (key, list) in [
                ("device", &readable[..]),
                ("control", &readable),
                ("data", &writable),
            ] {
                let path = path::join(&paths.own, key);
                tx.mkdir(&path)?;
                tx.set_permissions(&path, list)?;
            }
            tx.mkdir(&path::join(&paths.libxl, "device"))?;
            Ok(())
        })?;
        self.daemon.introduce(domain);
        Ok(())
    }

    /// Writes all nodes of a device, in one transaction
    /// (`libxl__device_generic_add`, `libxl_device.c`).
    ///
    /// # Errors
    /// [`Error::Xenstore`].
    pub fn add(&self, device: &impl Device) -> Result<(), Error> {
        let id = device.id();
        let (front, back, libxl) = (id.frontend_path(), id.backend_path(), id.libxl_path());
        let entry = Permission::new;
        let front_permissions = [
            entry(id.domain, Access::None),
            entry(id.backend, Access::Read),
        ];
        let back_permissions = [
            entry(id.backend, Access::None),
            entry(id.domain, Access::Read),
        ];
        self.store.transaction(|tx| -> Result<(), Error> {
            clean_rm(tx, &libxl)?;
            let copy = tx.at(libxl.as_str());
            copy.write("frontend", &front)?;
            copy.write("backend", &back)?;

            clean_rm(tx, &front)?;
            tx.mkdir(&front)?;
            tx.set_permissions(&front, &front_permissions)?;
            tx.write(&path::join(&front, "backend"), &back)?;
            for (key, value) in device.frontend_nodes() {
                let path = path::join(&front, key);
                tx.write(&path, &value)?;
                tx.set_permissions(&path, &front_permissions)?;
            }

            clean_rm(tx, &back)?;
            tx.mkdir(&back)?;
            tx.set_permissions(&back, &back_permissions)?;
            tx.write(&path::join(&back, "frontend"), &front)?;
            for (key, value) in device.backend_nodes() {
                tx.write(&path::join(&back, key), &value)?;
                copy.write(key, &value)?;
            }
            Ok(())
        })
    }

    /// Waits until a back end shows a state.
    ///
    /// # Errors
    /// [`Error::BackendState`] when it does not within `timeout`; else as
    /// [`Toolstack::new`].
    pub fn wait_state(
        &self,
        id: &DeviceId,
        wanted: XenbusState,
        timeout: Duration,
    ) -> Result<(), Error> {
        let path = path::join(&id.backend_path(), "state");
        // A connection of its own: waits of several threads do not mix.
        let store = connect(&self.daemon)?;
        let watch = store.watch(&path)?;
        let start = Instant::now();
        loop {
            let found = match store.read_string(watch.path()) {
                Ok(text) => Some(text),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error.into()),
            };
            if found.as_deref() == Some(wanted.to_string().as_str()) {
                return Ok(());
            }
            let left = timeout.checked_sub(start.elapsed());
            if left.and_then(|left| store.wait_event(left)).is_none() {
                let path = id.backend_path();
                return Err(Error::BackendState {
                    path,
                    wanted,
                    found,
                    after: timeout,
                });
            }
        }
    }

    /// Adds a disk as `xl create` does: writes its nodes, then waits for
    /// state 2 (`libxl__wait_device_connection`, `libxl_device.c`).
    ///
    /// # Errors
    /// As [`Toolstack::add`] and [`Toolstack::wait_state`].
    pub fn attach(&self, disk: &VirtioDisk, timeout: Duration) -> Result<(), Error> {
        self.add(disk)?;
        self.wait_state(&disk.id(), XenbusState::InitWait, timeout)
    }

    /// Asks a back end to give a device up: `online` 0, `state` 5
    /// (`libxl__initiate_device_generic_remove`, `libxl_device.c`). Returns
    /// whether there is a back end to wait for.
    ///
    /// # Errors
    /// [`Error::Xenstore`].
    pub fn request_removal(&self, id: &DeviceId) -> Result<bool, Error> {
        self.store.transaction(|tx| {
            let back = tx.at(id.backend_path());
            let Some(state) = back.read_optional::<String>("state")? else {
                return Ok(false);
            };
            back.write("online", 0)?;
            if state != XenbusState::Closed.to_string() {
                back.write("state", XenbusState::Closing)?;
            }
            Ok(true)
        })
    }

    /// Removes a device as `xl` does: asks, waits for state 6, removes the
    /// directories.
    ///
    /// # Errors
    /// As [`Toolstack::wait_state`], and then the directories are left.
    pub fn remove(&self, id: &DeviceId, timeout: Duration) -> Result<(), Error> {
        if self.request_removal(id)? {
            self.wait_state(id, XenbusState::Closed, timeout)?;
        }
        self.clean_up(id)
    }

    /// Removes a device's directories, and those above that are then empty
    /// (`libxl__device_destroy`, `libxl_device.c`).
    ///
    /// # Errors
    /// [`Error::Xenstore`].
    pub fn clean_up(&self, id: &DeviceId) -> Result<(), Error> {
        self.store.transaction(|tx| -> Result<(), Error> {
            for path in [id.frontend_path(), id.libxl_path(), id.backend_path()] {
                path_cleanup(tx, &path)?;
            }
            Ok(())
        })
    }

    /// Destroys a guest: gives all its devices up at once, removes its
    /// directories. Then Xen ends the domain ([`super::Domain::destroy`]), and
    /// tells xenstored. What fails on the way does not keep the rest from
    /// being removed.
    ///
    /// # Errors
    /// The first device's that did not close within `timeout`; else as
    /// [`Toolstack::remove`].
    pub fn destroy_domain(&self, domain: DomId, timeout: Duration) -> Result<(), Error> {
        let devices = self.devices(domain)?;
        let mut outcome = Ok(());
        let mut pending = Vec::new();
        for id in &devices {
            if self.request_removal(id)? {
                pending.push(id);
            }
        }
        for id in pending {
            outcome = outcome.and(self.wait_state(id, XenbusState::Closed, timeout));
        }
        for id in &devices {
            outcome = outcome.and(self.clean_up(id));
        }
        let paths = DomainPaths::of(domain);
        self.store.transaction(|tx| -> Result<(), Error> {
            for path in [&paths.vm, &paths.own, &paths.libxl] {
                clean_rm(tx, path)?;
            }
            Ok(())
        })?;
        outcome
    }

    /// The devices libxl knows of a guest.
    fn devices(&self, domain: DomId) -> Result<Vec<DeviceId>, Error> {
        let mut found = Vec::new();
        for kind in [Kind::Virtio, Kind::VirtioDisk] {
            let list = format!("/libxl/{domain}/device/{}", kind.name());
            let names = match self.store.directory(&list) {
                Ok(names) => names,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error.into()),
            };
            for name in names {
                let Ok(devid) = name.parse() else { continue };
                let back: String = self.store.at(list.as_str()).child(&name).read("backend")?;
                // /local/domain/<backend>/backend/...
                let backend = back.split('/').nth(3).and_then(|text| text.parse().ok());
                if let Some(backend) = backend {
                    found.push(DeviceId {
                        backend,
                        domain,
                        kind,
                        devid,
                    });
                }
            }
        }
        Ok(found)
    }
}

/// The directories of a guest.
struct DomainPaths {
    own: String,
    vm: String,
    libxl: String,
}

impl DomainPaths {
    fn of(domain: DomId) -> Self {
        Self {
            own: format!("/local/domain/{domain}"),
            vm: format!("/vm/00000000-0000-4000-8000-{:012x}", domain.0),
            libxl: format!("/libxl/{domain}"),
        }
    }
}

fn connect(daemon: &Store) -> Result<Xenstore, Error> {
    let stream = daemon.connect(DomId(0)).map_err(Error::Connect)?;
    Ok(Xenstore::from_stream(stream)?)
}

/// Removes a node that need not be there, nor the one above it.
fn clean_rm(tx: &Transaction<'_>, path: &str) -> Result<(), Error> {
    match tx.rm(path) {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Removes a node, and those above it that have no children left
/// (`libxl__xs_path_cleanup`, `libxl_xshelp.c`).
fn path_cleanup(tx: &Transaction<'_>, path: &str) -> Result<(), Error> {
    clean_rm(tx, path)?;
    let mut above = path::parent(path);
    while let Some(parent) = above.filter(|parent| *parent != "/") {
        match tx.directory(parent) {
            Ok(children) if children.is_empty() => clean_rm(tx, parent)?,
            Ok(_) => break,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        above = path::parent(parent);
    }
    Ok(())
}
