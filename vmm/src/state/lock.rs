//! One daemon at a time: a lock that ends with the process, however it ends.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{StateError, io_error};

/// Its name in the state directory.
const NAME: &str = "xen-dm.lock";
const MODE: u32 = 0o600;

/// The lock, held until it is dropped. The file stays: removing it would let
/// two processes lock two files of the same name.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of a state directory and writes `pid` into it.
    pub(super) fn take(directory: &Path, pid: u32) -> Result<Lock, StateError> {
        let path = directory.join(NAME);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(MODE)
            .open(&path)
            .map_err(io_error("opening", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // who it is only helps the reader of the message
                let pid = file
                    .read_to_string(&mut text)
                    .ok()
                    .and_then(|_| text.trim().parse().ok());
                return Err(StateError::Running { lock: path, pid });
            }
            Err(errno) => return Err(io_error("locking", &path)(errno.into())),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{pid}"))
            .map_err(io_error("writing", &path))?;
        Ok(Lock { _file: file })
    }
}
