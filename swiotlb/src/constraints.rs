//! What a device asks of the addresses it is given.

use std::num::NonZeroU64;

use crate::contiguity::NoTranslation;
use crate::direction::Direction;
use crate::error::Error;
use crate::range::PAGE_SIZE;
use crate::sizing::{SEGMENT_SIZE, SLOT_SIZE};

/// A window through which a device sees the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaRange {
    /// First bus address of the window.
    pub cpu_start: u64,
    /// The device's address for it.
    pub dma_start: u64,
    /// Bytes.
    pub size: u64,
}

impl DmaRange {
    /// The device's address of `len` bytes at `bus`, if all of them are in the
    /// window.
    fn dma(&self, bus: u64, len: u64) -> Option<u64> {
        let offset = bus.checked_sub(self.cpu_start)?;
        let end = offset.checked_add(len)?;
        if end > self.size {
            return None;
        }
        self.dma_start.checked_add(offset)
    }

    fn bus(&self, dma: u64) -> Option<u64> {
        let offset = dma.checked_sub(self.dma_start)?;
        (offset < self.size).then(|| self.cpu_start.checked_add(offset))?
    }
}

/// Who consumes what is mapped, and hence which bytes it may see and what of
/// its writing is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consumer {
    /// May see the original, and is taken to have written all of a mapping:
    /// the whole mapping is copied back. Bytes that it left alone come back as
    /// they were, because they were copied in before.
    #[default]
    Trusted,
    /// States what it has written: nothing is copied in for
    /// [`FromDevice`](crate::Direction::FromDevice), only what is stated is
    /// copied back. Not for memory that another trust domain sees.
    Declaring,
    /// Must not see what it is to overwrite: a mapping that it only writes is
    /// zeroed instead of copied in, and only what is stated as written is
    /// copied back.
    Untrusted {
        /// Copies back all of a mapping where nothing is stated, zeroes
        /// included: for consumers that state less than they wrote.
        copy_back_whole: bool,
    },
}

/// What a synchronisation beyond the end of its mapping gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncPolicy {
    /// [`Error::OutOfRange`], and nothing is copied.
    #[default]
    Strict,
    /// The part that is inside.
    Clamp,
}

/// A device's constraints. The default has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConstraints {
    /// The device's name, in events and errors.
    pub name: String,
    /// Highest address the device can emit.
    pub dma_mask: Option<NonZeroU64>,
    /// Highest address its bus passes on.
    pub bus_limit: Option<NonZeroU64>,
    /// Its windows onto the bus; none means that it emits bus addresses.
    pub ranges: Vec<DmaRange>,
    /// Low address bits in which a bounce buffer equals its original: a power
    /// of two less one, or 0.
    pub min_align_mask: u64,
    /// Addresses that no mapping may cross: multiples of this plus one. A power
    /// of two less one.
    pub seg_boundary: u64,
    /// The unit in which an untrusted device is given memory, bytes; a power of
    /// two, or 0.
    pub granule: u32,
    /// Whether memory next to a mapping must be kept from the device.
    pub untrusted: bool,
    /// Whether the device sees the processor's caches.
    pub coherent: bool,
    /// Whether everything is bounced.
    pub force: bool,
    /// Whether the device reaches shared memory alone (confidential guests).
    pub shared_only: bool,
    /// Cache line of a device that is not coherent, bytes: what it writes is
    /// bounced unless made of whole lines. 0 switches the rule off.
    pub cache_line: u32,
    /// Who consumes the mappings.
    pub consumer: Consumer,
    /// What a synchronisation beyond its mapping gets.
    pub sync_policy: SyncPolicy,
}

impl Default for DeviceConstraints {
    fn default() -> Self {
        DeviceConstraints {
            name: "device".into(),
            dma_mask: None,
            bus_limit: None,
            ranges: Vec::new(),
            min_align_mask: 0,
            seg_boundary: u64::MAX,
            granule: 0,
            untrusted: false,
            coherent: true,
            force: false,
            shared_only: false,
            cache_line: 0,
            consumer: Consumer::Trusted,
            sync_policy: SyncPolicy::Strict,
        }
    }
}

impl DeviceConstraints {
    /// Checks the values that have a form.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first value that has not.
    pub fn validate(&self) -> Result<(), Error> {
        let invalid = |what, value| Err(Error::Invalid { what, value });
        let is_mask = |value: u64| value & value.wrapping_add(1) == 0;
        let is_unit = |value: u32| value == 0 || value.is_power_of_two();
        if !is_mask(self.min_align_mask) {
            return invalid("min_align_mask", self.min_align_mask);
        }
        if self.seg_boundary == 0 || !is_mask(self.seg_boundary) {
            return invalid("seg_boundary", self.seg_boundary);
        }
        if !is_unit(self.granule) {
            return invalid("granule", u64::from(self.granule));
        }
        if !is_unit(self.cache_line) {
            return invalid("cache_line", u64::from(self.cache_line));
        }
        for range in &self.ranges {
            let last = range.size.checked_sub(1);
            let fits = |start: u64| last.is_some_and(|last| start.checked_add(last).is_some());
            if !fits(range.cpu_start) || !fits(range.dma_start) {
                return invalid("the size of a DMA range", range.size);
            }
        }
        Ok(())
    }

    /// The highest address that the device reaches.
    pub fn limit(&self) -> u64 {
        let limits = self.dma_mask.into_iter().chain(self.bus_limit);
        limits.map(NonZeroU64::get).min().unwrap_or(u64::MAX)
    }

    /// The device's address for `len` bytes at a bus address.
    ///
    /// # Errors
    /// [`NoTranslation`] for bytes that are in no window.
    #[inline(always)]
    pub fn dma(&self, bus: u64, len: u64) -> Result<u64, NoTranslation> {
        if self.ranges.is_empty() {
            return Ok(bus);
        }
        let mut windows = self.ranges.iter();
        let found = windows.find_map(|range| range.dma(bus, len));
        found.ok_or(NoTranslation(bus / PAGE_SIZE))
    }

    /// The bus address behind a device's address; `None` outside the windows.
    #[inline(always)]
    pub fn bus(&self, dma: u64) -> Option<u64> {
        if self.ranges.is_empty() {
            return Some(dma);
        }
        self.ranges.iter().find_map(|range| range.bus(dma))
    }

    /// Whether the original is copied into a bounce buffer when it is mapped:
    /// always, for a trusted consumer. What the device leaves alone would
    /// otherwise come back as what the buffer held before.
    #[inline(always)]
    pub(crate) fn fills(&self, direction: Direction) -> bool {
        direction.to_device() || self.consumer == Consumer::Trusted
    }

    /// The largest mapping that can be bounced wherever its original lies,
    /// bytes: an original that is not aligned takes slots for its padding.
    pub fn max_bounced_size(&self) -> u64 {
        let padding = self.min_align_mask.checked_next_multiple_of(SLOT_SIZE);
        SEGMENT_SIZE.saturating_sub(padding.unwrap_or(u64::MAX))
    }
}

/// Whether a device that reaches up to `limit` reaches `len` bytes at `dma`. An
/// end that wraps around is out of reach.
///
/// ```
/// use swiotlb::constraints::capable;
/// assert!(capable(0xFFFF_F000, 4096, 0xFFFF_FFFF));
/// assert!(!capable(0xFFFF_F000, 4097, 0xFFFF_FFFF));
/// assert!(!capable(u64::MAX, 2, u64::MAX));
/// ```
#[inline(always)]
pub fn capable(dma: u64, len: u64, limit: u64) -> bool {
    len.checked_sub(1)
        .and_then(|more| dma.checked_add(more))
        .is_some_and(|last| last <= limit)
}
