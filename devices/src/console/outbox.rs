//! The guest's output on its way to the host: a bounded queue of bytes.

use std::collections::VecDeque;

/// Bytes that the guest has handed over and the host has not taken. Never
/// holds more than its capacity.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: VecDeque<u8>,
    capacity: usize,
}

impl Outbox {
    /// An empty one that takes `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Outbox {
            bytes: VecDeque::new(),
            capacity,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// How many bytes it takes.
    pub fn space(&self) -> usize {
        self.capacity.saturating_sub(self.bytes.len())
    }

    /// Takes bytes, which must fit; drops of those that do not.
    pub fn push(&mut self, bytes: &[u8]) {
        let fitting = bytes.len().min(self.space());
        self.bytes.extend(bytes.iter().take(fitting));
    }

    /// The next bytes, as many as lie in one piece.
    pub fn front(&self) -> &[u8] {
        self.bytes.as_slices().0
    }

    /// The next `count` bytes were written.
    pub fn consume(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
        if self.bytes.is_empty() {
            // an idle console keeps no buffer
            self.bytes.shrink_to(PAGE);
        }
    }

    /// Drops the oldest bytes until there is space for `count`, or for as many
    /// as fit at all; tells how many were dropped.
    pub fn make_space(&mut self, count: usize) -> usize {
        let lacking = count.min(self.capacity).saturating_sub(self.space());
        self.consume(lacking);
        lacking
    }
}

const PAGE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_their_order_however_they_lie() {
        let mut outbox = Outbox::new(8);
        outbox.push(b"abcdef");
        outbox.consume(4);
        outbox.push(b"ghijkl");

        let mut seen = Vec::new();
        while !outbox.is_empty() {
            let piece = outbox.front().to_vec();
            outbox.consume(piece.len());
            seen.extend(piece);
        }

        assert_eq!(seen, b"efghijkl");
        assert_eq!(outbox.space(), 8);
    }

    #[test]
    fn the_oldest_bytes_make_space_and_no_more_than_need_be() {
        let mut outbox = Outbox::new(8);
        outbox.push(b"abcdef");

        let dropped = [
            outbox.make_space(2),
            outbox.make_space(5),
            outbox.make_space(100),
        ];

        assert_eq!(dropped, [0, 3, 3]);
        assert!(outbox.is_empty());
        assert_eq!(outbox.len(), 0);
    }
}
