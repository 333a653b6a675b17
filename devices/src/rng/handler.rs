//! Serves the queue, on the worker thread that owns it.
//!
//! Chains are answered in their order. The first that has to wait, for the
//! rate limit or for the source, makes the queue rest until a timer rings.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use swiotlb::Transfer;

use super::source::{Source, Starved};
use super::stats::Stats;
use crate::virtio::bucket::TokenBucket;
use crate::virtio::counters::add;
use crate::virtio::log_limit::LogLimit;
use crate::virtio::queue::DescriptorRanges;
use crate::virtio::timer::Timer;
use crate::virtio::worker::with_causes;
use crate::virtio::{ActiveQueue, Chain, Head, QueueError, QueueHandler};

/// The most that one chain gets, bytes; the driver asks again for more.
/// virtio 1.3 §5.4.6.1
const REQUEST_MAX: u32 = 16 << 10;
/// Chains taken at once.
const BATCH: usize = 64;
/// How long a source that has nothing is left alone, at first and at most.
const RETRY: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// A chain that waits for its bytes.
#[derive(Debug)]
struct Request {
    head: Head,
    ranges: DescriptorRanges,
    /// Bytes that it gets at most; not zero.
    len: u32,
    /// When it was taken from the ring.
    taken: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct RngHandler {
    source: Arc<Source>,
    bucket: Option<Arc<Mutex<TokenBucket>>>,
    stats: Arc<Stats>,
    timer: Timer,
    waiting: VecDeque<Request>,
    /// How long the source is left alone when it fails next.
    retry: Duration,
    log: Arc<LogLimit>,
}

impl RngHandler {
    pub(super) fn new(
        source: Arc<Source>,
        bucket: Option<Arc<Mutex<TokenBucket>>>,
        stats: Arc<Stats>,
        log: Arc<LogLimit>,
    ) -> io::Result<Self> {
        Ok(RngHandler {
            source,
            bucket,
            stats,
            timer: Timer::new()?,
            waiting: VecDeque::new(),
            retry: RETRY,
            log,
        })
    }

    /// Answers waiting chains until one has to wait on.
    fn answer(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        let mut answers = Vec::new();
        while let Some(request) = self.waiting.front() {
            let len = request.len;
            if let Some(delay) = self.limit(len) {
                add(&self.stats.counters.limited, 1);
                self.timer.arm(delay);
                break;
            }
            match self.source.bytes(usize::try_from(len).unwrap_or(1)) {
                Ok(bytes) => {
                    self.retry = RETRY;
                    self.spend(bytes.len());
                    answers.extend(self.waiting.pop_front().map(|request| (request, bytes)));
                }
                Err(starved) => {
                    self.starve(&starved);
                    break;
                }
            }
        }
        self.give(queue, answers)
    }

    /// How long a chain of `len` bytes has to wait for the rate limit.
    fn limit(&self, len: u32) -> Option<Duration> {
        let mut bucket = self
            .bucket
            .as_ref()?
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let delay = bucket.wait(len.into(), Instant::now());
        (delay > Duration::ZERO).then_some(delay)
    }

    fn spend(&self, count: usize) {
        if let Some(bucket) = &self.bucket {
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            bucket
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(count);
        }
    }

    /// The most that one chain gets: never more than there ever is.
    fn most(&self) -> u32 {
        let Some(bucket) = &self.bucket else {
            return REQUEST_MAX;
        };
        let bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        u32::try_from(bucket.burst()).map_or(REQUEST_MAX, |burst| burst.min(REQUEST_MAX))
    }

    /// The source has nothing: tries again later, and later each time.
    fn starve(&mut self, why: &Starved) {
        add(&self.stats.counters.starved, 1);
        // an empty source fills by itself: a word when it takes long
        let patient = matches!(why, Starved::Empty) && self.retry < RETRY_MAX;
        if !patient && let Some(withheld) = self.log.due() {
            tracing::warn!(
                source = self.source.name(),
                error = with_causes(why),
                withheld,
                "the source gives no entropy; requests wait for it"
            );
        }
        self.timer.arm(self.retry);
        self.retry = self.retry.saturating_mul(2).min(RETRY_MAX);
    }

    /// Copies the bytes to the guest and shows them.
    fn give(
        &mut self,
        queue: &mut ActiveQueue,
        answers: Vec<(Request, Vec<u8>)>,
    ) -> Result<(), QueueError> {
        let mut transfers: Vec<_> = answers
            .iter()
            .map(|(request, bytes)| Transfer::to_guest(request.ranges.iter().copied(), bytes))
            .collect();
        queue.dma().transfer(&mut transfers);
        let results: Vec<_> = transfers.into_iter().map(|t| t.result).collect();
        let now = Instant::now();
        let mut broken = Ok(());
        for ((request, bytes), result) in answers.into_iter().zip(results) {
            let head = request.head.index();
            match result {
                Ok(()) => {
                    add(&self.stats.counters.requests, 1);
                    add(&self.stats.counters.bytes, bytes.len());
                    let took = now.saturating_duration_since(request.taken);
                    self.stats.request_latency.count(took, 1);
                    let written = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                    queue.push_copied(request.head, written)?;
                }
                Err(fault) => {
                    // there is no status to tell it by
                    let why = format!("its buffer cannot be written: {}", with_causes(&fault));
                    broken = Err(QueueError::Request { head, why });
                }
            }
        }
        broken
    }
}

impl QueueHandler for RngHandler {
    fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
        let (most, taken) = (self.most(), Instant::now());
        for chain in chains {
            let room = chain
                .writable
                .iter()
                .fold(0u32, |sum, range| sum.saturating_add(range.len()));
            if room == 0 {
                // nothing was asked for, and nothing is told
                add(&self.stats.counters.bad_requests, 1);
                queue.push_copied(chain.head, 0)?;
                continue;
            }
            self.waiting.push_back(Request {
                head: chain.head,
                ranges: chain.writable,
                len: room.min(most),
                taken,
            });
        }
        self.answer(queue)
    }

    fn room(&self) -> usize {
        match self.waiting.is_empty() {
            true => BATCH,
            false => 0,
        }
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.timer.as_fd())
    }

    fn advance(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        self.timer.take();
        self.answer(queue)
    }

    fn settle(&mut self, _queue: &mut ActiveQueue) {
        // nothing of the guest's is held for them, and it forgets them
        self.waiting.clear();
        self.timer.stop();
    }
}
