//! What a user says about a disk, and the immutable spec it is checked into.
//!
//! The same [`BlkConfig`] is filled from a configuration file, by a toolstack's
//! word and from the command line; whoever fills it calls
//! [`BlkConfig::validate`].

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use super::limit::Rates;
use super::request::ID_BYTES;
use crate::virtio::bucket::Rate;

/// Bytes of a sector: the unit of all addresses and lengths on the wire.
/// virtio 1.3 §5.2.6
pub const SECTOR: u64 = 512;
/// Largest queue: an indirect table and a system call take no more.
const QUEUE_SIZE_MAX: u16 = 1024;
/// Smallest queue: a request is at least a header, data and a status byte.
const QUEUE_SIZE_MIN: u16 = 4;
/// Most queues of one disk.
const QUEUES_MAX: u16 = 16;
/// Largest block size that Linux takes for a disk on every page size, bytes.
const BLOCK_MAX: u32 = 4096;
/// Largest rate and burst.
const RATE_MAX: u64 = 1 << 40;
/// Sizes of a disk that keeps nothing: multiples of every logical block, bytes.
const NULL_UNIT: u64 = 4096;
/// The largest of them: offsets in it are numbers with a sign.
const NULL_MAX: u64 = 1 << 60;

/// What carries out the reads and writes of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// `io-uring` where the host has it; otherwise `threads`.
    #[default]
    Auto,
    /// System calls, one after the other.
    Sync,
    /// io_uring: many requests at a time, submitted by one system call. What the
    /// host's page cache has is moved in line.
    IoUring,
    /// System calls by four threads for each queue. What the host's page cache
    /// has is moved in line.
    Threads,
}

/// How an image's bytes make a disk. Never guessed from them: they are a
/// guest's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// They are the disk's.
    #[default]
    Raw,
    /// QEMU's, with or without backing files. Served by system calls: with the
    /// engine `threads`, or `sync`.
    Qcow2,
}

impl Format {
    /// Its name, as in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// A disk as its user describes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BlkConfig {
    /// The image: a file or a block device.
    #[serde(default)]
    pub path: PathBuf,
    /// How the image's bytes make a disk.
    #[serde(default)]
    pub format: Format,
    /// In place of an image nothing at all, of so many bytes: writes are
    /// forgotten and reads bring nothing. For measuring what is not the host's
    /// disk. No `engine` is used; `direct` sends data through the bounce pool.
    #[serde(default)]
    pub null: Option<u64>,
    /// The guest may not write.
    #[serde(default)]
    pub readonly: bool,
    /// What the guest finds as the disk's serial number: at most 20 printable
    /// ASCII characters.
    #[serde(default)]
    pub serial: Option<String>,
    /// The guest may discard blocks, where the host can.
    #[serde(default = "yes")]
    pub discard: bool,
    /// Descriptors of each queue: a power of two from 4 to 1024.
    #[serde(default = "default_queue_size")]
    pub queue_size: u16,
    /// Number of queues, 1 to 16; each is served by a thread of its own.
    #[serde(default = "one")]
    pub queues: u16,
    /// Logical block size in bytes: a power of two from 512 to 4096. Without
    /// it that of the block device, or 512 for a file.
    #[serde(default)]
    pub logical_block_size: Option<u32>,
    /// Physical block size in bytes: a power of two, at least the logical
    /// one. Without it what the host says.
    #[serde(default)]
    pub physical_block_size: Option<u32>,
    /// Reads and writes go past the host's page cache (O_DIRECT).
    #[serde(default)]
    pub direct: bool,
    /// What carries out the reads and writes.
    #[serde(default)]
    pub engine: EngineKind,
    /// Writes are complete before they are durable, and durable with the next
    /// flush, until the guest switches that. Without it each write is made
    /// durable by itself.
    #[serde(default = "yes")]
    pub write_cache: bool,
    /// The most requests over time, those for the serial number apart: per
    /// second, 1 to 2^40. Without it there is no limit.
    #[serde(default)]
    pub operations_per_second: Option<u64>,
    /// The most requests at once after a pause, 1 to 2^40. Without it what a
    /// second yields.
    #[serde(default)]
    pub operations_burst: Option<u64>,
    /// The most bytes read and written over time: per second, 1 to 2^40.
    /// Without it there is no limit.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
    /// The most bytes at once after a pause, 1 to 2^40; a single request may
    /// have more. Without it what a second yields.
    #[serde(default)]
    pub bytes_burst: Option<u64>,
}

fn yes() -> bool {
    true
}

fn default_queue_size() -> u16 {
    256
}

fn one() -> u16 {
    1
}

/// A configuration that no disk can have. Names the key and its value.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// No image.
    #[error("path is missing or empty: name an image file or a block device")]
    NoPath,
    /// An image, and none.
    #[error("null {0} beside a path: a disk has an image, or none")]
    NullAndPath(u64),
    /// A format of no image.
    #[error("format = \"qcow2\" beside null: a disk that keeps nothing has no format")]
    NullFormat,
    /// An engine that does not serve the format.
    #[error("engine = \"io-uring\" does not serve format = \"qcow2\": leave the key out")]
    Engine,
    /// A size that no disk can have.
    #[error("null {0} is no multiple of 4096 from 4096 to 2^60")]
    Null(u64),
    /// The serial number does not fit.
    #[error("serial {0:?} is longer than 20 characters or not printable ASCII")]
    Serial(String),
    /// A rate or a burst is out of bounds.
    #[error("{0} {1} is not from 1 to 2^40")]
    Rate(&'static str, u64),
    /// A burst of a rate that there is not.
    #[error("{0} {1} without a rate limits nothing")]
    BurstAlone(&'static str, u64),
    /// The queue size is out of bounds.
    #[error("queue-size {0} is no power of two from 4 to 1024")]
    QueueSize(u16),
    /// The number of queues is out of bounds.
    #[error("queues {0} is not from 1 to 16")]
    Queues(u16),
    /// A logical block size that no guest takes.
    #[error("logical-block-size {0} is no power of two from 512 to 4096")]
    LogicalBlock(u32),
    /// A physical block size that does not go with the logical one.
    #[error(
        "physical-block-size {physical} is no power of two from the logical {logical} to 1048576"
    )]
    PhysicalBlock {
        /// The value.
        physical: u32,
        /// The logical block size it must be a multiple of.
        logical: u32,
    },
}

impl ConfigError {
    /// The key that it is about.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match self {
            ConfigError::NoPath => "path",
            ConfigError::NullAndPath(_) | ConfigError::Null(_) => "null",
            ConfigError::NullFormat => "format",
            ConfigError::Engine => "engine",
            ConfigError::Serial(_) => "serial",
            ConfigError::Rate(key, _) | ConfigError::BurstAlone(key, _) => key,
            ConfigError::QueueSize(_) => "queue-size",
            ConfigError::Queues(_) => "queues",
            ConfigError::LogicalBlock(_) => "logical-block-size",
            ConfigError::PhysicalBlock { .. } => "physical-block-size",
        }
    }
}

impl BlkConfig {
    /// The paths that it names, by their keys.
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        // a null disk has none
        let path = Some(self.path.as_path()).filter(|_| self.null.is_none());
        path.map(|path| ("path", path)).into_iter()
    }

    /// A disk on `path` with everything else at its default.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        BlkConfig {
            path: path.into(),
            format: Format::default(),
            null: None,
            readonly: false,
            serial: None,
            discard: yes(),
            queue_size: default_queue_size(),
            queues: one(),
            logical_block_size: None,
            physical_block_size: None,
            direct: false,
            engine: EngineKind::default(),
            write_cache: yes(),
            operations_per_second: None,
            operations_burst: None,
            bytes_per_second: None,
            bytes_burst: None,
        }
    }

    /// A disk of `size` bytes that keeps nothing, with everything else at its
    /// default.
    #[must_use]
    pub fn null(size: u64) -> Self {
        BlkConfig {
            null: Some(size),
            ..BlkConfig::new("")
        }
    }

    fn source(&self) -> Result<Source, ConfigError> {
        let has_path = !self.path.as_os_str().is_empty();
        match self.null {
            Some(size) if has_path => Err(ConfigError::NullAndPath(size)),
            Some(_) if self.format != Format::Raw => Err(ConfigError::NullFormat),
            Some(size) if size.is_multiple_of(NULL_UNIT) && (1..=NULL_MAX).contains(&size) => {
                Ok(Source::Null(size))
            }
            Some(size) => Err(ConfigError::Null(size)),
            None if has_path => Ok(Source::Image(self.path.clone())),
            None => Err(ConfigError::NoPath),
        }
    }

    fn engine(&self) -> Result<EngineKind, ConfigError> {
        match (self.format, self.engine) {
            (Format::Qcow2, EngineKind::IoUring) => Err(ConfigError::Engine),
            (Format::Qcow2, EngineKind::Auto) => Ok(EngineKind::Threads),
            (_, engine) => Ok(engine),
        }
    }

    /// Checks everything that can be checked without opening the image.
    ///
    /// # Errors
    /// The first key whose value no disk can have.
    pub fn validate(self) -> Result<BlkSpec, ConfigError> {
        let source = self.source()?;
        let engine = self.engine()?;
        if !self.queue_size.is_power_of_two()
            || !(QUEUE_SIZE_MIN..=QUEUE_SIZE_MAX).contains(&self.queue_size)
        {
            return Err(ConfigError::QueueSize(self.queue_size));
        }
        if !(1..=QUEUES_MAX).contains(&self.queues) {
            return Err(ConfigError::Queues(self.queues));
        }
        if let Some(logical) = self.logical_block_size {
            check_logical(logical)?;
        }
        if let Some(physical) = self.physical_block_size {
            // the device's own logical size is known once it is open
            check_physical(physical, self.logical_block_size.unwrap_or(512))?;
        }
        Ok(BlkSpec {
            serial: padded(self.serial.unwrap_or_default())?,
            source,
            format: self.format,
            readonly: self.readonly,
            discard: self.discard,
            queue_size: self.queue_size,
            queues: self.queues,
            logical_block_size: self.logical_block_size,
            physical_block_size: self.physical_block_size,
            direct: self.direct,
            engine,
            write_cache: self.write_cache,
            rates: Rates {
                operations: rate(
                    ("operations-per-second", self.operations_per_second),
                    ("operations-burst", self.operations_burst),
                )?,
                bytes: rate(
                    ("bytes-per-second", self.bytes_per_second),
                    ("bytes-burst", self.bytes_burst),
                )?,
            },
        })
    }
}

/// A rate and its burst, each with its key.
fn rate(
    per_second: (&'static str, Option<u64>),
    burst: (&'static str, Option<u64>),
) -> Result<Option<Rate>, ConfigError> {
    for (key, value) in [per_second, burst] {
        if let Some(value) = value
            && !(1..=RATE_MAX).contains(&value)
        {
            return Err(ConfigError::Rate(key, value));
        }
    }
    match (per_second.1, burst.1) {
        (None, None) => Ok(None),
        (None, Some(alone)) => Err(ConfigError::BurstAlone(burst.0, alone)),
        (Some(per_second), burst) => Ok(Some(Rate {
            per_second,
            burst: burst.unwrap_or(per_second),
        })),
    }
}

fn check_logical(logical: u32) -> Result<(), ConfigError> {
    if logical.is_power_of_two() && (512..=BLOCK_MAX).contains(&logical) {
        return Ok(());
    }
    Err(ConfigError::LogicalBlock(logical))
}

fn check_physical(physical: u32, logical: u32) -> Result<(), ConfigError> {
    if physical.is_power_of_two() && (logical..=1 << 20).contains(&physical) {
        return Ok(());
    }
    Err(ConfigError::PhysicalBlock { physical, logical })
}

/// The serial number as a guest reads it: NUL-padded, and without a NUL when
/// it is full. virtio 1.3 §5.2.6
fn padded(serial: String) -> Result<[u8; ID_BYTES], ConfigError> {
    let mut bytes = [0; ID_BYTES];
    let printable = serial.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    match bytes.get_mut(..serial.len()) {
        Some(start) if printable => start.copy_from_slice(serial.as_bytes()),
        _ => return Err(ConfigError::Serial(serial)),
    }
    Ok(bytes)
}

/// What a disk's bytes are on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// An image at a path.
    Image(PathBuf),
    /// Nothing, of so many bytes.
    Null(u64),
}

/// A checked [`BlkConfig`]; never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkSpec {
    pub(super) source: Source,
    pub(super) format: Format,
    pub(super) readonly: bool,
    pub(super) serial: [u8; ID_BYTES],
    pub(super) discard: bool,
    pub(super) queue_size: u16,
    pub(super) queues: u16,
    pub(super) logical_block_size: Option<u32>,
    pub(super) physical_block_size: Option<u32>,
    pub(super) direct: bool,
    pub(super) engine: EngineKind,
    pub(super) write_cache: bool,
    pub(super) rates: Rates,
}

impl BlkSpec {
    /// The image, if there is one.
    pub fn path(&self) -> Option<&std::path::Path> {
        match &self.source {
            Source::Image(path) => Some(path),
            Source::Null(_) => None,
        }
    }

    /// How the image's bytes make a disk, if there is an image.
    pub fn format(&self) -> Option<Format> {
        self.path().map(|_| self.format)
    }

    /// Whether the guest may not write.
    pub fn readonly(&self) -> bool {
        self.readonly
    }
}
