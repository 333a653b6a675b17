//! Requests carried out by system calls, through the host's page cache.
//!
//! Everything of a batch is complete when [`Buffered::submit`] returns.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use swiotlb::{InFlight, Mapped};
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use crate::blk::image::Image;
use crate::blk::op::{Op, Outcome};
use crate::blk::request::{Extent, Request, Status};
use crate::blk::stats::BlkStats;
use crate::blk::sys::{self, Direction};

/// What is written where the host cannot make zeroes by itself.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// See the module.
pub(in crate::blk) struct Buffered {
    image: Arc<Image>,
    stats: Arc<BlkStats>,
    write_through: bool,
    completed: Vec<InFlight<Op>>,
    failures: u64,
}

impl Buffered {
    pub(super) fn new(image: Arc<Image>, stats: Arc<BlkStats>, write_through: bool) -> Self {
        Buffered {
            image,
            stats,
            write_through,
            completed: Vec::new(),
            failures: 0,
        }
    }

    pub(super) fn submit(&mut self, batch: Vec<Mapped<Op>>) {
        let mut unsynced = Vec::new();
        for mapped in batch {
            let mut flight = mapped.submit();
            let Some(request) = flight.token().for_engine() else {
                // refused before: its outcome stands
                self.completed.push(flight);
                continue;
            };
            let sync = matches!(request, Request::Flush)
                || self.write_through && !matches!(request, Request::Read { .. });
            let (written, result) = self.carry_out(request, &flight);
            let outcome = self.outcome(written, result, request_name(request));
            flight.token_mut().complete(outcome);
            // one flush for the whole batch, behind its writes
            match sync && outcome.status == Status::Ok {
                true => unsynced.push(flight),
                false => self.completed.push(flight),
            }
        }
        if !unsynced.is_empty() {
            self.sync(unsynced);
        }
    }

    pub(super) fn reap(&mut self) -> Vec<InFlight<Op>> {
        std::mem::take(&mut self.completed)
    }

    /// Makes the image durable, and completes those who wait for that.
    fn sync(&mut self, mut waiting: Vec<InFlight<Op>>) {
        self.stats.count_sync();
        if let Err(error) = self.image.file().sync_data() {
            let outcome = self.outcome(0, Err(error), "flush");
            for flight in &mut waiting {
                flight.token_mut().complete(outcome);
            }
        }
        self.completed.append(&mut waiting);
    }

    /// Returns how many bytes of the guest's memory were written, too.
    fn carry_out(&self, request: &Request, flight: &InFlight<Op>) -> (u64, io::Result<()>) {
        let file = self.image.file();
        match request {
            Request::Read { offset, len } => move_all(file, Direction::Read, flight, *offset, *len),
            Request::Write { offset, len } => {
                let (_, result) = move_all(file, Direction::Write, flight, *offset, *len);
                (0, result)
            }
            Request::Discard(extents) => (
                0,
                extents.iter().try_for_each(|extent| self.discard(extent)),
            ),
            Request::WriteZeroes(extents) => {
                (0, extents.iter().try_for_each(|extent| self.zero(extent)))
            }
            // the flush follows the batch; the ID is no engine's work
            Request::Flush | Request::GetId => (0, Ok(())),
        }
    }

    fn discard(&self, extent: &Extent) -> io::Result<()> {
        let file = self.image.file();
        match self.image.is_block_device() {
            true => sys::discard(file, extent.offset, extent.len),
            false => allocate(file, FallocateMode::PunchHole, extent),
        }
    }

    fn zero(&self, extent: &Extent) -> io::Result<()> {
        let file = self.image.file();
        let may_punch = extent.unmap && self.image.shape().discard.is_some();
        let modes = [
            may_punch.then_some(FallocateMode::PunchHole),
            Some(FallocateMode::ZeroRange),
        ];
        for mode in modes.into_iter().flatten() {
            match allocate(file, mode, extent) {
                // not on this file system, or not off its blocks
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS)
                    ) => {}
                other => return other,
            }
        }
        write_zeroes(file, extent)
    }

    fn outcome(&mut self, written: u64, result: io::Result<()>, what: &str) -> Outcome {
        let Err(error) = result else {
            let status = Status::Ok;
            return Outcome { status, written };
        };
        self.failures += 1;
        // a failing disk fails again and again: tell it ever more seldom
        if self.failures.is_power_of_two() {
            tracing::warn!(
                image = %self.image.path().display(),
                failures = self.failures,
                %error,
                "{what} failed"
            );
        }
        let status = match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Status::Unsupported,
            _ => Status::IoErr,
        };
        Outcome { status, written }
    }
}

fn request_name(request: &Request) -> &'static str {
    match request {
        Request::Read { .. } => "read",
        Request::Write { .. } => "write",
        Request::Flush => "flush",
        Request::GetId => "get-id",
        Request::Discard(_) => "discard",
        Request::WriteZeroes(_) => "write-zeroes",
    }
}

/// Moves `len` bytes; returns how many of them were moved.
fn move_all(
    file: &File,
    direction: Direction,
    flight: &InFlight<Op>,
    offset: u64,
    len: u64,
) -> (u64, io::Result<()>) {
    let mut moved = 0;
    while moved < len {
        match sys::transfer(file, direction, flight, moved, offset + moved) {
            // the image ends early: it has shrunk under its guest
            Ok(0) => return (moved, Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => moved += count,
            Err(error) => return (moved, Err(error)),
        }
    }
    (moved, Ok(()))
}

/// `fallocate`, never changing the image's size.
fn allocate(file: &File, mode: FallocateMode, extent: &Extent) -> io::Result<()> {
    let punch = matches!(mode, FallocateMode::PunchHole);
    loop {
        let mode = match punch {
            true => FallocateMode::PunchHole,
            false => FallocateMode::ZeroRange,
        };
        match fallocate(file, mode, true, extent.offset, extent.len) {
            Err(error) if error.errno() == libc::EINTR => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

fn write_zeroes(file: &File, extent: &Extent) -> io::Result<()> {
    let end = extent.offset + extent.len;
    let mut at = extent.offset;
    while at < end {
        let count = usize::try_from(end - at).unwrap_or(usize::MAX);
        let chunk = ZEROES.get(..count).unwrap_or(&ZEROES);
        file.write_all_at(chunk, at)?;
        at += chunk.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_written_to_their_extent_alone() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 200_000], 0).unwrap();
        let extent = Extent {
            offset: 512,
            len: 150_016,
            unmap: false,
        };

        write_zeroes(&file, &extent).unwrap();

        let mut bytes = vec![0; 200_000];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[512..150_528].iter().all(|byte| *byte == 0));
        assert!(bytes[..512].iter().all(|byte| *byte == 7));
        assert!(bytes[150_528..].iter().all(|byte| *byte == 7));
    }
}
