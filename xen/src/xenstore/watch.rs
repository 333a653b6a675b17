//! Registered watches.
//!
//! A [`Watch`] is owned by whoever wants its events; dropping it removes it
//! from the daemon without waiting for an answer.

use std::fmt;
use std::sync::Arc;

use super::connection::Shared;
use super::error::{Errno, Error};
use super::wire::Kind;

/// Tells the watches of one [`super::Xenstore`] apart.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct WatchToken(pub(super) u64);

/// The token as the daemon knows it.
impl fmt::Display for WatchToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl WatchToken {
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        std::str::from_utf8(text).ok()?.parse().ok().map(Self)
    }
}

/// A watch, registered until it is dropped, over reconnections too.
#[must_use = "a watch that is dropped is removed"]
pub struct Watch {
    shared: Arc<Shared>,
    path: String,
    token: WatchToken,
    /// Whether the daemon may still know it.
    registered: bool,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("path", &self.path)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

impl Watch {
    pub(super) fn register(shared: &Arc<Shared>, path: &str) -> Result<Self, Error> {
        // The token is known before the daemon hears of the watch: its first
        // event may overtake the reply on its way to the caller.
        let token = shared.add_watch(path);
        let watch = Self {
            shared: Arc::clone(shared),
            path: path.to_owned(),
            token,
            registered: true,
        };
        match watch.request(Kind::Watch) {
            Ok(()) => Ok(watch),
            // Registered by a reconnection in between: tokens are unique.
            Err(error) if error.errno() == Some(&Errno::Exists) => Ok(watch),
            Err(error) => Err(error),
        }
    }

    /// The path that is watched.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What its events carry.
    #[must_use]
    pub fn token(&self) -> WatchToken {
        self.token
    }

    /// Removes the watch and waits for the daemon's word on it; dropping
    /// does not wait. No event of it is told afterwards either way.
    ///
    /// # Errors
    /// As any request. The watch is gone on this side in any case.
    pub fn unwatch(mut self) -> Result<(), Error> {
        self.registered = false;
        self.shared.remove_watch(self.token);
        self.request(Kind::Unwatch)
    }

    fn request(&self, kind: Kind) -> Result<(), Error> {
        let token = self.token.to_string();
        let parts: [&[u8]; 4] = [self.path.as_bytes(), b"\0", token.as_bytes(), b"\0"];
        self.shared.call(kind, &self.path, &parts).map(|_| ())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.registered {
            self.shared.remove_watch(self.token);
            self.shared.unwatch_unanswered(&self.path, self.token);
        }
    }
}
