//! What concerns registers, negotiation and whole guests.

use super::*;

#[test]
fn peer_01_unassigned_registers_are_answered() {
    let mut up = up(Addresses::Grants);

    let unassigned: Vec<u64> = (0..0x100)
        .step_by(4)
        .filter(|offset| Register::at(*offset).is_none())
        .collect();
    for &offset in &unassigned {
        assert_eq!(up.driver.peek(offset, 4), 0, "{offset:#x}");
        up.driver.poke(offset, 4, 0xffff_ffff);
    }
    for sel in [2, 3, u32::MAX] {
        up.driver.set(Register::DeviceFeaturesSel, sel);
        assert_eq!(up.driver.get(Register::DeviceFeatures), 0);
    }

    assert!(unassigned.len() > 20);
    up.works();
    up.finish();
}

#[test]
fn peer_01_shared_memory_regions_read_as_none() {
    let mut up = up(Addresses::Grants);

    for region in [0, 1, 255] {
        up.driver.set(Register::ShmSel, region);
        let length = [
            up.driver.get(Register::ShmLenLow),
            up.driver.get(Register::ShmLenHigh),
        ];
        assert_eq!(length, [u32::MAX; 2]);
    }

    up.works();
    up.finish();
}

#[test]
fn peer_02_a_queue_that_does_not_exist_harms_nobody() {
    let mut up = up(Addresses::Grants);
    let (other, path) = up.stand.add_disk(1, Addresses::Plain, IMAGE);
    let content = fs::read(path).unwrap();

    for selected in [1, 64, u32::MAX] {
        up.driver.set(Register::QueueSel, selected);
        assert_eq!(up.driver.get(Register::QueueSizeMax), 0);
        up.driver.set(Register::QueueSize, 8);
        up.driver.set_address(Register::QueueDescLow, 0x4000_0000);
        up.driver.set(Register::QueueReady, 1);
        up.driver.set(Register::QueueNotify, selected);
        assert_eq!(up.driver.get(Register::QueueReady), 0);
    }

    up.works();
    let second = up.stand.raw(&other, 1);
    second.negotiate();
    let mut queue = second.queue(0, 8);
    second.go();
    let (data, status) = ask(&second, &mut queue, &read(0, 512));
    assert_eq!((data.as_slice(), status), (&content[..512], OK));
    second.reset();
    queue.free(&second.memory);
    up.stand.remove(&other);
    up.works();
    up.finish();
}

#[test]
fn peer_03_rings_at_address_0_and_impossible_sizes_are_refused() {
    for addresses in BOTH {
        let mut up = up(addresses);
        up.driver.reset();
        up.queue.rewind();
        up.driver.negotiate();
        up.driver.set(Register::QueueSel, 0);
        let max = up.driver.get(Register::QueueSizeMax);
        for size in [0, 3, max * 2, 0x1_0000] {
            up.driver.set(Register::QueueSize, size);
            up.driver.set(Register::QueueReady, 1);
            assert_eq!(up.driver.get(Register::QueueReady), 0, "size {size}");
        }
        let mut nowhere = up.queue.clone();
        nowhere.layout = devices::virtio::QueueLayout {
            size: 8,
            ..Default::default()
        };

        up.driver.install(&nowhere);
        up.driver.go();

        assert!(up.driver.needs_reset(), "{addresses:?}");
        up.driver.reset();
        assert!(!up.driver.needs_reset());
        up.driver.negotiate();
        // the driver starts over with clean rings
        up.queue.clone().free(&up.driver.memory);
        up.queue = up.driver.queue(0, 64);
        up.driver.go();
        up.works();
        up.finish();
    }
}

#[test]
fn peer_04_features_are_forgotten_by_a_reset_and_may_be_written_in_any_order() {
    let up = up(Addresses::Plain);
    let (driver, offered) = (&up.driver, up.driver.offered());

    driver.reset();
    driver.set(Register::Status, 3);
    // the low half first, then the high, and the low again
    driver.choose(offered);
    driver.set(Register::DriverFeaturesSel, 0);
    driver.set(Register::DriverFeatures, 0);
    driver.set(Register::Status, 3 | STATUS_FEATURES_OK);
    assert_ne!(driver.get(Register::Status) & STATUS_FEATURES_OK, 0);
    driver.reset();
    // nothing is chosen now: not even VERSION_1 is left
    driver.set(Register::Status, 3);
    driver.set(Register::Status, 3 | STATUS_FEATURES_OK);
    let stale = driver.get(Register::Status) & STATUS_FEATURES_OK;
    driver.reset();
    driver.set(Register::Status, 3);
    driver.set(Register::DriverFeaturesSel, 1);
    driver.set(Register::DriverFeatures, (offered >> 32) as u32);
    driver.set(Register::DriverFeaturesSel, 0);
    driver.set(Register::DriverFeatures, offered as u32);
    driver.set(Register::Status, 3 | STATUS_FEATURES_OK);
    let reversed = driver.get(Register::Status) & STATUS_FEATURES_OK;

    assert_eq!(stale, 0, "features of before the reset");
    assert_ne!(reversed, 0);
    up.finish();
}

#[test]
fn peer_05_one_queue_ends_alone_and_a_reset_ends_all() {
    let stand = Stand::new();
    let (path, content) = stand.image("two.img", IMAGE);
    let device = configured(BlkConfig {
        queues: 2,
        ..BlkConfig::new(&path)
    });
    let place = stand.add(0, Addresses::Grants, device);
    let driver = stand.raw(&place, 0);
    driver.negotiate();
    let first = driver.queue(0, 16);
    let mut second = driver.queue(1, 16);
    driver.go();

    driver.set(Register::QueueSel, 0);
    driver.set(Register::QueueReady, 0);
    first.free(&driver.memory);
    let (data, status) = ask(&driver, &mut second, &read(0, 512));
    driver.reset();
    second.free(&driver.memory);

    assert_eq!((data.as_slice(), status), (&content[..512], OK));
    assert_eq!(driver.get(Register::Status), 0);
    for queue in [0, 1] {
        driver.set(Register::QueueSel, queue);
        assert_eq!(driver.get(Register::QueueReady), 0);
    }
    stand.finish();
}

#[test]
fn peer_08_a_driver_without_event_idx_is_interrupted_each_time() {
    const SEG_MAX: u64 = 1 << 2;
    let stand = Stand::new();
    let (place, _) = stand.add_disk(0, Addresses::Grants, IMAGE);
    let driver = stand.raw(&place, 0);
    let features = driver.offered() & !RING_EVENT_IDX;
    assert_ne!(features & SEG_MAX, 0);
    driver.negotiate_exactly(features);
    let mut queue = driver.queue(0, 16);
    // where used_event would be, if it were negotiated
    let used_event = queue.layout.avail + 4 + 2 * u64::from(queue.layout.size);
    driver.memory.write(used_event, &[0xff, 0x7f]).unwrap();
    driver.go();

    for done in 1..=5 {
        ask(&driver, &mut queue, &read(0, 512));
        eventually("the interrupt", || driver.interrupts() >= done);
    }

    driver.reset();
    queue.free(&driver.memory);
    stand.finish();
}

#[test]
fn peer_09_what_a_guest_writes_ends_nothing_but_its_device() {
    let mut up = up(Addresses::Grants);
    let (other, path) = up.stand.add_disk(1, Addresses::Grants, IMAGE);
    let content = fs::read(path).unwrap();
    let memory = up.driver.memory.clone();
    let page = memory.alloc(1, false).unwrap();
    // a header that is cut off and no room for a status
    let chain = Descriptor {
        addr: page,
        len: 7,
        flags: 0,
        next: 0,
    };

    up.queue.describe(&memory, 0, chain);
    up.queue.offer(&memory, 0);
    up.driver.kick(&up.queue);

    eventually("DEVICE_NEEDS_RESET", || up.driver.needs_reset());
    let second = up.stand.raw(&other, 1);
    second.negotiate();
    let mut queue = second.queue(0, 8);
    second.go();
    let (data, status) = ask(&second, &mut queue, &read(0, 512));
    assert_eq!((data.as_slice(), status), (&content[..512], OK));
    second.reset();
    queue.free(&second.memory);
    up.driver.reset();
    up.queue.free(&memory);
    memory.free(page).unwrap();
    up.driver.negotiate();
    up.queue = up.driver.queue(0, 64);
    up.driver.go();
    up.works();
    up.finish();
}

#[test]
fn peer_10_domains_are_served_in_any_order() {
    let machine = Machine::new().unwrap();
    let host = Host::Fake(machine.clone());
    let low = machine.create_domain(DomainConfig::default()).unwrap();
    let high = machine.create_domain(DomainConfig::default()).unwrap();
    let start = |domain: &xen::fake::Domain| {
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        Guest::start(&host, GuestConfig::new(domain.id(), "any"), wake).unwrap()
    };

    let later = start(&high);
    let earlier = start(&low);

    assert!(low.id() < high.id());
    for domain in [&low, &high] {
        let id = domain.vcpu(0).read(MmioWindow::ARM.base + 8, 4).unwrap();
        assert_eq!(id, 0, "an empty slot");
    }
    later.stop().unwrap();
    earlier.stop().unwrap();
}

#[test]
fn peer_12_every_vcpu_is_served() {
    let stand = Stand::with(Setup {
        domain: DomainConfig::with_memory(64 << 20).vcpus(8),
        ..Setup::default()
    });
    let mut up = up_on(stand, Addresses::Grants, 7);

    for vcpu in 0..8 {
        let driver = up.stand.raw(&up.place, vcpu);
        assert_eq!(driver.get(Register::DeviceId), 2, "vCPU {vcpu}");
    }

    up.works();
    up.finish();
}

#[test]
fn peer_12_a_devices_window_ends_where_the_next_begins() {
    let up = up(Addresses::Grants);
    let (path, _) = up.stand.image("neighbour.img", 2 * IMAGE);
    let neighbour = up.stand.add(1, Addresses::Grants, disk(&path));
    let neighbour = up.stand.raw(&neighbour, 0);

    let capacity = |driver: &RawDriver| driver.peek(0x100, 8);

    assert_eq!(capacity(&up.driver), (IMAGE / 512) as u64);
    assert_eq!(capacity(&neighbour), (2 * IMAGE / 512) as u64);
    // the slot after them is empty
    assert_eq!(up.driver.peek(0x400 + Register::DeviceId as u64, 4), 0);
    assert_eq!(
        up.driver.peek(0x400 + Register::MagicValue as u64, 4),
        up.driver.peek(0, 4)
    );
    up.finish();
}

#[test]
fn peer_12_the_interrupt_status_stays_until_it_is_acknowledged() {
    let mut up = up(Addresses::Grants);

    up.works();
    let driver = &up.driver;
    eventually("the interrupt", || {
        driver.get(Register::InterruptStatus) == 1
    });
    let again = driver.get(Register::InterruptStatus);
    driver.set(Register::InterruptAck, 2);
    let other = driver.get(Register::InterruptStatus);
    driver.set(Register::InterruptAck, 1);
    let acknowledged = driver.get(Register::InterruptStatus);

    assert_eq!((again, other, acknowledged), (1, 1, 0));
    up.finish();
}

#[test]
fn peer_12_the_configuration_space_is_readable_by_any_width() {
    let up = up(Addresses::Grants);
    let sectors = (IMAGE / 512) as u64;

    let whole = up.driver.peek(0x100, 8);
    let halves = up.driver.peek(0x100, 4) | up.driver.peek(0x104, 4) << 32;
    let bytes: Vec<u64> = (0..8).map(|i| up.driver.peek(0x100 + i, 1)).collect();
    let joined = (0..)
        .zip(bytes)
        .fold(0, |all, (i, byte)| all | byte << (8 * i));
    let past = up.driver.peek(0x1fc, 4);

    assert_eq!(
        (whole, halves, joined, past),
        (sectors, sectors, sectors, 0)
    );
    up.finish();
}
