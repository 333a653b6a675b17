//! One device in the guest's window: its registers, its line, and the answers
//! that wait for its queues to stop.
//!
//! Belongs to the guest's thread.

use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use devices::registry::DeviceSpec;
use devices::virtio::mmio::{Register, read_empty_slot};
use devices::virtio::{Answer, HostPlace, Interrupt, Notifier, Transport, Trial};
use swiotlb::{Counters, GrantPolicy};
use vmm_sys_util::eventfd::EventFd;
use xen::ioreq::Pending;
use xen::privcmd::Ioeventfd;

use super::access::Access;
use super::config::DeviceKey;
use super::event::{GuestEvent, Outbox};
use super::stats::{DeviceStats, QueueCounts, Wiring};
use crate::adapt::Line;

/// A device's line, which also lets the guest's thread know that a worker has
/// found its device broken.
pub(super) struct Watch {
    line: Line,
    notifier: OnceLock<Weak<Notifier>>,
    attention: EventFd,
}

impl Watch {
    pub(super) fn new(line: Line, attention: EventFd) -> Self {
        Watch {
            line,
            notifier: OnceLock::new(),
            attention,
        }
    }

    pub(super) fn watch(&self, notifier: &Arc<Notifier>) {
        // set once: a slot has one transport
        let _ = self.notifier.set(Arc::downgrade(notifier));
    }
}

impl Interrupt for Watch {
    fn raise(&self) -> std::io::Result<()> {
        let broken = self
            .notifier
            .get()
            .and_then(Weak::upgrade)
            .is_some_and(|notifier| notifier.needs_reset());
        if broken && let Err(error) = self.attention.write(1) {
            tracing::error!(%error, "the guest's thread could not be told of a broken device");
        }
        self.line.raise()
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        self.line.event()
    }
}

/// What of a device's state was reported last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reported {
    running: bool,
    needs_reset: bool,
}

/// A device in the window.
pub(super) struct Slot {
    id: DeviceKey,
    wiring: Wiring,
    transport: Transport,
    counters: Arc<Counters>,
    policy: Arc<GrantPolicy>,
    queues: u16,
    /// Dropped before the transport's doorbells close.
    ioeventfds: Vec<Ioeventfd>,
    /// Whether it can be used has not come out yet.
    on_trial: bool,
    removing: bool,
    waiting: Vec<Pending>,
    stopping_since: Option<Instant>,
    next_warning: Option<Instant>,
    reported: Reported,
    panics: u64,
    span: tracing::Span,
}

/// What remains of a slot after its queues were collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Rest {
    Stays,
    /// It was to be removed and holds nothing of the guest's any more.
    Done,
}

/// What a slot is made of.
pub(super) struct Parts {
    pub id: DeviceKey,
    pub wiring: Wiring,
    pub transport: Transport,
    pub counters: Arc<Counters>,
    pub policy: Arc<GrantPolicy>,
    pub queues: u16,
    pub ioeventfds: Vec<Ioeventfd>,
    pub span: tracing::Span,
}

impl Slot {
    pub(super) fn new(parts: Parts) -> Self {
        Slot {
            on_trial: !matches!(trial(&parts.transport), Trial::Passed),
            id: parts.id,
            wiring: parts.wiring,
            transport: parts.transport,
            counters: parts.counters,
            policy: parts.policy,
            queues: parts.queues,
            ioeventfds: parts.ioeventfds,
            removing: false,
            waiting: Vec::new(),
            stopping_since: None,
            next_warning: None,
            reported: Reported::default(),
            panics: 0,
            span: parts.span,
        }
    }

    pub(super) fn id(&self) -> &DeviceKey {
        &self.id
    }

    pub(super) fn irq(&self) -> u32 {
        self.wiring.irq
    }

    pub(super) fn panics(&self) -> u64 {
        self.panics
    }

    /// Carries an access out. What it gives back is to be answered now, with
    /// that value; nothing: it is answered when the queues have stopped.
    pub(super) fn access(
        &mut self,
        access: Access,
        pending: Pending,
        outbox: &Outbox,
    ) -> Option<(Pending, u64)> {
        let span = self.span.clone();
        let _entered = span.enter();
        let answer = match (self.removing, access.write) {
            (false, None) => {
                let value = self.guarded("a read", |transport| {
                    transport.read(access.offset, access.size)
                });
                return Some((pending, value.unwrap_or(0)));
            }
            (false, Some(value)) => self.guarded("a write", |transport| {
                transport.write(access.offset, access.size, value)
            }),
            // to the guest the device is gone already ...
            (true, None) => {
                return Some((pending, read_empty_slot(access.offset, access.size)));
            }
            // ... but rings must not be freed before they are unmapped
            (true, Some(0)) if Register::at(access.offset) == Some(Register::Status) => {
                self.guarded("a reset", Transport::begin_reset)
            }
            (true, Some(_)) => Some(Answer::Now),
        };
        let now = match answer {
            Some(Answer::Later) => {
                self.stopping();
                self.waiting.push(pending);
                None
            }
            Some(Answer::Now) | None => Some((pending, 0)),
        };
        self.report(outbox);
        now
    }

    /// Runs the device's own code. A guest's vCPU is waiting: a defect in it
    /// must end with the device, not with the thread that answers.
    fn guarded<T>(&mut self, what: &str, f: impl FnOnce(&mut Transport) -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(|| f(&mut self.transport))) {
            Ok(value) => Some(value),
            Err(_) => {
                // the panic hook has written where and why
                self.panics += 1;
                tracing::error!("{what} failed in the device's own code; it needs a reset");
                self.transport.notifier().need_reset();
                None
            }
        }
    }

    fn stopping(&mut self) {
        self.stopping_since.get_or_insert_with(Instant::now);
    }

    /// Has the device look again at what it stands on.
    pub(super) fn refresh(&mut self) {
        let span = self.span.clone();
        let _entered = span.enter();
        self.guarded("a look at the host", Transport::refresh);
    }

    /// Has the device take what can change while it is served.
    pub(super) fn reconfigure(&mut self, spec: &DeviceSpec) {
        let span = self.span.clone();
        let _entered = span.enter();
        self.guarded("a new description", |transport| transport.reconfigure(spec));
    }

    /// Memory has left the guest.
    pub(super) fn memory_changed(&mut self) {
        let span = self.span.clone();
        let _entered = span.enter();
        self.guarded("a change of memory", Transport::memory_changed);
    }

    /// Begins to remove the device.
    pub(super) fn remove(&mut self, outbox: &Outbox) -> Rest {
        let span = self.span.clone();
        let _entered = span.enter();
        tracing::info!("the device is being removed");
        self.removing = true;
        // no kick past this thread any more
        self.ioeventfds.clear();
        let answer = self.guarded("a reset", Transport::begin_reset);
        if answer == Some(Answer::Later) {
            self.stopping();
            return Rest::Stays;
        }
        self.report(outbox);
        Rest::Done
    }

    /// Takes back the queues that have stopped, and gives what is to be
    /// answered now.
    pub(super) fn collect(&mut self, outbox: &Outbox) -> (Rest, Vec<Pending>) {
        let span = self.span.clone();
        let _entered = span.enter();
        // a failure counts as an end: nobody would come back for those who wait
        let settled = self.guarded("a reset", Transport::collect).unwrap_or(true);
        self.report(outbox);
        if !settled {
            return (Rest::Stays, Vec::new());
        }
        if let (Some(since), Some(_)) = (self.stopping_since, self.next_warning) {
            tracing::warn!(
                seconds = since.elapsed().as_secs_f32(),
                "what was waited for has come about at last"
            );
        }
        self.stopping_since = None;
        self.next_warning = None;
        let rest = match self.removing {
            true => Rest::Done,
            false => Rest::Stays,
        };
        (rest, std::mem::take(&mut self.waiting))
    }

    /// Whether it has not come out yet if the device can be used.
    pub(super) fn is_on_trial(&self) -> bool {
        self.on_trial
    }

    /// Tells how the device's trial has ended, once.
    pub(super) fn watch_trial(&mut self, outbox: &Outbox) {
        if !self.on_trial || self.removing {
            return;
        }
        let event = match trial(&self.transport) {
            Trial::Pending => return,
            Trial::Passed => GuestEvent::Usable(self.id.clone()),
            Trial::Failed(why) => GuestEvent::Unusable(self.id.clone(), why),
        };
        self.on_trial = false;
        outbox.post(event);
    }

    /// Whether queues are being stopped.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping_since.is_some()
    }

    /// Logs what takes longer than `bound`, queues to stop or another process to
    /// answer, once each `bound`.
    /// Returns when to look again.
    pub(super) fn watch_stopping(&mut self, bound: Duration, now: Instant) -> Option<Instant> {
        let since = self.stopping_since?;
        let due = self.next_warning.unwrap_or(since + bound);
        if now < due {
            return Some(due);
        }
        let _entered = self.span.enter();
        let queues = self.transport.stopping();
        let seconds = now.duration_since(since).as_secs_f32();
        let waiting = self.waiting.len();
        match queues.is_empty() {
            true => tracing::warn!(
                seconds,
                waiting,
                "another process does not answer; the driver waits for it"
            ),
            false => tracing::warn!(
                ?queues,
                seconds,
                waiting,
                "queues do not stop; whoever resets the device waits for them"
            ),
        }
        let next = now + bound;
        self.next_warning = Some(next);
        Some(next)
    }

    /// Tells what has changed.
    fn report(&mut self, outbox: &Outbox) {
        let now = Reported {
            running: self.transport.is_running(),
            needs_reset: self.transport.notifier().needs_reset(),
        };
        let before = std::mem::replace(&mut self.reported, now);
        if now.running && !before.running {
            outbox.post(GuestEvent::DriverUp(self.id.clone()));
        }
        if before.running && !now.running && !self.removing {
            outbox.post(GuestEvent::DriverReset(self.id.clone()));
        }
        if now.needs_reset && !before.needs_reset {
            outbox.post(GuestEvent::NeedsReset(self.id.clone()));
        }
    }

    pub(super) fn stats(&self) -> DeviceStats {
        let (interrupts, interrupts_lost) = self.transport.notifier().counts();
        let queues = (0..self.queues)
            .filter_map(|queue| self.transport.queue_stats(queue))
            .map(|stats| QueueCounts {
                kicks: stats.kicks.load(Ordering::Relaxed),
                taken: stats.taken.load(Ordering::Relaxed),
                pushed: stats.pushed.load(Ordering::Relaxed),
                written: stats.written.load(Ordering::Relaxed),
            })
            .collect();
        DeviceStats {
            id: self.id.clone(),
            device_type: self.transport.device().device_type().0,
            wiring: self.wiring,
            ioeventfd: !self.ioeventfds.is_empty(),
            features: self.transport.registers().driver_features,
            running: self.transport.is_running(),
            needs_reset: self.transport.notifier().needs_reset(),
            removing: self.removing,
            malformed: self.transport.malformed(),
            interrupts,
            interrupts_lost,
            waiting: u64::try_from(self.waiting.len()).unwrap_or(u64::MAX),
            places: self.places(),
            statistics: self.statistics(),
            dma: self.counters.snapshot(),
            granted: self.policy.snapshot(),
            queues,
        }
    }

    /// As the device says; nothing if its code fails over it.
    fn places(&self) -> Vec<HostPlace> {
        let device = self.transport.device();
        catch_unwind(AssertUnwindSafe(|| device.places())).unwrap_or_default()
    }

    /// The device's own; nothing if its code fails over them.
    fn statistics(&self) -> Vec<(&'static str, u64)> {
        let device = self.transport.device();
        catch_unwind(AssertUnwindSafe(|| device.statistics())).unwrap_or_default()
    }

    /// Lets go of the device although a queue of it does not stop: a thread of
    /// its own waits for that and drops it then, with what it holds of the
    /// guest's and of the host's, an image and its lock. Without such a thread
    /// that is when the process ends.
    pub(super) fn abandon(mut self) -> DeviceKey {
        let _entered = self.span.clone().entered();
        tracing::error!(queues = ?self.transport.stopping(), "queues did not stop; given up");
        self.ioeventfds.clear();
        // answered by their own drop
        self.waiting.clear();
        let id = self.id.clone();
        let since = Instant::now();
        // handed over when there is somebody who takes it: what a thread that
        // cannot be started was to have is dropped here, which would wait
        let (sender, receiver) = channel::<Slot>();
        let reaper = std::thread::Builder::new().name("stuck-device".into());
        let work = move || {
            let Ok(slot) = receiver.recv() else { return };
            let _entered = slot.span.clone().entered();
            drop(slot);
            let seconds = since.elapsed().as_secs_f32();
            tracing::warn!(
                seconds,
                "the queues that were given up have stopped at last"
            );
        };
        match reaper.spawn(work) {
            Ok(_) => {
                // taken as soon as it runs
                let _ = sender.send(self);
            }
            Err(error) => {
                tracing::error!(%error, "no thread to wait for them; the device stays");
                std::mem::forget(self);
            }
        }
        id
    }
}

/// How far a device's trial is; over if its code fails over it.
fn trial(transport: &Transport) -> Trial {
    let device = transport.device();
    let trial = catch_unwind(AssertUnwindSafe(|| device.trial(Duration::ZERO)));
    trial.unwrap_or(Trial::Passed)
}
