//! Serves the transmit queue, on the worker thread that owns it: takes the
//! guest's packets and writes the host's sockets.
//!
//! A packet's bytes are copied once and written at once. What the socket does
//! not take stays in the connection's outbox, which the guest's credit bounds,
//! and is written when the socket has space: no chain ever waits for a reader.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use swiotlb::{Range, Transfer};
use zerocopy::IntoBytes;

use super::connection::Outbox;
use super::hub::Hub;
use super::packet::{HEADER_LEN, Header, Key, Op};
use super::table::{Verdict, Writer};
use crate::unix;
use crate::unix::{Halt, Stream};
use crate::virtio::counters::add;
use crate::virtio::poller::Poller;
use crate::virtio::worker::with_causes;
use crate::virtio::{ActiveQueue, Chain, Head, QueueError, QueueHandler};

/// Chains taken at once.
const BATCH: usize = 64;
/// Bytes copied at once before they are written, and one packet more.
const COPY: usize = 256 << 10;
/// Bytes that an empty outbox keeps.
const IDLE: usize = 4096;
/// Name of the bell, for the poller; connections have theirs.
const BELL: u64 = u64::MAX;

/// A packet of the guest.
struct Packet {
    head: Head,
    ranges: Vec<Range>,
    header: Header,
    /// Bytes of its chain behind the header.
    room: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Transmit {
    hub: Arc<Hub>,
    poller: Poller,
}

impl Transmit {
    /// # Errors
    /// No descriptors.
    pub(super) fn new(hub: Arc<Hub>) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(hub.writer(), BELL)?;
        let unwritten = hub.lock().unwritten();
        let transmit = Transmit { hub, poller };
        for id in unwritten {
            transmit.flush(id);
        }
        Ok(transmit)
    }

    /// Fetches headers, as one batch.
    fn headers(
        &self,
        queue: &mut ActiveQueue,
        chains: Vec<Chain>,
    ) -> Result<Vec<Packet>, QueueError> {
        let mut packets = Vec::with_capacity(chains.len());
        for chain in chains {
            let len = chain.readable.iter().map(|range| u64::from(range.len()));
            let len = len.fold(0, u64::saturating_add);
            match len.checked_sub(HEADER_LEN as u64) {
                Some(room) => packets.push(Packet {
                    head: chain.head,
                    ranges: chain.readable.to_vec(),
                    header: Header::default(),
                    room,
                }),
                None => {
                    add(&self.hub.stats.counters.bad_packets, 1);
                    queue.push_copied(chain.head, 0)?;
                }
            }
        }
        let mut fetches: Vec<_> = packets
            .iter_mut()
            .map(|packet| {
                let ranges = packet.ranges.iter().copied();
                Transfer::from_guest(ranges, packet.header.as_mut_bytes())
            })
            .collect();
        queue.dma().transfer(&mut fetches);
        let results: Vec<_> = fetches.into_iter().map(|fetch| fetch.result).collect();
        for (packet, result) in packets.iter().zip(results) {
            // there is no status to tell it by
            result.map_err(|fault| unreadable(&packet.head, &fault))?;
        }
        Ok(packets)
    }

    /// How many bytes of a packet are worth copying.
    fn payload(&self, packet: &Packet) -> usize {
        let len = packet.header.len.get();
        let data = packet.header.op.get() == Op::ReadWrite as u16;
        // what no connection can have credit for is refused unseen
        let wanted = data && u64::from(len) <= packet.room && len <= self.hub.spec.buffer;
        match wanted {
            true => usize::try_from(len).unwrap_or(0),
            false => 0,
        }
    }

    /// Copies the bytes of as many packets as make a batch, and takes them all.
    fn take_batch(
        &mut self,
        queue: &mut ActiveQueue,
        packets: &mut Vec<Packet>,
    ) -> Result<(), QueueError> {
        let (mut total, mut count) = (0, 0);
        for packet in packets.iter() {
            total += self.payload(packet);
            count += 1;
            if total >= COPY {
                break;
            }
        }
        let batch: Vec<_> = packets.drain(..count).collect();
        let mut payloads: Vec<_> = batch
            .iter()
            .map(|packet| vec![0; self.payload(packet)])
            .collect();
        let (mut owners, mut copies) = (Vec::new(), Vec::new());
        for (packet, payload) in batch.iter().zip(&mut payloads) {
            if !payload.is_empty() {
                owners.push(&packet.head);
                copies.push(Transfer::from_guest(behind_header(&packet.ranges), payload));
            }
        }
        if !copies.is_empty() {
            queue.dma().transfer(&mut copies);
        }
        for (head, copy) in owners.into_iter().zip(copies) {
            copy.result.map_err(|fault| unreadable(head, &fault))?;
        }
        let mut taken = Vec::with_capacity(batch.len());
        for (packet, payload) in batch.into_iter().zip(payloads) {
            add(&self.hub.stats.counters.tx_packets, 1);
            self.take(&packet.header, packet.room, &payload);
            taken.push((packet.head, 0));
        }
        queue.push_together(taken)
    }

    /// Does what a packet asks for.
    fn take(&mut self, header: &Header, room: u64, payload: &[u8]) {
        let len = u64::from(header.len.get()).min(room);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let verdict = self.hub.lock().receive(header, len);
        match verdict {
            Verdict::Nothing => {}
            Verdict::Refused => add(&self.hub.stats.counters.refused, 1),
            Verdict::Connect(key) => self.connect(header, key),
            Verdict::Accepted(stream, key, took) => {
                self.hub.stats.accept_latency.count(took, 1);
                add(&self.hub.stats.counters.opened_by_host, 1);
                let answer = format!("OK {}\n", key.host);
                // the first bytes that it gets always fit
                if !matches!(stream.write(answer.as_bytes()), Ok(count) if count == answer.len()) {
                    self.hub.lock().reset(key);
                }
            }
            Verdict::Write(writer) => self.write(writer, payload),
            Verdict::Finish(writer, deaf) => {
                if deaf {
                    writer.stream.end_reads();
                }
                self.write(writer, &[]);
            }
            Verdict::Bad(why) => {
                add(&self.hub.stats.counters.bad_packets, 1);
                // a guest can send such packets as fast as it likes
                tracing::debug!(why, ?header, "a packet is refused");
            }
        }
    }

    fn connect(&mut self, header: &Header, key: Key) {
        let counters = &self.hub.stats.counters;
        match unix::connect_to(&self.hub.port_path(key.host)) {
            Ok(socket) => {
                let stream = Stream::new(socket);
                match self.hub.lock().connected(header, stream) {
                    true => add(&counters.opened_by_guest, 1),
                    false => add(&counters.refused, 1),
                }
            }
            Err(error) => {
                add(&counters.refused, 1);
                self.hub.lock().refuse(key);
                self.log_refusal(key.host, &error);
            }
        }
    }

    /// A guest may try ports as fast as it likes: that nobody is there is for
    /// debugging alone.
    fn log_refusal(&mut self, port: u32, error: &io::Error) {
        let usual = [
            io::ErrorKind::NotFound,
            io::ErrorKind::ConnectionRefused,
            // too many wait there
            io::ErrorKind::WouldBlock,
        ];
        if usual.contains(&error.kind()) {
            tracing::debug!(port, %error, "nobody listens for the guest");
            return;
        }
        add(&self.hub.stats.counters.host_errors, 1);
        if let Some(withheld) = self.hub.connect_log.due() {
            let path = self.hub.spec.path.display();
            tracing::warn!(%path, port, %error, withheld, "a guest cannot be connected");
        }
    }

    /// Writes bytes behind what the outbox has, and gives the outbox back.
    fn write(&mut self, mut writer: Writer, mut bytes: &[u8]) {
        let waits = !writer.outbox.0.is_empty();
        let (mut written, mut failed) = (0, false);
        while !waits && !failed && !bytes.is_empty() {
            match writer.stream.write(bytes) {
                Ok(count) => {
                    written += count;
                    bytes = bytes.get(count..).unwrap_or_default();
                }
                Err(Halt::Wait) => break,
                Err(halt) => failed = self.ended(&halt),
            }
        }
        if !bytes.is_empty() && !waits && !failed {
            add(&self.hub.stats.counters.reader_stalls, 1);
        }
        writer.outbox.0.extend(bytes);
        // one that waits is waited for already
        self.give_back(writer, written, failed, !waits);
    }

    /// Writes what a connection's outbox has.
    fn flush(&self, id: u64) {
        let Some(mut writer) = self.hub.lock().writer(id) else {
            return;
        };
        let (mut written, mut failed) = (0, false);
        let Outbox(bytes) = &mut writer.outbox;
        while !failed && !bytes.is_empty() {
            match writer.stream.write(bytes.as_slices().0) {
                Ok(count) => {
                    written += count;
                    bytes.drain(..count.min(bytes.len()));
                }
                Err(Halt::Wait) => break,
                Err(halt) => failed = self.ended(&halt),
            }
        }
        if bytes.is_empty() {
            bytes.shrink_to(IDLE);
        }
        self.give_back(writer, written, failed, true);
    }

    fn ended(&self, halt: &Halt) -> bool {
        if let Halt::Failed(error) = halt {
            add(&self.hub.stats.counters.host_errors, 1);
            tracing::debug!(%error, "a vsock connection has failed");
        }
        true
    }

    fn give_back(&self, writer: Writer, written: usize, failed: bool, wait: bool) {
        add(&self.hub.stats.counters.tx_bytes, written);
        let (id, stream) = (writer.id, Arc::clone(&writer.stream));
        let next = self.hub.lock().give_back(writer, written, failed);
        if next.end_writes {
            stream.end_writes();
        }
        if next.wait
            && wait
            && let Err(error) = self.poller.await_space(&*stream, id)
        {
            add(&self.hub.stats.counters.host_errors, 1);
            tracing::debug!(%error, "a vsock connection cannot be waited for");
            self.hub.lock().fail(id);
        }
    }
}

fn unreadable(head: &Head, fault: &swiotlb::Fault) -> QueueError {
    QueueError::Request {
        head: head.index(),
        why: format!("its bytes cannot be read: {}", with_causes(fault)),
    }
}

/// What stands behind the header.
fn behind_header(ranges: &[Range]) -> Vec<Range> {
    let mut skip = u32::try_from(HEADER_LEN).unwrap_or(u32::MAX);
    let mut parts = Vec::with_capacity(ranges.len());
    for range in ranges {
        let skipped = skip.min(range.len());
        skip -= skipped;
        parts.extend(range.part(skipped, u32::MAX));
    }
    parts
}

impl QueueHandler for Transmit {
    fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
        let mut packets = self.headers(queue, chains)?;
        let mut result = Ok(());
        while result.is_ok() && !packets.is_empty() {
            result = self.take_batch(queue, &mut packets);
        }
        self.hub.stir();
        if self.hub.lock().room_for_replies() == 0
            && let Some(withheld) = self.hub.reply_log.due()
        {
            let path = self.hub.spec.path.display();
            tracing::warn!(%path, withheld, "the guest takes no replies: its packets wait");
        }
        result
    }

    fn room(&self) -> usize {
        self.hub.lock().room_for_replies().min(BATCH)
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.poller.as_fd())
    }

    fn advance(&mut self, _queue: &mut ActiveQueue) -> Result<(), QueueError> {
        for name in self.poller.take() {
            match name {
                BELL => {
                    self.hub.writer().hear();
                }
                id => self.flush(id),
            }
        }
        self.hub.stir();
        Ok(())
    }
}
