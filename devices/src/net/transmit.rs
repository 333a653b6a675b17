//! Serves a transmit queue, on the worker thread that owns it.
//!
//! Frames are copied from the guest, a batch at a time, and written. When the
//! other end takes none, at most one batch waits for it, and the guest's chains
//! behind it in the ring; after a second frames are dropped until it takes one
//! again. Without an other end they are dropped at once, as by a card without a
//! cable.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use swiotlb::Transfer;
use zerocopy::FromBytes;

use super::frame::{FRAME_MAX, FRAME_MIN, HEADER_LEN, Header};
use super::link::Framer;
use super::port::{Port, Wire};
use super::tap::Trouble;
use crate::virtio::counters::add;
use crate::virtio::poller::Poller;
use crate::virtio::timer::Timer;
use crate::virtio::worker::with_causes;
use crate::virtio::{ActiveQueue, Chain, Head, QueueError, QueueHandler};

/// Chains taken at once.
const BATCH: usize = 64;
/// Bytes copied at once before they are written, and one frame more.
const COPY: usize = 256 << 10;
/// How long frames wait for an other end that takes none.
const PATIENCE: Duration = Duration::from_secs(1);

/// Names for the poller.
const BELL: u64 = 0;
const TIMER: u64 = 1;
const SINK: u64 = 2;

/// A chain whose frame is not copied.
#[derive(Debug)]
struct Held {
    chain: Chain,
    /// When it was taken from the ring.
    taken: Instant,
}

/// A frame of the guest.
#[derive(Debug)]
struct Frame {
    head: Head,
    /// With its header.
    bytes: Vec<u8>,
    taken: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Transmit {
    port: Arc<Port>,
    pair: u16,
    features: u64,
    poller: Poller,
    timer: Timer,
    framer: Framer,
    held: VecDeque<Held>,
    /// Frames that wait for the other end.
    stalled: VecDeque<Frame>,
    /// The other end has taken nothing for so long that frames are dropped.
    congested: bool,
}

impl Transmit {
    /// # Errors
    /// No descriptors.
    pub(super) fn new(port: Arc<Port>, pair: u16, features: u64) -> io::Result<Self> {
        let (poller, timer) = (Poller::new()?, Timer::new()?);
        poller.add(&timer, TIMER)?;
        if let Some(bells) = port.bells_of(pair) {
            poller.add(&bells.transmit, BELL)?;
        }
        Ok(Transmit {
            port,
            pair,
            features,
            poller,
            timer,
            framer: Framer::default(),
            held: VecDeque::new(),
            stalled: VecDeque::new(),
            congested: false,
        })
    }

    /// Copies the frames of some of the chains that are held.
    fn copy(&mut self, queue: &mut ActiveQueue) -> Result<Vec<Frame>, QueueError> {
        let (mut batch, mut total) = (Vec::new(), 0);
        while total < COPY
            && let Some(Held { chain, taken }) = self.held.pop_front()
        {
            let len = chain.readable.iter().map(|range| u64::from(range.len()));
            let len = usize::try_from(len.sum::<u64>()).unwrap_or(usize::MAX);
            if !(HEADER_LEN + FRAME_MIN..=FRAME_MAX).contains(&len) {
                add(&self.port.stats.counters.bad_requests, 1);
                queue.push_copied(chain.head, 0)?;
                continue;
            }
            total += len;
            let bytes = vec![0; len];
            batch.push((
                chain.readable,
                Frame {
                    head: chain.head,
                    bytes,
                    taken,
                },
            ));
        }
        let mut transfers: Vec<_> = batch
            .iter_mut()
            .map(|(ranges, frame)| Transfer::from_guest(ranges.iter().copied(), &mut frame.bytes))
            .collect();
        queue.dma().transfer(&mut transfers);
        let results: Vec<_> = transfers.into_iter().map(|t| t.result).collect();
        for ((_, frame), result) in batch.iter().zip(results) {
            // there is no status to tell it by
            result.map_err(|fault| QueueError::Request {
                head: frame.head.index(),
                why: format!("its frame cannot be read: {}", with_causes(&fault)),
            })?;
        }
        Ok(batch.into_iter().map(|(_, frame)| frame).collect())
    }

    /// Writes a frame; false if it has to wait.
    fn send(&mut self, frame: &[u8]) -> bool {
        let counters = &self.port.stats.counters;
        let header = Header::read_from_prefix(frame).map(|(header, _)| header);
        if let Err(why) = header
            .map_err(|_| "no header")
            .and_then(|h| h.check(self.features))
        {
            add(&counters.bad_requests, 1);
            tracing::debug!(why, "a frame is refused");
            return true;
        }
        if !self.port.is_up() {
            add(&counters.tx_dropped, 1);
            return true;
        }
        let sent = match &self.port.wire {
            Wire::Tap(tap) => match tap.queue(self.pair) {
                Some(queue) => queue.write(frame),
                None => Err(Trouble::Lost),
            },
            Wire::Link(link) => {
                self.framer.turn_to(link.stream());
                self.framer.send(frame)
            }
        };
        match sent {
            Ok(()) => {
                self.congested = false;
                add(&counters.tx_frames, 1);
                add(&counters.tx_bytes, frame.len() - HEADER_LEN);
            }
            Err(Trouble::Wait) if !self.congested => return false,
            Err(Trouble::Wait | Trouble::Lost) => add(&counters.tx_dropped, 1),
            Err(Trouble::Bad) => add(&counters.bad_requests, 1),
            // a pair that the guest has said that it does not use
            Err(Trouble::Gone) if !self.port.uses(self.pair) => add(&counters.tx_dropped, 1),
            Err(Trouble::Gone) => {
                add(&counters.tx_dropped, 1);
                self.gone();
            }
        }
        true
    }

    /// The tap is gone. Who is at a socket, the receive queue's worker knows.
    fn gone(&self) {
        match &self.port.wire {
            Wire::Tap(_) => self.port.lost(),
            Wire::Link(_) => {
                if let Some(bells) = self.port.bells_of(self.pair) {
                    bells.receive.ring();
                }
            }
        }
    }

    /// Writes what can be written, in its order.
    fn pump(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        loop {
            let mut sent = Vec::with_capacity(self.stalled.len());
            while let Some(frame) = self.stalled.pop_front() {
                if !self.send(&frame.bytes) {
                    self.stalled.push_front(frame);
                    break;
                }
                sent.push(frame);
            }
            self.give_back(queue, sent)?;
            if !self.stalled.is_empty() || self.held.is_empty() {
                self.rest();
                return Ok(());
            }
            self.stalled = self.copy(queue)?.into();
        }
    }

    /// Gives back the chains of frames that are done with.
    fn give_back(&self, queue: &mut ActiveQueue, sent: Vec<Frame>) -> Result<(), QueueError> {
        let now = Instant::now();
        // those of a batch have the same time, counted once for all of them
        for batch in sent.chunk_by(|one, other| one.taken == other.taken) {
            if let Some(Frame { taken, .. }) = batch.first() {
                let took = now.saturating_duration_since(*taken);
                self.port.stats.transmit_latency.count(took, batch.len());
            }
        }
        queue.push_together(sent.into_iter().map(|frame| (frame.head, 0)).collect())
    }

    /// Waits for what there is to wait for.
    fn rest(&mut self) {
        let waits = !self.stalled.is_empty() || self.framer.is_unfinished();
        if !waits {
            self.timer.stop();
            return;
        }
        let awaited = match &self.port.wire {
            Wire::Tap(tap) => match tap.queue(self.pair) {
                Some(queue) => self.poller.await_space(queue, SINK),
                None => Ok(()),
            },
            Wire::Link(_) => match self.framer.stream() {
                Some(stream) => self.poller.await_space(&**stream, SINK),
                None => Ok(()),
            },
        };
        if let Err(error) = awaited {
            add(&self.port.stats.counters.host_errors, 1);
            tracing::error!(%error, "a network card's other end cannot be waited for");
        }
    }

    /// Frames have waited for too long.
    fn give_up(&mut self) {
        self.congested = true;
        if let Some(withheld) = self.port.transmit_log.due() {
            let wire = self.port.wire.name();
            tracing::warn!(
                wire,
                withheld,
                "the other end of a network card takes no frames: they are dropped"
            );
        }
    }
}

impl QueueHandler for Transmit {
    fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
        let taken = Instant::now();
        let held = chains.into_iter().map(|chain| Held { chain, taken });
        self.held.extend(held);
        self.pump(queue)?;
        if !self.stalled.is_empty() {
            add(&self.port.stats.counters.tx_stalls, 1);
            self.timer.arm(PATIENCE);
        }
        Ok(())
    }

    fn room(&self) -> usize {
        match self.stalled.is_empty() {
            true => BATCH,
            false => 0,
        }
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.poller.as_fd())
    }

    fn advance(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        for name in self.poller.take() {
            match name {
                BELL => {
                    if let Some(bells) = self.port.bells_of(self.pair) {
                        bells.transmit.hear();
                    }
                }
                TIMER => {
                    self.timer.take();
                    self.give_up();
                }
                _ => {
                    // it takes something: no reason to give up yet
                    if !self.stalled.is_empty() {
                        self.timer.arm(PATIENCE);
                    }
                    if let Wire::Link(link) = &self.port.wire {
                        self.framer.turn_to(link.stream());
                        if self.framer.finish().is_ok() {
                            self.congested = false;
                        }
                    }
                }
            }
        }
        self.pump(queue)
    }

    fn settle(&mut self, _queue: &mut ActiveQueue) {
        // nothing of the guest's is held for them, and it forgets them
        let left = self.stalled.len() + self.held.len();
        add(&self.port.stats.counters.tx_dropped, left);
        self.stalled.clear();
        self.held.clear();
        self.timer.stop();
    }
}
