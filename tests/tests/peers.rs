//! What other device models for Xen got wrong, each as a test of this one.
//!
//! | defect | test |
//! |---|---|
//! | 1. An error of a device leaves the vCPU without an answer: unassigned registers, DEVICE_FEATURES_SEL = 2, SHM registers | `peer_01_*` |
//! | 2. QUEUE_SEL beyond the queues panics, with a lock held that other devices need | `peer_02_*` |
//! | 3. Ring address 0 panics; so does QUEUE_NUM above the maximum or no power of two | `peer_03_*` |
//! | 4. DRIVER_FEATURES only ever grows, over resets, too; sel 1 must come before sel 0 | `peer_04_*` |
//! | 5. QUEUE_READY = 0 drops all queues; STATUS = 0 resets nothing | `peer_05_*` |
//! | 6. The device's type is read as decimal where xl writes hexadecimal | cannot happen: `backend/virtio`, whose `type` node that is, is not served; numbers of `backend/virtio_disk` in either notation: `vmm::discovery::tests::numbers_may_be_hexadecimal_too` |
//! | 7. Foreign memory is one bank: a guest of more than 3 GiB faults | `peer_07_*` |
//! | 8. EVENT_IDX is tested as bits 0, 2, 3 and 4: a driver with SEG_MAX and without EVENT_IDX hears too little | `peer_08_*` |
//! | 9. A guest reaches assertions | `peer_09_*`, and all of `torture.rs` |
//! | 10. Only domains with higher ids than the last one are noticed | `peer_10_*` |
//! | 11. A ring is mapped as exactly one page | `peer_11_*` |
//! | 12. A grant's offset does not count towards its pages; vCPU 0 alone is served; a device's range covers its neighbours; INTERRUPT_STATUS clears on reading; no configuration space; a reset leaks | `peer_12_*` |
//! | 13. Each access maps and unmaps; failures panic; per-page errors are ignored | `peer_13_*`; that nothing is mapped per access: `peer_13_a_ring_is_not_mapped_for_each_access` |
//! | 14. A failing map or an unknown grant ends the process | `peer_14_*` |

use std::fs;
use std::time::Duration;

use devices::blk::BlkConfig;
use devices::virtio::features::{RING_EVENT_IDX, STATUS_FEATURES_OK};
use devices::virtio::mmio::Register;
use devices::virtio::queue::Descriptor;
use tests::disk::{IOERR, OK, ask, header, read, write};
use tests::raw::{NEXT, RawDriver, RawQueue, WRITE};
use tests::stand::{PATIENCE, Setup, configured, disk, eventually};
use tests::{Place, Stand};
use vmm::demo::guest::Addresses;
use vmm::guest::{Guest, GuestConfig, MmioWindow};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use xen::Host;
use xen::fake::{Call, DomainConfig, GuestHeap, Machine, Target};

/// `errno.h`
const ENOMEM: i32 = 12;
const IMAGE: usize = 1 << 20;
const BOTH: [Addresses; 2] = [Addresses::Grants, Addresses::Plain];

/// A served disk, its driver up with a queue.
struct Up {
    stand: Stand,
    place: Place,
    driver: RawDriver,
    queue: RawQueue,
    content: Vec<u8>,
}

fn up(addresses: Addresses) -> Up {
    up_on(Stand::new(), addresses, 0)
}

fn up_on(stand: Stand, addresses: Addresses, vcpu: u32) -> Up {
    let (place, path) = stand.add_disk(0, addresses, IMAGE);
    let driver = stand.raw(&place, vcpu);
    driver.negotiate();
    let queue = driver.queue(0, 64);
    driver.go();
    Up {
        content: fs::read(path).unwrap(),
        stand,
        place,
        driver,
        queue,
    }
}

impl Up {
    /// The disk answers, and rightly.
    fn works(&mut self) {
        let (data, status) = ask(&self.driver, &mut self.queue, &read(3, 1024));
        assert_eq!(status, OK);
        assert_eq!(data, self.content[1536..2560]);
    }

    fn finish(self) {
        self.driver.reset();
        self.queue.free(&self.driver.memory);
        self.stand.finish();
    }
}

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
fn peer_07_memory_above_3_gib_is_reached() {
    for addresses in BOTH {
        // the second bank begins at 8 GiB; the rings and buffers lie there
        let stand = Stand::with(Setup {
            domain: DomainConfig::with_memory((3 << 30) + (64 << 20)).vcpus(2),
            heap: 0x20_0000,
            ..Setup::default()
        });
        let mut up = up_on(stand, addresses, 0);

        up.works();

        up.finish();
    }
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
fn peer_11_rings_of_many_pages_that_begin_anywhere_are_served() {
    for addresses in BOTH {
        let stand = Stand::new();
        let (path, content) = stand.image("large.img", IMAGE);
        let device = configured(BlkConfig {
            queue_size: 1024,
            ..BlkConfig::new(&path)
        });
        let place = stand.add(0, addresses, device);
        let driver = stand.raw(&place, 0);
        driver.negotiate();
        // 16 KiB of descriptors, and a used ring across pages
        let mut queue = RawQueue::at_offset(&driver.memory, 0, 1024, 0xff0);
        driver.install(&queue);
        driver.go();

        for round in 0..1100u64 {
            let request = read(round % 2000, 512).share(&driver.memory);
            // the descriptors wander through the whole table
            let first = (round * 5 % 1021) as u16;
            request.submit(&driver.memory, &mut queue, first);
            driver.kick(&queue);
            driver.wait(&mut queue).unwrap();
            let written = request.take_back(&driver.memory);
            let at = (round % 2000) as usize * 512;
            assert_eq!(written[0], content[at..at + 512]);
        }

        driver.reset();
        queue.free(&driver.memory);
        stand.finish();
    }
}

#[test]
fn peer_12_a_buffer_that_crosses_pages_is_mapped_whole() {
    for addresses in BOTH {
        let mut up = up(addresses);
        for (offset, sectors) in [(0x800, 8), (0xfff, 8), (0xe01, 1), (1, 32)] {
            let memory = &up.driver.memory;
            let len = sectors * 512;
            let head = memory.share(0xff8, 16, &header(0, 8), true).unwrap();
            let data = memory.share(offset, len, &[], false).unwrap();
            let status = memory.share(0xfff, 1, &[0xff], false).unwrap();
            let descriptors = [
                (head, 16, NEXT, 1),
                (data, len as u32, WRITE | NEXT, 2),
                (status, 1, WRITE, 0),
            ];
            for (at, (addr, len, flags, next)) in (0..).zip(descriptors) {
                let descriptor = Descriptor {
                    addr,
                    len,
                    flags,
                    next,
                };
                up.queue.describe(memory, at, descriptor);
            }
            up.queue.offer(memory, 0);
            up.driver.kick(&up.queue);
            up.driver.wait(&mut up.queue).unwrap();
            let mut found = vec![0; len];
            memory.read(data, &mut found).unwrap();
            assert_eq!(found, up.content[4096..4096 + len], "offset {offset:#x}");
            for address in [head, data, status] {
                memory.free(address).unwrap();
            }
        }
        up.finish();
    }
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

#[test]
fn peer_12_a_reset_leaves_nothing_mapped() {
    let mut up = up(Addresses::Grants);
    let held = |stand: &Stand| stand.machine.census()[&stand.domain.id()].mapped_grants;

    up.works();
    let running = held(&up.stand);
    up.driver.reset();
    let reset = held(&up.stand);

    assert!(running > 0, "rings are mapped while the queue is in use");
    assert_eq!(reset, 0);
    up.finish();
}

#[test]
fn peer_13_a_ring_is_not_mapped_for_each_access() {
    let mut up = up(Addresses::Plain);
    up.works();
    // any further mapping would fail
    for nth in 1..=64 {
        let call = Target::Call(Call::MmapBatch);
        up.stand.machine.fail(call, nth, ENOMEM);
    }

    for _ in 0..64 {
        up.works();
    }

    up.finish();
}

#[test]
fn peer_13_a_mapping_that_fails_is_an_error_of_the_request() {
    let mut up = up(Addresses::Plain);
    // far from everything that was touched so far: a chunk of its own
    let far = GuestHeap::new(&up.stand.domain, 0x43000, 16).unwrap();
    let far = vmm::demo::guest::DriverMemory::new(&up.stand.domain, &far, Addresses::Plain);
    let data = far.alloc(1, false).unwrap();
    let call = Target::Call(Call::MmapBatch);
    up.stand.machine.fail(call, 1, ENOMEM);

    let refused = ask_at(&mut up, data, 512);
    let served = ask_at(&mut up, data, 512);

    assert_eq!((refused, served), (IOERR, OK));
    let mut found = [0; 512];
    far.read(data, &mut found).unwrap();
    assert_eq!(found, up.content[..512]);
    up.works();
    up.finish();
}

#[test]
fn peer_13_a_page_that_is_not_there_is_an_error_of_its_request_alone() {
    let stand = Stand::with(Setup {
        // a hole in the middle of a chunk
        domain: DomainConfig::with_memory(64 << 20)
            .vcpus(2)
            .hole(0x43001, 1),
        ..Setup::default()
    });
    let mut up = up_on(stand, Addresses::Plain, 0);

    let before = ask_at(&mut up, 0x4300_0000, 4096);
    let hole = ask_at(&mut up, 0x4300_1000, 512);
    let into = ask_at(&mut up, 0x4300_0e00, 1024);
    let after = ask_at(&mut up, 0x4300_2000, 512);

    assert_eq!((before, hole, into, after), (OK, IOERR, IOERR, OK));
    up.works();
    up.finish();
}

#[test]
fn peer_14_a_grant_that_cannot_be_mapped_is_an_error_of_its_request_alone() {
    let mut up = up(Addresses::Grants);
    let grant = |reference: u64| 1 << 63 | reference << 12;
    let read_only = up.driver.memory.alloc(1, true).unwrap();

    let unknown = ask_at(&mut up, grant(0x7000), 512);
    let beyond = ask_at(&mut up, grant(0xffff_ffff), 8192);
    let no_reference = ask_at(&mut up, grant(1 << 40), 512);
    let protected = ask_at(&mut up, read_only, 512);

    assert_eq!(
        [unknown, beyond, no_reference, protected],
        [IOERR; 4],
        "unknown, beyond the last, no reference, read-only"
    );
    up.driver.memory.free(read_only).unwrap();
    up.works();
    up.finish();
}

#[test]
fn peer_14_calls_that_fail_are_survived() {
    for call in [Call::GrantMap, Call::GrantMmap, Call::GrantCopy] {
        let mut up = up(Addresses::Grants);
        up.stand.machine.fail(Target::Call(call), 1, ENOMEM);
        let request = write(0, &up.content[..512]);
        let shared = request.share(&up.driver.memory);
        shared.submit(&up.driver.memory, &mut up.queue, 0);
        up.driver.kick(&up.queue);

        // the request fails, or the device asks for a reset: it answers
        let answer = up.driver.wait_for(&mut up.queue, PATIENCE);

        assert!(answer.is_some(), "{call:?}: no answer");
        up.driver.reset();
        shared.take_back(&up.driver.memory);
        up.queue.free(&up.driver.memory);
        up.driver.negotiate();
        up.queue = up.driver.queue(0, 64);
        up.driver.go();
        up.works();
        up.finish();
    }
}

/// Reads sectors into any address; gives the status.
fn ask_at(up: &mut Up, address: u64, len: u32) -> u8 {
    let memory = &up.driver.memory;
    let head = memory.share(0, 16, &header(0, 0), true).unwrap();
    let status = memory.share(0x10, 1, &[0xff], false).unwrap();
    let descriptors = [
        (head, 16, NEXT, 1),
        (address, len, WRITE | NEXT, 2),
        (status, 1, WRITE, 0),
    ];
    for (at, (addr, len, flags, next)) in (0..).zip(descriptors) {
        let descriptor = Descriptor {
            addr,
            len,
            flags,
            next,
        };
        up.queue.describe(memory, at, descriptor);
    }
    up.queue.offer(memory, 0);
    up.driver.kick(&up.queue);
    up.driver
        .wait_for(&mut up.queue, Duration::from_secs(10))
        .expect("the request is answered")
        .expect("the device goes on");
    let mut found = [0];
    memory.read(status, &mut found).unwrap();
    memory.free(head).unwrap();
    memory.free(status).unwrap();
    found[0]
}
