//! What a user says about a console, and the immutable spec it is checked
//! into.

mod port;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashSet;
use std::iter;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

pub use port::PortConfig;
pub(super) use port::{LogSpec, PortSpec, Target};

/// Largest queue.
const QUEUE_SIZE_MAX: u16 = 1024;
/// Most ports, the console itself among them: each has two threads.
const PORTS_MAX: usize = 16;

/// What a port is connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// A pseudo-terminal that the port makes. Linux pty(7)
    #[default]
    Pty,
    /// A unix socket that the port listens on; one client at a time.
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

/// A console as its user describes it: its first port, which is a console, and
/// further ones.
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
    /// The name that the guest finds for it, as [`PortConfig::name`]. With one
    /// the device is offered as one of several ports, even if it is the only
    /// one.
    #[serde(default)]
    pub name: Option<String>,
    /// A file that gets all output besides; see [`PortConfig::log`].
    #[serde(default)]
    pub log: Option<PathBuf>,
    /// Largest size of the log: bytes, 4096 to 2^40; without it 1048576.
    #[serde(default)]
    pub log_size: Option<u64>,
    /// How many full logs are kept, 0 to 99; without it 4.
    #[serde(default)]
    pub log_files: Option<u32>,
    /// Further ports, at most 15. virtio 1.3 §5.3.3, VIRTIO_CONSOLE_F_MULTIPORT
    #[serde(default)]
    pub port: Vec<PortConfig>,
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
            name: None,
            log: None,
            log_size: None,
            log_files: None,
            port: Vec::new(),
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
    /// A window of a port that is no console.
    #[error("cols {cols} and rows {rows} are for a port with console = true")]
    NoConsole {
        /// Its width.
        cols: u16,
        /// Its height.
        rows: u16,
    },
    /// The queue size is out of bounds.
    #[error("queue-size {0} is no power of two from 2 to 1024")]
    QueueSize(u16),
    /// A further port that the guest could not tell from others.
    #[error("name is missing")]
    NoName,
    /// A name that no guest could use for a file.
    #[error("name {0:?} is not 1 to 64 printable ASCII characters without a space or a slash")]
    Name(String),
    /// A log that names nothing.
    #[error("log is empty: name the file")]
    NoLog,
    /// What a log is to be like, without one.
    #[error("{0} without log: there is no file to limit")]
    LimitOfNoLog(&'static str),
    /// The log's size is out of bounds.
    #[error("log-size {0} is not from 4096 to 1099511627776")]
    LogSize(u64),
    /// So many logs are not kept.
    #[error("log-files {0} is not from 0 to 99")]
    LogFiles(u32),
    /// More ports than there can be.
    #[error("port: {0} are too many; there are at most 15 besides the console itself")]
    Ports(usize),
    /// Something is wrong with a further port.
    #[error("port {name:?}: {source}")]
    Port {
        /// Which, from 0.
        number: usize,
        /// Its name, as far as it has one.
        name: String,
        /// What is wrong.
        source: Box<ConfigError>,
    },
    /// What belongs to one port alone is another one's, too.
    #[error("port {name:?}: its {key} {value} is another port's, too")]
    Twice {
        /// The second one, from 0.
        number: usize,
        /// Its name.
        name: String,
        /// Which key.
        key: &'static str,
        /// Its value.
        value: String,
    },
}

impl ConfigError {
    /// The key whose value it is about; of a further port `port.NUMBER.KEY`.
    #[must_use]
    pub fn key(&self) -> Cow<'static, str> {
        let key = match self {
            ConfigError::NoPath(_) | ConfigError::LongPath { .. } => "path",
            ConfigError::Buffer(_) => "buffer",
            ConfigError::HalfSize { given, .. }
            | ConfigError::NoSize(given)
            | ConfigError::LimitOfNoLog(given) => given,
            ConfigError::NoConsole { .. } => "cols",
            ConfigError::QueueSize(_) => "queue-size",
            ConfigError::NoName | ConfigError::Name(_) => "name",
            ConfigError::NoLog => "log",
            ConfigError::LogSize(_) => "log-size",
            ConfigError::LogFiles(_) => "log-files",
            ConfigError::Ports(_) => "port",
            ConfigError::Port { number, source, .. } => {
                return of_port(*number, &source.key());
            }
            ConfigError::Twice { number, key, .. } => return of_port(*number, key),
        };
        key.into()
    }
}

impl ConsoleConfig {
    /// The paths that it names, by their keys.
    pub fn paths(&self) -> impl Iterator<Item = (Cow<'static, str>, &Path)> {
        let own = [("path", &self.path), ("log", &self.log)];
        let own = own.into_iter().map(|(key, path)| (Cow::from(key), path));
        let ports = self.port.iter().enumerate().flat_map(|(number, port)| {
            [("path", &port.path), ("log", &port.log)]
                .map(|(key, path)| (of_port(number, key), path))
        });
        let all = own.chain(ports);
        all.filter_map(|(key, path)| Some((key, path.as_deref()?)))
    }

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
        let (queue_size, ports) = (self.queue_size, self.port.clone());
        if !queue_size.is_power_of_two() || !(2..=QUEUE_SIZE_MAX).contains(&queue_size) {
            return Err(ConfigError::QueueSize(queue_size));
        }
        if ports.len() >= PORTS_MAX {
            return Err(ConfigError::Ports(ports.len()));
        }
        let multiport = self.name.is_some() || !ports.is_empty();
        let first = self.first().validate()?;
        let mut further = Vec::new();
        for (number, port) in ports.into_iter().enumerate() {
            let name = port.name.clone().unwrap_or_default();
            let named = port.name.is_some().then_some(port);
            let spec = named.ok_or(ConfigError::NoName);
            let spec = spec.and_then(PortConfig::validate);
            further.push(spec.map_err(|source| ConfigError::Port {
                number,
                name,
                source: Box::new(source),
            })?);
        }
        each_its_own(&first, &further)?;
        Ok(ConsoleSpec {
            first,
            further,
            multiport,
            queue_size,
        })
    }

    /// The console itself, among its ports.
    fn first(self) -> PortConfig {
        PortConfig {
            name: self.name,
            console: true,
            backend: self.backend,
            path: self.path,
            buffer: self.buffer,
            when_full: self.when_full,
            cols: self.cols,
            rows: self.rows,
            log: self.log,
            log_size: self.log_size,
            log_files: self.log_files,
        }
    }
}

/// The key of a further port's value.
fn of_port(number: usize, key: &str) -> Cow<'static, str> {
    format!("port.{number}.{key}").into()
}

/// No two ports have the same name, or make or rotate the same file.
fn each_its_own(first: &PortSpec, further: &[PortSpec]) -> Result<(), ConfigError> {
    let mut seen = HashSet::new();
    for (place, port) in iter::once(first).chain(further).enumerate() {
        let text = |path: &Path| path.display().to_string();
        let made = match &port.target {
            Target::Pty { link } => link.as_deref(),
            Target::Socket { path } => Some(path.as_path()),
            // several may append to a file, or to /dev/null
            Target::File { .. } => None,
        };
        let theirs = [
            ("name", port.name.clone()),
            ("path", made.map(text)),
            ("log", port.log.as_ref().map(|log| text(&log.path))),
        ];
        for (key, value) in theirs {
            if let Some(value) = value
                && !seen.insert((key == "name", value.clone()))
            {
                let name = port.name.clone().unwrap_or_default();
                // the first one is before all others
                let number = place.saturating_sub(1);
                return Err(ConfigError::Twice {
                    number,
                    name,
                    key,
                    value,
                });
            }
        }
    }
    Ok(())
}

/// A checked [`ConsoleConfig`]; never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleSpec {
    /// The console itself.
    pub(super) first: PortSpec,
    pub(super) further: Vec<PortSpec>,
    /// Whether a driver is told of several ports.
    pub(super) multiport: bool,
    pub(super) queue_size: u16,
}
