//! What a user says about a console, and the immutable spec it is checked
//! into.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use super::size::Size;

/// Largest queue.
const QUEUE_SIZE_MAX: u16 = 1024;
/// Bounds of the buffer, bytes.
const BUFFER_MIN: u32 = 4 << 10;
const BUFFER_MAX: u32 = 16 << 20;
/// Longest path that a socket can be bound to, bytes. Linux unix(7), sun_path
const SOCKET_PATH_MAX: usize = 107;
/// The size of a terminal whose size nobody has said.
const USUAL_SIZE: Size = Size { cols: 80, rows: 24 };

/// What a console is connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// A pseudo-terminal that the console makes. Linux pty(7)
    #[default]
    Pty,
    /// A unix socket that the console listens on; one client at a time.
    Socket,
    /// A file that output is appended to, or a character device; no input.
    File,
}

/// What becomes of the guest's output when the buffer is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// The guest waits. Nothing is lost.
    Hold,
    /// The oldest bytes of the buffer are dropped. The guest never waits.
    Drop,
}

/// A console as its user describes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConsoleConfig {
    /// What it is connected to.
    #[serde(default)]
    pub backend: Backend,
    /// `pty`: a symbolic link to the terminal, to be made; may be left out.
    /// `socket`: where it listens. `file`: the file, made if need be.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// How much output is kept for a reader that does not read: bytes, 4096 to
    /// 16777216.
    #[serde(default = "default_buffer")]
    pub buffer: u32,
    /// What happens when the buffer is full. Without it `hold`; for a file
    /// `drop`, so that a full disk stops no guest.
    #[serde(default)]
    pub when_full: Option<WhenFull>,
    /// Width of the window, characters; together with `rows`. Without it a
    /// terminal has 80 by 24 until it is given another size, and the guest of
    /// another console is not told any.
    #[serde(default)]
    pub cols: Option<u16>,
    /// Height of the window, characters.
    #[serde(default)]
    pub rows: Option<u16>,
    /// Descriptors of each queue: a power of two from 2 to 1024.
    #[serde(default = "default_queue_size")]
    pub queue_size: u16,
}

fn default_buffer() -> u32 {
    256 << 10
}

fn default_queue_size() -> u16 {
    128
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        ConsoleConfig {
            backend: Backend::default(),
            path: None,
            buffer: default_buffer(),
            when_full: None,
            cols: None,
            rows: None,
            queue_size: default_queue_size(),
        }
    }
}

/// A configuration that no console can have. Names the key and its value.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A path that names nothing, or none where one is needed.
    #[error("path is empty: name the {0}")]
    NoPath(&'static str),
    /// A path that a socket cannot be bound to.
    #[error("path {path} has {len} bytes; a socket's has at most 107")]
    LongPath {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// The buffer is out of bounds.
    #[error("buffer {0} is not from 4096 to 16777216")]
    Buffer(u32),
    /// Half a size.
    #[error("{given} {value} without {missing} is no size")]
    HalfSize {
        /// The key that there is.
        given: &'static str,
        /// Its value.
        value: u16,
        /// The key that is missing.
        missing: &'static str,
    },
    /// A window without characters.
    #[error("{0} 0: a window has at least one character")]
    NoSize(&'static str),
    /// The queue size is out of bounds.
    #[error("queue-size {0} is no power of two from 2 to 1024")]
    QueueSize(u16),
}

impl ConfigError {
    /// The key whose value it is about.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match self {
            ConfigError::NoPath(_) | ConfigError::LongPath { .. } => "path",
            ConfigError::Buffer(_) => "buffer",
            ConfigError::HalfSize { given, .. } | ConfigError::NoSize(given) => given,
            ConfigError::QueueSize(_) => "queue-size",
        }
    }
}

impl ConsoleConfig {
    /// A console that listens on a socket, with everything else at its
    /// default.
    pub fn socket(path: impl Into<PathBuf>) -> Self {
        ConsoleConfig {
            backend: Backend::Socket,
            path: Some(path.into()),
            ..ConsoleConfig::default()
        }
    }

    /// A console whose output is appended to a file, with everything else at
    /// its default.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        ConsoleConfig {
            backend: Backend::File,
            path: Some(path.into()),
            ..ConsoleConfig::default()
        }
    }

    /// Checks everything that can be checked without touching the host.
    ///
    /// # Errors
    /// The first key whose value no console can have.
    pub fn validate(self) -> Result<ConsoleSpec, ConfigError> {
        let size = size(self.cols, self.rows)?;
        if !(BUFFER_MIN..=BUFFER_MAX).contains(&self.buffer) {
            return Err(ConfigError::Buffer(self.buffer));
        }
        if !self.queue_size.is_power_of_two() || !(2..=QUEUE_SIZE_MAX).contains(&self.queue_size) {
            return Err(ConfigError::QueueSize(self.queue_size));
        }
        let hold = self.when_full.unwrap_or(match self.backend {
            Backend::Pty | Backend::Socket => WhenFull::Hold,
            Backend::File => WhenFull::Drop,
        });
        Ok(ConsoleSpec {
            target: target(self.backend, self.path)?,
            buffer: usize::try_from(self.buffer).unwrap_or(usize::MAX),
            when_full: hold,
            size: size.or((self.backend == Backend::Pty).then_some(USUAL_SIZE)),
            queue_size: self.queue_size,
        })
    }
}

fn size(cols: Option<u16>, rows: Option<u16>) -> Result<Option<Size>, ConfigError> {
    let half = |given, value, missing| ConfigError::HalfSize {
        given,
        value,
        missing,
    };
    match (cols, rows) {
        (None, None) => Ok(None),
        (Some(cols), None) => Err(half("cols", cols, "rows")),
        (None, Some(rows)) => Err(half("rows", rows, "cols")),
        (Some(0), _) => Err(ConfigError::NoSize("cols")),
        (_, Some(0)) => Err(ConfigError::NoSize("rows")),
        (Some(cols), Some(rows)) => Ok(Some(Size { cols, rows })),
    }
}

fn target(backend: Backend, path: Option<PathBuf>) -> Result<Target, ConfigError> {
    let empty = |path: &PathBuf| path.as_os_str().is_empty();
    match (backend, path) {
        (Backend::Pty, Some(path)) if empty(&path) => {
            Err(ConfigError::NoPath("link to the terminal, or leave it out"))
        }
        (Backend::Pty, link) => Ok(Target::Pty { link }),
        (Backend::Socket, Some(path)) if !empty(&path) => {
            let len = path.as_os_str().len();
            match len > SOCKET_PATH_MAX {
                true => Err(ConfigError::LongPath { path, len }),
                false => Ok(Target::Socket { path }),
            }
        }
        (Backend::File, Some(path)) if !empty(&path) => Ok(Target::File { path }),
        (Backend::Socket, _) => Err(ConfigError::NoPath("socket to listen on")),
        (Backend::File, _) => Err(ConfigError::NoPath("file to write to")),
    }
}

/// What a console is connected to, with its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Pty { link: Option<PathBuf> },
    Socket { path: PathBuf },
    File { path: PathBuf },
}

/// A checked [`ConsoleConfig`]; never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleSpec {
    pub(super) target: Target,
    /// Bytes.
    pub(super) buffer: usize,
    pub(super) when_full: WhenFull,
    /// What the guest is told at first, if it is told a size at all.
    pub(super) size: Option<Size>,
    pub(super) queue_size: u16,
}

impl ConsoleSpec {
    /// The path that was configured.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.target {
            Target::Pty { link } => link.as_deref(),
            Target::Socket { path } | Target::File { path } => Some(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(keys: &str) -> Result<ConsoleConfig, toml::de::Error> {
        toml::from_str(keys)
    }

    #[test]
    fn nothing_said_is_a_terminal_of_80_by_24_that_loses_nothing() {
        let config = read("").unwrap();
        let spec = config.clone().validate().unwrap();

        assert_eq!(config, ConsoleConfig::default());
        assert_eq!(spec.target, Target::Pty { link: None });
        assert_eq!(spec.size, Some(Size { cols: 80, rows: 24 }));
        assert_eq!((spec.when_full, spec.buffer), (WhenFull::Hold, 256 << 10));
    }

    #[test]
    fn backends_are_named_in_lower_case() {
        let socket = read("backend = 'socket'\npath = '/run/c.sock'").unwrap();
        let file = read("backend = 'file'\npath = '/c.log'\nwhen-full = 'hold'").unwrap();

        assert_eq!(socket, ConsoleConfig::socket("/run/c.sock"));
        assert_eq!(file.when_full, Some(WhenFull::Hold));
        assert!(read("backend = 'Socket'").is_err());
    }

    #[test]
    fn a_key_that_does_not_exist_is_named() {
        let error = read("bufer = 4096").unwrap_err().to_string();

        assert!(error.contains("bufer") && error.contains("buffer"));
    }

    #[test]
    fn a_full_disk_stops_no_guest_unless_that_is_asked_for() {
        let file = ConsoleConfig::file("/c.log");
        let socket = ConsoleConfig::socket("/c.sock");

        assert_eq!(file.validate().unwrap().when_full, WhenFull::Drop);
        assert_eq!(socket.validate().unwrap().when_full, WhenFull::Hold);
    }

    #[test]
    fn values_out_of_bounds_are_refused_by_name() {
        let with = |change: fn(&mut ConsoleConfig)| {
            let mut config = ConsoleConfig::default();
            change(&mut config);
            config.validate().unwrap_err()
        };

        let errors = [
            with(|config| config.backend = Backend::Socket),
            with(|config| config.backend = Backend::File),
            with(|config| config.path = Some(PathBuf::new())),
            with(|config| *config = ConsoleConfig::socket("/".repeat(108))),
            with(|config| config.buffer = 4095),
            with(|config| config.buffer = (16 << 20) + 1),
            with(|config| config.cols = Some(80)),
            with(|config| config.rows = Some(24)),
            with(|config| (config.cols, config.rows) = (Some(0), Some(1))),
            with(|config| (config.cols, config.rows) = (Some(1), Some(0))),
            with(|config| config.queue_size = 1),
            with(|config| config.queue_size = 96),
            with(|config| config.queue_size = 2048),
        ];

        for error in errors {
            let text = error.to_string();
            assert!(text.starts_with(error.key()), "{text}");
        }
    }
}
