//! Logs: lines on standard error, each naming guest and device in its fields.
//!
//! Set up once by the command line, before the first thread is started.

use std::env;
use std::io::{self, IsTerminal};

use thiserror::Error;
use tracing_subscriber::EnvFilter;

pub use devices::virtio::worker::with_causes as report;

use crate::config::LogLevel;

/// Names the log filter in the environment, such as `debug` or
/// `info,vmm::discovery=trace`.
pub const VARIABLE: &str = "XEN_DM_LOG";

/// Why there are no logs.
#[derive(Debug, Error)]
pub enum LogsError {
    /// The environment's filter is none.
    #[error("{VARIABLE}={value:?} is no log filter: use error, warn, info, debug or trace")]
    Filter {
        /// Its value.
        value: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// They were set up before.
    #[error("logs are set up already")]
    Twice,
}

/// Starts logging at `level`, or at what the environment says.
///
/// # Errors
/// [`LogsError`].
pub fn init(level: LogLevel) -> Result<(), LogsError> {
    let filter = match env::var(VARIABLE) {
        Ok(value) if !value.is_empty() => {
            EnvFilter::try_new(&value).map_err(|source| LogsError::Filter { value, source })?
        }
        _ => EnvFilter::new(level.name()),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init()
        .map_err(|_| LogsError::Twice)
}
