//! Clients of a device's unix socket on the host, who say what a story likes.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use arbitrary::Arbitrary;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use tempfile::TempDir;

/// Clients at once.
const CLIENTS: usize = 8;

/// A directory for a story's sockets, in memory if there is such a place: one is
/// made and removed for each of thousands of inputs a second.
pub fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a directory")
}

/// What a client does.
#[derive(Arbitrary, Debug)]
pub enum Act {
    Come,
    /// Says something; nobody need take it.
    Say(u8, Vec<u8>),
    /// Reads some of what there is.
    Hear(u8, u16),
    Go(u8),
}

/// Those who are connected.
#[derive(Default)]
pub struct Clients(Vec<UnixStream>);

impl Clients {
    /// Does it; `path` is where they connect to.
    pub fn act(&mut self, path: &Path, act: Act) {
        match act {
            Act::Come if self.0.len() < CLIENTS => {
                self.0.extend(connect(path).ok());
            }
            Act::Come => {}
            Act::Say(who, bytes) => {
                let _ = self.who(who).map(|stream| stream.write(&bytes));
            }
            Act::Hear(who, len) => {
                let mut bytes = vec![0; len.into()];
                let _ = self.who(who).map(|stream| stream.read(&mut bytes));
            }
            Act::Go(who) => {
                if !self.0.is_empty() {
                    self.0.remove(usize::from(who) % self.0.len());
                }
            }
        }
    }

    /// Takes whom the device connects to a listener.
    pub fn accept(&mut self, listener: &UnixListener) {
        if self.0.len() < CLIENTS
            && let Ok((stream, _)) = listener.accept()
        {
            self.0.push(patient(stream));
        }
    }

    fn who(&mut self, who: u8) -> Option<&mut UnixStream> {
        let count = self.0.len().max(1);
        self.0.get_mut(usize::from(who) % count)
    }
}

/// Does not wait where too many wait already.
fn connect(path: &Path) -> rustix::io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn patient(stream: UnixStream) -> UnixStream {
    stream.set_nonblocking(true).expect("a socket");
    stream
}
