//! Grant tables and gntdev's maps.

use vm_memory::Bytes;

use super::support::{Rig, errno};
use crate::fake::{DomainConfig, GntdevFile, GrantError, MachineConfig};
use crate::{DomId, Mapping};

const GFN: u64 = 0x40000;

fn setup() -> (Rig, GntdevFile) {
    let rig = Rig::new();
    let gntdev = rig.machine.open_gntdev().unwrap();
    (rig, gntdev)
}

fn map_one(rig: &Rig, gntdev: &GntdevFile, gref: u32, write: bool) -> (u64, Mapping) {
    let index = gntdev.map(&[(rig.dom, gref)]).unwrap();
    let map = gntdev.mmap(index, 1, write).unwrap();
    (index, map)
}

fn mapped(rig: &Rig) -> u64 {
    rig.machine.census()[&rig.dom].mapped_grants
}

#[test]
fn mapped_grants_are_the_guests_memory_in_their_order() {
    let (rig, gntdev) = setup();
    for page in 0..3 {
        let address = (GFN + page) << 12;
        rig.domain
            .write_memory(address, &page.to_le_bytes())
            .unwrap();
    }
    let first = rig.domain.grant_range(GFN, 3, false).unwrap();
    let refs = [2, 0, 1].map(|page| (rig.dom, first + page));
    let index = gntdev.map(&refs).unwrap();
    let map = gntdev.mmap(index, 3, true).unwrap();
    let word = |page: usize| map.volatile().read_obj::<u64>(page * 4096).unwrap();
    assert_eq!([word(0), word(1), word(2)], [2, 0, 1]);
    map.volatile().write_obj(77u64, 0).unwrap();
    let mut bytes = [0; 8];
    rig.domain.read_memory((GFN + 2) << 12, &mut bytes).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), 77);
}

#[test]
fn first_references_are_reserved() {
    let (rig, _) = setup();
    assert_eq!(rig.domain.grant(GFN, false).unwrap(), 8);
}

#[test]
fn references_of_a_range_follow_each_other_around_those_in_use() {
    let (rig, _) = setup();
    let a = rig.domain.grant_range(GFN, 3, false).unwrap();
    let b = rig.domain.grant(GFN, false).unwrap();
    rig.domain.end_access_range(a, 3).unwrap();
    let c = rig.domain.grant_range(GFN, 4, false).unwrap();
    assert!(c > b);
    assert_eq!(rig.domain.granted().unwrap(), 5);
}

#[test]
fn freed_references_are_given_again_before_the_table_is_full() {
    let config = DomainConfig {
        grant_frames: 1,
        ..DomainConfig::default()
    };
    let rig = Rig::with(MachineConfig::default(), config);
    let first = rig.domain.grant_range(GFN, 504, false).unwrap();
    assert_eq!(
        rig.domain.grant(GFN, false),
        Err(GrantError::Full { count: 1 })
    );
    rig.domain.end_access(first + 100).unwrap();
    assert_eq!(rig.domain.grant(GFN, false).unwrap(), first + 100);
}

#[test]
fn table_grows_to_its_limit() {
    let config = DomainConfig {
        grant_frames: 2,
        ..DomainConfig::default()
    };
    let rig = Rig::with(MachineConfig::default(), config);
    rig.domain.grant_range(GFN, 1016, false).unwrap();
    assert!(rig.domain.grant(GFN, false).is_err());
}

#[test]
fn frame_without_page_cannot_be_granted() {
    let (rig, _) = setup();
    assert_eq!(
        rig.domain.grant_range(0x10, 1, false),
        Err(GrantError::NoPage { gfn: 0x10 })
    );
}

#[test]
fn nothing_is_looked_at_before_mmap() {
    let (rig, gntdev) = setup();
    let index = gntdev.map(&[(DomId(99), 1), (rig.dom, 4_000_000)]).unwrap();
    assert_eq!(mapped(&rig), 0);
    assert_eq!(errno(gntdev.mmap(index, 2, false)), libc::EINVAL);
}

#[test]
fn one_bad_reference_fails_the_whole_map() {
    let (rig, gntdev) = setup();
    let good = rig.domain.grant(GFN, false).unwrap();
    for bad in [good + 1, 100_000] {
        let index = gntdev.map(&[(rig.dom, good), (rig.dom, bad)]).unwrap();
        assert_eq!(errno(gntdev.mmap(index, 2, true)), libc::EINVAL);
        // Xen has mapped the good one until the range is unmapped.
        assert_eq!(mapped(&rig), 1);
        gntdev.unmap(index, 2).unwrap();
        assert_eq!(mapped(&rig), 0);
    }
}

#[test]
fn range_is_mapped_once_even_if_that_failed() {
    let (rig, gntdev) = setup();
    let gref = rig.domain.grant(GFN, true).unwrap();
    let index = gntdev.map(&[(rig.dom, gref)]).unwrap();
    assert_eq!(errno(gntdev.mmap(index, 1, true)), libc::EINVAL);
    assert_eq!(errno(gntdev.mmap(index, 1, false)), libc::EINVAL);
    let (index, _map) = map_one(&rig, &gntdev, gref, false);
    assert_eq!(errno(gntdev.mmap(index, 1, false)), libc::EINVAL);
}

#[test]
fn read_only_grant_refuses_a_writable_map() {
    let (rig, gntdev) = setup();
    let gref = rig.domain.grant(GFN, true).unwrap();
    let index = gntdev.map(&[(rig.dom, gref)]).unwrap();
    assert_eq!(errno(gntdev.mmap(index, 1, true)), libc::EINVAL);
    let (_, map) = map_one(&rig, &gntdev, gref, false);
    assert!(!map.is_writable());
}

#[test]
fn only_exact_ranges_are_mapped_and_unmapped() {
    let (rig, gntdev) = setup();
    let first = rig.domain.grant_range(GFN, 2, false).unwrap();
    let index = gntdev
        .map(&[(rig.dom, first), (rig.dom, first + 1)])
        .unwrap();
    assert_eq!(errno(gntdev.mmap(index, 1, true)), libc::EINVAL);
    assert_eq!(errno(gntdev.mmap(index + 4096, 1, true)), libc::EINVAL);
    assert_eq!(errno(gntdev.unmap(index, 1)), libc::ENOENT);
    assert_eq!(errno(gntdev.unmap(index + 4096, 1)), libc::ENOENT);
    gntdev.unmap(index, 2).unwrap();
    assert_eq!(errno(gntdev.unmap(index, 2)), libc::ENOENT);
    assert_eq!(errno(gntdev.mmap(index, 2, true)), libc::EINVAL);
}

#[test]
fn request_of_no_or_too_many_references_is_refused() {
    let config = MachineConfig {
        gntdev_limit: 4,
        ..MachineConfig::default()
    };
    let rig = Rig::with(config, DomainConfig::default());
    let gntdev = rig.machine.open_gntdev().unwrap();
    assert_eq!(errno(gntdev.map(&[])), libc::EINVAL);
    assert_eq!(errno(gntdev.map(&[(rig.dom, 8); 5])), libc::EINVAL);
    gntdev.map(&[(rig.dom, 8); 4]).unwrap();
}

#[test]
fn ranges_do_not_overlap_in_the_file() {
    let (rig, gntdev) = setup();
    let a = gntdev.map(&[(rig.dom, 8); 2]).unwrap();
    let b = gntdev.map(&[(rig.dom, 8); 3]).unwrap();
    let c = gntdev.map(&[(rig.dom, 8); 1]).unwrap();
    assert_eq!([a, b, c], [0, 2 * 4096, 5 * 4096]);
    gntdev.unmap(b, 3).unwrap();
    let d = gntdev.map(&[(rig.dom, 8); 2]).unwrap();
    assert_eq!(d, 2 * 4096);
}

#[test]
fn grant_is_given_back_when_unmapped_both_ways() {
    let (rig, gntdev) = setup();
    let gref = rig.domain.grant(GFN, false).unwrap();

    let (index, map) = map_one(&rig, &gntdev, gref, true);
    drop(map);
    assert_eq!(mapped(&rig), 1, "munmap alone");
    gntdev.unmap(index, 1).unwrap();
    assert_eq!(mapped(&rig), 0);

    let (index, map) = map_one(&rig, &gntdev, gref, true);
    gntdev.unmap(index, 1).unwrap();
    assert_eq!(mapped(&rig), 1, "the ioctl alone");
    drop(map);
    assert_eq!(mapped(&rig), 0);
    rig.domain.end_access(gref).unwrap();
}

#[test]
fn closed_file_gives_everything_back_after_its_last_mapping() {
    let (rig, gntdev) = setup();
    let gref = rig.domain.grant(GFN, false).unwrap();
    let (_, map) = map_one(&rig, &gntdev, gref, true);
    let (_, other) = map_one(&rig, &gntdev, gref, true);
    drop(other);
    drop(gntdev);
    assert_eq!(mapped(&rig), 2);
    drop(map);
    assert_eq!(mapped(&rig), 0);
}

#[test]
fn grant_in_use_breaks_the_guest_for_good() {
    let (rig, gntdev) = setup();
    let gref = rig.domain.grant(GFN, false).unwrap();
    let (index, map) = map_one(&rig, &gntdev, gref, true);
    assert_eq!(
        rig.domain.end_access(gref),
        Err(GrantError::StillInUse { gref })
    );
    assert_eq!(rig.domain.broken_grants().unwrap(), 1);
    drop(map);
    gntdev.unmap(index, 1).unwrap();
    // Leaked: the reference is not given out again.
    assert_eq!(rig.domain.granted().unwrap(), 1);
    assert_eq!(rig.domain.broken_grants().unwrap(), 1);
}

#[test]
fn ending_what_is_not_granted_is_an_error() {
    let (rig, _) = setup();
    assert_eq!(
        rig.domain.end_access(8),
        Err(GrantError::NotGranted { gref: 8 })
    );
}

#[test]
fn every_grant_of_a_range_is_tried_at_its_end() {
    let (rig, gntdev) = setup();
    let first = rig.domain.grant_range(GFN, 3, false).unwrap();
    let (_, _map) = map_one(&rig, &gntdev, first, true);
    assert_eq!(
        rig.domain.end_access_range(first, 3),
        Err(GrantError::StillInUse { gref: first })
    );
    assert_eq!(rig.domain.granted().unwrap(), 1);
}

#[test]
fn grant_mapped_twice_is_held_twice() {
    let (rig, gntdev) = setup();
    let gref = rig.domain.grant(GFN, false).unwrap();
    let (a, one) = map_one(&rig, &gntdev, gref, true);
    let (b, two) = map_one(&rig, &gntdev, gref, false);
    drop(one);
    gntdev.unmap(a, 1).unwrap();
    assert!(rig.domain.end_access(gref).is_err());
    drop(two);
    gntdev.unmap(b, 1).unwrap();
    assert_eq!(mapped(&rig), 0);
}

#[test]
fn pinned_grant_is_given_back_when_the_pin_goes() {
    let (rig, gntdev) = setup();
    let first = rig.domain.grant_range(GFN, 2, false).unwrap();
    let index = gntdev
        .map(&[(rig.dom, first), (rig.dom, first + 1)])
        .unwrap();
    let map = gntdev.mmap(index, 2, true).unwrap();
    let one = rig.machine.pin(map.address(), 512).unwrap();
    let two = rig.machine.pin(map.address() + 4096, 512).unwrap();
    drop(map);
    gntdev.unmap(index, 2).unwrap();
    // One pinned page defers the whole range.
    drop(one);
    assert_eq!(mapped(&rig), 2);
    assert!(rig.domain.end_access(first).is_err());
    drop(two);
    assert_eq!(mapped(&rig), 0);
}

#[test]
fn pin_that_ends_before_the_unmap_defers_nothing() {
    let (rig, gntdev) = setup();
    let gref = rig.domain.grant(GFN, false).unwrap();
    let (index, map) = map_one(&rig, &gntdev, gref, true);
    drop(rig.machine.pin(map.address(), 4096).unwrap());
    assert_eq!(mapped(&rig), 1);
    drop(map);
    gntdev.unmap(index, 1).unwrap();
    assert_eq!(mapped(&rig), 0);
}

#[test]
fn grant_of_a_ballooned_frame_cannot_be_mapped() {
    let (rig, gntdev) = setup();
    let gref = rig.domain.grant(GFN, false).unwrap();
    rig.domain.balloon_out(GFN, 1).unwrap();
    let index = gntdev.map(&[(rig.dom, gref)]).unwrap();
    assert_eq!(errno(gntdev.mmap(index, 1, true)), libc::EINVAL);
}
