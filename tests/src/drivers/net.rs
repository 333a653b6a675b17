//! A network card whose frames may lie in several receive buffers each.
//! virtio 1.3 §5.1

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use virtio_drivers::transport::Transport;

use super::{Port, SIZE};
use crate::stand::{PATIENCE, Place, Stand};

/// The device's type.
const NETWORK_CARD: u32 = 1;
const QUEUES: u16 = 2;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// VIRTIO_NET_F_MRG_RXBUF
const MRG_RXBUF: u64 = 1 << 15;

/// Bytes before a frame, and where among them stands how many buffers it has.
/// virtio 1.3 §5.1.6
const HEADER: usize = 12;
const NUM_BUFFERS: usize = 10;

/// Bytes of a receive buffer: a large frame needs several.
const BUFFER: usize = 1024;

/// The driver.
pub struct Card {
    port: Port,
    /// Of the receive queue, by their tokens.
    buffers: BTreeMap<u16, Box<[u8; BUFFER]>>,
    /// What has come of a frame whose rest has not.
    begun: Vec<u8>,
    /// How many buffers of it are to come.
    left: u16,
    /// Most buffers that a frame has had.
    pub widest: u16,
}

impl Card {
    /// Brings it up at a place, on this thread, with a receive queue that is
    /// full of buffers.
    pub fn new(stand: &Stand, place: &Place) -> Self {
        let mut card = Card {
            port: Port::with_features(stand, place, NETWORK_CARD, QUEUES, MRG_RXBUF),
            buffers: BTreeMap::new(),
            begun: Vec::new(),
            left: 0,
            widest: 0,
        };
        for _ in 0..SIZE {
            card.offer(Box::new([0; BUFFER]));
        }
        card
    }

    /// Sends a frame: it has left the guest's memory afterwards.
    pub fn send(&mut self, frame: &[u8]) {
        self.port.ask(TRANSMIT, &[&[0; HEADER], frame], &mut []);
    }

    /// The next frame, waited for until `limit` has passed.
    pub fn receive(&mut self, limit: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + limit;
        loop {
            while let Some(piece) = self.next_buffer() {
                if let Some(frame) = self.join(&piece) {
                    return Some(frame);
                }
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Sends frames and gives what comes back, no more than `window` of them
    /// underway at once.
    pub fn exchange(&mut self, frames: &[Vec<u8>], window: usize) -> Vec<Vec<u8>> {
        let mut received = Vec::new();
        for (sent, frame) in frames.iter().enumerate() {
            if sent >= window {
                received.extend(self.receive(PATIENCE));
            }
            self.send(frame);
        }
        while received.len() < frames.len() {
            match self.receive(PATIENCE) {
                Some(frame) => received.push(frame),
                None => break,
            }
        }
        received
    }

    /// Adds a piece to the frame that it belongs to; gives it when it is whole.
    fn join(&mut self, piece: &[u8]) -> Option<Vec<u8>> {
        if self.left == 0 {
            self.left = u16::from_le_bytes([piece[NUM_BUFFERS], piece[NUM_BUFFERS + 1]]);
            assert_ne!(self.left, 0, "a frame in no buffer");
            self.widest = self.widest.max(self.left);
            self.begun.extend_from_slice(&piece[HEADER..]);
        } else {
            self.begun.extend_from_slice(piece);
        }
        self.left -= 1;
        (self.left == 0).then(|| std::mem::take(&mut self.begun))
    }

    /// What has come in the next buffer, which is offered again.
    fn next_buffer(&mut self) -> Option<Vec<u8>> {
        let ring = &mut self.port.queues[usize::from(RECEIVE)];
        let token = ring.peek_used()?;
        let mut buffer = self.buffers.remove(&token).unwrap();
        // SAFETY: it is the buffer of this token.
        let len = unsafe { ring.pop_used(token, &[], &mut [&mut buffer[..]]) }.unwrap();
        let piece = buffer[..len as usize].to_vec();
        self.offer(buffer);
        Some(piece)
    }

    fn offer(&mut self, mut buffer: Box<[u8; BUFFER]>) {
        let ring = &mut self.port.queues[usize::from(RECEIVE)];
        // SAFETY: the box is kept, and not looked at, until it is popped, or
        // until the port resets its device.
        let token = unsafe { ring.add(&[], &mut [&mut buffer[..]]) }.unwrap();
        self.buffers.insert(token, buffer);
        if ring.should_notify() {
            self.port.registers.notify(RECEIVE);
        }
    }
}
