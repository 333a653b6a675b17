//! The session with the back end: one thread, which alone speaks with it.
//!
//! ```text
//!             ┌── nobody there, refused, no answer: again after a while ──┐
//!             ▼                                                           │
//!  connect ──► features, protocol features, owner, queues, configuration ─┤
//!             space: is it what the guest knows?                          │
//!                  │ yes                                                  │
//!                  ▼                                                      │
//!             makes what is wanted so: starts rings (Mail::Lane), stops ──┤
//!             them, resets the device, writes the configuration space     │
//!                  │ it goes away, hangs, or breaks a rule                │
//!                  ▼                                                      │
//!             tells the workers (Mail::Lost); the memory is given up ─────┘
//! ```
//!
//! Each connection has memory of its own, so that whoever had the last one
//! cannot reach the next one's data.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

#[cfg(any(test, fuzzing))]
use super::by_hand;
use super::error::SessionError;
use super::foreign::tell_loss;
use super::greeting::connect;
use super::pauses::Pauses;
use super::shared::Shared;
use super::wire::timespec;
use crate::virtio::counters::add;
use crate::virtio::worker::with_causes;

/// How often a worker that leaves is freed of a back end's doings.
pub(super) const FREEING: Duration = Duration::from_millis(10);

/// See the module.
pub(super) struct Session {
    shared: Arc<Shared>,
    /// What was logged last of why there is no connection.
    logged: Option<String>,
    /// Since when there is none.
    away: Instant,
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Session {
            shared,
            logged: None,
            away: Instant::now(),
        }
    }

    /// Runs until the device is taken away.
    pub(super) fn run(mut self) {
        let mut pauses = Pauses::new();
        loop {
            let shared = Arc::clone(&self.shared);
            let (end, pause) = match connect(&shared) {
                Ok(mut connection) => {
                    self.note_connected();
                    let begun = Instant::now();
                    let end = connection.serve();
                    connection.lose();
                    let pause = pauses.after_connection(begun.elapsed());
                    drop(connection);
                    shared.lose_guest_rings();
                    tell_loss(&shared);
                    add(&shared.stats.lost, 1);
                    self.away = Instant::now();
                    (end, pause)
                }
                Err(error) => (error, pauses.after_none()),
            };
            if matches!(end, SessionError::Quit) {
                return;
            }
            self.note_away(end);
            if self.rest(pause) {
                return;
            }
        }
    }

    fn note_connected(&mut self) {
        add(&self.shared.stats.connections, 1);
        self.logged = None;
        self.shared.note_connected(Ok(()));
        tracing::info!(socket = %self.shared.spec.socket().display(), "the back end is there");
    }

    fn note_away(&mut self, error: SessionError) {
        if matches!(error, SessionError::Silent { .. }) {
            add(&self.shared.stats.hung, 1);
        }
        let is_up = self.shared.state().is_up();
        if is_up && is_another_device(&error) {
            self.shared.need_reset();
        }
        let text = with_causes(&error);
        if self.logged.as_ref() != Some(&text) {
            tracing::warn!(
                socket = %self.shared.spec.socket().display(),
                error = text,
                "no back end; the device waits for one"
            );
            self.logged = Some(text);
        }
        self.shared.note_connected(Err(error));
    }

    /// Leaves the back end alone for a while, and longer where it has broken
    /// the rules: until the device is reset. True: the session ends.
    fn rest(&self, pause: Duration) -> bool {
        #[cfg(any(test, fuzzing))]
        let pause = by_hand::at_once(pause);
        let mut begun = Instant::now();
        loop {
            let left = pause.saturating_sub(begun.elapsed());
            let leaving = self.shared.free_workers();
            let now = match leaving {
                true => left.min(FREEING),
                false => left,
            };
            let now = Some(now.max(FREEING));
            #[cfg(any(test, fuzzing))]
            let now = by_hand::patience(by_hand::Pause::Away, now);
            let end = poll(
                &mut [PollFd::new(&self.shared.quit, PollFlags::IN)],
                now.map(timespec).as_ref(),
            );
            if !matches!(end, Ok(0) | Err(Errno::INTR)) {
                return true;
            }
            let state = self.shared.state();
            let is_wanted = state.is_up();
            let is_blocked = state.is_blocked;
            drop(state);
            let limit = self.shared.spec.give_up_after;
            if is_wanted && limit.is_some_and(|limit| self.away.elapsed() >= limit) {
                self.shared.need_reset();
            }
            if begun.elapsed() < pause {
                continue;
            }
            if !is_blocked {
                return false;
            }
            begun = Instant::now();
        }
    }
}

/// Whether a back end is there that cannot take its predecessor's place.
fn is_another_device(error: &SessionError) -> bool {
    matches!(
        error,
        SessionError::Features { .. }
            | SessionError::Config { .. }
            | SessionError::Queues { .. }
            | SessionError::ConfigSize { .. }
            | SessionError::Legacy { .. }
    )
}
