use super::*;
use crate::testing::{Buffer, DriverRing, GuestRam};
use crate::virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1};

const FEATURES: u64 = VERSION_1 | RING_INDIRECT_DESC;

/// Finishes chains that need no memory.
fn finish(queue: &mut ActiveQueue, chains: Vec<Chain>) -> Vec<Done<Head>> {
    let jobs = chains.into_iter().map(|chain| swiotlb::Job {
        token: chain.head,
        ranges: Default::default(),
    });
    let mapped = queue.dma().map(jobs, swiotlb::Need::COPY);
    let mut flights = mapped
        .into_iter()
        .map(|mapped| mapped.unwrap().submit())
        .collect();
    queue.dma().finish(&mut flights)
}

fn add_byte(ring: &mut DriverRing) -> u16 {
    let address = ring.ram.alloc(16);
    ring.add(&[Buffer::writable(address, 16)])
}

#[test]
fn chains_are_taken_in_order_and_pushed_with_their_lengths() {
    let ram = GuestRam::new(16);
    let mut ring = DriverRing::new(&ram, 8);
    let heads: Vec<_> = (0..3).map(|_| add_byte(&mut ring)).collect();
    let (mut queue, _) = ring.activate(FEATURES);

    let first = queue.take(2).unwrap();
    let rest = queue.take(64).unwrap();
    let taken: Vec<_> = first.iter().chain(&rest).map(|c| c.head.index()).collect();
    for (done, written) in finish(&mut queue, first).into_iter().zip([7, 8]) {
        queue.push(done, written).unwrap();
    }

    assert_eq!(taken, heads);
    assert_eq!(ring.used(), [(heads[0], 7), (heads[1], 8)]);
}

#[test]
fn an_index_that_jumps_further_than_the_ring_breaks_the_queue() {
    let ram = GuestRam::new(16);
    let ring = DriverRing::new(&ram, 8);
    let (mut queue, _) = ring.activate(FEATURES);
    ring.set_avail_index(9);
    assert!(matches!(
        queue.take(64),
        Err(QueueError::IndexJumped {
            index: 9,
            ahead: 9,
            size: 8
        })
    ));
    ring.set_avail_index(u16::MAX);
    assert!(matches!(
        queue.take(64),
        Err(QueueError::IndexJumped { .. })
    ));
}

#[test]
fn a_head_outside_of_the_ring_breaks_the_queue() {
    let ram = GuestRam::new(16);
    let mut ring = DriverRing::new(&ram, 8);
    ring.offer(8);
    let (mut queue, _) = ring.activate(FEATURES);
    assert!(matches!(
        queue.take(1),
        Err(QueueError::Chain { head: 8, .. })
    ));
}

#[test]
fn the_ring_wraps_around() {
    let ram = GuestRam::new(16);
    let mut ring = DriverRing::new(&ram, 4);
    let (mut queue, _) = ring.activate(FEATURES);
    let mut used = Vec::new();
    let mut heads = Vec::new();
    for _ in 0..11 {
        heads.push(add_byte(&mut ring));
        let chains = queue.take(1).unwrap();
        for done in finish(&mut queue, chains) {
            queue.push(done, 1).unwrap();
        }
        used.extend(ring.used().into_iter().map(|(head, _)| head));
    }
    assert_eq!(used, heads);
}

#[test]
fn all_indirect_tables_of_a_batch_are_one_transfer() {
    let ram = GuestRam::new(32);
    let mut ring = DriverRing::new(&ram, 8);
    for _ in 0..4 {
        let address = ram.alloc(16);
        ring.add_indirect(&[Buffer::writable(address, 16)]);
    }
    let (mut queue, _) = ring.activate(FEATURES);
    let before = queue.dma().counters().snapshot().transfers;

    let chains = queue.take(64).unwrap();

    assert_eq!(chains.len(), 4);
    assert_eq!(queue.dma().counters().snapshot().transfers - before, 4);
}

#[test]
fn an_indirect_table_out_of_reach_breaks_the_queue() {
    let ram = GuestRam::new(8);
    let mut ring = DriverRing::new(&ram, 8);
    ring.set_descriptor(
        0,
        Descriptor {
            addr: 1 << 40,
            len: 16,
            flags: 4,
            next: 0,
        },
    );
    ring.offer(0);
    let (mut queue, _) = ring.activate(FEATURES);
    assert!(matches!(
        queue.take(1),
        Err(QueueError::Table { head: 0, .. })
    ));
}

#[test]
fn a_completion_of_an_earlier_activation_is_dropped() {
    let ram = GuestRam::new(16);
    let mut ring = DriverRing::new(&ram, 8);
    add_byte(&mut ring);
    let (mut old, _) = ring.activate(FEATURES);
    let (mut new, _) = ring.activate(FEATURES);
    let chains = old.take(1).unwrap();

    for done in finish(&mut old, chains) {
        new.push(done, 1).unwrap();
    }

    assert_eq!(ring.used(), []);
}

/// Pushes one chain with `features`, and the driver asking to hear of used
/// entry `used_event`; returns the interrupts.
fn interrupts(features: u64, used_event: u16) -> u64 {
    let ram = GuestRam::new(16);
    let mut ring = DriverRing::new(&ram, 8);
    add_byte(&mut ring);
    let layout = ring.layout();
    let at = layout.avail + 4 + 2 * u64::from(layout.size);
    ram.write(at, &used_event.to_le_bytes());
    let (mut queue, line) = ring.activate(features);
    let chains = queue.take(1).unwrap();
    for done in finish(&mut queue, chains) {
        queue.push(done, 1).unwrap();
    }
    queue.notify().unwrap();
    queue.notify().unwrap(); // nothing new: nothing to tell
    line.edges()
}

#[test]
fn interrupts_follow_the_index_only_where_event_idx_was_negotiated() {
    assert_eq!(interrupts(FEATURES | RING_EVENT_IDX, 0), 1);
    assert_eq!(interrupts(FEATURES | RING_EVENT_IDX, 5), 0);
    // the index means nothing to a driver that refused EVENT_IDX, whatever
    // other bits it took
    assert_eq!(interrupts(FEATURES, 5), 1);
    assert_eq!(interrupts(FEATURES | 0b11101, 5), 1);
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none() {
    let ram = GuestRam::new(16);
    let mut ring = DriverRing::new(&ram, 8);
    add_byte(&mut ring);
    // VRING_AVAIL_F_NO_INTERRUPT
    ram.write(ring.layout().avail, &1u16.to_le_bytes());
    let (mut queue, line) = ring.activate(FEATURES);
    let chains = queue.take(1).unwrap();
    for done in finish(&mut queue, chains) {
        queue.push(done, 1).unwrap();
    }
    queue.notify().unwrap();
    assert_eq!(line.edges(), 0);
}

#[test]
fn what_becomes_available_while_kicks_are_off_is_reported_when_they_go_on() {
    let ram = GuestRam::new(16);
    let mut ring = DriverRing::new(&ram, 8);
    let (mut queue, _) = ring.activate(FEATURES);
    queue.kicks_off().unwrap();
    let nothing = queue.kicks_on().unwrap();
    queue.kicks_off().unwrap();
    add_byte(&mut ring);
    let something = queue.kicks_on().unwrap();
    assert_eq!((nothing, something), (false, true));
}

#[test]
fn layouts_that_break_the_rules_are_refused_with_their_value() {
    let good = QueueLayout {
        size: 8,
        desc: 0x1000,
        avail: 0x2000,
        used: 0x3000,
    };
    assert!(check_layout(&good).is_ok());
    for size in [0, 3, 6, 65535] {
        let refused = check_layout(&QueueLayout { size, ..good });
        assert!(matches!(refused, Err(QueueError::Size(s)) if s == size));
    }
    for (desc, avail, used, part) in [
        (0x1008, 0x2000, 0x3000, "descriptor table"),
        (0x1000, 0x2001, 0x3000, "available ring"),
        (0x1000, 0x2000, 0x3002, "used ring"),
    ] {
        let refused = check_layout(&QueueLayout {
            size: 8,
            desc,
            avail,
            used,
        });
        assert!(matches!(refused, Err(QueueError::Misaligned { part: p, .. }) if p == part));
    }
}

#[test]
fn rings_out_of_reach_are_refused_with_their_part() {
    let ram = GuestRam::new(4);
    let ring = DriverRing::new(&ram, 8);
    let layout = QueueLayout {
        used: 1 << 40,
        ..ring.layout()
    };
    let refused = ActiveQueue::activate(
        0,
        layout,
        QueuePosition::default(),
        FEATURES,
        ram.dma(),
        Arc::new(Notifier::new(Arc::new(crate::testing::Line::default()))),
        Arc::default(),
    );
    assert!(matches!(
        refused,
        Err(QueueError::Ring {
            part: "used ring",
            ..
        })
    ));
}

#[test]
fn the_rings_memory_reaches_nothing_but_the_rings() {
    use vm_memory::{GuestMemory, Permissions};
    let ram = GuestRam::new(8);
    let ring = DriverRing::new(&ram, 8);
    let (queue, _) = ring.activate(FEATURES);
    let layout = ring.layout();
    let check = |address, len, access| queue.memory.check_range(GuestAddress(address), len, access);
    assert!(check(layout.desc, 128, Permissions::Read));
    assert!(!check(layout.desc, 129, Permissions::Read));
    assert!(!check(layout.desc, 1, Permissions::Write));
    assert!(!check(layout.avail, 1, Permissions::Write));
    assert!(check(layout.used, 70, Permissions::ReadWrite));
    assert!(!check(layout.used + 64, 16, Permissions::Write));
    assert!(!check(0, 1, Permissions::Read));
    assert!(!check(u64::MAX, 1, Permissions::Read));
}
