//! The memory that a front end shares: regions of files, mapped as they come.
//!
//! The table changes while rings run; each change makes a new one. A region
//! stays mapped until nothing uses it any more.

use std::fs::{File, Metadata};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use swiotlb::allocator::PadPolicy;
use swiotlb::{
    Access, Counters, Dma, Fault, GrantPolicy, HostRange, Keep, Kind, Range, RingMapping, Segment,
    Segments, Settings, TransferBytes, Translation,
};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend,
    GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion, VolatileMemory, VolatileSlice,
};

use super::error::Refusal;
use super::log::{DirtyLog, Logged};
use crate::virtio::{DeviceError, DmaProvider};

/// Most regions of a front end; as many as KVM has slots.
pub(super) const MAX_SLOTS: u64 = 509;

type Table = GuestMemoryMmap<()>;

/// A region as the front end has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    guest: u64,
    user: u64,
    len: u64,
}

impl From<&VhostUserMemoryRegion> for Place {
    fn from(region: &VhostUserMemoryRegion) -> Self {
        Place {
            guest: region.guest_phys_addr,
            user: region.user_addr,
            len: region.memory_size,
        }
    }
}

/// The table of regions. Its owner is the thread that reads messages; data
/// paths that it opens see every change.
#[derive(Debug)]
pub(super) struct Memory {
    table: GuestMemoryAtomic<Table>,
    /// How often it was changed.
    version: Arc<AtomicU64>,
    /// One more than once is mapped until it is removed as often.
    places: Vec<Place>,
    log: RwLock<Option<Arc<DirtyLog>>>,
    counters: Arc<Counters>,
    policy: Arc<GrantPolicy>,
}

impl Memory {
    pub(super) fn new() -> Self {
        Memory {
            table: GuestMemoryAtomic::new(Table::new()),
            version: Arc::default(),
            places: Vec::new(),
            log: RwLock::new(None),
            counters: Arc::default(),
            policy: Arc::default(),
        }
    }

    /// Replaces all regions.
    pub(super) fn set(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
    ) -> Result<(), Refusal> {
        let (mut table, mut places) = (Table::new(), Vec::new());
        for (region, file) in regions.iter().zip(files) {
            table = with_region(&table, region, file)?;
            places.push(Place::from(region));
        }
        self.replace(table);
        self.places = places;
        Ok(())
    }

    /// Adds a region. The same one again changes nothing but that it is to be
    /// removed once more: QEMU 7.2 says all regions for each pair of queues of
    /// a network card.
    pub(super) fn add(
        &mut self,
        region: &VhostUserMemoryRegion,
        file: File,
    ) -> Result<(), Refusal> {
        if self.places.len() as u64 >= MAX_SLOTS {
            return Err(refused(region, format!("there are {MAX_SLOTS} already")));
        }
        let place = Place::from(region);
        if !self.places.contains(&place) {
            let table = with_region(&self.table.memory(), region, file)?;
            self.replace(table);
        }
        self.places.push(place);
        Ok(())
    }

    /// Removes a region.
    pub(super) fn remove(&mut self, region: &VhostUserMemoryRegion) -> Result<(), Refusal> {
        let place = Place::from(region);
        let at = self.places.iter().position(|&known| known == place);
        let at = at.ok_or_else(|| refused(region, "it is not known".to_owned()))?;
        self.places.swap_remove(at);
        if self.places.contains(&place) {
            return Ok(());
        }
        let (table, _) = self
            .table
            .memory()
            .remove_region(GuestAddress(place.guest), place.len)
            .map_err(|error| refused(region, error.to_string()))?;
        self.replace(table);
        Ok(())
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.replace(Table::new());
        self.places.clear();
        self.set_log(None);
    }

    /// Has data paths that are opened from now on log what they write.
    pub(super) fn set_log(&self, log: Option<Arc<DirtyLog>>) {
        *self.log.write().unwrap_or_else(PoisonError::into_inner) = log;
    }

    /// The guest-physical address of the front end's `user` address.
    pub(super) fn guest_address(&self, user: u64) -> Option<u64> {
        self.places.iter().find_map(|place| {
            let offset = user.checked_sub(place.user)?;
            (offset < place.len).then(|| place.guest.checked_add(offset))?
        })
    }

    fn replace(&self, table: Table) {
        // only this thread changes it
        let guard = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        guard.replace(table);
        // the front end hears of it afterwards, and its driver after that
        self.version.fetch_add(1, Ordering::Release);
    }
}

fn with_region(
    table: &Table,
    region: &VhostUserMemoryRegion,
    file: File,
) -> Result<Table, Refusal> {
    let mapped = map_shared(
        "memory region",
        file,
        region.mmap_offset,
        region.memory_size,
    )?;
    let mapped = GuestRegionMmap::new(mapped, GuestAddress(region.guest_phys_addr));
    let mapped = mapped.ok_or_else(|| refused(region, "it wraps around".to_owned()))?;
    table
        .insert_region(Arc::new(mapped))
        .map_err(|error| refused(region, error.to_string()))
}

fn refused(region: &VhostUserMemoryRegion, why: String) -> Refusal {
    Refusal::Region {
        address: region.guest_phys_addr,
        len: region.memory_size,
        why,
    }
}

/// Maps `len` bytes of `file` for reading and writing, shared.
pub(super) fn map_shared(
    what: &'static str,
    file: File,
    offset: u64,
    len: u64,
) -> Result<MmapRegion, Refusal> {
    let failed = |source| Refusal::Map {
        what,
        len,
        offset,
        source,
    };
    let size = usize::try_from(len).map_err(|_| failed(MmapRegionError::InvalidOffsetLength))?;
    if ends_before(&file, offset, len) {
        return Err(failed(MmapRegionError::MappingPastEof));
    }
    MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .with_file_offset(FileOffset::new(file, offset))
        .build()
        .map_err(failed)
}

/// Whether a file ends before `len` bytes from `offset` on do: it could be
/// mapped, and a touch behind its end would kill this process. What is no file
/// of a size, such as a device, has no end that is known.
fn ends_before(file: &File, offset: u64, len: u64) -> bool {
    let size = file.metadata().ok().filter(Metadata::is_file);
    let size = size.map(|found| found.len());
    size.is_some_and(|size| offset.checked_add(len).is_none_or(|end| end > size))
}

impl DmaProvider for Memory {
    fn open(&self) -> Result<Dma, DeviceError> {
        let log = self.log.read().unwrap_or_else(PoisonError::into_inner);
        let regions = Regions {
            version: Arc::clone(&self.version),
            seen: self.version.load(Ordering::Acquire),
            current: self.table.memory().into_inner(),
            table: self.table.clone(),
            log: log.clone(),
        };
        let settings = Settings {
            name: "vhost-user".into(),
            workers: 1,
            pad: PadPolicy::Trusted,
            ..Settings::default()
        };
        let counters = Arc::clone(&self.counters);
        Ok(
            Dma::new(Kind::Translated, Some(Box::new(regions)), None, counters)
                .with_pool(settings, Arc::clone(&self.policy)),
        )
    }
}

/// One ring's view of the table. It is asked for three times a request and hardly
/// ever changes: a ring keeps the one that it knows until there is another.
struct Regions {
    table: GuestMemoryAtomic<Table>,
    version: Arc<AtomicU64>,
    /// The version of `current`, or one before.
    seen: u64,
    current: Arc<Table>,
    log: Option<Arc<DirtyLog>>,
}

impl Regions {
    fn current(&mut self) -> &Arc<Table> {
        let version = self.version.load(Ordering::Acquire);
        if version != self.seen {
            self.current = self.table.memory().into_inner();
            self.seen = version;
        }
        &self.current
    }
}

impl Translation for Regions {
    fn translate(
        &mut self,
        range: Range,
        access: Access,
        out: &mut Segments,
    ) -> Result<Keep, Fault> {
        let table = Arc::clone(self.current());
        slices(&table, range, |slice| out.push(Segment::of(slice)))?;
        Ok(match (&self.log, access) {
            (Some(log), Access::Write) => Arc::new(Logged::new(log, range, table)),
            _ => table,
        })
    }

    /// Without a share in the table, which would be two atomic operations.
    fn copy(&mut self, range: Range, bytes: TransferBytes<'_>) -> Result<(), Fault> {
        let table = self.current();
        let address = GuestAddress(range.address());
        let copied = match bytes {
            TransferBytes::FromGuest(bytes) => table.read_slice(bytes, address),
            TransferBytes::ToGuest(bytes) => {
                let copied = table.write_slice(bytes, address);
                // what was written before it failed is written, too
                if let Some(log) = &self.log {
                    log.mark(range);
                }
                copied
            }
        };
        copied.map_err(|_| nothing_at(range))
    }

    fn map_ring(&mut self, range: Range, access: Access) -> Result<RingMapping, Fault> {
        let table = Arc::clone(self.current());
        let address = GuestAddress(range.address());
        let region = table.find_region(address);
        let region = region.ok_or_else(|| nothing_at(range))?;
        let start = range.address().saturating_sub(region.start_addr().0);
        let mapping = region.get_mmap();
        let (Ok(start), Ok(len)) = (usize::try_from(start), usize::try_from(range.len())) else {
            return Err(nothing_at(range));
        };
        // a ring's part lies in one region
        if mapping.get_slice(start, len).is_err() {
            return Err(nothing_at(range));
        }
        let logged = match (&self.log, access) {
            (Some(log), Access::Write) => Some(Logged::new(log, range, mapping.clone())),
            _ => None,
        };
        Ok(RingMapping::new(Box::new(RingPart {
            mapping,
            start,
            len,
            _logged: logged,
        })))
    }

    /// Files' pages, mapped as any program maps them.
    fn pinnable(&self) -> bool {
        true
    }
}

fn slices(
    table: &Table,
    range: Range,
    mut each: impl FnMut(&VolatileSlice<'_>),
) -> Result<(), Fault> {
    let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
    let address = GuestAddress(range.address());
    for slice in GuestMemoryBackend::get_slices(table, address, len) {
        each(&slice.map_err(|_| nothing_at(range))?);
    }
    Ok(())
}

fn nothing_at(range: Range) -> Fault {
    Fault::NoTranslation {
        address: range.address(),
        frame: range.address() / swiotlb::PAGE_SIZE,
    }
}

/// A part of a ring; the used one is logged when it is given back.
struct RingPart {
    mapping: Arc<MmapRegion>,
    start: usize,
    len: usize,
    _logged: Option<Logged>,
}

impl HostRange for RingPart {
    fn volatile(&self) -> VolatileSlice<'_> {
        let slice = self.mapping.get_slice(self.start, self.len);
        // `map_ring` has seen that it is inside
        slice.unwrap_or_else(|_| VolatileSlice::from(&mut [] as &mut [u8]))
    }
}
