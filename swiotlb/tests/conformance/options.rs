//! Options and sizes of pools.

use proptest::prelude::*;
use swiotlb::allocator::{BringUp, Ensured};
use swiotlb::options::{Bouncing, Options};
use swiotlb::sizing::{PoolShrunk, SEGMENT_SLOTS};
use swiotlb::*;

use crate::stand::*;

fn parse(text: &str) -> Options {
    text.parse().unwrap()
}

/// Slots, areas and slots of an area on a machine of 8 processors.
fn sizes(text: &str) -> (u32, u32, u32) {
    let sizing = parse(text).sizing(8);
    (sizing.nslots(), sizing.nareas(), sizing.area_slots())
}

#[test]
fn v14_options_give_slots_and_areas() {
    assert_eq!(sizes(""), (32_768, 8, 4096));
    assert_eq!(sizes("1000"), (1024, 8, 128));
    assert_eq!(sizes("65536,3"), (65_536, 4, 16_384));
    assert_eq!(sizes("5000,4"), (8192, 4, 2048));
    assert_eq!(sizes("129,1"), (256, 1, 256));
    assert_eq!(sizes("4096,0"), (4096, 1, 4096));
    assert_eq!(sizes(",4"), (32_768, 4, 8192));
    assert_eq!(sizes("0x8000"), (32_768, 8, 4096));
}

#[test]
fn v15_every_area_has_a_segment() {
    assert_eq!(sizes("1000,16"), (2048, 16, 128));
    assert_eq!(sizes("0"), (1024, 8, 128));
}

#[test]
fn v15_a_pool_that_shrinks_loses_areas_and_says_so() {
    let settings = Settings {
        workers: 8,
        ..settings("1000,16")
    };
    let allocator = Allocator::new(settings, AddressSpace::one_to_one());
    let mut tried = Vec::new();
    let mut source = |bytes: u64, _limit: u64| {
        tried.push(bytes / 2048);
        match bytes / 2048 {
            512 => PoolMemory::anonymous(bytes, Base::At(BASE)),
            _ => Err(Error::NoMemory { bytes, os_error: 0 }),
        }
    };
    let ensured = allocator.ensure_default_pool(BringUp {
        source: &mut source,
        limit: None,
        remap: None,
        probe: &mut || false,
        pv_pci: false,
    });
    let shrunk = PoolShrunk {
        wanted: 2048,
        got: 512,
    };
    assert_eq!(ensured, Ok(Ensured::Created(Some(shrunk))));
    assert_eq!(tried, [2048, 1024, 512]);
    // four areas of 128 slots: hints 0 to 3 start 128 slots apart
    let slots: Vec<u32> = (0..4)
        .map(|hint| {
            let worker = worker(&allocator, forced(), hint);
            let mapping = worker.map(&NoRam, 0, 64, Direction::ToDevice, &Attrs::default());
            placed(&mapping.unwrap()).0
        })
        .collect();
    assert_eq!(slots, [0, 128, 256, 384]);
}

#[test]
fn a_pool_below_the_least_size_is_no_pool() {
    let allocator = Allocator::new(settings(""), AddressSpace::one_to_one());
    let mut tries = 0;
    let mut source = |bytes: u64, _limit: u64| {
        tries += 1;
        Err::<PoolMemory, _>(Error::NoMemory {
            bytes,
            os_error: 12,
        })
    };
    let ensured = allocator.ensure_default_pool(BringUp {
        source: &mut source,
        limit: None,
        remap: None,
        probe: &mut || false,
        pv_pci: false,
    });
    let bytes = 512 * 2048;
    assert_eq!(
        ensured,
        Err(Error::NoMemory {
            bytes,
            os_error: 12
        })
    );
    assert_eq!(tries, 7, "32768 halved down to 512");
    assert!(!allocator.is_active());
}

#[test]
fn v16_force_noforce_and_hiwater() {
    assert_eq!(parse("force").bouncing, Bouncing::Forced);
    let options = parse("65536,force");
    assert_eq!(options.bouncing, Bouncing::Forced);
    assert_eq!(options.sizing(8).nslots(), 65_536);
    let options = parse("32768,2,force,track_hiwater");
    assert_eq!(options.bouncing, Bouncing::Forced);
    assert!(options.track_hiwater);
    assert_eq!(options.sizing(8).nareas(), 2);
}

#[test]
fn v16_noforce_makes_no_pool() {
    let allocator = Allocator::new(settings("noforce"), AddressSpace::one_to_one());
    assert_eq!(ensure(&allocator, BASE), Ok(Ensured::Suppressed));
    let worker = worker(&allocator, forced(), 0);
    let mapped = worker.map(&NoRam, 0, 64, Direction::ToDevice, &Attrs::default());
    assert_eq!(mapped.unwrap_err(), Error::NoPool);
}

#[test]
fn v17_bad_options_are_refused() {
    let bad = [
        "forceful",
        "force,noforce",
        "12x",
        "-1",
        "1,2,3",
        "99999999999999999999",
        "+1",
        "0x",
        "1,",
        ",",
        "force,force",
        "force,1",
        "track_hiwater,force",
        "0xffffffffffffffff",
        "1,0xffffffff",
    ];
    for text in bad {
        let parsed: Result<Options, Error> = text.parse();
        assert!(
            matches!(parsed, Err(Error::BadOption { .. })),
            "{text:?}: {parsed:?}"
        );
    }
}

#[test]
fn the_platform_sets_a_size_only_where_the_options_do_not() {
    let mut options = Options::default();
    assert!(options.adjust_size(1000));
    assert_eq!(options.sizing(1).nslots(), 1024);
    let mut options = parse("4096");
    assert!(!options.adjust_size(1000));
    assert_eq!(options.sizing(1).nslots(), 4096);
}

fn any_options() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        Just(String::new()),
        (0u32..200_000).prop_map(|n| n.to_string())
    ];
    let force = prop_oneof![Just(""), Just("force"), Just("noforce")];
    (number.clone(), number, force, any::<bool>()).prop_map(|(slots, areas, force, hiwater)| {
        let mut text = slots;
        if !areas.is_empty() {
            text = format!("{text},{areas}");
        }
        for token in [force, if hiwater { "track_hiwater" } else { "" }] {
            if !token.is_empty() && !text.is_empty() {
                text.push(',');
            }
            text.push_str(token);
        }
        text
    })
}

proptest! {
    #[test]
    fn inv17_options_survive_being_shown(text in any_options(), cpus in 0u32..300) {
        let options: Options = text.parse().unwrap();
        prop_assert_eq!(options.to_string().parse(), Ok(options));
        let sizing = options.sizing(cpus);
        prop_assert_eq!(sizing.nslots() % SEGMENT_SLOTS, 0);
        prop_assert!(sizing.nareas().is_power_of_two());
        prop_assert!(sizing.nslots() >= SEGMENT_SLOTS * sizing.nareas());
    }

    #[test]
    fn inv17_no_text_makes_the_parser_panic(text in "[0-9a-fx,+-]{0,12}|.{0,8}") {
        let _ = text.parse::<Options>();
    }
}
