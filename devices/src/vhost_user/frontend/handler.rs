//! Serves one queue, on the worker thread that owns it: moves chains from the
//! guest's ring to the back end's and used entries back, in batches.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use swiotlb::sizing::SLOT_SIZE;
use swiotlb::{Access, Attrs, Direction, InFlight, Job, Mapped, Need, Range};

use super::config::{AfterRestart, CopyBack};
use super::error::Violation;
use super::line::{Flight, Line, Request, Table};
use super::shadow::Part;
use super::shared::{Lane, Mail, Mailbox, Shared};
use crate::virtio::counters::add;
use crate::virtio::poller::Poller;
use crate::virtio::queue::Descriptor;
use crate::virtio::worker::with_causes;
use crate::virtio::{ActiveQueue, Chain, QueueError, QueueHandler};

/// Chains taken at once.
const BATCH: usize = 64;
/// Names of the poller's events.
const NEWS: u64 = 0;
const CALL: u64 = 1;

/// A buffer of the guest is one piece for the back end, too, at the start of a
/// page: many a back end wants the pieces of a request as the driver cut them,
/// and pages are what it passes on to its kernel.
const NEED: Need = Need {
    scatter: false,
    pinned: false,
    limit: None,
    align: 4096,
};

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
    completed: Vec<InFlight<Request>>,
    used: Vec<(u16, u32)>,
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
            shared,
            queue,
            mailbox,
            poller,
            line: None,
            waiting: VecDeque::new(),
            completed: Vec::new(),
            used: Vec::new(),
            taken: 0,
        })
    }

    /// Takes news of the back end.
    fn hear(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        self.mailbox.bell.hear();
        while let Some(news) = self.mailbox.take() {
            match news {
                Mail::Lane(lane) => self.begin(queue, *lane)?,
                Mail::Lost => self.lose(queue)?,
            }
        }
        Ok(())
    }

    fn begin(&mut self, queue: &mut ActiveQueue, mut lane: Lane) -> Result<(), QueueError> {
        let Some(data) = lane.memory.data.take() else {
            return Ok(());
        };
        // never read: the back end has it, too, and could make reading it block
        let added = self.poller.add_arrivals(&lane.call, CALL);
        added.map_err(|error| self.failed(format!("its call cannot be waited for: {error}")))?;
        queue.dma().replace_pool(data);
        self.line = Some(Line::new(lane));
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
        self.finish(queue)?;
        for mut flight in line.flights.into_iter().flatten() {
            flight.data.set_written(0);
            self.completed.push(flight.data);
        }
        let done = queue.dma().finish(&mut self.completed);
        let mut lost: Vec<Request> = done
            .into_iter()
            .filter_map(|done| done.map(Ok::<Request, Request>).unfinished().ok())
            .collect();
        let was_asked = lost.iter().any(|request| !request.readable.is_empty());
        if was_asked && self.shared.spec.after_restart == AfterRestart::Reset {
            let why = "it went away with requests that must not be repeated";
            return Err(self.failed(why.to_owned()));
        }
        add(&self.shared.stats.repeated, lost.len());
        lost.sort_by_key(|request| request.number);
        for request in lost.into_iter().rev() {
            self.waiting.push_front(request);
        }
        Ok(())
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
            self.finish(queue)?;
            collected.map_err(|violation| self.violated(violation))?;
            self.submit(queue, line)?;
            let kick = line.ring.publish();
            if kick.map_err(|violation| self.violated(violation))? {
                add(&self.shared.stats.kicks, 1);
                line.lane.kick.ring();
            }
            let more = line.ring.rest();
            if !more.map_err(|violation| self.violated(violation))? {
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

    fn judge(&mut self, line: &mut Line, head: u16, len: u32) -> Result<(), Violation> {
        let id = u32::from(head);
        let flight = line.flights.get_mut(usize::from(head));
        let flight = flight.and_then(Option::take);
        let Flight {
            mut data,
            room,
            table,
        } = flight.ok_or(Violation::NotInFlight { id })?;
        let whole = self.shared.spec.copy_back == CopyBack::Whole;
        let most = u32::try_from(room).unwrap_or(u32::MAX);
        // who has nothing to write may well count what it has read
        let declared = match room == 0 || whole {
            true => len.min(most),
            false => len,
        };
        if u64::from(declared) > room {
            // kept: nobody else ends it
            if let Some(place) = line.flights.get_mut(usize::from(head)) {
                *place = Some(Flight { data, room, table });
            }
            return Err(Violation::Length { id, len, room });
        }
        let written = match whole {
            true => room,
            false => declared.into(),
        };
        data.set_written(written);
        data.token_mut().declared = declared;
        add(
            &self.shared.stats.bytes_out,
            usize::try_from(written).unwrap_or(usize::MAX),
        );
        self.completed.push(data);
        Ok(())
    }

    /// Copies back what was written and shows the requests to the guest.
    fn finish(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        if self.completed.is_empty() {
            return Ok(());
        }
        let mut broken = Ok(());
        let done = queue.dma().finish(&mut self.completed);
        add(&self.shared.stats.requests, done.len());
        for mut done in done {
            let (head, declared) = (done.token().head.index(), done.token().declared);
            match done.take_fault() {
                None => queue.push(done, declared)?,
                Some(fault) => {
                    // there is no status to tell it by
                    let why = format!("its buffer cannot be written: {}", with_causes(&fault));
                    broken = Err(QueueError::Request { head, why });
                }
            }
        }
        broken
    }

    /// Bounces what waits, as far as there is room, and adds it to the ring.
    fn submit(&mut self, queue: &mut ActiveQueue, line: &mut Line) -> Result<(), QueueError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let (jobs, tables) = self.choose(line)?;
        let full = !self.waiting.is_empty();
        let mut again = VecDeque::new();
        let mut broken = Ok(());
        let mapped = queue.dma().map(jobs, NEED);
        for (mapped, table) in mapped.into_iter().zip(tables) {
            let rejected = match mapped {
                Ok(mapped) => {
                    let added = self.add(line, mapped, table);
                    added.map_err(|violation| self.violated(violation))?;
                    continue;
                }
                Err(rejected) => rejected,
            };
            match rejected.retry() {
                Ok(job) => again.push_back(job.token),
                Err(rejected) => {
                    let (done, fault) = queue.dma().reject(rejected);
                    let head = done.token().head.index();
                    let why = format!("its memory cannot be reached: {}", with_causes(&fault));
                    broken = Err(QueueError::Request { head, why });
                }
            }
        }
        again.append(&mut self.waiting);
        self.waiting = again;
        broken?;
        if let Some(first) = self.waiting.front() {
            if line.ring.in_flight() == 0 {
                // nobody would ever make room for it
                let head = first.head.index();
                let why = "it has no room in an empty pool: raise pool-mib".to_owned();
                return Err(QueueError::Request { head, why });
            }
            if full || !self.waiting.is_empty() {
                add(&self.shared.stats.waited, 1);
            }
        }
        Ok(())
    }

    /// Takes of what waits as many as the ring has room for, with memory for
    /// their tables.
    fn choose(&mut self, line: &Line) -> Result<(Vec<Job<Request>>, Vec<Table>), QueueError> {
        let (mut jobs, mut tables) = (Vec::new(), Vec::new());
        let mut room = line.ring.room();
        while let Some(request) = self.waiting.front() {
            let ranges = request.ranges();
            let parts = ranges.len();
            let head = request.head.index();
            let refused = |why| Err(QueueError::Request { head, why });
            let Some(cost) = line.ring.cost(parts) else {
                return refused(format!(
                    "it has {parts} buffers, which neither a ring of {} nor the back end takes",
                    line.lane.memory.layout.size
                ));
            };
            let slots: u64 = ranges
                .iter()
                .map(|(range, _)| u64::from(range.len()).next_multiple_of(SLOT_SIZE))
                .sum();
            if slots > line.lane.memory.slots.len() {
                return refused(format!(
                    "its {slots} bytes are more than its pool has: raise pool-mib"
                ));
            }
            if cost > room {
                break;
            }
            let table = match line.ring.needs_table(parts) {
                false => None,
                true => {
                    let bytes = (parts * size_of::<Descriptor>()) as u64;
                    let attrs = Attrs {
                        align: 16,
                        no_warn: true,
                        ..Attrs::default()
                    };
                    let lease =
                        line.lane
                            .memory
                            .tables
                            .lease(0, bytes, Direction::ToDevice, &attrs);
                    let Ok(lease) = lease else { break };
                    Some(lease)
                }
            };
            let Some(mut token) = self.waiting.pop_front() else {
                break;
            };
            let is_read = |(_, access): &&(Range, Access)| *access == Access::Read;
            token.read = ranges.iter().take_while(is_read).count();
            room -= cost;
            tables.push(table);
            jobs.push(Job { token, ranges });
        }
        Ok((jobs, tables))
    }

    fn add(&self, line: &mut Line, mapped: Mapped<Request>, table: Table) -> Result<(), Violation> {
        let parts = line.parts(&mapped);
        let stats = &self.shared.stats;
        let bytes = |part: &Part| usize::try_from(part.len).unwrap_or(usize::MAX);
        let read = parts.iter().filter(|part| !part.writable).map(bytes);
        add(&stats.bytes_in, read.sum());
        if line.ring.is_indirect(parts.len()) {
            add(&stats.indirect, 1);
        }
        let head = line.ring.add(
            &parts,
            table
                .as_ref()
                .and_then(|lease| Some((lease.bytes()?, lease.dma_address()))),
        )?;
        let room = mapped.token().room();
        let place = line.flights.get_mut(usize::from(head));
        *place.ok_or(Violation::Memory)? = Some(Flight {
            data: mapped.submit(),
            room,
            table,
        });
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
            self.waiting.push_back(Request {
                head: chain.head,
                readable: chain.readable,
                writable: chain.writable,
                number: self.taken,
                read: 0,
                declared: 0,
            });
            self.taken += 1;
        }
        self.turn(queue)
    }

    fn room(&self) -> usize {
        match self.line.is_some() && self.waiting.is_empty() {
            true => BATCH,
            // the back end's calls make room, or its coming does
            false => 0,
        }
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
        self.completed.clear();
        self.waiting.clear();
    }
}

impl Drop for VhostUserHandler {
    fn drop(&mut self) {
        // of a queue that never had a worker
        self.shared.unwant(self.queue, self.wish);
    }
}
