//! Serves one queue, on the worker thread that owns it: moves chains from the
//! guest's ring to the back end's and used entries back, in batches.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::config::{AfterRestart, CopyBack};
use super::error::Violation;
use super::line::{Line, NoPlace, Request};
use super::semantics::WordOfLoss;
use super::shared::{Lane, Mail, Mailbox, Shared};
use crate::virtio::counters::add;
use crate::virtio::poller::Poller;
use crate::virtio::worker::with_causes;
use crate::virtio::{ActiveQueue, Chain, QueueError, QueueHandler};

/// Chains taken at once.
const BATCH: usize = 64;
/// Names of the poller's events.
const NEWS: u64 = 0;
const CALL: u64 = 1;

/// A request that the back end says it has done.
#[derive(Clone, Copy)]
struct Judged {
    /// Its shadow head.
    head: u16,
    /// Bytes that the guest is told.
    declared: u32,
    /// Bytes that are copied back.
    written: u64,
}

/// See the module.
pub(super) struct VhostUserHandler {
    shared: Arc<Shared>,
    queue: u16,
    wish: u64,
    mailbox: Arc<Mailbox>,
    poller: Poller,
    line: Option<Line>,
    /// Who wait for room, or for a back end, in their order.
    waiting: VecDeque<Request>,
    loss: WordOfLoss,
    // of the batch at hand; kept for their memory
    added: Vec<u16>,
    used: Vec<(u16, u32)>,
    judged: Vec<Judged>,
    /// Chains taken so far.
    taken: u64,
}

impl VhostUserHandler {
    /// A handler of queue `queue`, whose guest uses `features`; wants the back
    /// end to serve it.
    ///
    /// # Errors
    /// No descriptors.
    pub(super) fn new(shared: Arc<Shared>, queue: u16, features: u64) -> io::Result<Self> {
        let mailbox = Arc::new(Mailbox::new()?);
        let poller = Poller::new()?;
        poller.add(&mailbox.bell, NEWS)?;
        Ok(VhostUserHandler {
            wish: shared.want(queue, features, Arc::clone(&mailbox)),
            loss: WordOfLoss::new(shared.spec.device_type, queue),
            shared,
            queue,
            mailbox,
            poller,
            line: None,
            waiting: VecDeque::new(),
            added: Vec::new(),
            used: Vec::new(),
            judged: Vec::new(),
            taken: 0,
        })
    }

    /// Takes news of the back end.
    fn hear(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        self.mailbox.bell.hear();
        while let Some(news) = self.mailbox.take() {
            match news {
                Mail::Lane(lane) => self.begin(*lane)?,
                Mail::Lost => {
                    self.shared.note_losing(self.queue, self.wish, false);
                    self.lose(queue)?;
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, lane: Lane) -> Result<(), QueueError> {
        let Some(line) = Line::new(lane) else {
            return Ok(());
        };
        // never read: the back end has it, too, and could make reading it block
        let added = self.poller.add_arrivals(&line.lane.call, CALL);
        added.map_err(|error| self.failed(format!("its call cannot be waited for: {error}")))?;
        self.line = Some(line);
        Ok(())
    }

    /// The back end has gone: takes what it has done still, and keeps the rest
    /// for the next one.
    fn lose(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        let Some(mut line) = self.line.take() else {
            return Ok(());
        };
        self.poller.remove(&line.lane.call);
        // nobody is left to be blamed for what is wrong there
        if let Err(violation) = self.collect(&mut line) {
            tracing::debug!(%violation, "the last used entries are not taken");
        }
        self.finish(queue, &mut line)?;
        let mut lost: VecDeque<Request> = line.left().collect();
        if lost.iter().any(Request::asks) && self.shared.spec.after_restart == AfterRestart::Reset {
            let why = "it went away with requests that must not be repeated";
            return Err(self.failed(why.to_owned()));
        }
        lost.make_contiguous().sort_by_key(|request| request.number);
        self.loss.lost();
        self.loss.tell(&mut lost, queue, &self.shared.stats)?;
        add(&self.shared.stats.repeated, lost.len());
        lost.append(&mut self.waiting);
        self.waiting = lost;
        self.tell_loss(queue)
    }

    /// Tells the driver what is owed to it of a lost back end, if it has given a
    /// buffer for that.
    fn tell_loss(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        let stats = &self.shared.stats;
        self.loss.tell(&mut self.waiting, queue, stats)
    }

    /// Moves what can be moved, both ways.
    fn turn(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        let Some(mut line) = self.line.take() else {
            return Ok(());
        };
        let turned = self.turn_line(queue, &mut line);
        self.line = Some(line);
        turned
    }

    fn turn_line(&mut self, queue: &mut ActiveQueue, line: &mut Line) -> Result<(), QueueError> {
        loop {
            let collected = self.collect(line);
            // what came before a broken rule has been done
            self.finish(queue, line)?;
            collected.map_err(|violation| self.violated(violation))?;
            self.submit(queue, line)?;
            let kick = line.ring.publish();
            if kick.map_err(|violation| self.violated(violation))? {
                add(&self.shared.stats.kicks, 1);
                line.lane.kick.ring();
            }
            if !line.ring.has_used() {
                return Ok(());
            }
        }
    }

    /// Takes used entries, and judges each.
    fn collect(&mut self, line: &mut Line) -> Result<(), Violation> {
        let mut used = std::mem::take(&mut self.used);
        let taken = line.ring.take_used(&mut used);
        let judged = used
            .drain(..)
            .try_for_each(|(head, len)| self.judge(line, head, len));
        self.used = used;
        judged.and(taken)
    }

    fn judge(&mut self, line: &Line, head: u16, len: u32) -> Result<(), Violation> {
        let id = u32::from(head);
        let request = line.request(head).ok_or(Violation::NotInFlight { id })?;
        let room = request.room;
        let whole = self.shared.spec.copy_back == CopyBack::Whole;
        // who has nothing to write may well count what it has read
        let declared = match room == 0 || whole {
            true => len.min(u32::try_from(room).unwrap_or(u32::MAX)),
            false => len,
        };
        if u64::from(declared) > room {
            return Err(Violation::Length { id, len, room });
        }
        self.judged.push(Judged {
            head,
            declared,
            written: match whole {
                true => room,
                false => declared.into(),
            },
        });
        Ok(())
    }

    /// Copies back what was written and shows the requests to the guest.
    fn finish(&mut self, queue: &mut ActiveQueue, line: &mut Line) -> Result<(), QueueError> {
        if self.judged.is_empty() {
            return Ok(());
        }
        let written = |done: &Judged| line.copies_back(done.head, done.written);
        let copies = self.judged.iter().flat_map(written);
        let faults = queue.dma().carry(copies);
        let (mut done, mut bytes) = (Vec::with_capacity(self.judged.len()), 0);
        let mut broken = Ok(());
        for judged in self.judged.drain(..) {
            let Some(request) = line.end(judged.head) else {
                continue;
            };
            bytes += judged.written;
            let owner = usize::from(judged.head);
            match faults.iter().find(|(faulty, _)| *faulty == owner) {
                None => done.push((request.head, judged.declared)),
                Some((_, fault)) => {
                    // there is no status to tell it by
                    let why = format!("its buffer cannot be written: {}", with_causes(fault));
                    let head = request.head.index();
                    broken = Err(QueueError::Request { head, why });
                }
            }
        }
        add(&self.shared.stats.requests, done.len());
        add(&self.shared.stats.bytes_out, size(bytes));
        queue.push_together(done)?;
        broken
    }

    /// Bounces what waits, as far as there is room, and adds it to the ring.
    fn submit(&mut self, queue: &mut ActiveQueue, line: &mut Line) -> Result<(), QueueError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.add_waiting(line)?;
        let copies = self.added.iter().flat_map(|&head| line.copies_in(head));
        let faults = queue.dma().carry(copies);
        if let Some((owner, fault)) = faults.first() {
            let shadow = u16::try_from(*owner).ok();
            let request = shadow.and_then(|shadow| line.request(shadow));
            return Err(QueueError::Request {
                head: request.map_or(0, |request| request.head.index()),
                why: format!("its memory cannot be reached: {}", with_causes(fault)),
            });
        }
        if let Some(first) = self.waiting.front() {
            if line.ring.in_flight() == 0 {
                // nobody would ever make room for it
                let head = first.head.index();
                let why = "it has no room in an empty pool: raise pool-mib".to_owned();
                return Err(QueueError::Request { head, why });
            }
            add(&self.shared.stats.waited, 1);
        }
        Ok(())
    }

    /// Adds of what waits as many as there is room for. What they have for the
    /// back end to read is not copied yet.
    fn add_waiting(&mut self, line: &mut Line) -> Result<(), QueueError> {
        self.added.clear();
        let (mut asked, mut indirect) = (0, 0);
        while let Some(mut request) = self.waiting.pop_front() {
            let berths = match line.place(&mut request) {
                Ok(berths) => berths,
                Err(NoPlace::Now) => {
                    self.waiting.push_front(request);
                    break;
                }
                Err(NoPlace::Ever(why)) => {
                    let head = request.head.index();
                    return Err(QueueError::Request { head, why });
                }
            };
            asked += request.asked;
            indirect += usize::from(line.ring.is_indirect(request.pieces.len()));
            let added = line.add(request, berths);
            self.added
                .push(added.map_err(|violation| self.violated(violation))?);
        }
        add(&self.shared.stats.bytes_in, size(asked));
        add(&self.shared.stats.indirect, indirect);
        Ok(())
    }

    fn violated(&self, violation: Violation) -> QueueError {
        self.shared.violated(self.queue, violation);
        self.failed(violation.to_string())
    }

    fn failed(&self, why: String) -> QueueError {
        QueueError::BackEnd {
            socket: self.shared.spec.socket().to_owned(),
            why,
        }
    }
}

impl QueueHandler for VhostUserHandler {
    fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
        for chain in chains {
            let request = Request::new(chain, self.taken, self.shared.spec.pool)?;
            self.waiting.push_back(request);
            self.taken += 1;
        }
        self.tell_loss(queue)?;
        self.turn(queue)
    }

    fn room(&self) -> usize {
        match (self.waiting.is_empty(), self.line.is_some()) {
            (true, true) => BATCH,
            // for what the driver is to be told without one
            (true, false) if self.loss.is_owed() => 1,
            // the back end's calls make room, or its coming does
            _ => 0,
        }
    }

    fn is_idle(&self) -> bool {
        self.line.is_some()
    }

    fn has_come(&self) -> bool {
        let line = self.line.as_ref();
        line.is_some_and(|line| line.ring.has_used())
    }

    fn rest(&mut self) -> Result<bool, QueueError> {
        let rested = self.line.as_mut().map(|line| line.ring.rest());
        let more = rested.transpose();
        Ok(more.map_err(|violation| self.violated(violation))? == Some(true))
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.poller.as_fd())
    }

    fn advance(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        for event in self.poller.take() {
            match event {
                NEWS => self.hear(queue)?,
                _ => add(&self.shared.stats.calls, 1),
            }
        }
        self.turn(queue)
    }

    fn settle(&mut self, _queue: &mut ActiveQueue) {
        // what the back end still writes goes to memory that is read no more;
        // its requests hold nothing of the guest's once they are dropped
        self.shared.unwant(self.queue, self.wish);
        self.line = None;
        self.waiting.clear();
    }
}

impl Drop for VhostUserHandler {
    fn drop(&mut self) {
        // of a queue that never had a worker
        self.shared.unwant(self.queue, self.wish);
    }
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
