//! Behaviour of grants over the fake.

use vm_memory::{Bytes, VolatileSlice};

use super::*;
use crate::Host;
use crate::fake::{Call, Domain, DomainConfig, Machine, Target};

const GFN: u64 = 0x40010;

fn guest() -> (Machine, Domain, Gntdev) {
    let machine = Machine::new().unwrap();
    let domain = machine.create_domain(DomainConfig::default()).unwrap();
    let gntdev = Host::Fake(machine.clone()).open_gntdev().unwrap();
    (machine, domain, gntdev)
}

fn refs(domain: &Domain, first: u32, count: u32) -> Vec<(DomId, u32)> {
    (first..first + count)
        .map(|gref| (domain.id(), gref))
        .collect()
}

fn mapped(machine: &Machine, domain: &Domain) -> u64 {
    machine.census()[&domain.id()].mapped_grants
}

fn slice(bytes: &mut [u8]) -> VolatileSlice<'_> {
    VolatileSlice::from(bytes)
}

#[test]
fn many_grants_are_one_range_in_the_order_given() {
    let (_machine, domain, gntdev) = guest();
    let first = domain.grant_range(GFN, 3, false).unwrap();
    for page in 0..3u8 {
        let address = Domain::address_of(GFN + u64::from(page));
        domain.write_memory(address, &[page + 1]).unwrap();
    }
    let reversed: Vec<_> = refs(&domain, first, 3).into_iter().rev().collect();

    let mapping = gntdev.map(&reversed, true).unwrap();

    let bytes = mapping.volatile();
    let seen = [0, 1, 2].map(|page| bytes.read_obj::<u8>(page * PAGE_SIZE).unwrap());
    assert_eq!(seen, [3, 2, 1]);
    assert_eq!(mapping.count(), 3);
    assert_eq!(mapping.mapping().len(), 3 * PAGE_SIZE);
}

#[test]
fn what_is_written_reaches_the_guest() {
    let (_machine, domain, gntdev) = guest();
    let gref = domain.grant(GFN, false).unwrap();
    let mapping = gntdev.map(&[(domain.id(), gref)], true).unwrap();

    mapping.volatile().write_slice(b"hello", 100).unwrap();

    let mut seen = [0; 5];
    domain
        .read_memory(Domain::address_of(GFN) + 100, &mut seen)
        .unwrap();
    assert_eq!(&seen, b"hello");
}

#[test]
fn a_read_only_grant_refuses_a_writable_map() {
    let (machine, domain, gntdev) = guest();
    let gref = domain.grant(GFN, true).unwrap();
    let refs = [(domain.id(), gref)];

    let writable = gntdev.map(&refs, true);
    let held = mapped(&machine, &domain);
    let readable = gntdev.map(&refs, false).unwrap();

    let error = writable.unwrap_err();
    assert!(matches!(error, Error::Map { write: true, .. }));
    assert!(error.to_string().contains("read-write"));
    assert_eq!(held, 0);
    assert!(!readable.mapping().is_writable());
}

#[test]
fn one_bad_reference_fails_the_whole_map() {
    let (machine, domain, gntdev) = guest();
    let first = domain.grant_range(GFN, 2, false).unwrap();
    let mut three = refs(&domain, first, 2);
    three.push((domain.id(), first + 100));

    let result = gntdev.map(&three, false);

    assert!(matches!(
        result,
        Err(Error::Map {
            count: 3,
            write: false,
            ..
        })
    ));
    assert_eq!(mapped(&machine, &domain), 0);
    domain.end_access_range(first, 2).unwrap();
}

#[test]
fn a_map_of_nothing_is_refused() {
    let (_machine, _domain, gntdev) = guest();

    assert!(matches!(gntdev.map(&[], true), Err(Error::Nothing)));
}

#[test]
fn more_grants_than_the_driver_takes_are_refused() {
    let (machine, domain, gntdev) = guest();
    machine.reconfigure(|config| config.gntdev_limit = 2);
    let first = domain.grant_range(GFN, 3, false).unwrap();

    let result = gntdev.map(&refs(&domain, first, 3), false);

    assert!(matches!(result, Err(Error::Announce { count: 3, .. })));
}

#[test]
fn the_guest_gets_its_grants_back() {
    let (machine, domain, gntdev) = guest();
    let first = domain.grant_range(GFN, 4, false).unwrap();
    let dropped = gntdev.map(&refs(&domain, first, 2), true).unwrap();
    let unmapped = gntdev.map(&refs(&domain, first + 2, 2), true).unwrap();
    let held = mapped(&machine, &domain);

    drop(dropped);
    unmapped.unmap().unwrap();

    assert_eq!(held, 4);
    assert_eq!(mapped(&machine, &domain), 0);
    domain.end_access_range(first, 4).unwrap();
    assert_eq!(domain.broken_grants().unwrap(), 0);
}

#[test]
fn a_batch_is_given_back_whatever_becomes_of_one() {
    let (machine, domain, gntdev) = guest();
    let first = domain.grant_range(GFN, 3, false).unwrap();
    let batch: Vec<_> = (first..first + 3)
        .map(|gref| gntdev.map(&[(domain.id(), gref)], true).unwrap())
        .collect();
    machine.fail(Target::Call(Call::GrantUnmap), 1, libc::ENOENT);

    let result = Gntdev::unmap_all(batch);

    assert!(matches!(result, Err(Error::Unmap { count: 1, .. })));
    assert_eq!(mapped(&machine, &domain), 1);
    domain.end_access(first).unwrap_err();
    domain.end_access_range(first + 1, 2).unwrap();
}

#[test]
fn copies_go_both_ways() {
    let (_machine, domain, gntdev) = guest();
    let gref = domain.grant(GFN, false).unwrap();
    let address = Domain::address_of(GFN);
    domain.write_memory(address + 10, b"from").unwrap();
    let (mut from, mut to) = (*b"....", *b"to");
    let mut segments = [
        CopySegment::from_grant(slice(&mut from), domain.id(), gref, 10),
        CopySegment::to_grant(slice(&mut to), domain.id(), gref, 20),
    ];

    gntdev.copy(&mut segments).unwrap();

    assert!(segments.iter().all(|segment| segment.result().is_ok()));
    let mut written = [0; 2];
    domain.read_memory(address + 20, &mut written).unwrap();
    assert_eq!(&from, b"from");
    assert_eq!(&written, b"to");
}

#[test]
fn a_copy_past_the_page_goes_on_in_the_next_reference() {
    let (_machine, domain, gntdev) = guest();
    let first = domain.grant_range(GFN, 3, true).unwrap();
    let pattern: Vec<u8> = (0..8192u32).map(|i| (i % 251) as u8).collect();
    domain
        .write_memory(Domain::address_of(GFN) + 4000, &pattern)
        .unwrap();
    let mut local = vec![0; pattern.len()];
    let mut segments = [CopySegment::from_grant(
        slice(&mut local),
        domain.id(),
        first,
        4000,
    )];

    gntdev.copy(&mut segments).unwrap();

    assert_eq!(segments[0].result(), Ok(()));
    assert_eq!(local, pattern);
}

#[test]
fn each_segment_has_its_own_status() {
    let (_machine, domain, gntdev) = guest();
    let good = domain.grant(GFN, false).unwrap();
    let read_only = domain.grant(GFN + 1, true).unwrap();
    let mut locals = [[1u8; 16]; 4];
    let [a, b, c, d] = &mut locals;
    let mut segments = [
        CopySegment::to_grant(slice(a), domain.id(), good, 0),
        CopySegment::to_grant(slice(b), domain.id(), read_only, 0),
        CopySegment::from_grant(slice(c), domain.id(), good + 400, 0),
        CopySegment::from_grant(slice(d), domain.id(), read_only, 0),
    ];

    gntdev.copy(&mut segments).unwrap();

    assert_eq!(segments[0].result(), Ok(()));
    assert!(segments[1].result().is_err());
    // Xen's word for a reference that is not granted.
    assert_eq!(segments[2].result(), Err(GrantStatus::General));
    assert_eq!(segments[3].result(), Ok(()));
}

#[test]
fn a_split_segment_takes_the_first_bad_status() {
    let (_machine, domain, gntdev) = guest();
    let only = domain.grant(GFN, false).unwrap();
    let (mut local, mut other) = ([0; 200], [0; 8]);
    let mut segments = [
        CopySegment::from_grant(slice(&mut local), domain.id(), only, 4000),
        CopySegment::from_grant(slice(&mut other), domain.id(), only, 0),
    ];

    gntdev.copy(&mut segments).unwrap();

    assert_eq!(segments[0].result(), Err(GrantStatus::General));
    assert_eq!(segments[1].result(), Ok(()));
}

#[test]
fn no_reference_follows_the_last() {
    let (_machine, domain, gntdev) = guest();
    let mut local = [0; 200];
    let mut segments = [CopySegment::from_grant(
        slice(&mut local),
        domain.id(),
        u32::MAX,
        4000,
    )];

    gntdev.copy(&mut segments).unwrap();

    assert_eq!(segments[0].result(), Err(GrantStatus::BadReference));
}

#[test]
fn a_copy_of_no_bytes_succeeds() {
    let (_machine, domain, gntdev) = guest();
    let mut segments = [CopySegment::from_grant(slice(&mut []), domain.id(), 9, 0)];

    gntdev.copy(&mut segments).unwrap();

    assert_eq!(segments[0].result(), Ok(()));
}

#[test]
fn a_paged_out_page_is_tried_again() {
    let (_machine, domain, gntdev) = guest();
    let gref = domain.grant(GFN, false).unwrap();
    domain
        .write_memory(Domain::address_of(GFN), b"late")
        .unwrap();
    let again = GrantStatus::AGAIN;
    domain.fail_copies(gref, &[again, again, 0]).unwrap();
    let mut local = *b"....";
    let mut segments = [CopySegment::from_grant(
        slice(&mut local),
        domain.id(),
        gref,
        0,
    )];

    gntdev.copy(&mut segments).unwrap();

    assert_eq!(segments[0].result(), Ok(()));
    assert_eq!(&local, b"late");
}

#[test]
fn a_page_that_stays_out_fails_in_the_end() {
    let (_machine, domain, gntdev) = guest();
    let gref = domain.grant(GFN, false).unwrap();
    domain
        .fail_copies(gref, &[GrantStatus::AGAIN; 100])
        .unwrap();
    let mut local = [0; 4];
    let mut segments = [CopySegment::from_grant(
        slice(&mut local),
        domain.id(),
        gref,
        0,
    )];

    gntdev.copy(&mut segments).unwrap();

    assert_eq!(segments[0].result(), Err(GrantStatus::Again));
}

#[test]
fn a_refused_batch_marks_every_segment() {
    let (machine, domain, gntdev) = guest();
    let gref = domain.grant(GFN, false).unwrap();
    let (mut a, mut b) = ([0; 4], [0; 4]);
    let mut segments = [
        CopySegment::from_grant(slice(&mut a), domain.id(), gref, 0),
        CopySegment::from_grant(slice(&mut b), domain.id(), gref, 4094),
    ];
    machine.fail(Target::Call(Call::GrantCopy), 1, libc::EFAULT);

    let result = gntdev.copy(&mut segments);

    assert!(matches!(result, Err(Error::Copy { .. })));
    assert!(
        segments
            .iter()
            .all(|segment| segment.result() == Err(GrantStatus::General))
    );
}

#[test]
fn a_segment_that_was_not_run_is_no_success() {
    let mut local = [0; 4];

    let segment = CopySegment::from_grant(slice(&mut local), DomId(1), 1, 0);

    assert_eq!(segment.result(), Err(GrantStatus::NotRun));
}
