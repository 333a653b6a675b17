//! Several changes as one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::connection::{Link, Shared};
use super::error::{Errno, Error};
use super::tree::Tree;
use super::tree::sealed::Requester;
use super::wire::{self, Kind};

/// After this many conflicts in a row there is a pause before the next try.
const EAGER_ATTEMPTS: u32 = 4;
/// The pause: long enough for the others' transactions to end.
const PAUSE: Duration = Duration::from_millis(2);

/// An open transaction, from [`super::Xenstore::transaction`]: what
/// [`Tree`] reads is of one moment, what it writes is seen by nobody before
/// the commit.
pub struct Transaction<'a> {
    shared: &'a Shared,
    /// The link it was started on: the next link may use its number for
    /// another one.
    link: Arc<Link>,
    id: u32,
    ended: bool,
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl<'a> Transaction<'a> {
    fn start(shared: &'a Shared) -> Result<Self, Error> {
        const REQUEST: Kind = Kind::TransactionStart;
        let link = shared.link().ok_or_else(|| Error::Disconnected {
            request: REQUEST,
            subject: String::new(),
        })?;
        let payload = shared.call_on(&link, 0, REQUEST, "", &[b"\0"])?;
        let id = wire::strings(&payload)
            .and_then(|strings| std::str::from_utf8(strings.first()?).ok()?.parse().ok())
            .filter(|&id| id != 0)
            .ok_or_else(|| Error::Malformed {
                request: REQUEST,
                subject: String::new(),
                problem: format!("{:?} is no id", String::from_utf8_lossy(&payload)),
            })?;
        Ok(Self {
            shared,
            link,
            id,
            ended: false,
        })
    }

    fn commit(mut self) -> Result<(), Error> {
        self.ended = true;
        self.shared
            .call_on(&self.link, self.id, Kind::TransactionEnd, "", &[b"T\0"])
            .map(drop)
    }
}

/// Discards what was not committed.
impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.shared
                .send_unanswered(&self.link, Kind::TransactionEnd, self.id, &[b"F\0"]);
        }
    }
}

impl Requester for Transaction<'_> {
    fn request(&self, kind: Kind, subject: &str, parts: &[&[u8]]) -> Result<Vec<u8>, Error> {
        self.shared
            .call_on(&self.link, self.id, kind, subject, parts)
    }
}

impl Tree for Transaction<'_> {}

/// Runs `body` in a transaction, again as long as it conflicts with others'
/// changes.
pub(super) fn run<T, E: From<Error>>(
    shared: &Shared,
    mut body: impl FnMut(&Transaction<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let attempts = shared.options.transaction_attempts;
    for attempt in 0..attempts {
        if attempt >= EAGER_ATTEMPTS {
            std::thread::sleep(PAUSE);
        }
        let transaction = Transaction::start(shared)?;
        let value = body(&transaction)?;
        match transaction.commit() {
            Ok(()) => return Ok(value),
            Err(error) if error.errno() == Some(&Errno::Again) => {
                tracing::debug!(attempt, "xenstore transaction conflicts");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::Conflict { attempts }.into())
}
