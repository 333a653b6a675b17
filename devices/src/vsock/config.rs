//! What a user says about a vsock device, and the immutable spec it is checked
//! into.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use crate::unix;

/// Bounds of the guest's address. virtio 1.3 §5.10.4; the highest is a
/// wildcard. Linux vsock(7)
const CID_MIN: u32 = 3;
const CID_MAX: u32 = u32::MAX - 1;
/// Bounds of the number of connections.
const CONNECTIONS_MIN: u16 = 1;
const CONNECTIONS_MAX: u16 = 4096;
/// Bounds of a connection's buffer, bytes.
const BUFFER_MIN: u32 = 4 << 10;
const BUFFER_MAX: u32 = 4 << 20;
/// Bounds of a queue.
const QUEUE_SIZE_MIN: u16 = 2;
const QUEUE_SIZE_MAX: u16 = 1024;
/// What is appended to the path for a port, bytes: `_4294967295`.
const SUFFIX_MAX: usize = 11;

/// A vsock device as its user describes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VsockConfig {
    /// Where the host connects to the guest's ports; at most 96 bytes. What
    /// the guest connects to is looked for beside it, at `<path>_<port>`.
    pub path: PathBuf,
    /// The guest's address, from 3 to 4294967294. Guests may have the same
    /// one: nothing connects them.
    #[serde(default = "default_cid")]
    pub cid: u32,
    /// Connections at once, 1 to 4096.
    #[serde(default = "default_connections")]
    pub connections: u16,
    /// How much of the guest's bytes is kept for a reader that does not read:
    /// bytes of each connection, 4096 to 4194304.
    #[serde(default = "default_buffer")]
    pub buffer: u32,
    /// Descriptors of each queue: a power of two from 2 to 1024.
    #[serde(default = "default_queue_size")]
    pub queue_size: u16,
}

fn default_cid() -> u32 {
    CID_MIN
}

fn default_connections() -> u16 {
    256
}

fn default_buffer() -> u32 {
    256 << 10
}

fn default_queue_size() -> u16 {
    128
}

/// A configuration that no vsock device can have. Names the key and its value.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A path that names nothing.
    #[error("path is empty: name the socket that the host connects to")]
    NoPath,
    /// A path that leaves no room for a port.
    #[error("path {path} has {len} bytes; with a port behind it, it may have at most 96")]
    LongPath {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
    },
    /// The address is not one of a guest.
    #[error("cid {0} is not from 3 to 4294967294")]
    Cid(u32),
    /// The number of connections is out of bounds.
    #[error("connections {0} is not from 1 to 4096")]
    Connections(u16),
    /// The buffer is out of bounds.
    #[error("buffer {0} is not from 4096 to 4194304")]
    Buffer(u32),
    /// The queue size is out of bounds.
    #[error("queue-size {0} is no power of two from 2 to 1024")]
    QueueSize(u16),
}

impl ConfigError {
    /// The key whose value it is about.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match self {
            ConfigError::NoPath | ConfigError::LongPath { .. } => "path",
            ConfigError::Cid(_) => "cid",
            ConfigError::Connections(_) => "connections",
            ConfigError::Buffer(_) => "buffer",
            ConfigError::QueueSize(_) => "queue-size",
        }
    }
}

impl VsockConfig {
    /// The paths that it names, by their keys.
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        std::iter::once(("path", self.path.as_path()))
    }

    /// A device at `path`, with everything else at its default.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        VsockConfig {
            path: path.into(),
            cid: default_cid(),
            connections: default_connections(),
            buffer: default_buffer(),
            queue_size: default_queue_size(),
        }
    }

    /// Checks everything that can be checked without touching the host.
    ///
    /// # Errors
    /// The first key whose value no device can have.
    pub fn validate(self) -> Result<VsockSpec, ConfigError> {
        let len = self.path.as_os_str().len();
        if len == 0 {
            return Err(ConfigError::NoPath);
        }
        if len + SUFFIX_MAX > unix::PATH_MAX {
            let path = self.path;
            return Err(ConfigError::LongPath { path, len });
        }
        if !(CID_MIN..=CID_MAX).contains(&self.cid) {
            return Err(ConfigError::Cid(self.cid));
        }
        if !(CONNECTIONS_MIN..=CONNECTIONS_MAX).contains(&self.connections) {
            return Err(ConfigError::Connections(self.connections));
        }
        if !(BUFFER_MIN..=BUFFER_MAX).contains(&self.buffer) {
            return Err(ConfigError::Buffer(self.buffer));
        }
        let sizes = QUEUE_SIZE_MIN..=QUEUE_SIZE_MAX;
        if !self.queue_size.is_power_of_two() || !sizes.contains(&self.queue_size) {
            return Err(ConfigError::QueueSize(self.queue_size));
        }
        Ok(VsockSpec {
            path: self.path,
            cid: self.cid,
            connections: self.connections,
            buffer: self.buffer,
            queue_size: self.queue_size,
        })
    }
}

/// A checked [`VsockConfig`]; never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockSpec {
    pub(super) path: PathBuf,
    pub(super) cid: u32,
    pub(super) connections: u16,
    /// Bytes.
    pub(super) buffer: u32,
    pub(super) queue_size: u16,
}

impl VsockSpec {
    /// Where the host connects to the guest's ports.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the socket for the host's port is.
    #[must_use]
    pub fn port_path(&self, port: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        path.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_all_that_has_to_be_said() {
        let config: VsockConfig = toml::from_str("path = '/run/v'").unwrap();
        let spec = config.clone().validate().unwrap();

        assert_eq!(config, VsockConfig::new("/run/v"));
        assert_eq!((spec.cid, spec.connections), (3, 256));
        assert_eq!(spec.port_path(u32::MAX), Path::new("/run/v_4294967295"));
    }

    #[test]
    fn a_key_that_does_not_exist_is_named() {
        let read: Result<VsockConfig, _> = toml::from_str("path = '/run/v'\nguest-cid = 4");
        let error = read.unwrap_err().to_string();

        assert!(error.contains("guest-cid") && error.contains("connections"));
    }

    #[test]
    fn values_out_of_bounds_are_refused_by_name() {
        let with = |change: fn(&mut VsockConfig)| {
            let mut config = VsockConfig::new("/run/v");
            change(&mut config);
            config.validate().unwrap_err()
        };

        let errors = [
            with(|config| config.path = PathBuf::new()),
            with(|config| config.path = "/".repeat(97).into()),
            with(|config| config.cid = 2),
            with(|config| config.cid = u32::MAX),
            with(|config| config.connections = 0),
            with(|config| config.connections = 4097),
            with(|config| config.buffer = 4095),
            with(|config| config.buffer = (4 << 20) + 1),
            with(|config| config.queue_size = 1),
            with(|config| config.queue_size = 96),
            with(|config| config.queue_size = 2048),
        ];

        for error in errors {
            let text = error.to_string();
            assert!(text.starts_with(error.key()), "{text}");
        }
        let longest = VsockConfig::new("/".repeat(96)).validate().unwrap();
        assert_eq!(
            longest.port_path(u32::MAX).as_os_str().len(),
            unix::PATH_MAX
        );
    }
}
