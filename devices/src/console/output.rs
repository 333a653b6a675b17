//! Serves a transmit queue, on the worker thread that owns it.
//!
//! Bytes are copied from the guest into the outbox, and a chain whose bytes
//! were all copied is done. The outbox is written as fast as the host takes
//! it. Nothing here waits, and no call does work without end: what is left is
//! done after the worker has looked whether it is to stop.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use swiotlb::{Range, Transfer};

use super::config::WhenFull;
use super::log::Log;
use super::outbox::Outbox;
use super::port::Port;
use super::reach::{Direction, Reach};
use crate::virtio::counters::add;
use crate::virtio::queue::DescriptorRanges;
use crate::virtio::worker::with_causes;
use crate::virtio::{ActiveQueue, Chain, Head, QueueError, QueueHandler};

/// Chains taken at once.
const BATCH: usize = 64;
/// Most bytes copied at once.
const COPY: usize = 64 << 10;
/// Copies before the worker looks whether it is to stop.
const ROUNDS: usize = 16;

/// A chain whose bytes are not all copied.
#[derive(Debug)]
struct Sending {
    head: Head,
    ranges: DescriptorRanges,
    /// Bytes of all ranges.
    len: u64,
    /// Of these, copied.
    copied: u64,
    /// When it was taken from the ring.
    taken: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Output {
    port: Arc<Port>,
    host: Reach,
    outbox: Outbox,
    /// Gets everything that is taken, read or not.
    copy: Option<Log>,
    held: VecDeque<Sending>,
    /// Chains are held because the outbox is full.
    stalled: bool,
}

impl Output {
    /// # Errors
    /// No descriptors.
    pub(super) fn new(port: Arc<Port>) -> io::Result<Self> {
        let host = Reach::new(Arc::clone(&port), Direction::Output)?;
        // there may be something to write before the guest says anything
        port.bells.output.ring();
        Ok(Output {
            host,
            outbox: port.take_outbox(),
            copy: port.take_log(),
            held: VecDeque::new(),
            stalled: false,
            port,
        })
    }

    /// Moves what can be moved.
    fn pump(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        for _ in 0..ROUNDS {
            self.flush();
            if self.held.is_empty() || !self.make_space() {
                self.rest();
                return Ok(());
            }
            self.copy(queue)?;
        }
        self.port.bells.output.ring();
        Ok(())
    }

    /// Whether the outbox takes anything, when need be at the cost of its
    /// oldest bytes.
    fn make_space(&mut self) -> bool {
        if self.outbox.space() == 0 && self.port.when_full == WhenFull::Drop {
            let wanted = self.held.iter().map(|sending| sending.len - sending.copied);
            let wanted = wanted.fold(0, u64::saturating_add);
            let wanted = usize::try_from(wanted).unwrap_or(COPY).min(COPY);
            let dropped = self.outbox.make_space(wanted);
            add(&self.port.stats.dropped_bytes, dropped);
            if let Some(withheld) = self.port.output_log.due() {
                tracing::warn!(
                    path = %self.port.endpoint.path().display(),
                    withheld,
                    "nobody reads a console: its oldest output is dropped"
                );
            }
        }
        let space = self.outbox.space() > 0;
        if !space && !self.stalled {
            add(&self.port.stats.stalls, 1);
            tracing::debug!(queue_chains = self.held.len(), "the guest's output is held");
        }
        self.stalled = !space;
        space
    }

    /// Copies from the held chains what fits, as one batch.
    fn copy(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        let mut space = self.outbox.space().min(COPY);
        let mut pieces = Vec::new();
        for sending in &self.held {
            let left = usize::try_from(sending.len - sending.copied).unwrap_or(usize::MAX);
            let len = left.min(space);
            pieces.push((parts(&sending.ranges, sending.copied, len), vec![0; len]));
            space -= len;
            if space == 0 {
                break;
            }
        }
        let mut transfers: Vec<_> = pieces
            .iter_mut()
            .map(|(ranges, bytes)| Transfer::from_guest(ranges.iter().copied(), bytes))
            .collect();
        queue.dma().transfer(&mut transfers);
        let results: Vec<_> = transfers.into_iter().map(|t| t.result).collect();
        for ((_, bytes), result) in pieces.into_iter().zip(results) {
            let Some(mut sending) = self.held.pop_front() else {
                break;
            };
            if let Err(fault) = result {
                // there is no status to tell it by
                return Err(QueueError::Request {
                    head: sending.head.index(),
                    why: format!("its bytes cannot be read: {}", with_causes(&fault)),
                });
            }
            self.outbox.push(&bytes);
            if let Some(log) = &mut self.copy {
                log.write(&bytes, &self.port.stats);
            }
            add(&self.port.stats.output_bytes, bytes.len());
            sending.copied += u64::try_from(bytes.len()).unwrap_or(0);
            if sending.copied < sending.len {
                self.held.push_front(sending);
                break;
            }
            add(&self.port.stats.output_chains, 1);
            let took = sending.taken.elapsed();
            self.port.output_latency.count(took, 1);
            queue.push_copied(sending.head, 0)?;
        }
        Ok(())
    }

    /// Writes of the outbox what the host takes.
    fn flush(&mut self) {
        while !self.outbox.is_empty()
            && let Some(stream) = self.host.stream()
        {
            match stream.write(self.outbox.front()) {
                Ok(count) => {
                    add(&self.port.stats.written_bytes, count);
                    self.outbox.consume(count);
                }
                Err(halt) if self.host.goes_on(&halt) => {}
                Err(_) => return,
            }
        }
    }

    /// Waits for what there is to wait for now.
    fn rest(&mut self) {
        self.host.rest(!self.outbox.is_empty());
    }
}

/// `len` bytes of `ranges` from byte `skip` on.
fn parts(ranges: &[Range], mut skip: u64, len: usize) -> Vec<Range> {
    let mut len = u32::try_from(len).unwrap_or(u32::MAX);
    let mut parts = Vec::new();
    for range in ranges {
        let skipped = skip.min(range.len().into());
        skip -= skipped;
        let part = u32::try_from(skipped)
            .ok()
            .and_then(|skipped| range.part(skipped, len));
        if let Some(part) = part {
            len -= part.len();
            parts.push(part);
        }
    }
    parts
}

impl QueueHandler for Output {
    fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
        let taken = Instant::now();
        for chain in chains {
            let len = chain.readable.iter().map(|range| u64::from(range.len()));
            let len = len.fold(0, u64::saturating_add);
            if len == 0 {
                add(&self.port.stats.bad_requests, 1);
                queue.push_copied(chain.head, 0)?;
                continue;
            }
            self.held.push_back(Sending {
                head: chain.head,
                ranges: chain.readable,
                len,
                copied: 0,
                taken,
            });
        }
        self.pump(queue)
    }

    fn room(&self) -> usize {
        match self.held.is_empty() {
            true => BATCH,
            false => 0,
        }
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.host.as_fd())
    }

    fn advance(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        self.host.wake();
        self.pump(queue)
    }

    fn settle(&mut self, _queue: &mut ActiveQueue) {
        // nothing of the guest's is held for them, and it forgets them
        self.held.clear();
        self.host.rest(false);
        self.flush();
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.port.park_outbox(std::mem::take(&mut self.outbox));
        self.port.park_log(self.copy.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_bytes_asked_for_and_no_others() {
        let range = |address, len| Range::new(address, len).unwrap();
        let ranges = [range(0x1000, 10), range(0x2000, 1), range(0x3000, 20)];

        assert_eq!(parts(&ranges, 0, 31), ranges);
        assert_eq!(parts(&ranges, 0, 3), [range(0x1000, 3)]);
        assert_eq!(
            parts(&ranges, 9, 4),
            [range(0x1009, 1), range(0x2000, 1), range(0x3000, 2)]
        );
        assert_eq!(parts(&ranges, 11, 100), [range(0x3000, 20)]);
        assert_eq!(parts(&ranges, 31, 1), []);
    }
}
