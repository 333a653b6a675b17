//! Ranges of a server: `xen/common/rangeset.c` through DM_OP.

use super::support::{BASE, LAST, MEMORY, Rig, errno};

#[test]
fn range_whose_start_is_past_its_end_is_refused() {
    let rig = Rig::new();
    let id = rig.create().unwrap();
    assert_eq!(errno(rig.map_range(id, 0x2000, 0x1fff)), libc::EINVAL);
}

#[test]
fn overlapping_range_is_refused() {
    let rig = Rig::new();
    let id = rig.create().unwrap();
    rig.map_range(id, BASE, LAST).unwrap();
    assert_eq!(errno(rig.map_range(id, LAST, LAST + 8)), libc::EEXIST);
    assert_eq!(errno(rig.map_range(id, BASE - 8, BASE)), libc::EEXIST);
    assert_eq!(errno(rig.map_range(id, BASE + 4, BASE + 7)), libc::EEXIST);
}

#[test]
fn kinds_of_ranges_are_separate_and_three() {
    let rig = Rig::new();
    let id = rig.create().unwrap();
    for kind in 0..3 {
        rig.range(3, id, kind, BASE, LAST).unwrap();
    }
    assert_eq!(errno(rig.range(3, id, 3, BASE, LAST)), libc::EINVAL);
    assert_eq!(errno(rig.range(4, id, 3, BASE, LAST)), libc::EINVAL);
}

#[test]
fn range_number_257_is_refused() {
    let rig = Rig::new();
    let id = rig.create().unwrap();
    for index in 0..256 {
        let start = BASE + index * 0x1000;
        rig.map_range(id, start, start + 7).unwrap();
    }
    // rangeset_add_range has no other word for it.
    assert_eq!(errno(rig.map_range(id, 0x100, 0x107)), libc::ENOMEM);
    rig.range(3, id, 0, 0x100, 0x107).unwrap();
}

#[test]
fn adjacent_ranges_count_as_one() {
    let rig = Rig::new();
    let id = rig.create().unwrap();
    for index in 0..300 {
        let start = BASE + index * 0x200;
        rig.map_range(id, start, start + 0x1ff).unwrap();
    }
    rig.map_range(id, BASE - 0x200, BASE - 1).unwrap();
    rig.range(4, id, MEMORY, BASE - 0x200, BASE + 300 * 0x200 - 1)
        .unwrap();
}

#[test]
fn filling_a_gap_joins_three_ranges() {
    let rig = Rig::new();
    let id = rig.create().unwrap();
    rig.map_range(id, 0x1000, 0x1fff).unwrap();
    rig.map_range(id, 0x3000, 0x3fff).unwrap();
    rig.map_range(id, 0x2000, 0x2fff).unwrap();
    rig.range(4, id, MEMORY, 0x1800, 0x37ff).unwrap();
    assert_eq!(
        errno(rig.range(4, id, MEMORY, 0x2000, 0x2fff)),
        libc::ENOENT
    );
    rig.range(4, id, MEMORY, 0x1000, 0x17ff).unwrap();
    rig.range(4, id, MEMORY, 0x3800, 0x3fff).unwrap();
}

#[test]
fn range_that_is_not_mapped_whole_is_not_unmapped() {
    let rig = Rig::new();
    let id = rig.create().unwrap();
    rig.map_range(id, BASE, LAST).unwrap();
    assert_eq!(
        errno(rig.range(4, id, MEMORY, BASE, LAST + 1)),
        libc::ENOENT
    );
    assert_eq!(errno(rig.range(4, id, MEMORY, 5, 4)), libc::EINVAL);
    rig.range(4, id, MEMORY, BASE, LAST).unwrap();
    assert_eq!(errno(rig.range(4, id, MEMORY, BASE, LAST)), libc::ENOENT);
}

#[test]
fn range_up_to_the_end_of_the_address_space_is_taken() {
    let rig = Rig::new();
    let id = rig.create().unwrap();
    rig.map_range(id, u64::MAX - 7, u64::MAX).unwrap();
    assert_eq!(errno(rig.map_range(id, 0, u64::MAX)), libc::EEXIST);
    rig.range(4, id, MEMORY, u64::MAX - 7, u64::MAX).unwrap();
}
