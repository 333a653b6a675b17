//! Originals in vm-memory's guest memory: holes, pieces, dirty pages.

use swiotlb::*;
use vm_memory::{Bytes, GuestAddress};

use crate::stand::*;

#[test]
fn an_original_with_a_hole_cannot_be_mapped() {
    let (allocator, worker) = masked(0);
    let ram = holed();
    let guest = GuestRam(&ram);
    let mapped = worker.map(
        &guest,
        0x1800,
        0x1000,
        Direction::ToDevice,
        &Attrs::default(),
    );
    assert_eq!(mapped.unwrap_err(), Error::OrigFault { offset: 0x800 });
    let stats = allocator.stats();
    assert_eq!((stats.used, stats.maps_bounced, stats.bytes_in), (0, 0, 0));
}

#[test]
fn a_copy_back_marks_exactly_its_bytes_dirty() {
    use vm_memory::bitmap::{AtomicBitmap, Bitmap};
    use vm_memory::{GuestMemory, GuestMemoryMmap, GuestMemoryRegion};
    let regions = [(GuestAddress(0), 0x8000)];
    let ram = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&regions).unwrap();
    let (_allocator, worker) = masked(0);
    let guest = GuestRam(&ram);
    let map = |direction| {
        worker
            .map(&guest, 0x2ffe, 4, direction, &Attrs::default())
            .unwrap()
    };
    let dirty = || {
        let region = vm_memory::GuestMemoryBackend::iter(&ram).next().unwrap();
        let bitmap = region.bitmap();
        (0..8)
            .map(|page| bitmap.dirty_at(page * 4096))
            .collect::<Vec<_>>()
    };
    map(Direction::ToDevice).unmap(&guest).unwrap();
    assert_eq!(dirty(), [false; 8]);
    map(Direction::FromDevice).unmap(&guest).unwrap();
    assert_eq!(
        dirty(),
        [false, false, true, true, false, false, false, false]
    );
    assert!(ram.check_range(GuestAddress(0), 1, vm_memory::Permissions::Read));
}

#[test]
fn guest_memory_in_pieces_is_copied_as_one() {
    let regions = [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)];
    let ram = vm_memory::GuestMemoryMmap::<()>::from_ranges(&regions).unwrap();
    let text = b"over the edge of a region";
    ram.write_slice(text, GuestAddress(0xff8)).unwrap();
    let (_allocator, worker) = masked(0);
    let guest = GuestRam(&ram);
    let len = text.len() as u64;
    let mapping = worker.map(
        &guest,
        0xff8,
        len,
        Direction::Bidirectional,
        &Attrs::default(),
    );
    let mapping = mapping.unwrap();
    assert_eq!(read(&bytes(&mapping)), text);
    bytes(&mapping).copy_from(b"OVER THE EDGE OF A REGION");
    mapping.unmap(&guest).unwrap();
    let mut seen = [0; 25];
    ram.read_slice(&mut seen, GuestAddress(0xff8)).unwrap();
    assert_eq!(&seen, b"OVER THE EDGE OF A REGION");
}
