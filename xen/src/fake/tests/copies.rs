//! GRANT_COPY.

use vm_memory::{Bytes, VolatileSlice};

use super::support::{Rig, errno};
use crate::DomId;
use crate::fake::GntdevFile;
use crate::gntdev::CopySegment;

const GFN: u64 = 0x40000;
const OKAY: i16 = 0;
const GENERAL_ERROR: i16 = -1;
const BAD_DOMAIN: i16 = -2;
const BAD_GNTREF: i16 = -3;
const BAD_PAGE: i16 = -9;
const EAGAIN: i16 = -12;

fn setup() -> (Rig, GntdevFile) {
    let rig = Rig::new();
    let gntdev = rig.machine.open_gntdev().unwrap();
    (rig, gntdev)
}

fn slice(buffer: &mut [u8]) -> VolatileSlice<'_> {
    VolatileSlice::from(buffer)
}

#[test]
fn bytes_go_both_ways() {
    let (rig, gntdev) = setup();
    let gref = rig.domain.grant(GFN, false).unwrap();
    let mut out = *b"to the guest";
    let mut back = [0; 12];
    let mut segments = [
        CopySegment::to_grant(slice(&mut out), rig.dom, gref, 100),
        CopySegment::from_grant(slice(&mut back), rig.dom, gref, 100),
    ];
    gntdev.copy(&mut segments).unwrap();
    assert_eq!(segments.each_ref().map(|one| one.status), [OKAY, OKAY]);
    assert_eq!(&back, b"to the guest");
    let mut guest = [0; 12];
    rig.domain
        .read_memory((GFN << 12) + 100, &mut guest)
        .unwrap();
    assert_eq!(&guest, b"to the guest");
}

#[test]
fn local_side_may_cross_pages() {
    let (rig, gntdev) = setup();
    let gref = rig.domain.grant(GFN, false).unwrap();
    let pattern: Vec<u8> = (0..4096u32).map(|at| (at % 251) as u8).collect();
    rig.domain.write_memory(GFN << 12, &pattern).unwrap();
    let mut buffer = vec![0; 3 * 4096];
    let local = slice(&mut buffer).subslice(2049, 4096).unwrap();
    let mut segments = [CopySegment::from_grant(local, rig.dom, gref, 0)];
    gntdev.copy(&mut segments).unwrap();
    assert_eq!(segments[0].status, OKAY);
    assert_eq!(&buffer[2049..2049 + 4096], &pattern);
    assert_eq!(buffer[2048], 0);
}

#[test]
fn each_segment_has_its_status_and_the_others_run() {
    let (rig, gntdev) = setup();
    let writable = rig.domain.grant(GFN, false).unwrap();
    let read_only = rig.domain.grant(GFN + 1, true).unwrap();
    let gone = rig.domain.grant(GFN + 2, false).unwrap();
    rig.domain.balloon_out(GFN + 2, 1).unwrap();
    let mut buffers = [[7u8; 16]; 7];
    let [a, b, c, d, e, f, g] = buffers.each_mut().map(|buffer| slice(buffer));
    let mut segments = [
        CopySegment::to_grant(a, rig.dom, 100_000, 0),
        CopySegment::to_grant(b, rig.dom, writable + 50, 0),
        CopySegment::to_grant(c, rig.dom, read_only, 0),
        CopySegment::from_grant(d, rig.dom, read_only, 0),
        CopySegment::to_grant(e, DomId(99), writable, 0),
        CopySegment::to_grant(f, rig.dom, gone, 0),
        CopySegment::to_grant(g, rig.dom, writable, 0),
    ];
    gntdev.copy(&mut segments).unwrap();
    assert_eq!(
        segments.each_ref().map(|one| one.status),
        [
            BAD_GNTREF,
            GENERAL_ERROR,
            GENERAL_ERROR,
            OKAY,
            BAD_DOMAIN,
            BAD_PAGE,
            OKAY
        ]
    );
    let mut guest = [0; 16];
    rig.domain.read_memory(GFN << 12, &mut guest).unwrap();
    assert_eq!(guest, [7; 16]);
    rig.domain.read_memory((GFN + 1) << 12, &mut guest).unwrap();
    assert_eq!(guest, [0; 16]);
}

#[test]
fn segment_that_leaves_its_granted_page_fails_the_call() {
    let (rig, gntdev) = setup();
    let gref = rig.domain.grant(GFN, false).unwrap();
    let mut buffer = [0; 16];
    let mut segments = [CopySegment::from_grant(
        slice(&mut buffer),
        rig.dom,
        gref,
        4081,
    )];
    assert_eq!(errno(gntdev.copy(&mut segments)), libc::EINVAL);
    segments[0].offset = 4080;
    gntdev.copy(&mut segments).unwrap();
}

#[test]
fn local_side_has_to_be_memory_that_can_be_pinned() {
    let (rig, gntdev) = setup();
    let gref = rig.domain.grant(GFN, false).unwrap();
    let foreign = rig
        .privcmd
        .mmap_batch(rig.dom, &[GFN + 5], &mut [0], true)
        .unwrap();
    let local = foreign.volatile().subslice(8, 16).unwrap();
    let mut segments = [CopySegment::from_grant(local, rig.dom, gref, 0)];
    assert_eq!(errno(gntdev.copy(&mut segments)), libc::EFAULT);

    let other = rig.domain.grant(GFN + 6, false).unwrap();
    let index = gntdev.map(&[(rig.dom, other)]).unwrap();
    let granted = gntdev.mmap(index, 1, true).unwrap();
    granted.volatile().write_obj(0x55u8, 0).unwrap();
    let mut segments = [CopySegment::to_grant(granted.volatile(), rig.dom, gref, 0)];
    gntdev.copy(&mut segments).unwrap();
    let mut byte = [0];
    rig.domain.read_memory(GFN << 12, &mut byte).unwrap();
    assert_eq!(byte, [0x55]);
}

#[test]
fn planned_statuses_come_before_the_copy() {
    let (rig, gntdev) = setup();
    let gref = rig.domain.grant(GFN, false).unwrap();
    rig.domain.fail_copies(gref, &[EAGAIN, OKAY, -8]).unwrap();
    let copy = || {
        let mut buffer = [9; 4];
        let mut segments = [CopySegment::to_grant(slice(&mut buffer), rig.dom, gref, 0)];
        gntdev.copy(&mut segments).unwrap();
        segments[0].status
    };
    assert_eq!([copy(), copy(), copy(), copy()], [EAGAIN, OKAY, -8, OKAY]);
    assert!(rig.domain.fail_copies(gref + 1, &[EAGAIN]).is_err());
}

#[test]
fn copy_holds_no_grant() {
    let (rig, gntdev) = setup();
    let gref = rig.domain.grant(GFN, false).unwrap();
    let mut buffer = [0; 4096];
    let mut segments = [CopySegment::from_grant(
        slice(&mut buffer),
        rig.dom,
        gref,
        0,
    )];
    gntdev.copy(&mut segments).unwrap();
    rig.domain.end_access(gref).unwrap();
}

#[test]
fn many_segments_are_all_copied() {
    let (rig, gntdev) = setup();
    let first = rig.domain.grant_range(GFN, 40, false).unwrap();
    let mut buffers: Vec<[u8; 64]> = (0..40).map(|at| [at; 64]).collect();
    let mut segments: Vec<_> = buffers
        .iter_mut()
        .zip(first..)
        .map(|(buffer, gref)| CopySegment::to_grant(slice(buffer), rig.dom, gref, 0))
        .collect();
    gntdev.copy(&mut segments).unwrap();
    assert!(segments.iter().all(|one| one.status == OKAY));
    for page in 0..40u64 {
        let mut byte = [0];
        rig.domain
            .read_memory((GFN + page) << 12, &mut byte)
            .unwrap();
        assert_eq!(u64::from(byte[0]), page);
    }
}

#[test]
fn segment_keeps_the_first_failure_of_its_pieces() {
    let (rig, gntdev) = setup();
    let gref = rig.domain.grant(GFN, false).unwrap();
    rig.domain.write_memory(GFN << 12, &[7; 4096]).unwrap();
    // The local side is in two pages, so Xen sees two copies.
    rig.domain.fail_copies(gref, &[EAGAIN, OKAY]).unwrap();
    let mut buffer = vec![0; 3 * 4096];
    let start = 4096 - buffer.as_ptr().addr() % 4096;
    let local = slice(&mut buffer).subslice(start + 4000, 200).unwrap();
    let mut segments = [CopySegment::from_grant(local, rig.dom, gref, 0)];
    gntdev.copy(&mut segments).unwrap();
    assert_eq!(segments[0].status, EAGAIN);
    assert_eq!(buffer[start + 4095..start + 4097], [0, 7]);
}

#[test]
fn refused_segment_takes_its_batch_with_it() {
    let (rig, gntdev) = setup();
    let first = rig.domain.grant_range(GFN, 20, false).unwrap();
    let mut buffer = vec![1u8; 2 * 4096];
    let start = 4096 - buffer.as_ptr().addr() % 4096;
    let local = slice(&mut buffer);
    let mut segments: Vec<_> = (0..20usize)
        .zip(first..)
        .map(|(at, gref)| {
            let piece = local.subslice(start + at * 16, 16).unwrap();
            CopySegment::to_grant(piece, rig.dom, gref, 0)
        })
        .collect();
    segments[19].offset = 4090;
    assert_eq!(errno(gntdev.copy(&mut segments)), libc::EINVAL);
    let copied: Vec<u8> = (0..20u64)
        .map(|page| {
            let mut byte = [0];
            let address = (GFN + page) << 12;
            rig.domain.read_memory(address, &mut byte).unwrap();
            byte[0]
        })
        .collect();
    // gntdev hands Xen sixteen at a time.
    assert_eq!(copied, [[1; 16].as_slice(), &[0; 4]].concat());
}

#[test]
fn grant_of_a_zombie_cannot_be_copied() {
    let (rig, gntdev) = setup();
    let gref = rig.domain.grant(GFN, false).unwrap();
    let _held = rig
        .privcmd
        .mmap_batch(rig.dom, &[GFN], &mut [0], true)
        .unwrap();
    rig.domain.destroy();
    let mut buffer = [0; 4];
    let mut segments = [CopySegment::from_grant(
        slice(&mut buffer),
        rig.dom,
        gref,
        0,
    )];
    gntdev.copy(&mut segments).unwrap();
    assert_eq!(segments[0].status, BAD_PAGE);
}
