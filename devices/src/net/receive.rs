//! Serves a receive queue, on the worker thread that owns it.
//!
//! The other end is read only while chains wait to be filled: what comes
//! meanwhile waits there, or is lost there. A frame that finds too few chains
//! is kept until there are more; nothing else is.

mod other_end;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use swiotlb::{Range, Transfer};
use zerocopy::FromBytes;

use super::features as net;
use super::filter::Filter;
use super::frame::{FRAME_MAX, FRAME_MIN, HEADER_LEN, Header};
use super::link::Deframer;
use super::port::{Port, Wire};
use super::tap::{TapQueue, Trouble};
use crate::unix::{Halt, Stream};
use crate::virtio::counters::add;
use crate::virtio::poller::Poller;
use crate::virtio::queue::DescriptorRanges;
use crate::virtio::timer::Timer;
use crate::virtio::worker::with_causes;
use crate::virtio::{ActiveQueue, Chain, Head, QueueError, QueueHandler};

/// Most bytes given to the guest as one batch, and one frame more.
const BATCH: usize = 256 << 10;
/// Most frames of a batch, those that are filtered out too.
const FRAMES: usize = 256;
/// Batches before the worker looks whether it is to stop.
const ROUNDS: usize = 16;
/// How long a socket is left alone that nobody listens on, and how long a frame
/// waits for chains.
const RETRY: Duration = Duration::from_millis(500);

/// Names for the poller.
const BELL: u64 = 0;
const TIMER: u64 = 1;
const SOURCE: u64 = 2;
const LISTENER: u64 = 3;
const INTERFACES: u64 = 4;
const ANNOUNCE: u64 = 5;

/// How long after its link has come up a guest is asked to announce itself:
/// Linux sends nothing at once.
const SOON: Duration = Duration::from_secs(1);

/// A chain that waits to be filled.
#[derive(Debug)]
struct Waiting {
    head: Head,
    ranges: DescriptorRanges,
    /// Bytes that it takes; not zero.
    room: usize,
}

/// The chains that a frame fills, and where it is with its header.
type Packet = (Vec<Waiting>, std::ops::Range<usize>);

/// See the module.
#[derive(Debug)]
pub(super) struct Receive {
    port: Arc<Port>,
    pair: u16,
    poller: Poller,
    timer: Timer,
    /// The guest is asked to announce itself when it rings.
    announcement: Timer,
    waiting: VecDeque<Waiting>,
    /// Frames may fill several chains.
    mergeable: bool,
    /// A frame that finds too few chains.
    inbox: Option<Vec<u8>>,
    deframer: Deframer,
    /// Who is there, if it is a socket.
    stream: Option<Arc<Stream>>,
    /// The socket is left alone until the timer rings.
    resting: bool,
    /// The other end's end is waited for, and nothing else of it.
    watches_end: bool,
    /// The frame in the inbox has waited for long enough.
    stale: bool,
    filter: (u64, Arc<Filter>),
    /// The frames of a batch, one behind the other, and room for one more.
    arena: Vec<u8>,
}

/// Why no frame comes.
enum Pause {
    /// The other end has none: it is waited for.
    Source,
    /// There is no other end.
    Gone,
    /// The guest does not use the pair.
    Unused,
}

impl Receive {
    /// # Errors
    /// No descriptors.
    pub(super) fn new(port: Arc<Port>, pair: u16, features: u64) -> io::Result<Self> {
        let (poller, timer, announcement) = (Poller::new()?, Timer::new()?, Timer::new()?);
        poller.add(&timer, TIMER)?;
        poller.add(&announcement, ANNOUNCE)?;
        // the first pair is served whenever one is
        if let (0, Some(interfaces)) = (pair, port.interfaces()) {
            poller.add(interfaces, INTERFACES)?;
        }
        port.pair_begins(pair);
        if let Some(bells) = port.bells_of(pair) {
            poller.add(&bells.receive, BELL)?;
            // a socket may have to be connected
            bells.receive.ring();
        }
        let mut stream = None;
        if let Wire::Link(link) = &port.wire {
            stream = link.stream();
            if let Some(listener) = link.listener() {
                poller.await_input(listener, LISTENER)?;
            }
        }
        Ok(Receive {
            poller,
            timer,
            announcement,
            waiting: VecDeque::new(),
            mergeable: features & net::MRG_RXBUF != 0,
            inbox: None,
            deframer: Deframer::default(),
            stream,
            resting: false,
            watches_end: false,
            stale: false,
            filter: port.filter(),
            arena: vec![0; BATCH + FRAME_MAX],
            port,
            pair,
        })
    }

    /// Moves what can be moved.
    fn pump(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        self.meet();
        if self.pair == 0 {
            self.tell(queue);
        }
        for _ in 0..ROUNDS {
            if self.filter.0 != self.port.filter_number() {
                self.filter = self.port.filter();
            }
            let mut arena = std::mem::take(&mut self.arena);
            let (packets, pause) = self.collect(&mut arena);
            let delivered = self.deliver(queue, packets, &arena);
            self.arena = arena;
            delivered?;
            match pause {
                None if self.waiting.is_empty() || self.inbox.is_some() => {
                    self.await_end();
                    return Ok(());
                }
                None => {}
                Some(Pause::Source) => {
                    self.await_source();
                    return Ok(());
                }
                Some(Pause::Gone) => {
                    self.gone();
                    return Ok(());
                }
                // a bell tells when it does
                Some(Pause::Unused) => return Ok(()),
            }
        }
        if let Some(bells) = self.port.bells_of(self.pair) {
            bells.receive.ring();
        }
        Ok(())
    }

    /// Tells the guest of what is new about its link.
    fn tell(&self, queue: &ActiveQueue) {
        if self.port.take_news() {
            queue.config_changed();
        }
        if self.port.take_unknown() {
            self.announcement.arm(SOON);
        }
    }

    /// Reads frames, as far as chains go.
    fn collect(&mut self, arena: &mut [u8]) -> (Vec<Packet>, Option<Pause>) {
        let (mut packets, mut at) = (Vec::new(), 0);
        for _ in 0..FRAMES {
            if at >= BATCH || self.waiting.is_empty() {
                break;
            }
            let room = arena.get_mut(at..).unwrap_or_default();
            let len = match self.next_frame(room) {
                Ok(len) => len,
                Err(pause) => return (packets, Some(pause)),
            };
            let frame = room.get_mut(..len).unwrap_or_default();
            let counters = &self.port.stats.counters;
            let bytes = frame.get(HEADER_LEN..).unwrap_or_default();
            if bytes.len() < FRAME_MIN {
                add(&counters.rx_dropped, 1);
            } else if !self.port.is_up() || !self.filter.1.lets_through(bytes) {
                add(&counters.rx_filtered, 1);
            } else if let Some(chains) = self.place(frame) {
                packets.push((chains, at..at + len));
                at += len;
            } else if self.inbox.is_some() {
                break;
            }
        }
        (packets, None)
    }

    /// Reads a frame behind its header; its length with both.
    fn next_frame(&mut self, room: &mut [u8]) -> Result<usize, Pause> {
        if let Some(frame) = self.inbox.take() {
            for (to, from) in room.iter_mut().zip(&frame) {
                *to = *from;
            }
            return Ok(frame.len());
        }
        if !self.port.uses(self.pair) {
            return Err(Pause::Unused);
        }
        match &self.port.wire {
            Wire::Tap(tap) => {
                let queue = tap.queue(self.pair).ok_or(Pause::Gone)?;
                loop {
                    match queue.read(room) {
                        Ok(count) => return Ok(count),
                        Err(Trouble::Wait | Trouble::Lost) => return Err(Pause::Source),
                        // one frame that is no frame
                        Err(Trouble::Bad) => add(&self.port.stats.counters.rx_dropped, 1),
                        Err(Trouble::Gone) if self.port.uses(self.pair) => {
                            return Err(Pause::Gone);
                        }
                        Err(Trouble::Gone) => return Err(Pause::Unused),
                    }
                }
            }
            Wire::Link(_) => {
                let stream = self.stream.clone().ok_or(Pause::Gone)?;
                loop {
                    match self.deframer.next(room) {
                        Ok(Some(len)) => return Ok(len),
                        Ok(None) => {}
                        Err(error) => {
                            add(&self.port.stats.counters.rx_dropped, 1);
                            tracing::warn!(
                                wire = self.port.wire.name(),
                                %error,
                                "the other end of a network card sends nonsense: it is left"
                            );
                            return Err(Pause::Gone);
                        }
                    }
                    match self.deframer.fill(&stream) {
                        Ok(()) => {}
                        Err(Halt::Wait) => return Err(Pause::Source),
                        Err(Halt::Gone) => return Err(Pause::Gone),
                        Err(Halt::Failed(error)) => {
                            add(&self.port.stats.counters.host_errors, 1);
                            tracing::debug!(%error, "a network card's socket has failed");
                            return Err(Pause::Gone);
                        }
                    }
                }
            }
        }
    }

    /// Finds chains for a frame, and says in its header how many. One that
    /// finds too few goes to the inbox for a while.
    fn place(&mut self, frame: &mut [u8]) -> Option<Vec<Waiting>> {
        let (mut room, mut count) = (0usize, 0u16);
        for waiting in &self.waiting {
            if room >= frame.len() || count > 0 && !self.mergeable {
                break;
            }
            room = room.saturating_add(waiting.room);
            count = count.saturating_add(1);
        }
        let stale = std::mem::take(&mut self.stale);
        if room < frame.len() {
            match self.mergeable && !stale {
                true => {
                    self.inbox = Some(frame.to_vec());
                    self.timer.arm(RETRY);
                }
                // there may never be enough
                false => add(&self.port.stats.counters.rx_dropped, 1),
            }
            return None;
        }
        if let Ok((header, _)) = Header::mut_from_prefix(frame) {
            // the other end says the rest of it
            header.num_buffers = count.into();
        }
        Some(self.waiting.drain(..usize::from(count)).collect())
    }

    /// Gives frames to the guest, as one batch.
    fn deliver(
        &mut self,
        queue: &mut ActiveQueue,
        packets: Vec<Packet>,
        arena: &[u8],
    ) -> Result<(), QueueError> {
        if packets.is_empty() {
            return Ok(());
        }
        let (mut transfers, mut lens) = (Vec::new(), Vec::new());
        for (chains, place) in &packets {
            let mut rest = arena.get(place.clone()).unwrap_or_default();
            for chain in chains {
                let (now, after) = rest.split_at(chain.room.min(rest.len()));
                rest = after;
                lens.push(u32::try_from(now.len()).unwrap_or(u32::MAX));
                transfers.push(Transfer::to_guest(chain.ranges.iter().copied(), now));
            }
        }
        queue.dma().transfer(&mut transfers);
        let heads = packets.iter().flat_map(|(chains, _)| chains);
        for (chain, transfer) in heads.zip(transfers) {
            // there is no status to tell it by
            transfer.result.map_err(|fault| QueueError::Request {
                head: chain.head.index(),
                why: format!("its buffer cannot be written: {}", with_causes(&fault)),
            })?;
        }
        let counters = &self.port.stats.counters;
        add(&counters.rx_frames, packets.len());
        let bytes = packets.iter().map(|(_, place)| place.len() - HEADER_LEN);
        add(&counters.rx_bytes, bytes.sum());
        let heads = packets.into_iter().flat_map(|(chains, _)| chains);
        let heads = heads.map(|chain| chain.head);
        // a frame's chains together, and so those of all frames
        queue.push_together(heads.zip(lens).collect())
    }

    /// Waits for the next frame.
    fn await_source(&mut self) {
        self.watches_end = false;
        let awaited = match (&self.port.wire, &self.stream) {
            (Wire::Tap(tap), _) => match tap.queue(self.pair) {
                Some(queue) => self.poller.await_input(queue, SOURCE),
                None => Ok(()),
            },
            (Wire::Link(_), Some(stream)) => self.poller.await_input(&**stream, SOURCE),
            (Wire::Link(_), None) => Ok(()),
        };
        if let Err(error) = awaited {
            add(&self.port.stats.counters.host_errors, 1);
            tracing::error!(%error, "a network card's frames cannot be waited for");
            self.gone();
        }
    }

    /// Waits for nothing but the other end's end: no chain waits for a frame.
    fn await_end(&mut self) {
        // what has ended would be told again and again
        let there = self.port.uses(self.pair) && self.port.is_connected();
        if !there || std::mem::replace(&mut self.watches_end, true) {
            return;
        }
        let awaited = match (&self.port.wire, &self.stream) {
            (Wire::Tap(tap), _) => match tap.queue(self.pair) {
                Some(queue) => self.poller.await_end(queue, SOURCE),
                None => Ok(()),
            },
            (Wire::Link(_), Some(stream)) => self.poller.await_end(&**stream, SOURCE),
            (Wire::Link(_), None) => Ok(()),
        };
        if let Err(error) = awaited {
            // it is noticed with the next chain
            tracing::debug!(%error, "a network card's other end cannot be watched");
        }
    }

    /// Whether the other end has gone, as far as it tells without being read.
    fn has_ended(&self) -> bool {
        match (&self.port.wire, &self.stream) {
            (Wire::Tap(tap), _) => {
                let queue = tap.queue(self.pair);
                self.port.uses(self.pair) && queue.is_some_and(TapQueue::has_ended)
            }
            (Wire::Link(_), Some(stream)) => stream.hung_up(),
            (Wire::Link(_), None) => false,
        }
    }
}

impl Drop for Receive {
    fn drop(&mut self) {
        self.port.pair_ends(self.pair);
    }
}

impl QueueHandler for Receive {
    fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
        for chain in chains {
            let room = chain.writable.iter().map(Range::len);
            let room = usize::try_from(room.fold(0, u32::saturating_add)).unwrap_or(FRAME_MAX);
            // a header is never divided. virtio 1.3 §5.1.6.3.1
            match room >= HEADER_LEN {
                true => self.waiting.push_back(Waiting {
                    head: chain.head,
                    ranges: chain.writable,
                    room: room.min(FRAME_MAX),
                }),
                false => {
                    add(&self.port.stats.counters.bad_requests, 1);
                    queue.push_copied(chain.head, 0)?;
                }
            }
        }
        self.pump(queue)
    }

    fn room(&self) -> usize {
        usize::from(self.port.spec.queue_size).saturating_sub(self.waiting.len())
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.poller.as_fd())
    }

    fn advance(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        for name in self.poller.take() {
            match name {
                BELL => {
                    if let Some(bells) = self.port.bells_of(self.pair) {
                        bells.receive.hear();
                    }
                }
                TIMER => {
                    self.timer.take();
                    self.resting = false;
                    self.stale = self.inbox.is_some();
                }
                INTERFACES => self.port.look(),
                ANNOUNCE => {
                    self.announcement.take();
                    self.port.announce();
                }
                // it is reported once
                SOURCE => self.watches_end = false,
                _ => {}
            }
        }
        if self.waiting.is_empty() && self.port.is_connected() && self.has_ended() {
            self.gone();
        }
        self.pump(queue)
    }

    fn settle(&mut self, _queue: &mut ActiveQueue) {
        // nothing of the guest's is held for them, and it forgets them
        self.waiting.clear();
    }
}
