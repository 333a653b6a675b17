//! What the device, its queues' workers and its session share.
//!
//! The device and the workers say what they want; the session, which alone
//! speaks with the back end, makes it so when the back end lets it. Nobody
//! waits for the session, and whatever a guest does while a back end hangs, no
//! more than its last wish is kept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;
use vmm_sys_util::eventfd::EventFd;

use super::config::VhostUserSpec;
use super::error::{SessionError, Violation};
use super::foreign::{GuestMemory, GuestRings};
use super::pool::QueueMemory;
use super::stats::VhostUserStats;
use crate::virtio::Notifier;
use crate::virtio::bell::Bell;
use crate::virtio::counters::add;

/// A queue's way to the back end, until the connection ends.
#[derive(Debug)]
pub(super) struct Lane {
    pub memory: QueueMemory,
    /// Features of the back end's ring.
    pub features: u64,
    pub kick: Arc<Bell>,
    pub call: Bell,
}

/// News for a queue's worker.
#[derive(Debug)]
pub(super) enum Mail {
    /// The back end serves the queue.
    Lane(Box<Lane>),
    /// It does so no more.
    Lost,
}

/// Where a queue's worker finds its news.
#[derive(Debug)]
pub(super) struct Mailbox {
    mail: Mutex<VecDeque<Mail>>,
    pub bell: Bell,
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Mailbox {
            mail: Mutex::default(),
            bell: Bell::new()?,
        })
    }

    pub(super) fn post(&self, news: Mail) {
        lock(&self.mail).push_back(news);
        self.bell.ring();
    }

    pub(super) fn take(&self) -> Option<Mail> {
        lock(&self.mail).pop_front()
    }
}

/// A queue that is to be served.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    /// Tells one activation of the queue from another.
    pub number: u64,
    /// What the guest's driver uses.
    pub features: u64,
    pub mailbox: Arc<Mailbox>,
    /// What its worker rings now, or rang last.
    kick: Option<Arc<Bell>>,
    /// Its worker is being asked to leave: nothing may keep it.
    leaves: bool,
    /// Its worker has not heard yet that its back end has gone: nothing may keep
    /// it, and no other back end serves the queue before.
    pub loses: bool,
}

/// What the back end is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub features: u64,
    pub config: Vec<u8>,
    /// The back end takes what a driver writes to the configuration space.
    pub writable: bool,
    /// What of its protocol is used.
    pub protocol: Protocol,
}

/// What is wanted and what is known.
#[derive(Debug, Default)]
pub(super) struct State {
    /// By queue.
    pub wishes: BTreeMap<u16, Wish>,
    /// Rings of the guest's own that are to be served, of a back end that has the
    /// guest's memory.
    pub guest_rings: GuestRings,
    /// Queues that will be wanted in a moment. Until then none is used: there
    /// are back ends that die over a ring whose neighbours do not run.
    pub expected: BTreeSet<u16>,
    wishes_made: u64,
    /// How often the device was reset.
    pub resets: u64,
    /// The last rule that a back end has broken, and how many there were.
    pub broken: Option<(u16, Violation)>,
    pub violations: u64,
    /// It was broken since the device was reset.
    pub is_blocked: bool,
    /// What the driver has written to the configuration space since then.
    pub written: BTreeMap<u8, u8>,
    /// What of that no back end was told.
    pub unsent: BTreeMap<u8, u8>,
    /// How often it has.
    pub writes: u64,
    /// How many of these the back end has taken, or there is nobody to take
    /// them.
    pub passed: u64,
    /// Back ends that have left when they were told of it, one after the other.
    pub left_over_writes: u32,
    /// Of the back end, once it was there.
    pub known: Option<Known>,
    /// How the last try to connect ended, if one has.
    pub tried: Option<Result<(), Arc<SessionError>>>,
    connected: bool,
    since: Option<Instant>,
}

impl State {
    /// Whether a driver uses the device.
    pub(super) fn is_up(&self) -> bool {
        !self.wishes.is_empty() || !self.guest_rings.is_empty()
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    pub spec: VhostUserSpec,
    pub stats: VhostUserStats,
    state: Mutex<State>,
    tried: Condvar,
    /// Something is wanted.
    pub bell: Bell,
    /// The session is to end. Never heard.
    pub quit: Bell,
    pub notifier: OnceLock<Arc<Notifier>>,
    /// Of a back end that is given it, once the device is behind registers.
    pub guest_memory: OnceLock<GuestMemory>,
    /// Of the transport, once there is one.
    attention: OnceLock<EventFd>,
    /// Since when the back end is wanted.
    begun: Instant,
}

impl Shared {
    pub(super) fn new(spec: VhostUserSpec) -> io::Result<Self> {
        Ok(Shared {
            spec,
            stats: VhostUserStats::default(),
            state: Mutex::default(),
            tried: Condvar::new(),
            bell: Bell::new()?,
            quit: Bell::new()?,
            notifier: OnceLock::new(),
            guest_memory: OnceLock::new(),
            attention: OnceLock::new(),
            begun: Instant::now(),
        })
    }

    /// The device is behind registers.
    pub(super) fn attach(&self, notifier: &Arc<Notifier>, attention: EventFd) {
        // it is put there once
        let _ = self.notifier.set(Arc::clone(notifier));
        let _ = self.attention.set(attention);
    }

    /// Whether the guest may be told what the device offers: the back end has
    /// said so, or it has been waited for long enough.
    pub(super) fn is_ready(&self) -> bool {
        self.state().known.is_some() || self.begun.elapsed() >= self.spec.start_wait
    }

    /// What is left of `bound` since the back end is wanted.
    pub(super) fn left_of(&self, bound: Duration) -> Duration {
        bound.saturating_sub(self.begun.elapsed())
    }

    /// Whether the back end has taken what the driver has written to the
    /// configuration space. Nobody waits for one that is not there, or has not
    /// answered in its time.
    pub(super) fn is_settled(&self) -> bool {
        let state = self.state();
        !state.connected || state.passed == state.writes
    }

    /// The back end has taken the first `writes` writes.
    pub(super) fn note_passed(&self, writes: u64) {
        self.state().passed = writes;
        self.attend();
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// These queues, and no fewer, are wanted next.
    pub(super) fn expect(&self, queues: &[u16]) {
        self.state().expected = queues.iter().copied().collect();
    }

    /// Wants a queue served; returns the number of the wish.
    pub(super) fn want(&self, queue: u16, features: u64, mailbox: Arc<Mailbox>) -> u64 {
        let mut state = self.state();
        state.wishes_made += 1;
        let number = state.wishes_made;
        let wish = Wish {
            number,
            features,
            mailbox,
            kick: None,
            leaves: false,
            loses: false,
        };
        state.wishes.insert(queue, wish);
        state.expected.remove(&queue);
        drop(state);
        self.bell.ring();
        number
    }

    /// Nothing may keep a queue's worker any more.
    pub(super) fn let_go(&self, queue: u16) {
        let mut state = self.state();
        if let Some(wish) = state.wishes.get_mut(&queue) {
            wish.leaves = true;
        }
        let returned = state.guest_rings.leave(queue);
        drop(state);
        drop(returned);
        self.bell.ring();
    }

    /// There is no back end any more that could have one of the guest's rings.
    pub(super) fn lose_guest_rings(&self) {
        let returned = self.state().guest_rings.lost();
        drop(returned);
    }

    /// What a queue's worker is going to ring.
    pub(super) fn note_kick(&self, queue: u16, number: u64, kick: &Arc<Bell>) {
        let mut state = self.state();
        let wish = state.wishes.get_mut(&queue);
        if let Some(wish) = wish.filter(|wish| wish.number == number) {
            wish.kick = Some(Arc::clone(kick));
        }
    }

    /// The back end of a queue's ring has gone, and its worker is told so.
    pub(super) fn note_losing(&self, queue: u16, number: u64, losing: bool) {
        let mut state = self.state();
        let wish = state.wishes.get_mut(&queue);
        if let Some(wish) = wish.filter(|wish| wish.number == number) {
            wish.loses = losing;
        }
        drop(state);
        self.bell.ring();
    }

    /// A back end can fill a kick's event and make ringing it wait: frees the
    /// workers that leave, or lose theirs, of that. True: there are some, and it has to be done
    /// again until there are none.
    pub(super) fn free_workers(&self) -> bool {
        let state = self.state();
        let leaving = state.wishes.values();
        let leaving = leaving.filter(|wish| wish.leaves || wish.loses);
        let kicks = leaving.filter_map(|wish| wish.kick.as_ref());
        kicks.map(|kick| kick.make_room()).count() > 0
    }

    /// Wants a queue served no more.
    pub(super) fn unwant(&self, queue: u16, number: u64) {
        let mut state = self.state();
        let wish = state.wishes.get(&queue);
        if wish.is_some_and(|wish| wish.number == number) {
            state.wishes.remove(&queue);
            drop(state);
            self.bell.ring();
        }
    }

    /// The device was reset: whatever the back end did is forgotten.
    pub(super) fn reset(&self) {
        let mut state = self.state();
        state.resets += 1;
        state.is_blocked = false;
        state.written.clear();
        state.unsent.clear();
        state.passed = state.writes;
        state.expected.clear();
        state.guest_rings.reset();
        drop(state);
        self.bell.ring();
    }

    /// The back end has broken the rules: it is spoken with no more until the
    /// device is reset.
    pub(super) fn violated(&self, queue: u16, violation: Violation) {
        add(&self.stats.violations, 1);
        let mut state = self.state();
        state.broken = Some((queue, violation));
        state.violations += 1;
        state.is_blocked = true;
        drop(state);
        self.bell.ring();
    }

    /// Notes how a try to connect, or a connection, has ended.
    pub(super) fn note_connected(&self, outcome: Result<(), SessionError>) {
        let mut state = self.state();
        let connected = outcome.is_ok();
        if state.connected != connected || state.since.is_none() {
            state.connected = connected;
            state.since = Some(Instant::now());
        }
        state.tried = Some(outcome.map_err(Arc::new));
        drop(state);
        self.tried.notify_all();
        self.attend();
    }

    /// A driver may be waiting for what has just changed.
    fn attend(&self) {
        let Some(attention) = self.attention.get() else {
            return;
        };
        if let Err(error) = attention.write(1) {
            tracing::error!(%error, "a waiting driver cannot be told");
        }
    }

    /// Waits until a first try to connect has ended, for `patience` at most;
    /// how it has.
    pub(super) fn first_try(&self, patience: Duration) -> Option<Result<(), Arc<SessionError>>> {
        let untried = |state: &mut State| state.tried.is_none();
        let waited = self
            .tried
            .wait_timeout_while(self.state(), patience, untried);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.tried.clone()
    }

    /// Whether a back end is there, and for how long that has been so.
    pub(super) fn connected(&self) -> (bool, Duration) {
        let state = self.state();
        let since = state.since.map_or(Duration::ZERO, |since| since.elapsed());
        (state.connected, since)
    }

    pub(super) fn need_reset(&self) {
        if let Some(notifier) = self.notifier.get() {
            notifier.need_reset();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
