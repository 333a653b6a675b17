//! One port of a console, as its user describes it.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Backend, ConfigError, WhenFull, default_buffer};
use crate::console::size::Size;
use crate::unix::PATH_MAX;

/// Bounds of the buffer, bytes.
const BUFFER_MIN: u32 = 4 << 10;
const BUFFER_MAX: u32 = 16 << 20;
/// Longest name. It becomes a file in the guest's /dev/virtio-ports.
const NAME_MAX: usize = 64;
/// Bounds of a log's size, bytes, and what it is if nobody says.
const LOG_SIZE_MIN: u64 = 4 << 10;
const LOG_SIZE_MAX: u64 = 1 << 40;
const USUAL_LOG_SIZE: u64 = 1 << 20;
/// Most full logs, and how many there are if nobody says.
const LOG_FILES_MAX: u32 = 99;
const USUAL_LOG_FILES: u32 = 4;
/// The size of a terminal whose size nobody has said.
const USUAL_SIZE: Size = Size { cols: 80, rows: 24 };

/// A port beside the console itself, as its user describes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PortConfig {
    /// The name that the guest finds for it, such as `org.qemu.guest_agent.0`:
    /// 1 to 64 printable ASCII characters without a space or a slash.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether it is a console, too: for Linux a further hvc. The first port
    /// always is one.
    #[serde(default)]
    pub console: bool,
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
    /// `drop`.
    #[serde(default)]
    pub when_full: Option<WhenFull>,
    /// Width of a console's window, characters; together with `rows`.
    #[serde(default)]
    pub cols: Option<u16>,
    /// Height of a console's window, characters.
    #[serde(default)]
    pub rows: Option<u16>,
    /// A file that gets all output besides, read or not. When it is full it is
    /// kept under its name and `.1`, what was there under `.2`, and so on.
    #[serde(default)]
    pub log: Option<PathBuf>,
    /// Largest size of the log: bytes, 4096 to 2^40; without it 1048576.
    #[serde(default)]
    pub log_size: Option<u64>,
    /// How many full logs are kept, 0 to 99; without it 4.
    #[serde(default)]
    pub log_files: Option<u32>,
}

impl PortConfig {
    /// A port that listens on a socket, with everything else at its default.
    pub fn socket(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        PortConfig {
            name: Some(name.into()),
            console: false,
            backend: Backend::Socket,
            path: Some(path.into()),
            buffer: default_buffer(),
            when_full: None,
            cols: None,
            rows: None,
            log: None,
            log_size: None,
            log_files: None,
        }
    }

    pub(super) fn validate(self) -> Result<PortSpec, ConfigError> {
        if let Some(name) = &self.name
            && !is_name(name)
        {
            return Err(ConfigError::Name(name.clone()));
        }
        let size = size(self.cols, self.rows)?;
        if let (false, Some(Size { cols, rows })) = (self.console, size) {
            return Err(ConfigError::NoConsole { cols, rows });
        }
        if !(BUFFER_MIN..=BUFFER_MAX).contains(&self.buffer) {
            return Err(ConfigError::Buffer(self.buffer));
        }
        let when_full = self.when_full.unwrap_or(match self.backend {
            Backend::Pty | Backend::Socket => WhenFull::Hold,
            Backend::File => WhenFull::Drop,
        });
        let is_terminal = self.console && self.backend == Backend::Pty;
        Ok(PortSpec {
            name: self.name,
            console: self.console,
            target: target(self.backend, self.path)?,
            buffer: usize::try_from(self.buffer).unwrap_or(usize::MAX),
            when_full,
            size: size.or(is_terminal.then_some(USUAL_SIZE)),
            log: log(self.log, self.log_size, self.log_files)?,
        })
    }
}

fn is_name(name: &str) -> bool {
    let fits = (1..=NAME_MAX).contains(&name.len());
    fits && name
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'/')
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
            match len > PATH_MAX {
                true => Err(ConfigError::LongPath { path, len }),
                false => Ok(Target::Socket { path }),
            }
        }
        (Backend::File, Some(path)) if !empty(&path) => Ok(Target::File { path }),
        (Backend::Socket, _) => Err(ConfigError::NoPath("socket to listen on")),
        (Backend::File, _) => Err(ConfigError::NoPath("file to write to")),
    }
}

fn log(
    path: Option<PathBuf>,
    size: Option<u64>,
    files: Option<u32>,
) -> Result<Option<LogSpec>, ConfigError> {
    let Some(path) = path else {
        return match (size, files) {
            (None, None) => Ok(None),
            (Some(_), _) => Err(ConfigError::LimitOfNoLog("log-size")),
            (None, Some(_)) => Err(ConfigError::LimitOfNoLog("log-files")),
        };
    };
    let size = size.unwrap_or(USUAL_LOG_SIZE);
    let files = files.unwrap_or(USUAL_LOG_FILES);
    if path.file_name().is_none() {
        return Err(ConfigError::NoLog);
    }
    if !(LOG_SIZE_MIN..=LOG_SIZE_MAX).contains(&size) {
        return Err(ConfigError::LogSize(size));
    }
    if files > LOG_FILES_MAX {
        return Err(ConfigError::LogFiles(files));
    }
    Ok(Some(LogSpec { path, size, files }))
}

/// What a port is connected to, with its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Target {
    Pty { link: Option<PathBuf> },
    Socket { path: PathBuf },
    File { path: PathBuf },
}

impl Target {
    /// The path that was configured.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Target::Pty { link } => link.as_deref(),
            Target::Socket { path } | Target::File { path } => Some(path),
        }
    }
}

/// A port's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct LogSpec {
    pub path: PathBuf,
    /// Most bytes of one file.
    pub size: u64,
    /// How many full ones are kept.
    pub files: u32,
}

/// A checked [`PortConfig`]; never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct PortSpec {
    pub name: Option<String>,
    pub console: bool,
    pub target: Target,
    /// Bytes.
    pub buffer: usize,
    pub when_full: WhenFull,
    /// What the guest is told at first, if it is told a size at all.
    pub size: Option<Size>,
    pub log: Option<LogSpec>,
}
