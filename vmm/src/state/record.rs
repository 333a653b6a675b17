//! A recorded ioreq server, and whether its maker still lives.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{StateError, io_error};

/// Where `starttime` is among the fields behind the command's name
/// (Linux `Documentation/filesystems/proc.rst`, `/proc/<pid>/stat`: field 22,
/// the name being 2).
const START_TIME_FIELD: usize = 19;

/// A process, told apart from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maker {
    /// Its number.
    pub pid: u32,
    /// When it was started, in clock ticks since boot; 0 if unknown.
    pub start_time: u64,
}

impl Maker {
    /// This process.
    #[must_use]
    pub fn this_process() -> Maker {
        let pid = std::process::id();
        Maker {
            pid,
            start_time: start_time(pid).unwrap_or(0),
        }
    }

    /// The process `pid`, if there is one.
    #[must_use]
    pub fn of(pid: u32) -> Option<Maker> {
        let start_time = start_time(pid)?;
        Some(Maker { pid, start_time })
    }

    /// Whether it is another process that still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        *self != Maker::this_process() && Maker::of(self.pid) == Some(*self)
    }
}

/// When a process was started; nothing if there is none.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the command's name is in parentheses and may hold anything
    let (_, fields) = stat.rsplit_once(')')?;
    fields
        .split_whitespace()
        .nth(START_TIME_FIELD)?
        .parse()
        .ok()
}

/// An ioreq server that this program has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// The guest.
    pub domid: u16,
    /// Its uuid, which tells it from a later guest with the same number.
    pub uuid: Option<String>,
    /// The server's id within the guest.
    pub server: u16,
    /// Who made it.
    #[serde(flatten)]
    pub maker: Maker,
}

impl ServerRecord {
    /// Writes the record, whole or not at all.
    pub(super) fn write(&self, path: &Path) -> Result<(), StateError> {
        let text = serde_json::to_vec(self).map_err(|source| StateError::Malformed {
            path: path.to_owned(),
            source,
        })?;
        let new = path.with_extension("new");
        fs::write(&new, text).map_err(io_error("writing", &new))?;
        fs::rename(&new, path).map_err(io_error("writing", path))
    }

    pub(super) fn read(path: &Path) -> Result<ServerRecord, StateError> {
        let text = fs::read(path).map_err(io_error("reading", path))?;
        serde_json::from_slice(&text).map_err(|source| StateError::Malformed {
            path: path.to_owned(),
            source,
        })
    }
}
