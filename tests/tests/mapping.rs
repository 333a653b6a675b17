//! Guests of every feature word, and what their disks are reached by.
//!
//! A device model cannot serve dom0, which would be the guest and the back end
//! at once, so the rows of the initial domain (`dom0_like_…`) are tried here
//! and not in the lab: a guest of the fake is served by the mapping that was
//! decided for domain 0.

use std::time::Duration;

use swiotlb::Kind;
use tests::stand::{Setup, disk, slot};
use tests::{Place, Stand};
use vmm::demo::guest::{Addresses, within};
use vmm::guest::{DeviceSlot, DeviceStats, Mapping, Said};
use xen::DomId;
use xen::fake::{Bank, DomainConfig};
use xen::features::FeatureWord;

const LIMIT: Duration = Duration::from_secs(60);
/// Where Xen put the RAM of the direct-mapped guests: their machine address.
const RAM: u64 = 0x8000_0000;
const BYTES: u64 = 64 << 20;
/// Across a border of two chunks, wherever it begins.
const LEN: usize = 2 << 20;

const DIRECT: u32 = 0x0006_6005;
const NOT_DIRECT: u32 = 0x0005_6005;
/// As a Xen from before the bits gives it.
const NEITHER: u32 = 0x0000_6005;
const BOTH: u32 = 0x0007_6005;

fn decided(domid: u16, word: u32) -> Mapping {
    let said = Said {
        toolstack: Some(FeatureWord::from_raw(word)),
        ..Said::default()
    };
    Mapping::decide(DomId(domid), said).unwrap()
}

/// A guest with a word and RAM at 2 GiB.
fn stand(word: u32) -> Stand {
    Stand::with(Setup {
        domain: DomainConfig {
            vcpus: 2,
            features: word,
            banks: vec![Bank {
                first_gfn: RAM >> 12,
                frames: BYTES >> 12,
            }],
            ..DomainConfig::default()
        },
        heap: RAM >> 12,
        ..Setup::default()
    })
}

fn add(stand: &Stand, mapping: Mapping) -> Place {
    let (path, _) = stand.image("disk.img", LEN);
    let place = stand.place(0, Addresses::Plain);
    let slot = DeviceSlot {
        mapping,
        ..slot(&place, disk(&path))
    };
    stand.guest().add(slot).unwrap();
    place
}

/// Writes the whole disk at once, reads it back, and gives what was counted.
fn served(word: u32, mapping: Mapping) -> DeviceStats {
    within("the driver", LIMIT, move || {
        let stand = stand(word);
        let place = add(&stand, mapping);
        round(&stand, &place);
        let stats = stand.guest().snapshot().devices.remove(0);
        stand.finish();
        stats
    })
    .unwrap()
}

fn round(stand: &Stand, place: &Place) {
    let mut disk = stand.drive(place);
    let data: Vec<u8> = (0..LEN).map(|at| (at / 512) as u8).collect();
    disk.write(0, data.clone()).unwrap();
    disk.drain().unwrap();
    disk.read(0, LEN).unwrap();
    let read = disk.drain().unwrap().remove(0);
    assert!(read.data == data, "the disk differs");
}

/// One row: by the word of domain `domid`, its memory is reached without a
/// lookup and in one piece a range, or looked up and cut.
fn row(domid: u16, word: u32) -> Kind {
    let mapping = decided(domid, word);
    let dma = served(word, mapping).dma;
    let looked_up = (dma.lookups > 0, dma.segments > dma.direct);
    let translated = mapping.kind() == Kind::Translated;
    assert_eq!(looked_up, (translated, translated), "{mapping}: {dma:?}");
    assert!(dma.direct > 0 && dma.bounced == 0, "{dma:?}");
    mapping.kind()
}

#[test]
fn dom0_like_without_either_bit_is_one_to_one_and_a_dom_u_is_not() {
    let kinds = [row(0, NEITHER), row(5, NEITHER)];

    assert_eq!(kinds, [Kind::OneToOne, Kind::Translated]);
}

#[test]
fn dom0_like_with_the_not_direct_mapped_bit_is_translated() {
    assert_eq!(row(0, NOT_DIRECT), Kind::Translated);
}

#[test]
fn dom0_like_and_dom_u_with_the_direct_mapped_bit_are_one_to_one() {
    let kinds = [row(0, DIRECT), row(5, DIRECT)];

    assert_eq!(kinds, [Kind::OneToOne, Kind::OneToOne]);
}

#[test]
fn a_dom_u_with_the_not_direct_mapped_bit_is_translated() {
    assert_eq!(row(5, NOT_DIRECT), Kind::Translated);
}

#[test]
fn both_bits_are_one_to_one() {
    let kinds = [row(0, BOTH), row(5, BOTH)];

    assert_eq!(kinds, [Kind::OneToOne, Kind::OneToOne]);
}

#[test]
fn grants_of_a_direct_mapped_guest_are_grants() {
    let stats = within("the driver", LIMIT, || {
        let stand = stand(DIRECT);
        let (path, _) = stand.image("disk.img", LEN);
        let place = stand.place(0, Addresses::Grants);
        let slot = DeviceSlot {
            mapping: decided(5, DIRECT),
            ..slot(&place, disk(&path))
        };
        stand.guest().add(slot).unwrap();
        let mut disk = stand.drive(&place);
        disk.read(0, 4096).unwrap();
        disk.drain().unwrap();
        drop(disk);
        let stats = stand.guest().snapshot().devices.remove(0);
        stand.finish();
        stats
    })
    .unwrap();

    assert_eq!((stats.dma.direct, stats.dma.lookups), (0, 0));
    // mapped or copied
    assert!(stats.dma.granted + stats.dma.bounced > 0);
}

#[test]
fn a_balloon_of_a_direct_mapped_guest_loses_no_byte() {
    let invalidations = within("the driver", LIMIT, || {
        let stand = stand(DIRECT);
        let place = add(&stand, decided(5, DIRECT));
        // above the driver's heap
        let spare = (RAM + BYTES) >> 12;
        for pages in 1..4 {
            round(&stand, &place);
            stand.domain.balloon_out(spare - pages, 1).unwrap();
            round(&stand, &place);
            stand.domain.balloon_in(spare - pages, 1).unwrap();
        }
        let stats = stand.guest().snapshot();
        let dma = stats.devices[0].dma;
        assert_eq!((dma.lookups, dma.rejected), (0, 0));
        stand.finish();
        stats.invalidations
    })
    .unwrap();

    assert!(invalidations >= 3, "{invalidations}");
}
