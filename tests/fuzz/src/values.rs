//! Values that callers and guests give: mostly sensible, now and then anything.

use std::num::NonZeroU64;

use arbitrary::Arbitrary;
use swiotlb::constraints::{DmaRange, SyncPolicy};
use swiotlb::{Attrs, Consumer, DeviceConstraints, Direction, SyncFor};

/// A number.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Number {
    /// Small.
    Byte(u8),
    /// Lengths and offsets of requests.
    Short(u16),
    /// Up to and beyond a segment.
    Segment(u16, u8),
    /// A power of two, and what is next to it.
    Edge(u8, i8),
    /// Anything.
    Any(u64),
}

impl Number {
    /// Its value.
    pub fn get(self) -> u64 {
        match self {
            Number::Byte(n) => n.into(),
            Number::Short(n) => n.into(),
            Number::Segment(n, more) => u64::from(n) * 5 + u64::from(more),
            Number::Edge(bit, by) => (1u64 << (bit % 64)).wrapping_add_signed(by.into()),
            Number::Any(n) => n,
        }
    }

    /// Its value, where what is next to 0 and to `mark` matters most.
    pub fn around(self, mark: u64) -> u64 {
        match self {
            Number::Byte(by) => u64::from(by / 64),
            Number::Edge(_, by) => mark.wrapping_add_signed(i64::from(by) / 32),
            other => other.get(),
        }
    }
}

/// A direction.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct AnyDirection(u8);

impl AnyDirection {
    /// Its value; seldom none.
    pub fn get(self) -> Direction {
        match self.0 % 10 {
            0..3 => Direction::ToDevice,
            3..6 => Direction::FromDevice,
            6..9 => Direction::Bidirectional,
            _ => Direction::None,
        }
    }
}

/// Whose turn it is.
pub fn turn(cpu: bool) -> SyncFor {
    match cpu {
        true => SyncFor::Cpu,
        false => SyncFor::Device,
    }
}

/// Attributes of a mapping.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct AnyAttrs {
    align: u8,
    rare: u8,
    skip: bool,
}

impl AnyAttrs {
    /// Their value; alignments are mostly powers of two up to a segment.
    pub fn get(self) -> Attrs {
        Attrs {
            align: match self.align {
                0..200 => 1 << (self.align % 20),
                _ => u64::from(self.align) << (self.align % 56),
            },
            skip_cpu_sync: self.skip,
            mmio: self.rare % 64 == 1,
            require_coherent: self.rare % 64 == 2,
            shared: self.rare.is_multiple_of(2),
            no_warn: true,
        }
    }
}

/// Constraints of a device with the right form.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Shape {
    mask: u8,
    boundary: u8,
    consumer: u8,
    clamp: bool,
    force: u8,
    window: bool,
    granule: u8,
    rare: u8,
}

/// What a window adds to a bus address.
pub const WINDOW: u64 = 0x10_0000_0000;

impl Shape {
    /// Their value.
    pub fn get(self) -> DeviceConstraints {
        let window = DmaRange {
            cpu_start: 0,
            dma_start: WINDOW,
            size: 1 << 40,
        };
        DeviceConstraints {
            min_align_mask: [0, 0, 511, 4095, 65_535][usize::from(self.mask % 5)],
            seg_boundary: [u64::MAX, u64::MAX, 4095, 65_535, 0x3_ffff]
                [usize::from(self.boundary % 5)],
            consumer: match self.consumer % 4 {
                0 | 1 => Consumer::Trusted,
                2 => Consumer::Declaring,
                _ => Consumer::Untrusted {
                    copy_back_whole: self.consumer > 127,
                },
            },
            sync_policy: match self.clamp {
                true => SyncPolicy::Clamp,
                false => SyncPolicy::Strict,
            },
            force: !self.force.is_multiple_of(4),
            ranges: if self.window { vec![window] } else { vec![] },
            granule: [0, 512, 4096][usize::from(self.granule % 3)],
            untrusted: self.granule > 127,
            coherent: self.rare % 8 != 1,
            cache_line: if self.rare % 8 == 2 { 64 } else { 0 },
            shared_only: self.rare % 8 == 3,
            ..DeviceConstraints::default()
        }
    }

    /// The same with any form.
    pub fn wild(
        self,
        mask: Number,
        boundary: Number,
        limit: Number,
        range: [Number; 3],
    ) -> DeviceConstraints {
        DeviceConstraints {
            min_align_mask: mask.get(),
            seg_boundary: boundary.get(),
            dma_mask: NonZeroU64::new(limit.get()),
            granule: u32::from(self.granule) << (self.rare % 25),
            ranges: vec![DmaRange {
                cpu_start: range[0].get(),
                dma_start: range[1].get(),
                size: range[2].get(),
            }],
            ..self.get()
        }
    }
}
