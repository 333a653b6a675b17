//! Serves one queue of a disk, on the worker thread that owns the queue.
//!
//! Headers, extents and IDs, data and status bytes are each reached for the
//! whole batch at once; with grants each of these is one system call.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use swiotlb::{Done, Fault, InFlight, Job, Need, Transfer};
use zerocopy::IntoBytes;

use super::engine::Engine;
use super::op::Op;
use super::request::{BadRequest, Frame, Header, ID_BYTES, Limits, Parsed, Request, total};
use super::stats::BlkStats;
use crate::virtio::worker::with_causes;
use crate::virtio::{ActiveQueue, Chain, QueueError, QueueHandler};

/// See the module.
pub(super) struct BlkHandler {
    pub limits: Limits,
    pub serial: [u8; ID_BYTES],
    pub engine: Engine,
    pub stats: Arc<BlkStats>,
    /// Completed by the engine and not given back yet: those that share their
    /// grants with requests in flight.
    pub completed: Vec<InFlight<Op>>,
}

impl QueueHandler for BlkHandler {
    fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
        let frames = chains
            .into_iter()
            .map(Frame::of)
            .collect::<Result<Vec<_>, _>>()?;
        let parsed = self.parse_headers(queue, &frames);
        let requests = self.small_data(queue, &frames, parsed);
        let refused = self.submit(queue, frames, requests);
        self.finish(queue, refused)
    }

    fn room(&self) -> usize {
        self.engine.room()
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        self.engine.event()
    }

    fn advance(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        self.finish(queue, Vec::new())
    }

    fn settle(&mut self, queue: &mut ActiveQueue) {
        self.engine.settle();
        if let Err(error) = self.finish(queue, Vec::new()) {
            let error = with_causes(&error);
            tracing::warn!(queue = queue.index(), error, "the last requests are lost");
        }
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
                result.map_err(unreachable)?;
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
        // one buffer a request, empty for most
        let mut arrays: Vec<Vec<u8>> = frames
            .iter()
            .zip(&parsed)
            .map(|(frame, parsed)| match parsed {
                // at most a few hundred bytes: checked by the parser
                Ok(Parsed::Discard | Parsed::WriteZeroes) => {
                    vec![0; usize::try_from(total(&frame.data_out)).unwrap_or(0)]
                }
                _ => Vec::new(),
            })
            .collect();
        let (mut owners, mut transfers) = (Vec::new(), Vec::new());
        for (index, ((frame, parsed), array)) in
            frames.iter().zip(&parsed).zip(&mut arrays).enumerate()
        {
            let transfer = match parsed {
                Ok(Parsed::Discard | Parsed::WriteZeroes) => {
                    Transfer::from_guest(frame.data_out.iter().copied(), array)
                }
                Ok(Parsed::Ready(Request::GetId)) => {
                    Transfer::to_guest(frame.data_in.iter().copied(), &self.serial)
                }
                _ => continue,
            };
            owners.push(index);
            transfers.push(transfer);
        }
        if !transfers.is_empty() {
            queue.dma().transfer(&mut transfers);
        }
        let mut failed: Vec<(usize, Fault)> = owners
            .into_iter()
            .zip(transfers)
            .filter_map(|(index, transfer)| Some((index, transfer.result.err()?)))
            .rev()
            .collect();
        parsed
            .into_iter()
            .zip(arrays)
            .enumerate()
            .map(|(index, (parsed, array))| {
                if let Some((_, fault)) = failed.pop_if(|(owner, _)| *owner == index) {
                    return Err(unreachable(fault));
                }
                match parsed? {
                    Parsed::Ready(request) => Ok(request),
                    Parsed::Discard => self.limits.parse_discard(&array),
                    Parsed::WriteZeroes => self.limits.parse_write_zeroes(&array),
                }
            })
            .collect()
    }

    /// Maps the data of the batch and gives it to the engine; returns those
    /// whose memory could not be reached.
    fn submit(
        &mut self,
        queue: &mut ActiveQueue,
        frames: Vec<Frame>,
        requests: Vec<Result<Request, BadRequest>>,
    ) -> Vec<Done<Op>> {
        let jobs = frames.into_iter().zip(requests).map(|(frame, request)| {
            let (token, ranges) = Op::new(frame, request);
            Job { token, ranges }
        });
        let mut batch = Vec::new();
        let mut refused = Vec::new();
        for mapped in queue.dma().map(jobs, Need::COPY) {
            match mapped {
                Ok(mapped) if mapped.token().for_engine().is_some() => batch.push(mapped),
                Ok(mapped) => self.completed.push(mapped.submit()),
                Err(rejected) => {
                    let (done, fault) = queue.dma().reject(rejected);
                    refused.push(done.map(|mut op| {
                        op.refuse(unreachable(fault));
                        op
                    }));
                }
            }
        }
        self.engine.submit(batch);
        refused
    }

    /// Gives back what the engine has completed, writes the statuses, and
    /// shows the requests to the guest.
    fn finish(
        &mut self,
        queue: &mut ActiveQueue,
        refused: Vec<Done<Op>>,
    ) -> Result<(), QueueError> {
        self.completed.append(&mut self.engine.reap());
        let mut done = queue.dma().finish(&mut self.completed);
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
        let mut broken = Ok(());
        for (done, result) in done.into_iter().zip(results) {
            self.stats.count(done.token());
            log_refusal(done.token());
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

fn unreachable(fault: Fault) -> BadRequest {
    if fault.is_host() {
        tracing::warn!(
            error = with_causes(&fault),
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
