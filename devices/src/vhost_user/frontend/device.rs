//! The device as its transport sees it: what the back end is, and one handler a
//! queue.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

#[cfg(any(test, fuzzing))]
use super::by_hand::ByHand;
use super::config::{Memory, VhostUserSpec};
use super::error::SessionError;
use super::features;
use super::handler::VhostUserHandler;
use super::session::Session;
use super::shared::Shared;
use super::stats::VhostUserStats;
use crate::virtio::worker::with_causes;
use crate::virtio::{Device, DeviceError, DeviceType, Notifier, QueueHandler, RingServer, Trial};

/// How long nobody is told of the device where a back end is there and does not say
/// what it is. Then it is taken for one that comes late.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// Why the device cannot be made.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The host has none left of something.
    #[error("no thread or no event file for a back end")]
    Host(#[source] io::Error),
    /// There is a back end, and it is none for this device.
    #[error("the back end at {socket} cannot be used: {why}")]
    BackEnd {
        /// Its socket.
        socket: String,
        /// Why.
        why: String,
    },
}

/// A queue that the device does not have.
#[derive(Debug, Error)]
#[error("the device has {queues} queues, not a number {index}")]
struct NoSuchQueue {
    index: u16,
    queues: u16,
}

/// A device that a vhost-user back end serves. Its session lives as long as the
/// device and outlives resets and back ends.
#[derive(Debug)]
pub struct VhostUserDevice {
    shared: Arc<Shared>,
    session: Option<JoinHandle<()>>,
    queue_sizes: Vec<u16>,
}

impl VhostUserDevice {
    /// Starts the session with the back end of `spec`, and does not wait for it:
    /// whether it can serve this device comes out by [`Device::trial`]. A back end
    /// that is not there is waited for. A driver waits with it, but not for ever: it
    /// is then offered no features of the device's own and the configured
    /// configuration space.
    ///
    /// # Errors
    /// [`OpenError::Host`]: no thread.
    pub fn open(spec: VhostUserSpec) -> Result<Self, OpenError> {
        let shared = Arc::new(Shared::new(spec).map_err(OpenError::Host)?);
        let session = Session::new(Arc::clone(&shared));
        let span = tracing::Span::current();
        let thread = std::thread::Builder::new()
            .name("vhost-user".into())
            .spawn(move || {
                let _entered = span.enter();
                session.run();
            });
        let spec = &shared.spec;
        Ok(VhostUserDevice {
            queue_sizes: vec![spec.queue_size; usize::from(spec.queues)],
            session: Some(thread.map_err(OpenError::Host)?),
            shared,
        })
    }

    /// A device whose session its maker runs.
    ///
    /// # Errors
    /// No event files.
    #[cfg(any(test, fuzzing))]
    pub fn by_hand(spec: VhostUserSpec) -> io::Result<(Self, ByHand)> {
        let (shared, by_hand) = ByHand::new(spec)?;
        let device = VhostUserDevice {
            queue_sizes: vec![shared.spec.queue_size; usize::from(shared.spec.queues)],
            session: None,
            shared,
        };
        Ok((device, by_hand))
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// What has gone through the back end so far.
    pub fn stats(&self) -> &VhostUserStats {
        &self.shared.stats
    }
}

/// Whether waiting may help: another back end may come.
fn may_come(error: &SessionError) -> bool {
    matches!(
        error,
        SessionError::NotThere(_) | SessionError::Closed | SessionError::Silent { .. }
    )
}

impl Device for VhostUserDevice {
    fn device_type(&self) -> DeviceType {
        self.shared.spec.device_type
    }

    fn features(&self) -> u64 {
        let state = self.shared.state();
        let known = state.known.as_ref();
        known.map_or(0, |known| {
            features::offered(known.features, self.shared.spec.refused)
        })
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let state = self.shared.state();
        let config = match (&state.known, &self.shared.spec.config_space) {
            (Some(known), _) => &known.config,
            (None, Some(config)) => config,
            (None, None) => return,
        };
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = config.iter().enumerate().skip(at);
        for (to, (at, from)) in data.iter_mut().zip(rest) {
            let written = u8::try_from(at).ok().and_then(|at| state.written.get(&at));
            *to = *written.unwrap_or(from);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) -> bool {
        let mut state = self.shared.state();
        let Some(known) = state.known.as_ref().filter(|known| known.writable) else {
            return false;
        };
        let len = known.config.len() as u64;
        if offset.saturating_add(data.len() as u64) > len {
            return false;
        }
        // there are 256 at most
        let bytes = (offset..).map_while(|at| u8::try_from(at).ok());
        let bytes: Vec<(u8, u8)> = bytes.zip(data.iter().copied()).collect();
        let is_there = |(at, byte): &(u8, u8)| {
            !state.written.contains_key(at) && known.config.get(usize::from(*at)) == Some(byte)
        };
        if bytes.iter().all(is_there) {
            // Linux's SCSI driver writes what it has read, and there are back
            // ends that die over any write
            return true;
        }
        state.unsent.extend(bytes.iter().copied());
        state.written.extend(bytes);
        state.writes += 1;
        drop(state);
        self.shared.bell.ring();
        true
    }

    fn activate(&mut self, queues: &[u16]) {
        self.shared.expect(queues);
    }

    fn start_queue(
        &mut self,
        index: u16,
        features: u64,
    ) -> Result<Box<dyn QueueHandler>, DeviceError> {
        let queues = self.shared.spec.queues;
        if index >= queues {
            return Err(Box::new(NoSuchQueue { index, queues }));
        }
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(VhostUserHandler::new(shared, index, features)?))
    }

    fn ring_server(&self) -> Option<&dyn RingServer> {
        match self.shared.spec.memory {
            Memory::Bounce => None,
            Memory::Foreign => Some(self),
        }
    }

    fn attach(&mut self, notifier: &Arc<Notifier>, attention: EventFd) {
        self.shared.attach(notifier, attention);
    }

    fn trial(&self, patience: Duration) -> Trial {
        let left = self.shared.left_of(FIRST_WORD);
        match self.shared.first_try(patience.min(left)) {
            Some(Err(error)) if !may_come(&error) => Trial::Failed(Box::new(OpenError::BackEnd {
                socket: self.shared.spec.socket().display().to_string(),
                why: with_causes(&*error),
            })),
            Some(_) => Trial::Passed,
            None if left > patience => Trial::Pending,
            None => Trial::Passed,
        }
    }

    fn is_ready(&self) -> bool {
        self.shared.is_ready()
    }

    fn is_settled(&self) -> bool {
        self.shared.is_settled()
    }

    fn memory_changed(&mut self) {
        self.shared.state().guest_rings.memory += 1;
        self.shared.bell.ring();
    }

    fn stopping(&mut self, index: u16) {
        self.shared.let_go(index);
    }

    fn reset(&mut self) {
        self.shared.reset();
    }

    fn statistics(&self) -> Vec<(&'static str, u64)> {
        let (connected, since) = self.shared.connected();
        let mut list = self.shared.stats.snapshot().list();
        list.push(("connected", connected.into()));
        let is_foreign = self.shared.spec.memory == Memory::Foreign;
        list.push(("foreign_memory", is_foreign.into()));
        list.push(("connected_since_s", since.as_secs()));
        list
    }
}

impl Drop for VhostUserDevice {
    fn drop(&mut self) {
        self.shared.quit.ring();
        if let Some(session) = self.session.take()
            && session.join().is_err()
        {
            tracing::error!("a back end's session died");
        }
    }
}
