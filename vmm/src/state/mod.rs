//! What outlives the process: which ioreq servers it has made, and that it
//! runs at all.
//!
//! An ioreq server stays in Xen when its maker dies, and a second one for the
//! same addresses would not be asked. So every server is recorded in a file
//! before the guest hears of its device, and at start what a dead process of
//! ours has left is destroyed. The control thread calls this.

mod lock;
mod record;
#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use xen::DomId;

pub use record::{Maker, ServerRecord};

use lock::Lock;

/// Only the daemon's user has business here.
const MODE: u32 = 0o700;
/// A record's file name is this, the domain's number and [`SUFFIX`].
const PREFIX: &str = "domain-";
/// See [`PREFIX`].
const SUFFIX: &str = ".json";

/// Why the state directory cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// Another daemon has it.
    #[error("another xen-dm daemon{} runs already (it holds {})", process(*pid), lock.display())]
    Running {
        /// The lock file.
        lock: PathBuf,
        /// The other daemon, if it said who it is.
        pid: Option<u32>,
    },
    /// Another process serves the guest.
    #[error(
        "domain {domid} is served by another xen-dm (process {pid}): two would answer the same \
         accesses"
    )]
    Served {
        /// The guest.
        domid: DomId,
        /// The other process.
        pid: u32,
    },
    /// The host says no.
    #[error("{what} {} failed", path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A record is none.
    #[error("{} is no record of an ioreq server", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

fn process(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})"))
        .unwrap_or_default()
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { what, path, source }
}

/// The state directory, locked for this process as long as the value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    maker: Maker,
    /// Keeps other daemons out.
    _lock: Option<Lock>,
}

impl StateDir {
    /// Makes the directory if need be, and takes its lock.
    ///
    /// # Errors
    /// [`StateError::Running`] when another daemon has it; [`StateError::Io`].
    pub fn open(path: &Path) -> Result<StateDir, StateError> {
        let mut state = StateDir::beside(path)?;
        state._lock = Some(Lock::take(path, state.maker.pid)?);
        Ok(state)
    }

    /// Makes the directory if need be, to be used beside a daemon.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn beside(path: &Path) -> Result<StateDir, StateError> {
        DirBuilder::new()
            .recursive(true)
            .mode(MODE)
            .create(path)
            .map_err(io_error("making the state directory", path))?;
        Ok(StateDir {
            path: path.to_owned(),
            maker: Maker::this_process(),
            _lock: None,
        })
    }

    /// The other living process that serves a guest, if there is one.
    #[must_use]
    pub fn other(&self, domid: DomId) -> Option<Maker> {
        // what is no record is told of by `stale`
        let record = ServerRecord::read(&self.file(domid)).ok()?;
        record.maker.is_alive().then_some(record.maker)
    }

    fn file(&self, domid: DomId) -> PathBuf {
        self.path.join(format!("{PREFIX}{domid}{SUFFIX}"))
    }

    /// Records that this process has made `server` for a guest.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn record(
        &self,
        domid: DomId,
        uuid: Option<&str>,
        server: u16,
    ) -> Result<Recorded, StateError> {
        let record = ServerRecord {
            domid: domid.0,
            uuid: uuid.map(str::to_owned),
            server,
            maker: self.maker,
        };
        let path = self.file(domid);
        record.write(&path)?;
        Ok(Recorded { path })
    }

    /// The records of processes that are gone, each with its file: it is
    /// removed by [`Recorded::remove`]. Records of living processes are left out, and so
    /// are files that are none, with a line in the log.
    ///
    /// # Errors
    /// [`StateError::Io`] when the directory cannot be read.
    pub fn stale(&self) -> Result<Vec<(ServerRecord, Recorded)>, StateError> {
        let error = || io_error("reading the state directory", &self.path);
        let mut stale = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(error())? {
            let path = entry.map_err(error())?.path();
            if !is_record(&path) {
                continue;
            }
            match ServerRecord::read(&path) {
                Ok(record) if record.maker.is_alive() => tracing::warn!(
                    domid = record.domid,
                    server = record.server,
                    pid = record.maker.pid,
                    "another process says that it serves this domain"
                ),
                Ok(record) => stale.push((record, Recorded { path })),
                Err(error) => {
                    tracing::warn!("{}; it is ignored", crate::logs::report(&error));
                }
            }
        }
        Ok(stale)
    }
}

fn is_record(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// A record on disk.
#[derive(Debug)]
#[must_use = "the record is to be removed when its server is gone"]
pub struct Recorded {
    path: PathBuf,
}

impl Recorded {
    /// Removes the record: its server is gone. A failure is logged; the next
    /// start finds a record whose server is not there, and removes it then.
    pub fn remove(self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "removing {} failed", self.path.display());
            }
            _ => {}
        }
    }
}
