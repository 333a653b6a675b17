//! How the daemon is asked to leave: by a signal, or by whoever started it as
//! a library.
//!
//! Both write a byte to a socket that the control thread polls, so that a
//! request is acted on between events and never within one.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// The signals that ask; a terminal that goes away is one of them.
const SIGNALS: [i32; 3] = [SIGTERM, SIGINT, SIGHUP];

/// Asks the daemon to leave. Clones ask the same daemon.
#[derive(Clone, Debug)]
pub struct StopHandle {
    writer: Arc<UnixStream>,
}

/// Where the daemon hears of it.
#[derive(Debug)]
pub struct Control {
    reader: UnixStream,
}

/// A handle and its other end.
///
/// # Errors
/// The system's, when it gives no sockets.
pub fn control() -> io::Result<(StopHandle, Control)> {
    let (writer, reader) = UnixStream::pair()?;
    writer.set_nonblocking(true)?;
    reader.set_nonblocking(true)?;
    Ok((
        StopHandle {
            writer: Arc::new(writer),
        },
        Control { reader },
    ))
}

impl StopHandle {
    /// Asks, as SIGTERM does.
    pub fn stop(&self) {
        // full: it was asked often enough; closed: it has left
        let _ = (&*self.writer).write(&[0]);
    }

    /// Lets the process's SIGTERM, SIGINT and SIGHUP ask from now on.
    ///
    /// # Errors
    /// The system's.
    pub fn on_signals(&self) -> io::Result<()> {
        for signal in SIGNALS {
            pipe::register(signal, self.writer.try_clone()?)?;
        }
        Ok(())
    }
}

impl Control {
    /// Whether there was a request since the last call.
    pub(super) fn take(&self) -> bool {
        let mut asked = false;
        let mut buffer = [0; 64];
        while let Ok(count) = (&self.reader).read(&mut buffer) {
            if count == 0 {
                break;
            }
            asked = true;
        }
        asked
    }
}

impl AsRawFd for Control {
    fn as_raw_fd(&self) -> RawFd {
        self.reader.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_taken_once_however_often_it_was_made() {
        let (stop, control) = control().unwrap();

        stop.stop();
        stop.clone().stop();

        assert!(control.take());
        assert!(!control.take());
    }

    #[test]
    fn requests_beyond_what_the_socket_holds_do_not_block() {
        let (stop, control) = control().unwrap();

        for _ in 0..1 << 16 {
            stop.stop();
        }

        assert!(control.take());
    }

    #[test]
    fn a_signal_is_a_request() {
        let (stop, control) = control().unwrap();
        stop.on_signals().unwrap();

        signal_hook::low_level::raise(SIGTERM).unwrap();

        assert!(control.take());
    }
}
