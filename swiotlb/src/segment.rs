//! Host memory behind a mapped range, as raw address and length.
//!
//! A `VolatileSlice` borrows what it points into and cannot live in a table of
//! requests in flight, so a mapping owns raw segments beside what keeps them
//! alive. This file is where the two meet.
#![allow(unsafe_code)]

use smallvec::SmallVec;
use vm_memory::VolatileSlice;

use crate::range::Access;

/// One contiguous piece of host memory that a guest can write at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    address: usize,
    len: usize,
}

/// The segments of one mapping, in the order of its ranges.
pub type Segments = SmallVec<[Segment; 2]>;

impl Segment {
    /// The memory of `slice`. Whoever keeps the segment beyond the slice's
    /// lifetime keeps its memory alive too: [`crate::Mapped`] does.
    pub fn of(slice: &VolatileSlice<'_>) -> Self {
        Segment {
            address: slice.ptr_guard_mut().as_ptr() as usize,
            len: slice.len(),
        }
    }

    /// Host address of the first byte.
    pub fn address(&self) -> usize {
        self.address
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes of it from `skip` on; `None` if they are not inside.
    pub(crate) fn part(&self, skip: u64, len: u64) -> Option<Segment> {
        let (skip, len) = (usize::try_from(skip).ok()?, usize::try_from(len).ok()?);
        if skip.checked_add(len)? > self.len {
            return None;
        }
        Some(Segment {
            address: self.address.checked_add(skip)?,
            len,
        })
    }

    /// Whether start and length are multiples of `align`, a power of two.
    pub fn is_aligned(&self, align: u32) -> bool {
        let mask = (align as usize).wrapping_sub(1);
        (self.address | self.len) & mask == 0
    }
}

/// Copies as many bytes as fit from the segments into `bytes`; returns how
/// many. Called by the owner of a mapping, which keeps `segments` alive.
pub(crate) fn copy_out(segments: &[Segment], mut bytes: &mut [u8]) -> usize {
    let mut copied = 0;
    for segment in segments {
        if bytes.is_empty() {
            break;
        }
        let count = segment.len.min(bytes.len());
        let (now, rest) = bytes.split_at_mut(count);
        // SAFETY: the segment was made from a live VolatileSlice and the
        // mapping that owns it owns the `Keep` or loan of that memory, too,
        // and is borrowed for the length of this call.
        let slice = unsafe { VolatileSlice::new(segment.address as *mut u8, count) };
        slice.copy_to(now);
        copied += count;
        bytes = rest;
    }
    copied
}

/// Copies as many of `bytes` as fit into the segments; returns how many.
/// Called by the owner of a mapping, which keeps `segments` alive.
pub(crate) fn copy_in(segments: &[Segment], mut bytes: &[u8]) -> usize {
    let mut copied = 0;
    for segment in segments {
        if bytes.is_empty() {
            break;
        }
        let count = segment.len.min(bytes.len());
        let (now, rest) = bytes.split_at(count);
        // SAFETY: as in `copy_out`; that the memory is writable is checked by
        // the caller, which mapped it with `Access::Write`.
        let slice = unsafe { VolatileSlice::new(segment.address as *mut u8, count) };
        slice.copy_from(now);
        copied += count;
        bytes = rest;
    }
    copied
}

/// The same from byte `skip` of the segments on.
pub(crate) fn copy_in_at(segments: &[Segment], mut skip: u64, mut bytes: &[u8]) -> usize {
    let mut copied = 0;
    for segment in segments {
        let len = segment.len as u64;
        let Some(part) = segment.part(skip.min(len), len - skip.min(len)) else {
            break;
        };
        skip = skip.saturating_sub(len);
        let count = copy_in(&[part], bytes);
        copied += count;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    copied
}

/// Copies `from` to `to`, as much as fits. Called by the owner of both mappings,
/// which keeps them alive; that `to` is writable is checked by whoever mapped
/// it.
pub(crate) fn move_bytes(from: &Segment, to: &Segment) {
    let count = from.len.min(to.len);
    // SAFETY: each segment was made from a live VolatileSlice, and the caller
    // owns what keeps its memory mapped and is borrowed for this call.
    let (from, to) = unsafe {
        (
            VolatileSlice::new(from.address as *mut u8, count),
            VolatileSlice::new(to.address as *mut u8, count),
        )
    };
    from.copy_to_volatile_slice(to);
}

/// Copies between the segments and `place`, the way of `access`, as much as both
/// have. Called as [`move_bytes`] is.
pub(crate) fn exchange(segments: &[Segment], access: Access, place: &VolatileSlice<'_>) {
    let mut place = Segment::of(place);
    for guest in segments {
        match access {
            Access::Read => move_bytes(guest, &place),
            Access::Write => move_bytes(&place, guest),
        }
        let done = guest.len().min(place.len()) as u64;
        let left = place.len() as u64 - done;
        match place.part(done, left) {
            Some(rest) => place = rest,
            None => break,
        }
    }
}

/// Writes zeroes over `slice`.
pub(crate) fn zero(slice: &VolatileSlice<'_>) {
    let guard = slice.ptr_guard_mut();
    // SAFETY: the slice stands for `len` writable bytes that live as long as
    // it does; a concurrent writer can only be outside of this program, to
    // which the order of these bytes says nothing.
    unsafe { std::ptr::write_bytes(guard.as_ptr(), 0, slice.len()) }
}

/// A cache line, bytes.
const LINE: usize = 64;
/// How much of memory that is about to be read the processor is told of, bytes.
/// Its own prefetcher knows from then on; more gets in its way.
const AHEAD: usize = 16 * LINE;

/// Has the processor bring the beginning of `slice` near and does not wait for
/// it. Nothing is fetched in the sense of the leak rules: no byte gets into a
/// register.
#[inline(always)]
pub(crate) fn bring_near(slice: &VolatileSlice<'_>) {
    let start = slice.ptr_guard().as_ptr();
    for offset in (0..slice.len().min(AHEAD)).step_by(LINE) {
        hint(start.wrapping_add(offset));
    }
}

/// As [`bring_near`], for memory that is about to be written; of less than two
/// such beginnings it is not worth its price.
#[inline(always)]
pub(crate) fn bring_near_to_write(slice: &VolatileSlice<'_>) {
    if slice.len() < 2 * AHEAD {
        return;
    }
    let start = slice.ptr_guard_mut().as_ptr();
    for offset in (0..AHEAD).step_by(LINE) {
        hint_write(start.wrapping_add(offset));
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
fn hint(line: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: at no address does it fault, and it changes no memory.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
fn hint_write(line: *const u8) {
    use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
    // SAFETY: at no address does it fault, and it changes no memory.
    unsafe { _mm_prefetch::<_MM_HINT_ET0>(line.cast()) }
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
#[inline(always)]
fn hint(line: *const u8) {
    // SAFETY: at no address does it fault, and it changes no memory.
    unsafe {
        std::arch::asm!(
            "prfm pldl1keep, [{line}]",
            line = in(reg) line,
            options(nostack, preserves_flags, readonly)
        );
    }
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
#[inline(always)]
fn hint_write(line: *const u8) {
    // SAFETY: at no address does it fault, and it changes no memory.
    unsafe {
        std::arch::asm!(
            "prfm pstl1keep, [{line}]",
            line = in(reg) line,
            options(nostack, preserves_flags, readonly)
        );
    }
}

#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
#[inline(always)]
fn hint_write(_: *const u8) {}

#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
#[inline(always)]
fn hint(_: *const u8) {}
