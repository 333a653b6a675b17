//! An io_uring that owns what the kernel works on.
//!
//! A request goes in whole, and comes out when the kernel has completed it:
//! until then its memory, and the vectors that describe it, are the ring's. The
//! one file of this engine with `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};
use libc::iovec;
use slab::Slab;
use swiotlb::{InFlight, PoolMemory, Segment};

use super::moves::{Completion, Move};
use crate::blk::op::Op;
use crate::blk::sys::{Direction, vectors};

/// The completion of a sync. No slot has this number.
const SYNC: u64 = u64::MAX;
/// Between two tries to give the kernel requests that it does not take.
const PAUSE: Duration = Duration::from_millis(1);

struct Slot {
    flight: InFlight<Op>,
    asked: Move,
    /// What the kernel reads until the move is complete.
    vectors: Box<[iovec]>,
}

// SAFETY: the vectors point into the memory of `flight`, which may be sent; they
// are read by the kernel alone.
unsafe impl Send for Slot {}

/// See the module.
pub(super) struct Ring {
    ring: IoUring,
    slots: Slab<Slot>,
    /// A sync is on its way.
    syncing: bool,
    /// Registered: the kernel has these pages pinned until the ring is gone.
    registered: Vec<PoolMemory>,
    /// Queued since the last submission.
    queued: usize,
}

impl Ring {
    /// A ring for `entries` requests at once.
    ///
    /// # Errors
    /// ENOSYS, EPERM: the host has no io_uring, or not for this process.
    pub(super) fn new(entries: u32) -> io::Result<Self> {
        let ring = IoUring::builder()
            .dontfork()
            .setup_coop_taskrun()
            .build(entries)
            // kernels before 5.19 do not know the flag
            .or_else(|_| IoUring::builder().dontfork().build(entries))?;
        Ok(Ring {
            ring,
            slots: Slab::new(),
            syncing: false,
            registered: Vec::new(),
            queued: 0,
        })
    }

    /// Makes files known: they are meant by their place in the list from now on.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn register_files(&self, files: &[&File]) -> io::Result<()> {
        let files: Vec<_> = files.iter().map(|file| file.as_raw_fd()).collect();
        self.ring.submitter().register_files(&files)
    }

    /// Makes memory known, so that its pages are looked up and pinned once. It
    /// is kept until the ring is gone.
    ///
    /// # Errors
    /// What the kernel said: ENOMEM above the limit of locked memory.
    pub(super) fn register_memory(&mut self, memory: Vec<PoolMemory>) -> io::Result<()> {
        let vectors: Vec<iovec> = memory
            .iter()
            .filter_map(PoolMemory::segment)
            .map(|segment| iovec {
                iov_base: segment.address() as *mut libc::c_void,
                iov_len: segment.len(),
            })
            .collect();
        // SAFETY: `registered` keeps the memory mapped for as long as the ring,
        // which is dropped before it; nothing but the kernel's own reads and
        // writes for submitted moves goes through the registration.
        unsafe { self.ring.submitter().register_buffers(&vectors)? };
        self.registered = memory;
        Ok(())
    }

    /// Readable while there is something to reap: the ring's own descriptor,
    /// which needs no system call to be quieted, and no event file that the
    /// kernel writes to at each completion.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        // SAFETY: `ring`, borrowed for as long as the result, keeps it open.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// How many requests and syncs the kernel has, or is to be given.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() + usize::from(self.syncing)
    }

    /// Queues a move; [`Ring::submit`] gives it to the kernel.
    pub(super) fn start(&mut self, flight: InFlight<Op>, asked: Move) {
        let vectors =
            vectors(flight.segments(), asked.span.skip, asked.span.len).into_boxed_slice();
        let entry = self.slots.vacant_entry();
        let key = entry.key() as u64;
        let slot = entry.insert(Slot {
            flight,
            asked,
            vectors,
        });
        let file = types::Fixed(asked.file);
        let sqe = match registered(&self.registered, slot) {
            Some((index, iovec { iov_base, iov_len })) => {
                let len = u32::try_from(iov_len).unwrap_or(u32::MAX);
                let base = iov_base.cast::<u8>();
                match asked.direction {
                    Direction::Read => opcode::ReadFixed::new(file, base, len, index)
                        .offset(asked.span.offset)
                        .build(),
                    Direction::Write => opcode::WriteFixed::new(file, base, len, index)
                        .offset(asked.span.offset)
                        .build(),
                }
            }
            None => {
                let count = u32::try_from(slot.vectors.len()).unwrap_or(u32::MAX);
                let list = slot.vectors.as_ptr();
                match asked.direction {
                    Direction::Read => opcode::Readv::new(file, list, count)
                        .offset(asked.span.offset)
                        .build(),
                    Direction::Write => opcode::Writev::new(file, list, count)
                        .offset(asked.span.offset)
                        .build(),
                }
            }
        };
        self.push(sqe.user_data(key));
    }

    /// Queues a sync of a file's data. One at a time.
    pub(super) fn sync(&mut self, file: u32) {
        self.syncing = true;
        let sqe = opcode::Fsync::new(types::Fixed(file))
            .flags(types::FsyncFlags::DATASYNC)
            .build();
        self.push(sqe.user_data(SYNC));
    }

    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: what the entry points to is in a slot (or it points to
            // nothing), and a slot leaves the ring when its completion has been
            // seen: `reap` is all that removes one, and `drop` waits for all.
            // The vectors are boxed and stay where they are.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_ok() {
                self.queued += 1;
                return;
            }
            self.submit();
        }
    }

    /// Gives what was queued to the kernel.
    pub(super) fn submit(&mut self) {
        if self.queued > 0 {
            self.enter(0);
        }
    }

    /// The same, and waits until something is complete.
    pub(super) fn wait(&mut self) {
        self.enter(1);
    }

    fn enter(&mut self, want: usize) {
        let mut refusals = 0u64;
        while let Err(error) = self.ring.submit_and_wait(want) {
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            if error.raw_os_error() == Some(libc::EBUSY) && !self.ring.completion().is_empty() {
                // completions have to be taken first
                return;
            }
            refusals += 1;
            if refusals.is_power_of_two() {
                tracing::warn!(%error, refusals, "the kernel takes no requests; trying again");
            }
            std::thread::sleep(PAUSE);
        }
        self.queued = 0;
    }

    /// Takes what is complete. The event is quiet until there is more.
    pub(super) fn reap(&mut self, completions: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            let result = match entry.result() {
                failed @ ..0 => Err(io::Error::from_raw_os_error(-failed)),
                moved => Ok(u64::from(moved.unsigned_abs())),
            };
            if entry.user_data() == SYNC {
                self.syncing = false;
                completions.push(Completion::Synced(result.map(drop)));
                continue;
            }
            let key = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            if let Some(slot) = self.slots.try_remove(key) {
                completions.push(Completion::Moved(slot.flight, slot.asked, result));
            }
        }
    }
}

impl Drop for Ring {
    /// Waits for everything that the kernel has: it writes to memory that is
    /// given back with the slots. The files are let go of at once: the kernel
    /// ends a ring some time later, and an image's lock with it.
    fn drop(&mut self) {
        let mut completions = Vec::new();
        while self.in_flight() > 0 {
            self.wait();
            self.reap(&mut completions);
        }
        // without files registered there is nothing to let go of
        let _ = self.ring.submitter().unregister_files();
    }
}

/// The one piece of a move, if it lies in registered memory, and which.
fn registered(registered: &[PoolMemory], slot: &Slot) -> Option<(u16, iovec)> {
    let [vector] = *slot.vectors else { return None };
    let start = vector.iov_base as usize;
    let inside = |whole: Segment| {
        let offset = start.checked_sub(whole.address());
        let end = offset.and_then(|offset| offset.checked_add(vector.iov_len));
        end.is_some_and(|end| end <= whole.len())
    };
    let index = registered
        .iter()
        .position(|memory| memory.segment().is_some_and(inside))?;
    Some((u16::try_from(index).ok()?, vector))
}
