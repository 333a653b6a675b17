//! The guest: two cards, and what one of them receives is sent by the other, in
//! the buffer in which it came.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use crate::vring::{BUFFER, Interrupts, Memory, Ring, SIZE, Session};

/// VIRTIO_NET_F_CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6:
/// what one card may bring the other one may be given.
pub const FEATURES: u64 = 1 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12;
/// Rings of a card.
pub const RINGS: u16 = 2;
/// VIRTIO_NET_HDR_F_NEEDS_CSUM, the only flag of a frame to be sent.
const NEEDS_CSUM: u8 = 1;
/// Where a header has its flags, and its number of buffers, which a frame to be
/// sent does not have. virtio 1.3 §5.1.6
const FLAGS: u64 = 0;
const NUM_BUFFERS: u64 = 10;

/// Serves both directions until it is told to stop.
///
/// # Errors
/// A card that breaks the rules.
pub fn forward(
    memory: &Memory,
    mut cards: [Session; 2],
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<()> {
    // the sessions go on until the end
    let [a, b] = cards.each_mut().map(|card| std::mem::take(&mut card.rings));
    let [a_receives, a_sends] = <[Ring; 2]>::try_from(a)
        .ok()
        .context("a card of two rings")?;
    let [b_receives, b_sends] = <[Ring; 2]>::try_from(b)
        .ok()
        .context("a card of two rings")?;
    let rings = [&a_receives, &a_sends, &b_receives, &b_sends];
    let interrupts = Interrupts::of(rings)?;
    let mut directions = [
        Direction::new(memory, a_receives, b_sends, 0)?,
        Direction::new(memory, b_receives, a_sends, SIZE)?,
    ];
    while !stop.load(Ordering::Relaxed) {
        let mut moved = false;
        for direction in &mut directions {
            moved |= direction.go_on()?;
        }
        if !moved {
            interrupts.wait(20)?;
        }
    }
    Ok(())
}

/// From one card to the other, with buffers of its own.
struct Direction<'a> {
    memory: &'a Memory,
    receives: Ring,
    sends: Ring,
    /// Its first buffer.
    first: u16,
}

impl<'a> Direction<'a> {
    fn new(memory: &'a Memory, receives: Ring, sends: Ring, first: u16) -> anyhow::Result<Self> {
        let mut direction = Direction {
            memory,
            receives,
            sends,
            first,
        };
        for buffer in first..first + SIZE {
            direction.receives.offer(buffer, BUFFER, true)?;
        }
        direction.receives.kick()?;
        Ok(direction)
    }

    /// Passes on what has come; true if something has.
    fn go_on(&mut self) -> anyhow::Result<bool> {
        let mut sent = false;
        while let Some((head, len)) = self.receives.take()? {
            let buffer = self.first + head;
            let mut flags = [0];
            self.memory.read(buffer, FLAGS, &mut flags)?;
            self.memory
                .write(buffer, FLAGS, &flags.map(|flags| flags & NEEDS_CSUM))?;
            self.memory.write(buffer, NUM_BUFFERS, &[0; 2])?;
            self.sends.offer(buffer, len, false)?;
            sent = true;
        }
        if sent {
            self.sends.kick()?;
        }
        let mut free = false;
        while let Some((head, _)) = self.sends.take()? {
            self.receives.offer(self.first + head, BUFFER, true)?;
            free = true;
        }
        if free {
            self.receives.kick()?;
        }
        Ok(sent || free)
    }
}
