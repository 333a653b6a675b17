//! Moves and syncs carried out by a few threads: what stands in the ring's place
//! where the host has none.
//!
//! A request that is given to a thread belongs to it, memory and all, until it
//! comes back with its completion.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use rustix::event::{EventfdFlags, eventfd};
use swiotlb::InFlight;

use super::moves::{Completion, DIRECT, Move};
use crate::blk::image::Image;
use crate::blk::op::Op;
use crate::blk::sys::{self, Wait};

/// Threads of one queue.
const THREADS: usize = 4;

enum Work {
    Move(InFlight<Op>, Move),
    Sync,
}

/// See the module. Belongs to the worker of one queue.
pub(super) struct Threads {
    /// Taken away for the threads to end.
    work: Option<Sender<Work>>,
    done: Receiver<Completion>,
    /// Came while they were waited for.
    early: Vec<Completion>,
    event: Arc<OwnedFd>,
    in_flight: usize,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    /// # Errors
    /// No event file or no thread.
    pub(super) fn new(image: &Arc<Image>) -> io::Result<Self> {
        let event = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let (work, received) = channel();
        let (sender, done) = channel();
        let received = Arc::new(Mutex::new(received));
        let mut all = Threads {
            work: Some(work),
            done,
            early: Vec::new(),
            event,
            in_flight: 0,
            threads: Vec::new(),
        };
        for _ in 0..THREADS {
            let one = One {
                image: Arc::clone(image),
                work: Arc::clone(&received),
                done: sender.clone(),
                event: Arc::clone(&all.event),
            };
            let thread = Builder::new().name("blk-io".into()).spawn(|| one.run())?;
            all.threads.push(thread);
        }
        Ok(all)
    }

    pub(super) fn start(&mut self, flight: InFlight<Op>, asked: Move) {
        self.give(Work::Move(flight, asked));
    }

    pub(super) fn sync(&mut self) {
        self.give(Work::Sync);
    }

    fn give(&mut self, work: Work) {
        // the other end is there for as long as a thread is
        if let Some(sender) = &self.work
            && sender.send(work).is_ok()
        {
            self.in_flight += 1;
        }
    }

    pub(super) fn wait(&mut self) {
        match self.done.recv() {
            Ok(completion) => self.early.push(completion),
            // nobody is left who could have anything
            Err(_) => self.in_flight = 0,
        }
    }

    pub(super) fn reap(&mut self, completions: &mut Vec<Completion>) {
        // before they are taken: what comes after this rings again. Always: a
        // thread may ring when what it has done was taken already. Nothing there
        // is no error
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        let before = completions.len();
        completions.append(&mut self.early);
        completions.extend(self.done.try_iter());
        let count = completions.len().saturating_sub(before);
        self.in_flight = self.in_flight.saturating_sub(count);
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Drop for Threads {
    /// Waits for everything that they have: it writes to memory that is given
    /// back.
    fn drop(&mut self) {
        self.work = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of a disk's died");
            }
        }
    }
}

/// One of the threads.
struct One {
    image: Arc<Image>,
    work: Arc<Mutex<Receiver<Work>>>,
    done: Sender<Completion>,
    event: Arc<OwnedFd>,
}

impl One {
    fn run(self) {
        loop {
            let work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
            let received = work.recv();
            drop(work);
            let completion = match received {
                Ok(Work::Move(flight, asked)) => self.carry_out(flight, asked),
                Ok(Work::Sync) => Completion::Synced(self.image.file().sync_data()),
                Err(_) => return,
            };
            // both fail only when nobody waits any more
            let _ = self.done.send(completion);
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    fn carry_out(&self, flight: InFlight<Op>, asked: Move) -> Completion {
        let direct = self.image.direct_file().filter(|_| asked.file == DIRECT);
        let result = sys::transfer(
            direct.unwrap_or(self.image.file()),
            asked.direction,
            &flight,
            asked.skip,
            asked.offset,
            Wait::Yes,
        );
        Completion::Moved(flight, asked, result)
    }
}
