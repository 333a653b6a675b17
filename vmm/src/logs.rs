//! Logs: lines on standard error, each naming guest and device in its fields.
//!
//! Set up once by the command line, before the first thread is started.

use std::env;
use std::io::{self, IsTerminal};

use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

pub use devices::virtio::worker::with_causes as report;

use crate::config::LogLevel;

/// Names the log filter in the environment, such as `debug` or
/// `info,vmm::discovery=trace`.
pub const VARIABLE: &str = "XEN_DM_LOG";

/// Why there are no logs.
#[derive(Debug, Error)]
pub enum LogsError {
    /// A word of the environment's filter would be taken for a part of the
    /// program.
    #[error(
        "{VARIABLE}={value:?} is no log filter: {word} is none of the levels off, error, warn, \
         info, debug and trace. A level for a part of the program is said as {word}=LEVEL"
    )]
    Level {
        /// The filter.
        value: String,
        /// The word.
        word: String,
    },
    /// The environment's filter is none.
    #[error("{VARIABLE}={value:?} is no log filter: use off, error, warn, info, debug or trace")]
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
        Ok(value) if !value.is_empty() => filter(value)?,
        _ => EnvFilter::new(level.name()),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init()
        .map_err(|_| LogsError::Twice)
}

/// Reads a filter. One that names a part of the program and no level is legal
/// for the library, and as a rule a level that was misspelt.
fn filter(value: String) -> Result<EnvFilter, LogsError> {
    let words = value.split(',');
    let mut bare = words.filter(|word| !word.is_empty() && !word.contains(['=', '[']));
    if let Some(word) = bare.find(|word| word.parse::<LevelFilter>().is_err()) {
        let word = word.to_owned();
        return Err(LogsError::Level { value, word });
    }
    EnvFilter::try_new(&value).map_err(|source| LogsError::Filter { value, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_taken_alone_and_for_parts_of_the_program() {
        for value in [
            "off",
            "warn",
            "DEBUG",
            "info,vmm::discovery=trace",
            "warn,devices=debug,",
            "vmm[guest{domid=3}]=trace,error",
        ] {
            assert!(filter(value.to_owned()).is_ok(), "{value}");
        }
    }

    #[test]
    fn a_word_that_is_no_level_is_refused_with_the_levels() {
        for (value, word) in [
            ("loud", "loud"),
            ("info,vmm", "vmm"),
            ("warning", "warning"),
        ] {
            let error = filter(value.to_owned()).err().unwrap().to_string();

            assert!(error.contains(&format!("{value:?}")), "{error}");
            assert!(error.contains(&format!("{word} is none")), "{error}");
            assert!(error.contains("error, warn, info, debug"), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_level_of_a_part_is_told() {
        let error = filter("vmm=loud".to_owned()).err().unwrap();

        assert!(matches!(error, LogsError::Filter { .. }), "{error}");
    }
}
