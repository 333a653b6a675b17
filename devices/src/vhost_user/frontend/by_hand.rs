//! A session on its maker's thread, for tests and fuzz targets: wherever it
//! would wait, the others move, and then it goes on at once. So nothing depends
//! on time, and the same moves lead to the same end.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::config::VhostUserSpec;
use super::session::Session;
use super::shared::Shared;

/// Where a session stands when the others move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// It has told the back end something, and takes an answer that is there
    /// afterwards, or none.
    Told,
    /// It has nothing to do.
    Idle,
    /// It has no back end.
    Away,
}

type Others = Box<dyn FnMut(Pause)>;

thread_local! {
    static OTHERS: RefCell<Option<Others>> = const { RefCell::new(None) };
}

/// The session of a device that was made for it.
pub struct ByHand(Session);

impl ByHand {
    /// What `spec` describes, and its session.
    ///
    /// # Errors
    /// No event files.
    pub(super) fn new(mut spec: VhostUserSpec) -> io::Result<(Arc<Shared>, Self)> {
        spec.answer_timeout = Duration::ZERO;
        let shared = Arc::new(Shared::new(spec)?);
        let session = Session::new(Arc::clone(&shared));
        Ok((shared, ByHand(session)))
    }

    /// Runs until the device is dropped, which `others` is to do in the end.
    pub fn run(self, others: impl FnMut(Pause) + 'static) {
        OTHERS.set(Some(Box::new(others)));
        self.0.run();
        OTHERS.set(None);
    }
}

/// Lets the others move, where there are any; whether there are.
pub(super) fn others(pause: Pause) -> bool {
    OTHERS.with_borrow_mut(|others| others.as_mut().map(|others| others(pause)).is_some())
}

/// Lets the others move, where there are any, instead of waiting for `usual`.
pub(super) fn patience(pause: Pause, usual: Option<Duration>) -> Option<Duration> {
    match others(pause) {
        true => Some(Duration::ZERO),
        false => usual,
    }
}

/// `usual`, or nothing where a session is run by hand.
pub(super) fn at_once(usual: Duration) -> Duration {
    match OTHERS.with_borrow(Option::is_some) {
        true => Duration::ZERO,
        false => usual,
    }
}
