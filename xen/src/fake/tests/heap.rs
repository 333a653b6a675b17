//! The fake guest's page allocator.

use vm_memory::Bytes;

use super::support::Rig;
use crate::fake::{GuestHeap, HeapError};

const GFN: u64 = 0x40100;

fn heap(frames: u64) -> (Rig, GuestHeap) {
    let rig = Rig::new();
    let heap = GuestHeap::new(&rig.domain, GFN, frames).unwrap();
    (rig, heap)
}

#[test]
fn run_is_the_guests_memory() {
    let (rig, heap) = heap(8);
    let run = heap.alloc(2).unwrap();
    run.volatile().write_slice(b"abc", 4095).unwrap();
    let mut text = [0; 3];
    rig.domain
        .read_memory(run.address() + 4095, &mut text)
        .unwrap();
    assert_eq!(&text, b"abc");
    assert_eq!(run.gfn(), GFN);
    assert_eq!(run.volatile().len(), 8192);
    assert_eq!(
        run.host().as_ptr().cast_const(),
        run.volatile().ptr_guard().as_ptr()
    );
}

#[test]
fn runs_do_not_overlap_and_the_heap_ends() {
    let (_rig, heap) = heap(4);
    let a = heap.alloc(1).unwrap();
    let b = heap.alloc(2).unwrap();
    assert_eq!((a.gfn(), b.gfn()), (GFN, GFN + 1));
    assert_eq!(heap.alloc(2).unwrap_err(), HeapError::Full { pages: 2 });
    assert_eq!(heap.used(), 3);
    heap.alloc(1).unwrap();
    assert_eq!(heap.used(), 4);
}

#[test]
fn freed_pages_rest_before_they_are_given_again() {
    let (_rig, heap) = heap(3);
    let a = heap.alloc(1).unwrap();
    heap.free(a);
    let b = heap.alloc(1).unwrap();
    assert_eq!(b.gfn(), GFN + 1);
    heap.alloc(1).unwrap();
    assert_eq!(heap.alloc(1).unwrap().gfn(), GFN);
}

#[test]
fn pages_given_again_are_zero() {
    let (_rig, heap) = heap(1);
    let run = heap.alloc(1).unwrap();
    run.volatile().write_obj(7u64, 8).unwrap();
    heap.free(run);
    let run = heap.alloc(1).unwrap();
    let mut bytes = [1u8; 4096];
    run.volatile().copy_to(&mut bytes);
    assert_eq!(bytes.iter().position(|byte| *byte != 0), None);
}

#[test]
fn untouched_freed_memory_is_fine() {
    let (_rig, heap) = heap(4);
    let run = heap.alloc(3).unwrap();
    heap.free(run);
    heap.check_poison().unwrap();
}

#[test]
fn change_of_freed_memory_is_found() {
    let (rig, heap) = heap(4);
    let _kept = heap.alloc(1).unwrap();
    let run = heap.alloc(2).unwrap();
    let address = run.address();
    heap.free(run);
    rig.domain
        .write_memory(address + 4096 + 16, &[0; 8])
        .unwrap();
    let broken = heap.check_poison().unwrap_err();
    assert_eq!((broken.gfn, broken.offset), (GFN + 2, 16));
    assert_eq!(broken.found, 0);
}

#[test]
fn change_of_freed_memory_is_found_when_it_is_given_again() {
    let (rig, heap) = heap(1);
    let run = heap.alloc(1).unwrap();
    let address = run.address();
    heap.free(run);
    rig.domain.write_memory(address, &[1]).unwrap();
    assert!(matches!(heap.alloc(1), Err(HeapError::Poison(_))));
    assert!(heap.check_poison().is_err());
}

#[test]
fn run_can_be_freed_by_its_address() {
    let (_rig, heap) = heap(2);
    let address = heap.alloc(2).unwrap().address();
    heap.free_address(address, 2);
    assert_eq!(heap.used(), 0);
    heap.free_address(0, 2);
    heap.check_poison().unwrap();
}
