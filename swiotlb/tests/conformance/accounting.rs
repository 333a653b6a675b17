//! Gauges, counters, events and lines in the log.

use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use swiotlb::*;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use crate::stand::*;

#[test]
fn v47_the_high_water_mark_is_of_the_sum() {
    let allocator = allocator(settings("2048,8,track_hiwater"));
    for hint in 0..8 {
        let worker = worker(&allocator, forced(), hint);
        let mapped = worker.map(&NoRam, 0, 0x4_0000, Direction::ToDevice, &Attrs::default());
        assert_eq!(placed(&mapped.unwrap()).0, 256 * hint as u32);
    }
    assert_eq!(allocator.stats().used_hiwater, 128);
    assert!(matches!(
        allocator.reset_hiwater(1),
        Err(Error::Invalid { value: 1, .. })
    ));
    assert_eq!(allocator.stats().used_hiwater, 128);
    assert_eq!(allocator.reset_hiwater(0), Ok(()));
    assert_eq!(allocator.stats().used_hiwater, 0);
}

#[test]
fn v47_without_the_option_there_is_no_high_water_mark() {
    let (allocator, worker) = masked(0);
    let mapped = worker.map(&NoRam, 0, 0x4_0000, Direction::ToDevice, &Attrs::default());
    assert_eq!(allocator.stats().used_hiwater, 0);
    drop(mapped);
}

#[test]
fn v48_looking_changes_nothing() {
    let (allocator, worker) = masked(0);
    let map = || {
        worker
            .map(&NoRam, 0, 2048, Direction::ToDevice, &Attrs::default())
            .unwrap()
    };
    let live = [map(), map(), map()];
    for _exporter in 0..2 {
        let stats = allocator.stats();
        assert_eq!((stats.used, stats.nslots), (3, 2048));
    }
    assert_eq!(allocator.used(), 3);
    drop(live);
}

#[test]
fn what_happens_is_counted() {
    let (allocator, worker) = masked(0);
    let ram = Ram::new(0x4000);
    let map = |direction| {
        worker
            .map(&ram, 0, 1000, direction, &Attrs::default())
            .unwrap()
    };
    map(Direction::ToDevice).unmap(&ram).unwrap();
    map(Direction::FromDevice).unmap(&ram).unwrap();
    let mapping = map(Direction::Bidirectional);
    mapping
        .sync(&ram, mapping.dma_address(), 10, SyncFor::Cpu)
        .unwrap();
    mapping
        .sync(&ram, mapping.dma_address(), 20, SyncFor::Device)
        .unwrap();
    drop(mapping);
    let stats = allocator.stats();
    assert_eq!(stats.maps_bounced, 3);
    assert_eq!(stats.bounced_for(Reason::Forced), 3);
    assert_eq!((stats.bytes_in, stats.bytes_out), (3020, 1010));
    assert_eq!((stats.area_fallback, stats.full), (0, 0));
}

/// Section 4 has counters unaffected by what passes through, section 12 counts
/// it. Both hold: the allocator's figures stay, the device's own count does not.
#[test]
fn sections_4_and_12_what_passes_through_is_counted_by_its_device_alone() {
    let allocator = default_pool();
    let worker = worker(&allocator, DeviceConstraints::default(), 0);
    let before = allocator.stats();
    let mapping = worker.map(&NoRam, 0x1000, 64, Direction::ToDevice, &Attrs::default());
    assert!(mapping.unwrap().bounced().is_none());
    assert_eq!(allocator.stats(), before);
    assert_eq!(worker.device().maps_direct(), 1);
}

/// An event: its level, its target and its fields.
type Seen = (Level, String, String);

/// Keeps events, and nothing else.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Seen>>>);

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{}={value:?} ", field.name()).unwrap();
    }
}

impl Subscriber for Recorder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        let metadata = event.metadata();
        let seen = (*metadata.level(), metadata.target().to_owned(), fields.0);
        self.0.lock().unwrap().push(seen);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// What is said of a level while `f` runs.
fn recorded(level: Level, f: impl FnOnce()) -> Vec<String> {
    let recorder = Recorder::default();
    tracing::subscriber::with_default(recorder.clone(), f);
    let seen = recorder.0.lock().unwrap();
    let ours = seen
        .iter()
        .filter(|(of, target, _)| *of == level && target == "swiotlb");
    ours.map(|(_, _, fields)| fields.clone()).collect()
}

#[test]
fn v70_a_full_pool_is_told_now_and_then_unless_unwanted() {
    let allocator = allocator(settings("128,1"));
    let worker = worker(&allocator, forced(), 0);
    let all = worker.map(&NoRam, 0, 0x4_0000, Direction::ToDevice, &Attrs::default());
    let silent = Attrs {
        no_warn: true,
        ..Attrs::default()
    };
    let fail = |attrs: &Attrs| {
        let failed = worker.map(&NoRam, 0, 4096, Direction::ToDevice, attrs);
        assert!(matches!(failed, Err(Error::Full { .. })));
    };
    assert_eq!(recorded(Level::WARN, || fail(&silent)), [""; 0]);
    let lines = recorded(Level::WARN, || fail(&Attrs::default()));
    assert_eq!(lines.len(), 1);
    assert!(
        lines[0].contains("size=4096 total=128 used=128"),
        "{lines:?}"
    );
    let lines = recorded(Level::WARN, || {
        (0..1000).for_each(|_| fail(&Attrs::default()))
    });
    assert!(lines.len() <= 10, "{}", lines.len());
    assert_eq!(allocator.stats().full, 1002);
    drop(all);
}

#[test]
fn v70_each_attempt_to_bounce_is_one_event() {
    let allocator = allocator(settings("128,1"));
    let constraints = DeviceConstraints {
        name: "disk".into(),
        dma_mask: std::num::NonZeroU64::new(0xFFFF_FFFF),
        ..forced()
    };
    let forced = worker(&allocator, constraints.clone(), 0);
    let map = |len| forced.map(&NoRam, 0x1234, len, Direction::ToDevice, &Attrs::default());
    let events = recorded(Level::TRACE, || {
        let all = map(0x4_0000).unwrap();
        assert!(map(1).is_err());
        drop(all);
    });
    assert_eq!(events.len(), 2, "one that worked and one that failed");
    let expected = "dev=\"disk\" dma_mask=4294967295 dma_addr=4660 size=1 forced=true";
    assert!(events[1].contains(expected), "{events:?}");
    let normal = DeviceConstraints {
        force: false,
        ..constraints
    };
    let normal = worker(&allocator, normal, 0);
    let events = recorded(Level::TRACE, || {
        let direct = normal.map(&NoRam, 0x1234, 64, Direction::ToDevice, &Attrs::default());
        assert!(direct.unwrap().bounced().is_none());
    });
    assert_eq!(events, [""; 0]);
}

proptest! {
    #[test]
    fn inv21_the_high_water_mark_is_the_highest_sum(
        operations in proptest::collection::vec((0usize..8, 1u64..0x2_0000, 0usize..12), 1..60),
        reset in proptest::option::of(0usize..60),
    ) {
        let allocator = allocator(settings("2048,8,track_hiwater"));
        let device = Device::attach(&allocator, forced()).unwrap();
        let workers: Vec<Worker> = (0..8).map(|hint| device.worker(hint)).collect();
        let mut live = Vec::new();
        let mut highest = 0;
        for (step, (hint, len, end)) in operations.into_iter().enumerate() {
            if reset == Some(step) {
                allocator.reset_hiwater(0).unwrap();
                prop_assert_eq!(allocator.stats().used_hiwater, 0);
                highest = 0;
            }
            if let Ok(mapping) =
                workers[hint].map(&NoRam, 0, len, Direction::ToDevice, &Attrs::default())
            {
                live.push(mapping);
                highest = highest.max(allocator.used());
            }
            let stats = allocator.stats();
            prop_assert_eq!(stats.used_hiwater, highest);
            if end < live.len() {
                drop(live.swap_remove(end));
            }
        }
    }
}
