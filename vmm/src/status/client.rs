//! Asking a daemon, within a bounded time.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::model::Status;
use super::protocol::{Answer, Request, VERSION};
use super::socket;

/// How long a daemon may take for all of its answer.
const PATIENCE: Duration = Duration::from_secs(8);
/// Bytes that an answer may have: thousands of devices.
const ANSWER_MAX: usize = 64 << 20;

/// Why there is no status.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no xen-dm daemon listens at {}: start one (`systemctl start xen-dm`, or `xen-dm daemon`), \
         or name its configuration with --config, its socket with --socket, or the guest of an \
         `xen-dm run` with --domid",
        path.display()
    )]
    NoDaemon {
        /// Where it would.
        path: PathBuf,
    },
    /// Nobody listens for one guest.
    #[error(
        "no `xen-dm run` of guest {domid} listens at {}: a guest of the daemon's is told without \
         --domid",
        path.display()
    )]
    NoRun {
        /// The guest.
        domid: u16,
        /// Where it would.
        path: PathBuf,
    },
    /// EACCES.
    #[error("{} may not be opened: run as the daemon's user, root as a rule", path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// The conversation failed.
    #[error("asking the daemon at {}: {what} failed", path.display())]
    Failed {
        /// The socket.
        path: PathBuf,
        /// What was to be done.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It does not answer.
    #[error("the daemon at {} did not answer in time", path.display())]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// Its answer is none.
    #[error("the daemon at {} answered what makes no sense", path.display())]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Its answer is longer than any.
    #[error("the daemon at {} answered more than {ANSWER_MAX} bytes", path.display())]
    Endless {
        /// The socket.
        path: PathBuf,
    },
    /// It refuses.
    #[error("the daemon at {} refuses: {why}", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// In its words.
        why: String,
    },
}

/// Asks the daemon whose socket is at `path`.
///
/// # Errors
/// [`ClientError`].
pub fn ask(path: &Path) -> Result<Status, ClientError> {
    ask_within(path, PATIENCE)
}

/// As [`ask`], with the time that the daemon has.
pub(super) fn ask_within(path: &Path, patience: Duration) -> Result<Status, ClientError> {
    let end = Instant::now() + patience;
    let owned = || path.to_owned();
    let stream = socket::connect_to(path, end).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::NoDaemon { path: owned() }
        }
        io::ErrorKind::PermissionDenied => ClientError::Forbidden { path: owned() },
        io::ErrorKind::TimedOut => ClientError::Silent { path: owned() },
        _ => ClientError::Failed {
            path: owned(),
            what: "connecting",
            source,
        },
    })?;
    let failed = |what| {
        move |source: io::Error| match source.kind() {
            io::ErrorKind::TimedOut => ClientError::Silent { path: owned() },
            _ => ClientError::Failed {
                path: owned(),
                what,
                source,
            },
        }
    };
    let malformed = |source| ClientError::Malformed {
        path: owned(),
        source,
    };
    let mut request = serde_json::to_vec(&Request::status()).map_err(malformed)?;
    request.push(b'\n');
    // far less than a socket holds
    (&stream)
        .write_all(&request)
        .map_err(failed("sending the request"))?;
    let answer = read(&stream, end).map_err(failed("reading the answer"))?;
    if answer.len() > ANSWER_MAX {
        return Err(ClientError::Endless { path: owned() });
    }
    let answer: Answer = serde_json::from_slice(&answer).map_err(malformed)?;
    answer.status.ok_or_else(|| ClientError::Refused {
        path: owned(),
        why: answer
            .error
            .unwrap_or_else(|| format!("it speaks version {}, not {VERSION}", answer.version)),
    })
}

/// All that comes until the other side hangs up, or one byte too many.
fn read(mut stream: &UnixStream, end: Instant) -> io::Result<Vec<u8>> {
    let epoll = Epoll::new()?;
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event)?;
    let mut answer = Vec::new();
    let mut bytes = vec![0; 64 << 10];
    while answer.len() <= ANSWER_MAX {
        match stream.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => answer.extend(bytes.iter().take(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                let left = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1);
                match epoll.wait(left, &mut [EpollEvent::default()]) {
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                    _ => {}
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}
