//! What concerns the guest's memory: foreign, granted, missing.

use swiotlb::GrantMode;
use vmm::guest::GuestConfig;

use super::*;

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
    let copies: fn(&mut GuestConfig) = |guest| guest.data.granted = GrantMode::Copy;
    let maps: fn(&mut GuestConfig) = |guest| guest.data.granted = GrantMode::Map;
    for (call, guest) in [
        (Call::GrantMap, maps),
        (Call::GrantMmap, maps),
        (Call::GrantCopy, maps),
        (Call::GrantCopy, copies),
    ] {
        let stand = Stand::with(Setup {
            guest,
            ..Setup::default()
        });
        let mut up = up_on(stand, Addresses::Grants, 0);
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
