//! What the daemon is asked from outside: to leave, or to read its
//! configuration anew; by a signal, or by whoever started it as a library.
//!
//! Each request is a byte in a socket that the control thread polls, so that
//! it is acted on between events and never within one.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// The signals that ask the daemon to leave.
const LEAVE: [i32; 2] = [SIGTERM, SIGINT];
/// The signal that has the configuration read anew.
const RELOAD: i32 = SIGHUP;

/// One kind of request: who asks holds one end.
#[derive(Debug)]
struct Request {
    reader: UnixStream,
    /// Keeps the socket from being readable for ever when nobody is left who
    /// could ask.
    _writer: Arc<UnixStream>,
}

impl Request {
    fn new() -> io::Result<(Arc<UnixStream>, Request)> {
        let (writer, reader) = UnixStream::pair()?;
        writer.set_nonblocking(true)?;
        reader.set_nonblocking(true)?;
        let writer = Arc::new(writer);
        let request = Request {
            reader,
            _writer: Arc::clone(&writer),
        };
        Ok((writer, request))
    }

    /// Whether it was made since the last call.
    fn take(&self) -> bool {
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

/// Asks the daemon. Clones ask the same daemon.
#[derive(Clone, Debug)]
pub struct StopHandle {
    leave: Arc<UnixStream>,
    reload: Arc<UnixStream>,
}

/// Where the daemon hears of it.
#[derive(Debug)]
pub struct Control {
    leave: Request,
    reload: Request,
}

/// A handle and its other end.
///
/// # Errors
/// The system's, when it gives no sockets.
pub fn control() -> io::Result<(StopHandle, Control)> {
    let (ask_leave, leave) = Request::new()?;
    let (ask_reload, reload) = Request::new()?;
    let handle = StopHandle {
        leave: ask_leave,
        reload: ask_reload,
    };
    Ok((handle, Control { leave, reload }))
}

impl StopHandle {
    /// Asks it to leave, as SIGTERM does.
    pub fn stop(&self) {
        ask(&self.leave);
    }

    /// Asks it to read its configuration file anew, as SIGHUP does.
    pub fn reload(&self) {
        ask(&self.reload);
    }

    /// Lets the process's signals ask from now on: SIGTERM and SIGINT to
    /// leave, SIGHUP to read the configuration anew.
    ///
    /// # Errors
    /// The system's.
    pub fn on_signals(&self) -> io::Result<()> {
        for signal in LEAVE {
            pipe::register(signal, self.leave.try_clone()?)?;
        }
        pipe::register(RELOAD, self.reload.try_clone()?)?;
        Ok(())
    }
}

fn ask(mut writer: &UnixStream) {
    // full: it was asked often enough; closed: it has left
    let _ = writer.write(&[0]);
}

impl Control {
    /// Whether it was asked to leave since the last call.
    pub(super) fn leave(&self) -> bool {
        self.leave.take()
    }

    /// Whether it was asked to read its configuration since the last call.
    pub(super) fn reload(&self) -> bool {
        self.reload.take()
    }

    /// Readable when it is asked to leave.
    pub(super) fn leave_fd(&self) -> RawFd {
        self.leave.reader.as_raw_fd()
    }

    /// Readable when it is asked to read its configuration.
    pub(super) fn reload_fd(&self) -> RawFd {
        self.reload.reader.as_raw_fd()
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

        assert!(!control.reload());
        assert!(control.leave());
        assert!(!control.leave());
    }

    #[test]
    fn nobody_left_to_ask_is_no_request() {
        let (stop, control) = control().unwrap();

        drop(stop);

        let read = (&control.leave.reader).read(&mut [0]).unwrap_err();
        assert_eq!(read.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn requests_beyond_what_the_socket_holds_do_not_block() {
        let (stop, control) = control().unwrap();

        for _ in 0..1 << 16 {
            stop.stop();
        }

        assert!(control.leave());
    }

    #[test]
    fn signals_are_requests() {
        let (stop, control) = control().unwrap();
        stop.on_signals().unwrap();

        signal_hook::low_level::raise(SIGTERM).unwrap();
        let asked_by_term = (control.leave(), control.reload());
        signal_hook::low_level::raise(SIGHUP).unwrap();
        let asked_by_hup = (control.leave(), control.reload());

        assert_eq!(asked_by_term, (true, false));
        assert_eq!(asked_by_hup, (false, true));
    }
}
