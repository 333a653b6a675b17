//! A connection: makes what is wanted so, as long as the back end is there.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

#[cfg(any(test, fuzzing))]
use super::by_hand;
use super::config::ConfigWrites;
use super::error::SessionError;
use super::features;
use super::foreign::Direct;
use super::greeting::read_config;
use super::peer::{PROTOCOL_FEATURES, Peer, until};
use super::pool::Pool;
use super::session::FREEING;
use super::shared::{Known, Lane, Mail, Mailbox, Shared, Wish};
use super::wire::timespec;
use crate::virtio::bell::Bell;
use crate::virtio::counters::add;

/// A back end that is there.
pub(super) struct Connection<'a> {
    pub shared: &'a Shared,
    pub peer: Peer,
    /// Memory of its own, if it is not given the guest's.
    pub pool: Option<Pool>,
    /// The guest's rings that it has.
    pub direct: Direct,
    pub known: Known,
    /// Rings that run, and whose they are.
    pub rings: BTreeMap<u16, (u64, Arc<Mailbox>)>,
    /// Ways to rings that run, not handed out yet.
    pub lanes: BTreeMap<u16, Box<Lane>>,
    /// A worker is leaving, which the back end may try to keep.
    pub leaving: bool,
    /// What it was told to use.
    pub features: Option<u64>,
    pub has_memory: bool,
    pub resets: u64,
    pub writes: u64,
    pub violations: u64,
}

impl Connection<'_> {
    /// Makes so what is wanted, until the connection ends.
    pub(super) fn serve(&mut self) -> SessionError {
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
        let calls = polled.len();
        polled.extend(
            self.direct
                .calls()
                .map(|call| PollFd::from_borrowed_fd(call, PollFlags::IN)),
        );
        let patience = match self.leaving {
            true => Some(FREEING),
            false => self.direct.patience(),
        };
        #[cfg(any(test, fuzzing))]
        let patience = by_hand::patience(by_hand::Pause::Idle, patience);
        match poll(&mut polled, patience.map(timespec).as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(SessionError::Host("memory to wait", errno.into())),
        }
        let happened = |at: usize| {
            let fd = polled.get(at);
            fd.is_some_and(|fd| !fd.revents().is_empty())
        };
        let [unasked, quit, _] = [0, 1, 2].map(happened);
        let request = calls > 3 && happened(3);
        let called = (calls..polled.len()).any(happened);
        drop(polled);
        shared.bell.hear();
        let end = until(&shared.quit);
        if quit {
            return Err(SessionError::Quit);
        }
        if called {
            self.hear_calls();
        }
        if unasked {
            return Err(self.peer.unasked(&end));
        }
        match request.then(|| self.peer.hear(&end)) {
            Some(Ok(true)) => self.config_changed(),
            Some(Err(SessionError::Closed)) => {
                // rust-vmm's own answer to being given it
                tracing::debug!("the back end has nothing to say by itself");
                self.peer.close_requests();
                Ok(())
            }
            Some(Err(error)) => Err(error),
            Some(Ok(false)) | None => Ok(()),
        }
    }

    /// The back end says that its configuration space has changed.
    fn config_changed(&mut self) -> Result<(), SessionError> {
        if self.look_again()? {
            add(&self.shared.stats.config_changes, 1);
            tracing::debug!("the back end has changed the configuration space");
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
        let mut state = self.shared.state();
        let wishes = state.wishes.clone();
        let (resets, writes) = (state.resets, state.writes);
        if let Some((queue, violation)) = state.broken
            && state.violations != self.violations
        {
            return Err(SessionError::Violation { queue, violation });
        }
        let unsent = std::mem::take(&mut state.unsent);
        let written = state.written.clone();
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
        self.stop_guest_rings()?;
        if self.resets != resets && self.rings.is_empty() && self.direct.is_empty() {
            self.resets = resets;
            self.direct.reset();
            self.peer.reset(&end)?;
            self.features = None;
            self.look_again()?;
        }
        if self.writes != writes {
            self.writes = writes;
            self.write_config(&unsent, &written)?;
            self.shared.note_passed(writes);
        }
        for (queue, wish) in wishes {
            if !wish.loses && !self.rings.contains_key(&queue) {
                self.start(queue, wish)?;
            }
        }
        self.start_guest_rings()?;
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
    fn write_config(
        &mut self,
        unsent: &BTreeMap<u8, u8>,
        written: &BTreeMap<u8, u8>,
    ) -> Result<(), SessionError> {
        let told = self
            .tell_config(unsent, written)
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

    fn tell_config(
        &self,
        unsent: &BTreeMap<u8, u8>,
        written: &BTreeMap<u8, u8>,
    ) -> Result<(), SessionError> {
        let end = until(&self.shared.quit);
        if unsent.is_empty() {
            // the driver has reset the device since
            return Ok(());
        }
        if self.shared.spec.config_writes == ConfigWrites::Whole {
            let mut space = self.known.config.clone();
            for (byte, at) in space.iter_mut().zip(0..) {
                *byte = *written.get(&at).unwrap_or(byte);
            }
            return self.peer.set_config(0, &space, &end);
        }
        let mut unsent = unsent.iter().peekable();
        while let Some((start, first)) = unsent.next() {
            let (mut last, mut bytes) = (*start, vec![*first]);
            while let Some((at, byte)) = unsent.next_if(|(at, _)| last.checked_add(1) == Some(**at))
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
        let offered = self.known.features;
        let missing = features::missing(offered, wish.features);
        if missing != 0 {
            // the driver has chosen before this back end came
            return Err(SessionError::Features { offered, missing });
        }
        let own =
            features::negotiated(self.known.features, wish.features, self.shared.spec.refused);
        if self.features != Some(own) {
            self.peer.set_features(own, &end)?;
            self.features = Some(own);
        }
        let Some(pool) = &self.pool else {
            // a wish comes from a worker, and there is none
            return Ok(());
        };
        if !self.has_memory {
            let file = pool.file().map(AsFd::as_fd);
            let regions: Vec<_> = file.into_iter().map(|file| (pool.region(), file)).collect();
            self.peer.set_memory(&regions, &end)?;
            self.has_memory = true;
        }
        let failed = |source| SessionError::Host("event file", source);
        let lane = Lane {
            memory: pool.queue(queue)?,
            features: own,
            kick: Arc::new(Bell::new().map_err(failed)?),
            call: Bell::new().map_err(failed)?,
        };
        let addresses = pool.addresses(queue);
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
    pub(super) fn lose(&mut self) {
        for (queue, (number, mailbox)) in std::mem::take(&mut self.rings) {
            self.shared.note_losing(queue, number, true);
            mailbox.post(Mail::Lost);
        }
    }
}
