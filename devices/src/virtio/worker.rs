//! The worker: one thread that owns one queue.
//!
//! It looks at the ring for a little while, then sleeps until the doorbell
//! rings, the handler has something to complete, or it is told to stop. Stopping
//! is asked for and answered by a message, so that the thread which answers
//! register accesses never waits.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::device::QueueHandler;
use super::interrupt::Notifier;
use super::queue::{ActiveQueue, QueueError, QueuePosition};
use super::watch::Watch;

/// A queue that its worker has given back.
#[derive(Debug)]
pub struct Returned {
    /// Which queue.
    pub index: u16,
    /// How far it got; `None` if the worker died over it.
    pub position: Option<QueuePosition>,
}

/// Where workers give queues back: a channel, and an event for the loop that
/// waits on it.
#[derive(Debug)]
pub struct ReturnPath {
    /// Receives the queues.
    pub sender: Sender<Returned>,
    /// Rings when there is one.
    pub event: EventFd,
}

/// A running worker, as its transport sees it.
#[derive(Debug)]
pub struct Worker {
    stop: Arc<AtomicBool>,
    /// The thread's: with one of its own, there could be a thread and none to
    /// stop it by.
    doorbell: Arc<EventFd>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread called `name` that serves `queue` with `handler`
    /// whenever `doorbell` rings, and once at the start: a driver may have
    /// made buffers available before. `doorbell` does not block when read.
    ///
    /// # Errors
    /// No thread or no event file; the queue is then given back already, and
    /// nothing comes of it by `returns`: whoever waits there waits for workers
    /// that were started.
    pub fn start(
        name: String,
        queue: ActiveQueue,
        handler: Box<dyn QueueHandler>,
        doorbell: &EventFd,
        notifier: Arc<Notifier>,
        returns: ReturnPath,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let doorbell = Arc::new(doorbell.try_clone()?);
        let body = Body {
            events: Events::new(doorbell.as_raw_fd(), handler.event())?,
            stop: Arc::clone(&stop),
            doorbell: Arc::clone(&doorbell),
            notifier,
        };
        let thread = thread::Builder::new()
            .name(name)
            .spawn(body.on_its_thread(queue, handler, returns))?;
        Ok(Worker {
            stop,
            doorbell,
            thread: Some(thread),
        })
    }

    /// Asks the worker to give its queue back.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Err(error) = self.doorbell.write(1) {
            tracing::error!(%error, "worker could not be woken");
        }
    }

    /// Waits for the thread, which has given its queue back already.
    pub fn join(mut self) {
        self.wait();
    }

    fn wait(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a queue's worker died");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
        self.wait();
    }
}

/// Gives the queue back even if whoever serves it dies over it: a vCPU may be
/// waiting.
pub(crate) struct ReturnGuard {
    pub index: u16,
    pub position: Option<QueuePosition>,
    pub returns: ReturnPath,
}

impl Drop for ReturnGuard {
    fn drop(&mut self) {
        let returned = Returned {
            index: self.index,
            position: self.position,
        };
        // nobody listens once the transport is gone
        if self.returns.sender.send(returned).is_ok()
            && let Err(error) = self.returns.event.write(1)
        {
            tracing::error!(%error, "a queue was given back and nobody could be told");
        }
    }
}

const DOORBELL: u64 = 0;
const HANDLER: u64 = 1;

/// What a worker waits for.
struct Events {
    epoll: Epoll,
}

impl Events {
    fn new(doorbell: RawFd, handler: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let sources = [
            (Some(doorbell), DOORBELL),
            (handler.map(|fd| fd.as_raw_fd()), HANDLER),
        ];
        for (fd, data) in sources {
            if let Some(fd) = fd {
                let event = EpollEvent::new(EventSet::IN, data);
                epoll.ctl(ControlOperation::Add, fd, event)?;
            }
        }
        Ok(Events { epoll })
    }

    /// Waits for the doorbell alone from here on.
    fn forget(&self, handler: Option<BorrowedFd<'_>>) {
        let Some(fd) = handler else { return };
        let event = EpollEvent::default();
        if let Err(error) = self
            .epoll
            .ctl(ControlOperation::Delete, fd.as_raw_fd(), event)
        {
            tracing::error!(%error, "a broken queue's events cannot be switched off");
        }
    }

    /// Waits; true if it is the handler's event.
    fn wait(&self) -> io::Result<bool> {
        let mut events = [EpollEvent::default(); 2];
        let count = loop {
            match self.epoll.wait(-1, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => break other?,
            }
        };
        Ok(events
            .iter()
            .take(count)
            .any(|event| event.data() == HANDLER))
    }
}

struct Body {
    events: Events,
    stop: Arc<AtomicBool>,
    doorbell: Arc<EventFd>,
    notifier: Arc<Notifier>,
}

impl Body {
    /// What the thread does. Without a thread it is dropped, and the queue is
    /// given back to nobody.
    fn on_its_thread(
        self,
        queue: ActiveQueue,
        handler: Box<dyn QueueHandler>,
        returns: ReturnPath,
    ) -> impl FnOnce() + Send + 'static {
        let span = tracing::Span::current();
        move || {
            let _entered = span.enter();
            // declared first, dropped last: the queue is unmapped by then
            let mut guard = ReturnGuard {
                index: queue.index(),
                position: None,
                returns,
            };
            guard.position = Some(self.run(queue, handler));
        }
    }

    fn run(self, mut queue: ActiveQueue, mut handler: Box<dyn QueueHandler>) -> QueuePosition {
        let mut broken = false;
        let mut advance = false;
        let mut watch = Watch::default();
        while !self.stop.load(Ordering::SeqCst) {
            if !broken
                && let Err(error) = self.serve(&mut queue, &mut *handler, &mut watch, advance)
            {
                // reported once, however deep the cause
                let cause = with_causes(&error);
                if self.notifier.may_log() {
                    let who = match error {
                        QueueError::BackEnd { .. } => "the back end",
                        _ => "the guest",
                    };
                    tracing::warn!(queue = queue.index(), error = %cause, "{who} broke its queue; the device needs a reset");
                }
                broken = true;
                self.events.forget(handler.event());
                self.notifier.need_reset();
            }
            match self.events.wait() {
                Ok(event) => advance = event,
                Err(error) => {
                    tracing::error!(%error, "worker cannot wait for events");
                    self.notifier.need_reset();
                    break;
                }
            }
            // empty when it is the handler's event; whoever stops rings, too
            let rung = self.doorbell.read().unwrap_or(0);
            let stopped = u64::from(self.stop.load(Ordering::SeqCst));
            queue.count_kicks(rung.saturating_sub(stopped));
        }
        handler.settle(&mut queue);
        drop(handler);
        queue.give_back()
    }

    /// Serves everything that is available.
    fn serve(
        &self,
        queue: &mut ActiveQueue,
        handler: &mut dyn QueueHandler,
        watch: &mut Watch,
        advance: bool,
    ) -> Result<(), QueueError> {
        if advance {
            handler.advance(queue)?;
            queue.notify()?;
        }
        loop {
            queue.kicks_off()?;
            let is_full = self.drain(queue, handler)?;
            let stopped = || self.stop.load(Ordering::SeqCst);
            let comes = || stopped() || queue.is_available() || handler.has_come();
            let looked = !is_full && handler.is_idle() && watch.look(comes);
            if stopped() {
                return Ok(());
            }
            let has_come = match looked {
                true => handler.has_come(),
                false => handler.rest()?,
            };
            if has_come {
                handler.serve(queue, Vec::new())?;
                queue.notify()?;
            }
            // with no room its event brings the worker back here
            if !(looked || has_come || !is_full && queue.kicks_on()?) {
                return Ok(());
            }
        }
    }

    /// Serves what is available, until nothing is; true if the handler has no
    /// room for more.
    fn drain(
        &self,
        queue: &mut ActiveQueue,
        handler: &mut dyn QueueHandler,
    ) -> Result<bool, QueueError> {
        while !self.stop.load(Ordering::SeqCst) {
            let room = handler.room();
            if room == 0 {
                return Ok(true);
            }
            let chains = queue.take(room)?;
            if chains.is_empty() {
                break;
            }
            handler.serve(queue, chains)?;
            queue.notify()?;
        }
        Ok(false)
    }
}

/// An error with all its causes, in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::testing::{Buffer, DriverRing, GuestRam};
    use crate::virtio::Chain;
    use crate::virtio::features::VERSION_1;

    /// Keeps what it is given until something of its own has come, which nobody
    /// tells it.
    #[derive(Default)]
    struct Silent {
        kept: Vec<Chain>,
        looks: bool,
    }

    impl QueueHandler for Silent {
        fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
            if chains.is_empty() {
                let heads = self.kept.drain(..).map(|chain| (chain.head, 7));
                return queue.push_together(heads.collect());
            }
            self.kept.extend(chains);
            Ok(())
        }

        fn is_idle(&self) -> bool {
            self.looks
        }

        fn has_come(&self) -> bool {
            self.looks && !self.kept.is_empty()
        }

        fn rest(&mut self) -> Result<bool, QueueError> {
            Ok(!self.looks && !self.kept.is_empty())
        }
    }

    /// What is used of one chain that `handler` has.
    fn used(handler: Silent) -> Vec<(u16, u32)> {
        let ram = GuestRam::new(16);
        let mut ring = DriverRing::new(&ram, 4);
        ring.add(&[Buffer::writable(ram.alloc(16), 16)]);
        let (queue, line) = ring.activate(VERSION_1);
        let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
        let returns = ReturnPath {
            sender: channel().0,
            event: EventFd::new(EFD_NONBLOCK).unwrap(),
        };
        let notifier = Arc::new(Notifier::new(line));
        let handler = Box::new(handler);

        let worker = Worker::start("test".into(), queue, handler, &doorbell, notifier, returns);
        let end = Instant::now() + Duration::from_secs(60);
        while ring.used_index() == 0 && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        drop(worker.unwrap());

        ring.used()
    }

    #[test]
    fn what_has_come_to_a_handler_is_not_slept_over() {
        assert_eq!(used(Silent::default()), [(0, 7)]);
    }

    /// What comes of a queue whose worker's thread does `what` with its work.
    fn returned_by(what: impl FnOnce(Box<dyn FnOnce() + Send>)) -> Vec<Option<QueuePosition>> {
        let ram = GuestRam::new(16);
        let (queue, line) = DriverRing::new(&ram, 4).activate(VERSION_1);
        let doorbell = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let (sender, receiver) = channel();
        let body = Body {
            events: Events::new(doorbell.as_raw_fd(), None).unwrap(),
            stop: Arc::new(AtomicBool::new(true)),
            doorbell,
            notifier: Arc::new(Notifier::new(line)),
        };
        let returns = ReturnPath {
            sender,
            event: EventFd::new(EFD_NONBLOCK).unwrap(),
        };

        what(Box::new(body.on_its_thread(
            queue,
            Box::<Silent>::default(),
            returns,
        )));

        receiver.iter().map(|returned| returned.position).collect()
    }

    #[test]
    fn a_queue_comes_back_of_a_worker_that_ran_and_of_no_other() {
        let ran = returned_by(|work| work());
        let had_no_thread = returned_by(drop);

        assert_eq!(ran, [Some(QueuePosition::default())]);
        assert_eq!(had_no_thread, []);
    }

    #[test]
    fn what_comes_to_a_handler_is_found_by_looking() {
        let handler = Silent {
            looks: true,
            ..Silent::default()
        };

        assert_eq!(used(handler), [(0, 7)]);
    }
}
