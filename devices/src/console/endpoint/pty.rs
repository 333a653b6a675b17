//! A pseudo-terminal of the console's own.
//!
//! The console keeps the terminal's other end open, too. So the kernel keeps
//! what nobody has read yet when a reader closes the terminal, and does not
//! report a hang-up for as long as nobody is there, which could not be waited
//! out without polling. A reader that has gone is one that does not read.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use super::EndpointError;
use super::stream::{Nature, Stream};
use crate::console::size::Size;

/// See the module.
pub(super) struct Pty {
    master: Arc<Stream>,
    /// The other end, kept open.
    _slave: OwnedFd,
    path: PathBuf,
    link: Option<PathBuf>,
}

impl Pty {
    /// Makes a terminal of a size, and a link to it.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn open(link: Option<&Path>, size: Option<Size>) -> Result<Self, EndpointError> {
        let (master, slave, path) = make().map_err(EndpointError::Pty)?;
        let mut pty = Pty {
            master: Arc::new(Stream::new(master, Nature::Terminal)),
            _slave: slave,
            path,
            link: None,
        };
        if let Some(size) = size {
            pty.set_size(size);
        }
        if let Some(link) = link {
            make_link(&pty.path, link)?;
            pty.link = Some(link.to_owned());
        }
        Ok(pty)
    }

    /// The terminal, such as `/dev/pts/3`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn stream(&self) -> Arc<Stream> {
        Arc::clone(&self.master)
    }

    /// Its size, if somebody has given it one.
    pub fn size(&self) -> Option<Size> {
        let size = tcgetwinsize(&*self.master).ok()?;
        let known = size.ws_col != 0 && size.ws_row != 0;
        known.then_some(Size {
            cols: size.ws_col,
            rows: size.ws_row,
        })
    }

    /// Gives it a size; whoever uses it is told by a signal.
    pub fn set_size(&self, size: Size) {
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        if let Err(error) = tcsetwinsize(&*self.master, size) {
            tracing::warn!(path = %self.path.display(), %error, "a terminal takes no size");
        }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let Some(link) = &self.link else { return };
        // another console may have put its own there
        if std::fs::read_link(link).is_ok_and(|target| target == self.path)
            && let Err(error) = std::fs::remove_file(link)
        {
            tracing::warn!(link = %link.display(), %error, "a link to a terminal is left behind");
        }
    }
}

fn make() -> io::Result<(OwnedFd, OwnedFd, PathBuf)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    let path = ptsname(&master, Vec::new())?;
    let path = PathBuf::from(OsStr::from_bytes(path.as_bytes()));
    let slave = open_slave(&master, &path)?;
    Ok((master, slave, path))
}

/// Opens the other end: bytes pass it as they are, with no echo.
fn open_slave(master: &impl std::os::fd::AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(master, flags).or_else(|_| {
        // before Linux 4.13
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, rustix::fs::Mode::empty())
    })?;
    let mut modes = tcgetattr(&slave)?;
    modes.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &modes)?;
    Ok(slave)
}

/// Makes or replaces a symbolic link.
fn make_link(target: &Path, link: &Path) -> Result<(), EndpointError> {
    let failed = |source| EndpointError::Link {
        path: link.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(link) {
        Ok(found) if found.file_type().is_symlink() => {
            std::fs::remove_file(link).map_err(failed)?;
        }
        Ok(_) => {
            return Err(EndpointError::NoLink {
                path: link.to_owned(),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    std::os::unix::fs::symlink(target, link).map_err(failed)
}
