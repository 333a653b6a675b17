//! Where the entropy comes from.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::rand::{GetRandomFlags, getrandom};
use thiserror::Error;

/// So many bytes with the same value are no accident: one in 2^120.
const STUCK: usize = 16;

/// Why a source cannot be opened.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The host refuses it.
    #[error("source of entropy {path} cannot be opened")]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory.
    #[error("source of entropy {path} is a directory")]
    Directory {
        /// The path.
        path: PathBuf,
    },
}

/// Why a source gives nothing now.
#[derive(Debug, Error)]
pub(super) enum Starved {
    /// It has nothing yet.
    #[error("it has no bytes yet")]
    Empty,
    /// It has come to its end, or nobody writes to the pipe.
    #[error("it has come to its end")]
    End,
    /// It gives the same byte again and again.
    #[error("it gives nothing but bytes of {0:#04x}")]
    Stuck(u8),
    /// The host failed.
    #[error(transparent)]
    Host(io::Error),
}

/// What random bytes are read from.
#[derive(Debug)]
pub(super) enum Source {
    /// The kernel's generator. Linux getrandom(2)
    Kernel,
    /// A device, a pipe or a file.
    File {
        /// Opened for reading, never blocking.
        file: File,
        /// What it is.
        path: PathBuf,
    },
}

impl Source {
    /// Opens `path`, or the kernel's generator without one.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn open(path: Option<&Path>) -> Result<Self, SourceError> {
        let Some(path) = path else {
            return Ok(Source::Kernel);
        };
        let refused = |source| SourceError::Open {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(refused)?;
        let kind = file.metadata().map_err(refused)?.file_type();
        if kind.is_dir() {
            return Err(SourceError::Directory {
                path: path.to_owned(),
            });
        }
        if kind.is_file() {
            tracing::warn!(
                path = %path.display(),
                "a file is no lasting source of entropy: it has an end, and starts over when the \
                 device is made anew"
            );
        }
        Ok(Source::File {
            file,
            path: path.to_owned(),
        })
    }

    /// What it is called in logs.
    pub fn name(&self) -> String {
        match self {
            Source::Kernel => "getrandom".into(),
            Source::File { path, .. } => path.display().to_string(),
        }
    }

    /// Random bytes, at least one and at most `want`, which is not zero. Does
    /// not wait for them.
    ///
    /// # Errors
    /// [`Starved`]: there are none now.
    pub fn bytes(&self, want: usize) -> Result<Vec<u8>, Starved> {
        // a few more than wanted where that is so few that a stuck source
        // could not be told
        let mut bytes = vec![0; want.max(STUCK)];
        let count = self.read(&mut bytes)?;
        bytes.truncate(count);
        if let Some(&first) = bytes.first()
            && count >= STUCK
            && bytes.iter().all(|&byte| byte == first)
        {
            return Err(Starved::Stuck(first));
        }
        bytes.truncate(want);
        Ok(bytes)
    }

    fn read(&self, bytes: &mut [u8]) -> Result<usize, Starved> {
        loop {
            let read = match self {
                Source::Kernel => {
                    getrandom(&mut *bytes, GetRandomFlags::NONBLOCK).map_err(Into::into)
                }
                Source::File { file, .. } => (&*file).read(bytes),
            };
            return match read {
                Ok(0) => Err(Starved::End),
                Ok(count) => Ok(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Starved::Empty),
                Err(error) => Err(Starved::Host(error)),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_kernel_gives_as_many_bytes_as_are_wanted() {
        let source = Source::open(None).unwrap();

        let (few, many) = (source.bytes(3).unwrap(), source.bytes(4096).unwrap());

        assert_eq!((few.len(), many.len()), (3, 4096));
        assert_ne!(many, source.bytes(4096).unwrap());
    }

    #[test]
    fn a_file_is_read_once_to_its_end() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&(0..40).collect::<Vec<u8>>()).unwrap();
        let source = Source::open(Some(file.path())).unwrap();

        let first = source.bytes(30).unwrap();
        let second = source.bytes(30).unwrap();
        let end = source.bytes(30).unwrap_err();

        assert_eq!(first, (0..30).collect::<Vec<u8>>());
        assert_eq!(second, (30..40).collect::<Vec<u8>>());
        assert!(matches!(end, Starved::End));
    }

    #[test]
    fn zeroes_are_no_entropy_however_few_are_wanted() {
        let source = Source::open(Some(Path::new("/dev/zero"))).unwrap();

        for want in [1, 16, 4096] {
            assert!(matches!(source.bytes(want), Err(Starved::Stuck(0))));
        }
    }

    #[test]
    fn a_pipe_is_empty_while_its_writer_is_silent_and_ends_without_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        let source = Source::open(Some(&path)).unwrap();

        let without = source.bytes(8).unwrap_err();
        let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
        let silent = source.bytes(8).unwrap_err();
        writer.write_all(b"\x01\x02\x03").unwrap();

        assert!(matches!(without, Starved::End));
        assert!(matches!(silent, Starved::Empty));
        assert_eq!(source.bytes(8).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn what_is_no_source_is_refused_by_its_path() {
        for path in ["/nonexistent/hwrng", "/"] {
            let error = Source::open(Some(Path::new(path))).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
        }
    }
}
