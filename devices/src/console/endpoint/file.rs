//! A file that output is appended to.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::EndpointError;
use super::stream::{Nature, Stream};

/// Opens `path` to append to it, and makes it if it is not there, for its
/// owner alone: consoles tell secrets.
///
/// # Errors
/// The host's.
pub(in super::super) fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

/// The same, as a stream; a character device will do.
///
/// # Errors
/// [`EndpointError::Open`], [`EndpointError::Kind`].
pub(super) fn open(path: &Path) -> Result<Arc<Stream>, EndpointError> {
    let refused = |source| EndpointError::Open {
        path: path.to_owned(),
        source,
    };
    let file = append_to(path).map_err(refused)?;
    let kind = file.metadata().map_err(refused)?.file_type();
    if !kind.is_file() && !kind.is_char_device() {
        return Err(EndpointError::Kind {
            path: path.to_owned(),
        });
    }
    Ok(Arc::new(Stream::new(file.into(), Nature::File)))
}
