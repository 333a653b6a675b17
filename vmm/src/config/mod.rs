//! The configuration file: what a user says, before any guest is there.
//!
//! Read by the command line at start, before anything is touched, and by the
//! daemon when it is asked to, for what comes then; a [`Config`] never
//! changes. Every refusal names the file, the line and the key.

mod data;
mod guests;
mod pattern;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use devices::registry::KINDS;
use devices::virtio::DeviceType;
use serde::Deserialize;
use serde_path_to_error::Segment;
use thiserror::Error;
use toml::de::{DeTable, DeValue};
use xen::DomId;

pub use data::{GrantedData, PoolOptions};
pub use guests::{DiskOverrides, GuestOverrides, GuestSections};

use crate::guest::EventMode;
use crate::words::{self, in_words};

/// Where recorded servers and the lock are, if nothing else is said.
pub const STATE_DIR: &str = "/run/xen-dm";
/// The control socket's name in the state directory.
const CONTROL_SOCKET: &str = "control.sock";
/// Bytes of a socket's path, and of what may come behind it for one guest
/// (`sun_path`, unix(7); domain numbers have at most five digits).
const SOCKET_PATH: usize = 107 - ".12345.sock".len();
/// Bounds of `stop-warning-seconds`.
const STOP_WARNING: std::ops::RangeInclusive<u64> = 1..=600;

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// And what the user may have to act on.
    Warn,
    /// And what guests and devices come and go.
    #[default]
    Info,
    /// And each step.
    Debug,
    /// And each event.
    Trace,
}

impl LogLevel {
    /// Its name, as in the file and in log filters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// The file's contents, keys in kebab-case; every key may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Config {
    /// How much is logged; the environment's `XEN_DM_LOG` goes before it.
    pub log: LogLevel,
    /// Where ioreq servers are recorded and the daemon's lock is.
    pub state_dir: PathBuf,
    /// Where `xen-dm status` reaches the daemon; nothing: in the state
    /// directory.
    control_socket: Option<PathBuf>,
    /// Take plain addresses from devices that were given grants.
    pub allow_foreign_with_grants: bool,
    /// How interrupts and kicks pass.
    pub events: EventMode,
    /// The bounce pool of each queue.
    pub swiotlb: PoolOptions,
    /// Whether granted data is mapped or copied.
    pub granted_data: GrantedData,
    stop_warning_seconds: u64,
    guest: GuestSections,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            log: LogLevel::default(),
            state_dir: PathBuf::from(STATE_DIR),
            control_socket: None,
            allow_foreign_with_grants: false,
            events: EventMode::default(),
            swiotlb: PoolOptions::default(),
            granted_data: GrantedData::default(),
            stop_warning_seconds: 5,
            guest: GuestSections::default(),
        }
    }
}

/// Why a configuration file is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("configuration file {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It says something that is no configuration.
    #[error("{}, line {line}{}: {message}", path.display(), named(key))]
    Refused {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key with those above it, or nothing where there is none.
        key: String,
        /// What is wrong.
        message: String,
    },
}

fn named(key: &str) -> String {
    match key {
        "" => String::new(),
        key => format!(", key {key}"),
    }
}

/// A value that was read and makes no sense.
struct BadValue {
    /// Its key, below those above it.
    keys: Vec<String>,
    message: String,
}

impl BadValue {
    fn new<'a>(keys: impl IntoIterator<Item = &'a str>, message: impl ToString) -> Self {
        BadValue {
            keys: keys.into_iter().map(str::to_owned).collect(),
            message: message.to_string(),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`]: it cannot be read, or it is refused.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Config::parse(path, &text)
    }

    /// Checks the text of a file; `path` is for the errors.
    ///
    /// # Errors
    /// [`ConfigError::Refused`].
    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        let refused = |span: Option<Range<usize>>, key: String, message: &str| {
            let line = line_of(text, span.map_or(0, |span| span.start));
            let message = message.to_owned();
            ConfigError::Refused {
                path: path.to_owned(),
                line,
                key,
                message,
            }
        };
        let document = toml::Deserializer::parse(text)
            .map_err(|error| refused(error.span(), String::new(), &in_words(error.message())))?;
        let config: Config = serde_path_to_error::deserialize(document).map_err(|error| {
            let (key, keys) = (key_of(error.path()), keys_of(error.path()));
            let error = error.into_inner();
            let words = explained(text, &keys, &error);
            refused(error.span(), key, &words)
        })?;
        config.check().map_err(|bad| {
            let key = bad.keys.iter().map(|key| quoted(key));
            let key = key.collect::<Vec<_>>().join(".");
            refused(place_of(text, &bad.keys), key, &bad.message)
        })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), BadValue> {
        let seconds = self.stop_warning_seconds;
        if !STOP_WARNING.contains(&seconds) {
            let (first, last) = STOP_WARNING.into_inner();
            let message = format!("{seconds} is not from {first} to {last}");
            return Err(BadValue::new(["stop-warning-seconds"], message));
        }
        let state_dir = &self.state_dir;
        if !state_dir.is_absolute() {
            let message = format!("{} is no absolute path", state_dir.display());
            return Err(BadValue::new(["state-dir"], message));
        }
        let bytes = state_dir.join(CONTROL_SOCKET).as_os_str().len();
        if self.control_socket.is_none() && bytes > SOCKET_PATH {
            let message = format!(
                "{} is too long a path for the socket in it, by {} bytes: name one with \
                 control-socket",
                state_dir.display(),
                bytes - SOCKET_PATH
            );
            return Err(BadValue::new(["state-dir"], message));
        }
        if let Some(path) = &self.control_socket {
            let bytes = path.as_os_str().len();
            if !path.is_absolute() || path.file_name().is_none() || bytes > SOCKET_PATH {
                let message = format!(
                    "{} is no absolute path of a file with at most {SOCKET_PATH} bytes",
                    path.display()
                );
                return Err(BadValue::new(["control-socket"], message));
            }
        }
        self.guest.check()
    }

    /// A queue that takes longer to stop is logged.
    #[must_use]
    pub fn stop_warning(&self) -> Duration {
        Duration::from_secs(self.stop_warning_seconds)
    }

    /// Where `xen-dm status` reaches the daemon, or the process that serves
    /// the guest `one` alone, which has its socket beside the daemon's.
    #[must_use]
    pub fn control_socket(&self, one: Option<DomId>) -> PathBuf {
        let daemon = match &self.control_socket {
            Some(path) => path.clone(),
            None => self.state_dir.join(CONTROL_SOCKET),
        };
        match one {
            None => daemon,
            Some(domid) => daemon.with_extension(format!("{domid}.sock")),
        }
    }

    /// The section that applies to a guest: the one under its uuid, else the
    /// one under its name, else the matching pattern with the most characters
    /// that are no wildcard. One section applies; they do not add up.
    #[must_use]
    pub fn guest(&self, name: &str, uuid: Option<&str>) -> GuestOverrides {
        let found = self.guest.find(name, uuid);
        found
            .map(|(_, section)| section.clone())
            .unwrap_or_default()
    }

    /// The section that says what is behind a device of `virtio = [ ... ]`, as
    /// it is headed: it may be for others, too.
    #[must_use]
    pub fn section_of(
        &self,
        name: &str,
        uuid: Option<&str>,
        devid: u32,
        announced: DeviceType,
    ) -> Option<String> {
        let (guest, section) = self.guest.find(name, uuid)?;
        let (entry, device) = section.entry(devid, announced)?;
        let (guest, entry, kind) = (quoted(guest), quoted(entry), device.kind().name);
        Some(format!("[guest.{guest}.virtio.{entry}.{kind}]"))
    }
}

/// What is wrong with the value under some keys.
fn explained(text: &str, keys: &[String], error: &toml::de::Error) -> String {
    let message = error.message();
    let choice = ["wanted string or table", "wanted exactly 1 element"];
    let is_choice = choice.iter().any(|start| message.starts_with(start));
    if let [top, guest, devices, entry, below @ ..] = keys
        && top == "guest"
        && devices == "virtio"
        && (is_choice && below.is_empty() || message.ends_with("expected newtype variant"))
    {
        let kinds: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        let (guest, entry, kinds) = (quoted(guest), quoted(entry), kinds.join(", "));
        return format!(
            "wants one table, [guest.{guest}.virtio.{entry}.KIND] with the device's keys, and KIND \
             one of {kinds}"
        );
    }
    match is_choice.then(|| words_for(text, error.span()?)).flatten() {
        Some(words) => format!("wants one of {words}, in quotation marks"),
        None => in_words(message),
    }
}

/// The words that could stand at a place of the text: a word that is none has
/// them told.
fn words_for(text: &str, place: Range<usize>) -> Option<String> {
    let mut text = text.to_owned();
    // it is of another text if it does not fit
    text.get(place.clone())?;
    text.replace_range(place, "\"?\"");
    let error = toml::from_str::<Config>(&text).err()?;
    let told = error.message();
    told.starts_with("unknown variant `?`")
        .then(|| words::listed(told))?
}

/// The line that a byte of the text is on, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().get(..offset).unwrap_or_default();
    before
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
        .saturating_add(1)
}

/// Where the value under some keys is in the text, or the table that is to
/// hold it.
fn place_of(text: &str, keys: &[String]) -> Option<Range<usize>> {
    let document = DeTable::parse(text).ok()?;
    let (first, rest) = keys.split_first()?;
    let mut value = document.get_ref().get(first.as_str())?;
    for key in rest {
        let below = match value.get_ref() {
            DeValue::Table(table) => table.get(key.as_str()),
            DeValue::Array(list) => key.parse().ok().and_then(|at: usize| list.get(at)),
            _ => None,
        };
        match below {
            Some(below) => value = below,
            None => break,
        }
    }
    Some(value.span())
}

/// The key in the file's own spelling.
fn key_of(path: &serde_path_to_error::Path) -> String {
    let keys: Vec<String> = keys_of(path).iter().map(|key| quoted(key)).collect();
    keys.join(".")
}

fn keys_of(path: &serde_path_to_error::Path) -> Vec<String> {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Map { key } => Some(key.clone()),
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Enum { variant } => Some(variant.clone()),
            _ => None,
        })
        .collect()
}

/// A key as TOML wants it: in quotes unless it is a bare one.
fn quoted(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    match !key.is_empty() && key.chars().all(bare) {
        true => key.to_owned(),
        false => format!("{key:?}"),
    }
}
