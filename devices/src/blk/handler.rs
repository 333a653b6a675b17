//! Serves one queue of a disk, on the worker thread that owns the queue.
//!
//! Headers, extents and IDs, data and status bytes are each reached for the
//! whole batch at once; with grants each of these is one system call.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use swiotlb::{Done, Fault, InFlight, Job, Need, Rejected, Transfer};
use zerocopy::IntoBytes;

use super::engine::Engine;
use super::limit::Brake;
use super::medium::Medium;
use super::op::Op;
use super::request::{BadRequest, Frame, Header, ID_BYTES, Limits, Parsed, Request, total};
use super::stats::{Batch, BlkStats};
use crate::virtio::worker::with_causes;
use crate::virtio::{ActiveQueue, Chain, QueueError, QueueHandler};

/// Bytes that a queue has under way at once, give or take a request, and that
/// it carries out before its worker looks whether it is to stop. A reset waits
/// for no more than these, however much was asked for.
const AT_ONCE: u64 = 64 << 20;

/// See the module.
pub(super) struct BlkHandler {
    pub medium: Medium,
    pub limits: Limits,
    pub serial: [u8; ID_BYTES],
    pub engine: Engine,
    /// Where the disk is limited.
    pub brake: Option<Brake>,
    pub stats: Arc<BlkStats>,
    /// Completed by the engine and not given back yet: those that share their
    /// grants with requests in flight.
    pub completed: Vec<InFlight<Op>>,
    /// Who wait for room in the bounce pool, or for the disk's limits, in their
    /// order.
    pub waiting: VecDeque<Job<Op>>,
    /// Bytes that were given to the engine and are not given back yet.
    pub under_way: u64,
    /// There is more to be done, and nothing that would tell.
    pub goes_on: bool,
}

impl QueueHandler for BlkHandler {
    fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
        let taken = Instant::now();
        // a batch sees one size
        self.limits.sectors = self.medium.sectors();
        self.engine.prepare(queue.dma());
        let frames = chains
            .into_iter()
            .map(Frame::of)
            .collect::<Result<Vec<_>, _>>()?;
        let parsed = self.parse_headers(queue, &frames);
        let requests = self.small_data(queue, &frames, parsed);
        let most = queue.dma().most(self.engine.need());
        let jobs = frames
            .into_iter()
            .zip(requests)
            .map(|(frame, request)| Op::job(frame, request, taken, most));
        self.waiting.extend(jobs);
        self.go_on(queue)
    }

    fn room(&self) -> usize {
        match self.waiting.is_empty() {
            true => self.engine.room(),
            // requests in flight make room for those that wait, or time does, or
            // the worker's next turn
            false => 0,
        }
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        match &self.brake {
            Some(brake) => Some(brake.event()),
            None => self.engine.event(),
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.completed.is_empty() && self.engine.in_flight() == 0
    }

    fn rest(&mut self) -> Result<bool, QueueError> {
        Ok(self.goes_on)
    }

    fn advance(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        if let Some(brake) = &self.brake {
            brake.rung();
        }
        self.finish(queue, Vec::new())?;
        self.go_on(queue)
    }

    fn settle(&mut self, queue: &mut ActiveQueue) {
        self.engine.settle();
        if let Err(error) = self.finish(queue, Vec::new())
            && let Some(withheld) = self.stats.reset_log.due()
        {
            let error = with_causes(&error);
            tracing::warn!(
                queue = queue.index(),
                error,
                withheld,
                "the last requests are lost"
            );
        }
        // nothing of theirs is held
        self.waiting.clear();
    }
}

impl BlkHandler {
    /// Fetches all headers, each once, and judges them.
    fn parse_headers(
        &self,
        queue: &mut ActiveQueue,
        frames: &[Frame],
    ) -> Vec<Result<Parsed, BadRequest>> {
        let mut headers = vec![Header::default(); frames.len()];
        let mut fetches: Vec<_> = frames
            .iter()
            .zip(&mut headers)
            .map(|(frame, header)| {
                Transfer::from_guest(frame.header.iter().copied(), header.as_mut_bytes())
            })
            .collect();
        queue.dma().transfer(&mut fetches);
        let results: Vec<_> = fetches.into_iter().map(|fetch| fetch.result).collect();
        frames
            .iter()
            .zip(&headers)
            .zip(results)
            .map(|((frame, header), result)| {
                result.map_err(|fault| unreachable(&self.stats, fault))?;
                self.limits.parse(header, frame)
            })
            .collect()
    }

    /// Fetches the extents of discards and write-zeroes, and writes IDs.
    fn small_data(
        &self,
        queue: &mut ActiveQueue,
        frames: &[Frame],
        parsed: Vec<Result<Parsed, BadRequest>>,
    ) -> Vec<Result<Request, BadRequest>> {
        // few requests have any
        let mut small: Vec<(usize, bool, Vec<u8>)> = frames
            .iter()
            .zip(&parsed)
            .enumerate()
            .filter_map(|(index, (frame, parsed))| match parsed {
                // at most a few hundred bytes: checked by the parser
                Ok(Parsed::Discard | Parsed::WriteZeroes) => {
                    let len = usize::try_from(total(&frame.data_out)).unwrap_or(0);
                    Some((index, false, vec![0; len]))
                }
                Ok(Parsed::Ready(Request::GetId)) => Some((index, true, Vec::new())),
                _ => None,
            })
            .collect();
        let mut transfers: Vec<_> = small
            .iter_mut()
            .filter_map(|(index, is_id, array)| {
                let frame = frames.get(*index)?;
                Some(match is_id {
                    true => Transfer::to_guest(frame.data_in.iter().copied(), &self.serial),
                    false => Transfer::from_guest(frame.data_out.iter().copied(), array),
                })
            })
            .collect();
        if !transfers.is_empty() {
            queue.dma().transfer(&mut transfers);
        }
        let faults: Vec<_> = transfers.into_iter().map(|t| t.result.err()).collect();
        let mut fetched = small.into_iter().zip(faults).peekable();
        parsed
            .into_iter()
            .enumerate()
            .map(|(index, parsed)| {
                let array = match fetched.next_if(|((owner, ..), _)| *owner == index) {
                    Some((_, Some(fault))) => return Err(unreachable(&self.stats, fault)),
                    Some(((.., array), None)) => array,
                    None => Vec::new(),
                };
                match parsed? {
                    Parsed::Ready(request) => Ok(request),
                    Parsed::Discard => self.limits.parse_discard(&array),
                    Parsed::WriteZeroes => self.limits.parse_write_zeroes(&array),
                }
            })
            .collect()
    }

    /// Gives the engine what waits, as far as the disk's limits and the room for
    /// its data go, and finishes what is complete: again and again, until all of
    /// the rest is in flight, or waits for what is or for the limits, or so much
    /// was done that the worker has to look up.
    fn go_on(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        let mut carried_out = 0;
        self.goes_on = false;
        while !self.waiting.is_empty() && self.engine.room() > 0 {
            if carried_out >= AT_ONCE {
                self.goes_on = true;
                break;
            }
            let before = self.waiting.len();
            let count = self.admitted();
            if count == 0 {
                // the timer is set, or the engine has enough
                break;
            }
            let refused = self.submit(queue, count);
            // where there is another round, nothing of this one stays under way
            carried_out += self.under_way;
            let finished = self.finish(queue, refused)?;
            if self.engine.in_flight() > 0 {
                break;
            }
            if finished == 0 && self.waiting.len() == before {
                // nobody would ever wake this queue
                self.give_up(queue)?;
            }
        }
        Ok(())
    }

    /// How many of those that wait may go now.
    fn admitted(&mut self) -> usize {
        let mut bytes = self.under_way;
        let count = self
            .waiting
            .iter()
            .take(self.engine.room())
            .take_while(|job| {
                let fits = bytes < AT_ONCE;
                bytes = bytes.saturating_add(job.token.bytes());
                fits
            })
            .count();
        let Some(brake) = self.brake.as_ref().filter(|_| count > 0) else {
            return count;
        };
        let ops = self
            .waiting
            .iter_mut()
            .take(count)
            .map(|job| &mut job.token);
        let admitted = brake.admit(ops);
        if admitted == 0 {
            self.stats.count_limited();
        }
        admitted
    }

    /// Maps the data of the first `count` that wait and gives it to the engine;
    /// returns those whose memory could not be reached.
    fn submit(&mut self, queue: &mut ActiveQueue, count: usize) -> Vec<Done<Op>> {
        let jobs = self.waiting.drain(..count);
        let mut batch = Vec::new();
        let mut refused = Vec::new();
        let mut again = VecDeque::new();
        for mapped in queue.dma().map(jobs, self.engine.need()) {
            let rejected = match mapped {
                Ok(mapped) if mapped.token().for_engine().is_some() => {
                    self.under_way += mapped.token().bytes();
                    batch.push(mapped);
                    continue;
                }
                Ok(mapped) => {
                    self.completed.push(mapped.submit());
                    continue;
                }
                Err(rejected) => rejected,
            };
            match rejected.retry() {
                Ok(job) => again.push_back(job),
                Err(rejected) => refused.push(refuse(queue, &self.stats, rejected)),
            }
        }
        again.append(&mut self.waiting);
        self.waiting = again;
        self.engine.submit(batch);
        refused
    }

    /// Answers what waits with an error: there is no room for it in a pool that
    /// nobody uses.
    fn give_up(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        if let Some(withheld) = self.stats.pool_log.due() {
            tracing::error!(
                requests = self.waiting.len(),
                withheld,
                "the bounce pool has no room though nothing is in it"
            );
        }
        let jobs: Vec<_> = self.waiting.drain(..).collect();
        let refused = jobs.into_iter().map(|mut job| {
            job.token
                .refuse(BadRequest::Memory("no room in the bounce pool".into()));
            job.ranges.clear();
            job
        });
        for mapped in queue.dma().map(refused.collect::<Vec<_>>(), Need::COPY) {
            match mapped {
                Ok(mapped) => self.completed.push(mapped.submit()),
                Err(rejected) => {
                    let done = refuse(queue, &self.stats, rejected);
                    self.finish(queue, vec![done])?;
                }
            }
        }
        self.finish(queue, Vec::new()).map(drop)
    }

    /// Gives back what the engine has completed, writes the statuses, and
    /// shows the requests to the guest. Returns how many were given back.
    fn finish(
        &mut self,
        queue: &mut ActiveQueue,
        refused: Vec<Done<Op>>,
    ) -> Result<usize, QueueError> {
        self.completed.append(&mut self.engine.reap());
        let most = queue.dma().most(self.engine.need());
        let mut done = Vec::new();
        let given_back = queue.dma().finish(&mut self.completed);
        let count = given_back.len() + refused.len();
        for mut finished in given_back {
            self.under_way = self.under_way.saturating_sub(finished.token().bytes());
            let fault = finished.take_fault();
            let finished = finished.map(|mut op| {
                if let Some(fault) = fault {
                    op.refuse(unreachable(&self.stats, fault));
                }
                op.next(most)
            });
            match finished.unfinished() {
                Ok(job) => self.waiting.push_front(job),
                Err(whole) => done.push(whole),
            }
        }
        done.extend(refused);
        let statuses: Vec<[u8; 1]> = done
            .iter()
            .map(|done| [done.token().outcome().status.byte()])
            .collect();
        let mut transfers: Vec<_> = done
            .iter()
            .zip(&statuses)
            .map(|(done, status)| Transfer::to_guest([done.token().status_at()], status))
            .collect();
        queue.dma().transfer(&mut transfers);
        let results: Vec<_> = transfers.into_iter().map(|t| t.result).collect();
        let (now, mut batch) = (Instant::now(), Batch::default());
        for done in &done {
            self.stats.count(&mut batch, done.token(), now);
            log_refusal(done.token());
        }
        // before the guest hears of them
        self.stats.add(&batch);
        let mut broken = Ok(count);
        for (done, result) in done.into_iter().zip(results) {
            let (head, used_len) = (done.token().head(), done.token().used_len());
            match result {
                Ok(()) => queue.push(done, used_len)?,
                Err(fault) => {
                    let why = format!("its status cannot be written: {}", with_causes(&fault));
                    broken = Err(QueueError::Request { head, why });
                }
            }
        }
        broken
    }
}

fn refuse(queue: &mut ActiveQueue, stats: &BlkStats, rejected: Rejected<Op>) -> Done<Op> {
    let (done, fault) = queue.dma().reject(rejected);
    done.map(|mut op| {
        op.refuse(unreachable(stats, fault));
        op
    })
}

fn unreachable(stats: &BlkStats, fault: Fault) -> BadRequest {
    if fault.is_host()
        && let Some(withheld) = stats.memory_log.due()
    {
        tracing::warn!(
            error = with_causes(&fault),
            withheld,
            "guest memory cannot be reached"
        );
    }
    BadRequest::Memory(with_causes(&fault))
}

/// A guest can send such requests as fast as it likes: for debugging alone.
fn log_refusal(op: &Op) {
    if let Err(why) = op.request() {
        tracing::debug!(chain = op.head(), %why, "request refused");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::lines::lines_of;

    #[test]
    fn a_host_that_reaches_no_memory_fills_no_log() {
        let stats = BlkStats::default();
        let fault = || Fault::Host {
            address: 0x1000,
            source: std::io::Error::from_raw_os_error(libc::ENOMEM),
        };

        let lines = lines_of(|| {
            for _ in 0..10 {
                unreachable(&stats, fault());
            }
        });

        assert_eq!(lines, 1);
    }
}
