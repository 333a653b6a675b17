//! The two lines of a conversation. Pure functions.

use serde::{Deserialize, Serialize};

use super::model::Status;

/// Version of [`Request`], [`Answer`] and [`Status`].
pub const VERSION: u32 = 1;
/// Bytes that a request may have, its end of line among them.
pub const REQUEST_MAX: usize = 4096;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Command {
    Status,
}

/// A request for the daemon's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    version: u32,
    command: Command,
}

/// The daemon's answer: its status, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`] of the daemon.
    pub version: u32,
    /// What was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Why it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Request {
    /// The request.
    #[must_use]
    pub fn status() -> Request {
        Request {
            version: VERSION,
            command: Command::Status,
        }
    }

    /// Reads a request, without its end of line.
    ///
    /// # Errors
    /// The text for [`Answer::error`].
    pub(super) fn parse(line: &[u8]) -> Result<Request, String> {
        /// What every version has in common.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let malformed = |error: serde_json::Error| format!("malformed request: {error}");
        let Versioned { version } = serde_json::from_slice(line).map_err(malformed)?;
        match version {
            VERSION => serde_json::from_slice(line).map_err(malformed),
            other => Err(format!(
                "version {other} of the protocol is not known here, {VERSION} is: `xen-dm` and \
                 the daemon are of different versions"
            )),
        }
    }
}

impl Answer {
    /// An answer with what was asked for.
    pub(super) fn status(status: Status) -> Answer {
        Answer {
            version: VERSION,
            status: Some(status),
            error: None,
        }
    }

    /// A refusal.
    pub(super) fn error(text: impl Into<String>) -> Answer {
        Answer {
            version: VERSION,
            status: None,
            error: Some(text.into()),
        }
    }

    /// The line, with its end.
    pub(super) fn line(&self) -> Vec<u8> {
        // plain data with string keys: nothing in it can fail
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}
