//! What can be done with nodes, in and outside of transactions.

use super::error::{Errno, Error};
use super::node::Node;
use super::path;
use super::permissions::Permission;
use super::wire::{self, Kind};

/// How often a long list is begun anew because it changed while it was read.
const LIST_ATTEMPTS: u32 = 32;

pub(super) mod sealed {
    use super::super::error::Error;
    use super::super::wire::Kind;

    /// Makes requests; what [`super::Tree`] stands on.
    pub trait Requester {
        /// Sends a request and returns its reply's payload.
        fn request(&self, kind: Kind, subject: &str, parts: &[&[u8]]) -> Result<Vec<u8>, Error>;
    }
}

/// The nodes of xenstore, as [`super::Xenstore`] shows them at each moment and
/// [`super::Transaction`] at one.
///
/// Every method sends one request or more and waits for the replies at most
/// [`super::Options::timeout`] each. Every method fails with
/// [`Error::Path`] when the path is none, [`Error::Refused`] when the daemon
/// refuses, [`Error::Disconnected`], [`Error::Timeout`] or
/// [`Error::Malformed`] when there is no usable reply.
pub trait Tree: sealed::Requester + Send + Sync {
    /// A node's value.
    ///
    /// # Errors
    /// `ENOENT` when it is not there; else as [`Tree`] says.
    fn read(&self, path: &str) -> Result<Vec<u8>, Error> {
        path::check(path)?;
        self.request(Kind::Read, path, &[path.as_bytes(), b"\0"])
    }

    /// A node's value as text.
    ///
    /// # Errors
    /// [`Error::Value`] when it is no UTF-8; else as [`Tree::read`].
    fn read_string(&self, path: &str) -> Result<String, Error> {
        String::from_utf8(self.read(path)?).map_err(|error| Error::Value {
            path: path.to_owned(),
            value: String::from_utf8_lossy(error.as_bytes()).into_owned(),
            expected: "UTF-8 text",
        })
    }

    /// Sets a node's value; makes it and the nodes above it where needed.
    ///
    /// # Errors
    /// [`Error::TooLong`] when path and value do not fit one message; else
    /// as [`Tree`] says.
    fn write_bytes(&self, path: &str, value: &[u8]) -> Result<(), Error> {
        path::check(path)?;
        self.request(Kind::Write, path, &[path.as_bytes(), b"\0", value])
            .map(drop)
    }

    /// Sets a node's value, as [`Tree::write_bytes`].
    ///
    /// # Errors
    /// As [`Tree::write_bytes`].
    fn write(&self, path: &str, value: impl AsRef<[u8]>) -> Result<(), Error>
    where
        Self: Sized,
    {
        self.write_bytes(path, value.as_ref())
    }

    /// Makes a node and those above it; one that is there keeps its value.
    ///
    /// # Errors
    /// As [`Tree`] says.
    fn mkdir(&self, path: &str) -> Result<(), Error> {
        path::check(path)?;
        self.request(Kind::Mkdir, path, &[path.as_bytes(), b"\0"])
            .map(drop)
    }

    /// Removes a node and everything under it. It need not be there, the one
    /// above it must.
    ///
    /// # Errors
    /// As [`Tree`] says.
    fn rm(&self, path: &str) -> Result<(), Error> {
        path::check(path)?;
        self.request(Kind::Rm, path, &[path.as_bytes(), b"\0"])
            .map(drop)
    }

    /// Whether a node is there.
    ///
    /// # Errors
    /// As [`Tree`] says, without `ENOENT`.
    fn exists(&self, path: &str) -> Result<bool, Error> {
        match self.read(path) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The names of a node's children; a list too long for one message is
    /// put together from several, all of the same moment.
    ///
    /// # Errors
    /// `E2BIG` when the daemon cannot give long lists, `EAGAIN` when the list
    /// changed each time it was read; else as [`Tree`] says.
    fn directory(&self, path: &str) -> Result<Vec<String>, Error> {
        path::check(path)?;
        match self.request(Kind::Directory, path, &[path.as_bytes(), b"\0"]) {
            Ok(payload) => names(Kind::Directory, path, &payload),
            Err(error) if error.errno() == Some(&Errno::TooBig) => {
                for _ in 0..LIST_ATTEMPTS {
                    if let Some(list) = long_list(self, path)? {
                        return Ok(list);
                    }
                }
                Err(Error::Refused {
                    request: Kind::DirectoryPart,
                    subject: path.to_owned(),
                    errno: Errno::Again,
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Who may do what with a node; the first entry is its owner's.
    ///
    /// # Errors
    /// As [`Tree`] says.
    fn get_permissions(&self, path: &str) -> Result<Vec<Permission>, Error> {
        path::check_watch(path)?;
        let payload = self.request(Kind::GetPerms, path, &[path.as_bytes(), b"\0"])?;
        let malformed = |problem| malformed(Kind::GetPerms, path, problem);
        let list = names(Kind::GetPerms, path, &payload)?
            .iter()
            .map(|text| text.parse().map_err(|error| malformed(format!("{error}"))))
            .collect::<Result<Vec<Permission>, Error>>()?;
        if list.is_empty() {
            return Err(malformed("an empty list".to_owned()));
        }
        Ok(list)
    }

    /// Says who may do what with a node; the first entry names its owner.
    ///
    /// # Errors
    /// As [`Tree`] says; an empty list is `EINVAL`.
    fn set_permissions(&self, path: &str, permissions: &[Permission]) -> Result<(), Error> {
        path::check_watch(path)?;
        let mut list = String::new();
        for permission in permissions {
            list.push_str(&format!("{permission}\0"));
        }
        self.request(
            Kind::SetPerms,
            path,
            &[path.as_bytes(), b"\0", list.as_bytes()],
        )
        .map(drop)
    }

    /// The directory at `path`, to read and write its keys.
    fn at(&self, path: impl Into<String>) -> Node<'_>
    where
        Self: Sized,
    {
        Node::new(self, path.into())
    }
}

fn malformed(request: Kind, subject: &str, problem: String) -> Error {
    Error::Malformed {
        request,
        subject: subject.to_owned(),
        problem,
    }
}

/// The strings of a payload.
fn names(request: Kind, path: &str, payload: &[u8]) -> Result<Vec<String>, Error> {
    let strings = wire::strings(payload)
        .ok_or_else(|| malformed(request, path, "its last string does not end".to_owned()))?;
    strings
        .into_iter()
        .map(|string| {
            std::str::from_utf8(string).map(str::to_owned).map_err(|_| {
                let text = String::from_utf8_lossy(string);
                malformed(request, path, format!("{text:?} is no UTF-8"))
            })
        })
        .collect()
}

/// Reads a long list part by part; nothing if it changed on the way.
fn long_list<T: Tree + ?Sized>(tree: &T, path: &str) -> Result<Option<Vec<String>>, Error> {
    let mut list = Vec::new();
    let mut generation = None;
    let mut offset = 0_usize;
    loop {
        let at = offset.to_string();
        let parts: [&[u8]; 4] = [path.as_bytes(), b"\0", at.as_bytes(), b"\0"];
        let payload = tree.request(Kind::DirectoryPart, path, &parts)?;
        let mut part = names(Kind::DirectoryPart, path, &payload)?.into_iter();
        let seen = part.next().ok_or_else(|| {
            malformed(Kind::DirectoryPart, path, "no generation count".to_owned())
        })?;
        if generation.get_or_insert_with(|| seen.clone()) != &seen {
            return Ok(None);
        }
        let before = offset;
        for name in part {
            if name.is_empty() {
                // An empty name ends the list (docs/misc/xenstore.txt).
                return Ok(Some(list));
            }
            offset = offset.saturating_add(name.len()).saturating_add(1);
            list.push(name);
        }
        if offset == before {
            let problem = format!("neither names nor the list's end at {offset}");
            return Err(malformed(Kind::DirectoryPart, path, problem));
        }
    }
}
