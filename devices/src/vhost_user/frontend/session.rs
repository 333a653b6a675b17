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

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;

use super::error::SessionError;
use super::features;
use super::peer::{CONFIG_MAX, PROTOCOL_FEATURES, Peer, until};
use super::pool::Pool;
use super::shared::{Known, Lane, Mail, Mailbox, Shared, Wish};
use super::wire::timespec;
use crate::unix::connect_to;
use crate::virtio::bell::Bell;
use crate::virtio::counters::add;
use crate::virtio::features::VERSION_1;
use crate::virtio::worker::with_causes;

/// How long a back end that is not there is left alone, at first and at most.
const RETRY: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// How often a worker that leaves is freed of a back end's doings.
const FREEING: Duration = Duration::from_millis(10);

/// What is asked for of a back end's protocol, as far as it has it. In-flight
/// tracking is not: which requests it has, its front end knows by the shadow
/// rings. Nor are memory slots: there is one region.
const PROTOCOL: Protocol = Protocol::MQ
    .union(Protocol::CONFIG)
    .union(Protocol::REPLY_ACK)
    .union(Protocol::RESET_DEVICE)
    .union(Protocol::BACKEND_REQ);

/// See the module.
pub(super) struct Session {
    shared: Arc<Shared>,
    /// What was logged last of why there is no connection.
    logged: Option<String>,
    /// Since when there is none.
    away: Instant,
}

/// A back end that is there.
struct Connection<'a> {
    shared: &'a Shared,
    peer: Peer,
    pool: Pool,
    known: Known,
    rings: BTreeMap<u16, (u64, Arc<Mailbox>)>,
    /// Ways to rings that run, not handed out yet.
    lanes: BTreeMap<u16, Box<Lane>>,
    /// A worker is leaving, which the back end may try to keep.
    leaving: bool,
    /// What it was told to use.
    features: Option<u64>,
    has_memory: bool,
    resets: u64,
    writes: u64,
    violations: u64,
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
        let mut pause = RETRY;
        loop {
            let shared = Arc::clone(&self.shared);
            let end = match connect(&shared) {
                Ok(mut connection) => {
                    self.note_connected();
                    pause = RETRY;
                    let end = connection.serve();
                    connection.lose();
                    add(&shared.stats.lost, 1);
                    self.away = Instant::now();
                    end
                }
                Err(error) => error,
            };
            if matches!(end, SessionError::Quit) {
                return;
            }
            self.note_away(end);
            if self.rest(pause) {
                return;
            }
            pause = pause.saturating_mul(2).min(RETRY_MAX);
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
        let is_up = !self.shared.state().wishes.is_empty();
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
        let mut begun = Instant::now();
        loop {
            let left = pause.saturating_sub(begun.elapsed());
            let leaving = self.shared.free_workers();
            let now = match leaving {
                true => left.min(FREEING),
                false => left,
            };
            let end = poll(
                &mut [PollFd::new(&self.shared.quit, PollFlags::IN)],
                Some(&timespec(now.max(FREEING))),
            );
            if !matches!(end, Ok(0) | Err(Errno::INTR)) {
                return true;
            }
            let state = self.shared.state();
            let is_wanted = !state.wishes.is_empty();
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

/// Connects and finds out what the back end is.
fn connect(shared: &Shared) -> Result<Connection<'_>, SessionError> {
    let spec = &shared.spec;
    let socket = connect_to(spec.socket()).map_err(SessionError::NotThere)?;
    let end = until(&shared.quit);
    let mut peer = Peer::new(socket, spec.answer_timeout);
    let features = peer.features(&end)?;
    if features & VERSION_1 == 0 {
        return Err(SessionError::Legacy { features });
    }
    if features & PROTOCOL_FEATURES != 0 {
        peer.negotiate(PROTOCOL, &end)?;
    }
    peer.set_owner(&end)?;
    // without MQ it has as many as its type has by rule
    if let Some(offered) = peer.queues(&end)?
        && offered < spec.queues.into()
    {
        let wanted = spec.queues;
        return Err(SessionError::Queues { offered, wanted });
    }
    peer.open_requests(&end)?;
    let known = Known {
        features,
        config: read_config(shared, &peer)?,
        writable: peer.protocol.contains(Protocol::CONFIG),
    };
    let pool = Pool::new(spec)?;
    let mut state = shared.state();
    if !state.wishes.is_empty() {
        for wish in state.wishes.values() {
            let missing = features::missing(features, wish.features);
            if missing != 0 {
                let offered = features;
                return Err(SessionError::Features { offered, missing });
            }
        }
        if let Some(before) = &state.known {
            compare(&before.config, &known.config, &state.written)?;
        }
    }
    let (resets, violations) = (state.resets, state.violations);
    // what the driver has written to its predecessor it has to hear of, too
    let writes = state
        .writes
        .wrapping_sub(u64::from(!state.written.is_empty()));
    state.known = Some(known.clone());
    drop(state);
    Ok(Connection {
        shared,
        peer,
        pool,
        known,
        rings: BTreeMap::new(),
        lanes: BTreeMap::new(),
        leaving: false,
        features: None,
        has_memory: false,
        resets,
        writes,
        violations,
    })
}

/// Whether a configuration space is still what it was, but for what the driver
/// has written to it.
fn compare(before: &[u8], now: &[u8], written: &BTreeMap<u8, u8>) -> Result<(), SessionError> {
    let longest = before.len().max(now.len());
    let is_written = |at: usize| u8::try_from(at).is_ok_and(|at| written.contains_key(&at));
    let differs = |at: &usize| before.get(*at) != now.get(*at) && !is_written(*at);
    match (0..longest).find(differs) {
        Some(at) => Err(SessionError::Config { at }),
        None => Ok(()),
    }
}

/// The configuration space: the file's word, or the back end's.
fn read_config(shared: &Shared, peer: &Peer) -> Result<Vec<u8>, SessionError> {
    let spec = &shared.spec;
    if let Some(config) = &spec.config_space {
        return Ok(config.clone());
    }
    let config = match peer.protocol.contains(Protocol::CONFIG) {
        true => ask_config(shared, peer)?,
        false => Vec::new(),
    };
    match spec.config_size {
        Some(wanted) if config.len() != wanted => {
            let len = config.len();
            Err(SessionError::ConfigSize { len, wanted })
        }
        _ => Ok(config),
    }
}

/// All that the back end gives of its configuration space. Some give as much as
/// one asks for, with zeroes at the end; others refuse what is longer than they
/// have, and are asked for less until they do not.
fn ask_config(shared: &Shared, peer: &Peer) -> Result<Vec<u8>, SessionError> {
    let end = until(&shared.quit);
    let most = match shared.spec.config_size {
        Some(size) => u32::try_from(size).unwrap_or(CONFIG_MAX),
        None => CONFIG_MAX,
    };
    if let Some(config) = peer.config(0, most, &end)? {
        return Ok(config);
    }
    let mut longest = Vec::new();
    let (mut given, mut refused) = (0, most);
    while refused - given > 1 {
        let len = given + (refused - given) / 2;
        match peer.config(0, len, &end)? {
            Some(config) => {
                longest = config;
                given = len;
            }
            None => refused = len,
        }
    }
    Ok(longest)
}

impl Connection<'_> {
    /// Makes so what is wanted, until the connection ends.
    fn serve(&mut self) -> SessionError {
        loop {
            if let Err(error) = self.reconcile().and_then(|()| self.wait()) {
                return error;
            }
        }
    }

    /// Waits for a wish, for news of the back end, or for its end.
    fn wait(&mut self) -> Result<(), SessionError> {
        let shared = self.shared;
        let mut polled = vec![
            PollFd::new(self.peer.wire(), PollFlags::IN),
            PollFd::new(&shared.quit, PollFlags::IN),
            PollFd::new(&shared.bell, PollFlags::IN),
        ];
        if let Some(requests) = self.peer.requests() {
            polled.push(PollFd::new(requests, PollFlags::IN));
        }
        let patience = self.leaving.then(|| timespec(FREEING));
        match poll(&mut polled, patience.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(SessionError::Host("memory to wait", errno.into())),
        }
        let happened = |at: usize| {
            let fd = polled.get(at);
            fd.is_some_and(|fd| !fd.revents().is_empty())
        };
        let [unasked, quit, _, request] = [0, 1, 2, 3].map(happened);
        drop(polled);
        shared.bell.hear();
        let end = until(&shared.quit);
        if quit {
            return Err(SessionError::Quit);
        }
        if unasked {
            return Err(self.peer.unasked(&end));
        }
        if request && self.peer.hear(&end)? {
            self.config_changed()?;
        }
        Ok(())
    }

    /// The back end says that its configuration space has changed.
    fn config_changed(&mut self) -> Result<(), SessionError> {
        if self.look_again()? {
            tracing::info!("the back end has changed the configuration space");
            if let Some(notifier) = self.shared.notifier.get() {
                notifier.config_changed();
            }
        }
        Ok(())
    }

    /// Reads the configuration space again; whether it is another one.
    fn look_again(&mut self) -> Result<bool, SessionError> {
        let config = read_config(self.shared, &self.peer)?;
        let changed = config != self.known.config;
        if changed {
            self.known.config = config;
            self.shared.state().known = Some(self.known.clone());
        }
        Ok(changed)
    }

    fn reconcile(&mut self) -> Result<(), SessionError> {
        let end = until(&self.shared.quit);
        let state = self.shared.state();
        let wishes = state.wishes.clone();
        let (resets, writes) = (state.resets, state.writes);
        let written = state.written.clone();
        if let Some((queue, violation)) = state.broken
            && state.violations != self.violations
        {
            return Err(SessionError::Violation { queue, violation });
        }
        drop(state);
        self.leaving = self.shared.free_workers();
        let is_stale = |queue: &u16, number: u64| {
            let wish = wishes.get(queue);
            wish.is_none_or(|wish| wish.number != number)
        };
        let stale: Vec<u16> = self
            .rings
            .iter()
            .filter(|(queue, (number, _))| is_stale(queue, *number))
            .map(|(queue, _)| *queue)
            .collect();
        for queue in stale {
            self.stop(queue)?;
        }
        if self.resets != resets && self.rings.is_empty() {
            self.resets = resets;
            self.peer.reset(&end)?;
            self.features = None;
            self.look_again()?;
        }
        if self.writes != writes {
            self.writes = writes;
            self.write_config(&written)?;
        }
        for (queue, wish) in wishes {
            if !self.rings.contains_key(&queue) {
                self.start(queue, wish)?;
            }
        }
        if self.shared.state().expected.is_empty() {
            for (queue, lane) in std::mem::take(&mut self.lanes) {
                if let Some((_, mailbox)) = self.rings.get(&queue) {
                    mailbox.post(Mail::Lane(lane));
                }
            }
        }
        Ok(())
    }

    /// Passes on what the driver has written, and looks what has become of it.
    /// What a back end refuses, or what two of them have left over, is dropped.
    fn write_config(&mut self, written: &BTreeMap<u8, u8>) -> Result<(), SessionError> {
        let told = self
            .tell_config(written)
            .and_then(|()| self.look_again())
            .map(drop);
        let mut state = self.shared.state();
        state.left_over_writes = match &told {
            Ok(()) => 0,
            Err(_) => state.left_over_writes + 1,
        };
        let refused = matches!(told, Err(SessionError::Refused { .. }));
        if refused || state.left_over_writes > 1 {
            state.written.clear();
            state.left_over_writes = 0;
        }
        drop(state);
        match told {
            Err(SessionError::Refused { code, .. }) => {
                tracing::debug!(code, "the back end takes no such configuration");
                Ok(())
            }
            other => other,
        }
    }

    fn tell_config(&self, written: &BTreeMap<u8, u8>) -> Result<(), SessionError> {
        let end = until(&self.shared.quit);
        let mut written = written.iter().peekable();
        while let Some((start, first)) = written.next() {
            let (mut last, mut bytes) = (*start, vec![*first]);
            while let Some((at, byte)) =
                written.next_if(|(at, _)| last.checked_add(1) == Some(**at))
            {
                last = *at;
                bytes.push(*byte);
            }
            self.peer.set_config(u32::from(*start), &bytes, &end)?;
        }
        Ok(())
    }

    /// Has the back end serve a ring.
    fn start(&mut self, queue: u16, wish: Wish) -> Result<(), SessionError> {
        let end = until(&self.shared.quit);
        let own =
            features::negotiated(self.known.features, wish.features, self.shared.spec.refused);
        if self.features != Some(own) {
            self.peer.set_features(own, &end)?;
            self.features = Some(own);
        }
        if !self.has_memory {
            let file = self.pool.file().map(AsFd::as_fd);
            let regions: Vec<_> = file
                .into_iter()
                .map(|file| (self.pool.region(), file))
                .collect();
            self.peer.set_memory(&regions, &end)?;
            self.has_memory = true;
        }
        let failed = |source| SessionError::Host("event file", source);
        let lane = Lane {
            memory: self.pool.queue(queue)?,
            features: own,
            kick: Arc::new(Bell::new().map_err(failed)?),
            call: Bell::new().map_err(failed)?,
        };
        let addresses = self.pool.addresses(queue);
        let size = lane.memory.layout.size;
        self.peer.set_ring(queue, size, 0, addresses, &end)?;
        let (kick, call) = (lane.kick.as_fd(), lane.call.as_fd());
        self.peer.start_ring(queue, kick, call, &end)?;
        if own & PROTOCOL_FEATURES != 0 {
            self.peer.enable_ring(queue, true, &end)?;
        }
        self.shared.note_kick(queue, wish.number, &lane.kick);
        self.rings.insert(queue, (wish.number, wish.mailbox));
        self.lanes.insert(queue, Box::new(lane));
        Ok(())
    }

    /// Has it serve a ring no more: from then on it does not touch its part of
    /// the memory, which the next one may have.
    fn stop(&mut self, queue: u16) -> Result<(), SessionError> {
        let end = until(&self.shared.quit);
        if self
            .features
            .is_some_and(|own| own & PROTOCOL_FEATURES != 0)
        {
            self.peer.enable_ring(queue, false, &end)?;
        }
        let next = self.peer.stop_ring(queue, &end)?;
        tracing::debug!(queue, next, "the back end has stopped a ring");
        self.rings.remove(&queue);
        self.lanes.remove(&queue);
        Ok(())
    }

    /// The connection has ended: tells whoever has a ring.
    fn lose(&mut self) {
        for (_, mailbox) in std::mem::take(&mut self.rings).into_values() {
            mailbox.post(Mail::Lost);
        }
    }
}
