//! Serves the receive queue, on the worker thread that owns it: tells the guest
//! what the table says, and reads the host's sockets.
//!
//! A socket is read only while chains wait to be filled and the guest has
//! credit, so that whoever writes there is held back by the guest. What is
//! read goes to the guest in the same call: nothing is kept here.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use swiotlb::Transfer;
use zerocopy::IntoBytes;

use super::door::{self, Door};
use super::hub::Hub;
use super::packet::{HEADER_LEN, PAYLOAD_MAX};
use super::table::Id;
use crate::unix::Halt;
use crate::virtio::counters::add;
use crate::virtio::poller::Poller;
use crate::virtio::queue::DescriptorRanges;
use crate::virtio::timer::Timer;
use crate::virtio::worker::with_causes;
use crate::virtio::{ActiveQueue, Chain, Head, QueueError, QueueHandler};

/// Most bytes given to the guest as one batch.
const BATCH: usize = 256 << 10;
/// Batches before the worker looks whether it is to stop.
const ROUNDS: usize = 16;
/// How often it is looked who takes too long.
const TICK: Duration = Duration::from_secs(1);

/// Names for the poller; those of clients and of the listener are the door's.
const BELL: u64 = u64::MAX - 1;
const TIMER: u64 = u64::MAX - 2;

/// A chain that waits to be filled.
#[derive(Debug)]
struct Waiting {
    head: Head,
    ranges: DescriptorRanges,
    /// Bytes that it takes behind a header; not zero.
    room: usize,
}

/// A chain and the packet for it.
type Packet = (Waiting, Vec<u8>);

/// See the module.
#[derive(Debug)]
pub(super) struct Receive {
    hub: Arc<Hub>,
    poller: Poller,
    timer: Timer,
    ticking: bool,
    door: Door,
    waiting: VecDeque<Waiting>,
    /// Connections that may have bytes, in turn.
    ready: VecDeque<Id>,
    /// The same, to find them.
    queued: HashSet<Id>,
    /// What one read brings.
    scratch: Vec<u8>,
    queue_size: usize,
}

impl Receive {
    /// # Errors
    /// No descriptors.
    pub(super) fn new(hub: Arc<Hub>) -> io::Result<Self> {
        let (poller, timer) = (Poller::new()?, Timer::new()?);
        poller.add(hub.reader(), BELL)?;
        poller.add(&timer, TIMER)?;
        hub.lock().set_receiving(true);
        // connections may be there already, and clients at the door
        hub.reader().ring();
        Ok(Receive {
            poller,
            timer,
            ticking: false,
            door: Door::default(),
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            queued: HashSet::new(),
            scratch: vec![0; PAYLOAD_MAX],
            queue_size: hub.spec.queue_size.into(),
            hub,
        })
    }

    /// Moves what can be moved.
    fn pump(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        for _ in 0..ROUNDS {
            // what happens from here on is looked at in the next round
            self.hub.take_stirred();
            self.look();
            if self.waiting.is_empty() {
                return Ok(());
            }
            let mut packets = Vec::new();
            self.collect_replies(&mut packets);
            self.collect_bytes(&mut packets);
            if packets.is_empty() {
                match self.hub.take_stirred() {
                    true => continue,
                    false => return Ok(()),
                }
            }
            self.deliver(queue, packets)?;
        }
        self.hub.reader().ring();
        Ok(())
    }

    /// Looks what has changed at the table.
    fn look(&mut self) {
        let (news, fed, room, requests) = {
            let mut table = self.hub.lock();
            let (news, fed) = (table.take_news(), table.take_fed());
            (news, fed, table.has_room(), table.has_requests())
        };
        for (id, stream) in news {
            if let Err(error) = self.poller.add_arrivals(&*stream, id) {
                self.failed(id, &error);
            }
        }
        for id in fed {
            self.enqueue(id);
        }
        if let Err(error) = self.door.watch(&self.hub, &self.poller, room) {
            add(&self.hub.stats.counters.host_errors, 1);
            tracing::error!(%error, "vsock clients are not let in");
        }
        if !self.ticking && (requests || self.door.is_waiting()) {
            self.timer.arm(TICK);
            self.ticking = true;
        }
    }

    fn enqueue(&mut self, id: Id) {
        if self.queued.insert(id) {
            self.ready.push_back(id);
        }
    }

    fn failed(&self, id: Id, error: &io::Error) {
        add(&self.hub.stats.counters.host_errors, 1);
        tracing::debug!(%error, "a vsock connection has failed");
        self.hub.lock().fail(id);
    }

    /// What the guest is to be told goes before all bytes.
    fn collect_replies(&mut self, packets: &mut Vec<Packet>) {
        let mut table = self.hub.lock();
        let full = table.room_for_replies() == 0;
        while let Some(waiting) = self.waiting.pop_front() {
            match table.next_reply() {
                Some(header) => packets.push((waiting, header.as_bytes().to_vec())),
                None => {
                    self.waiting.push_front(waiting);
                    break;
                }
            }
        }
        if full && table.room_for_replies() > 0 {
            // the guest's packets have waited for that
            self.hub.writer().ring();
        }
    }

    /// Reads sockets, each in its turn, as far as chains and credit go.
    fn collect_bytes(&mut self, packets: &mut Vec<Packet>) {
        let mut total = 0;
        while total < BATCH && !self.waiting.is_empty() {
            let Some(id) = self.ready.pop_front() else {
                break;
            };
            let Some((stream, credit, stalled)) = self.hub.lock().allowance(id) else {
                self.queued.remove(&id);
                continue;
            };
            add(&self.hub.stats.counters.credit_stalls, stalled.into());
            if credit == 0 {
                // fed when there is some; until then only its end matters
                self.queued.remove(&id);
                if stream.hung_up() {
                    self.hub.lock().client_gone(id);
                }
                continue;
            }
            let room = self.waiting.iter().map(|waiting| waiting.room);
            let room = room.fold(0, usize::saturating_add);
            let room = room.min(usize::try_from(credit).unwrap_or(usize::MAX));
            let mut scratch = std::mem::take(&mut self.scratch);
            let len = scratch.len().min(room);
            match stream.read(scratch.get_mut(..len).unwrap_or_default()) {
                Ok(count) => {
                    total += count;
                    self.pack(id, scratch.get(..count).unwrap_or_default(), packets);
                    // others first
                    self.ready.push_back(id);
                }
                Err(halt) => {
                    self.queued.remove(&id);
                    match halt {
                        Halt::Wait => {}
                        Halt::Gone => self.hub.lock().host_ended(id, stream.hung_up()),
                        Halt::Failed(error) => self.failed(id, &error),
                    }
                }
            }
            self.scratch = scratch;
        }
    }

    /// Puts bytes into as many packets as they need.
    fn pack(&mut self, id: Id, mut bytes: &[u8], packets: &mut Vec<Packet>) {
        while !bytes.is_empty()
            && let Some(waiting) = self.waiting.pop_front()
        {
            let (now, rest) = bytes.split_at(waiting.room.min(bytes.len()));
            let len = u32::try_from(now.len()).unwrap_or(0);
            let Some(header) = self.hub.lock().packet(id, len) else {
                // the guest has ended it meanwhile
                self.waiting.push_front(waiting);
                return;
            };
            let mut packet = Vec::with_capacity(HEADER_LEN + now.len());
            packet.extend_from_slice(header.as_bytes());
            packet.extend_from_slice(now);
            packets.push((waiting, packet));
            bytes = rest;
        }
    }

    /// Gives packets to the guest, as one batch.
    fn deliver(&mut self, queue: &mut ActiveQueue, packets: Vec<Packet>) -> Result<(), QueueError> {
        let mut transfers: Vec<_> = packets
            .iter()
            .map(|(waiting, packet)| Transfer::to_guest(waiting.ranges.iter().copied(), packet))
            .collect();
        queue.dma().transfer(&mut transfers);
        let results: Vec<_> = transfers.into_iter().map(|t| t.result).collect();
        let counters = &self.hub.stats.counters;
        let (mut filled, mut broken) = (Vec::with_capacity(packets.len()), Ok(()));
        for ((waiting, packet), result) in packets.into_iter().zip(results) {
            if let Err(fault) = result {
                // there is no status to tell it by
                let head = waiting.head.index();
                let why = format!("its buffer cannot be written: {}", with_causes(&fault));
                broken = Err(QueueError::Request { head, why });
                continue;
            }
            add(&counters.rx_packets, 1);
            add(&counters.rx_bytes, packet.len() - HEADER_LEN);
            let written = u32::try_from(packet.len()).unwrap_or(u32::MAX);
            filled.push((waiting.head, written));
        }
        queue.push_together(filled)?;
        broken
    }
}

impl QueueHandler for Receive {
    fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
        for chain in chains {
            let room = chain.writable.iter().map(|range| range.len());
            let room = room.fold(0, u32::saturating_add);
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            match room.checked_sub(HEADER_LEN) {
                Some(room @ 1..) => self.waiting.push_back(Waiting {
                    head: chain.head,
                    ranges: chain.writable,
                    room: room.min(PAYLOAD_MAX),
                }),
                // it could never take a byte
                _ => {
                    add(&self.hub.stats.counters.bad_packets, 1);
                    queue.push_copied(chain.head, 0)?;
                }
            }
        }
        self.pump(queue)
    }

    fn room(&self) -> usize {
        self.queue_size.saturating_sub(self.waiting.len())
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.poller.as_fd())
    }

    fn advance(&mut self, queue: &mut ActiveQueue) -> Result<(), QueueError> {
        for name in self.poller.take() {
            match name {
                BELL => {
                    self.hub.reader().hear();
                }
                TIMER => {
                    self.timer.take();
                    self.ticking = false;
                    let now = Instant::now();
                    self.door.tick(&self.hub, now);
                    let late = self.hub.lock().expire(now);
                    add(&self.hub.stats.counters.refused, late);
                }
                door::LISTENER => self.door.accept(&self.hub, &self.poller),
                door::FIRST_NAME.. => self.door.listen_to(&self.hub, &self.poller, name),
                id => self.enqueue(id),
            }
        }
        self.pump(queue)
    }

    fn settle(&mut self, _queue: &mut ActiveQueue) {
        // nothing of the guest's is held for them, and it forgets them
        self.waiting.clear();
    }
}

impl Drop for Receive {
    fn drop(&mut self) {
        self.hub.lock().set_receiving(false);
        // the guest's packets wait for replies that nobody gets now
        self.hub.writer().ring();
    }
}
