//! The guest's own memory and rings: by every way of events, and for whom it is
//! not.

use std::error::Error;

use devices::registry::DeviceSpec;
use devices::rng::RngConfig;
use devices::vhost_user::frontend::config::Memory;
use devices::virtio::DeviceType;
use devices::virtio::queue::Descriptor;
use tests::Stand;
use tests::back_end::{BackEnd, Way, in_front};
use tests::raw::{RawDriver, RawQueue, Request, WRITE};
use tests::stand::{Setup, disk, eventually, slot};
use virtio_drivers::device::blk::RespStatus;
use vmm::demo::guest::{Addresses, SECTOR, within};
use vmm::guest::EventMode;

use super::LIMIT;

#[test]
fn a_disk_is_served_by_every_way_of_events() {
    for events in [EventMode::Plain, EventMode::Irqfd, EventMode::Ioeventfd] {
        within("the test", LIMIT, move || {
            let stand = Stand::with(Setup {
                events,
                ..Setup::default()
            });
            let (path, content) = stand.image("image", 1 << 20);
            let socket = stand.path("socket");
            let _back_end = BackEnd::serve(&socket, disk(&path));
            let device = in_front(Way::DIRECT.config(&socket, DeviceType::BLOCK.0));
            let place = stand.add(0, Addresses::Plain, device);
            let mut driver = stand.drive(&place);

            for round in 0..64 {
                let at = round * 16384;
                driver.read(at / SECTOR, 16384).unwrap();
                let done = driver.drain().unwrap().remove(0);
                assert_eq!(done.status, RespStatus::OK);
                assert!(done.data == content[at..at + 16384], "{events:?} at {at}");
            }

            let stats = stand.guest().snapshot().devices.remove(0);
            assert!(stats.statistics.contains(&("foreign_memory", 1)));
            // by the guest's thread, or nearly all of them past it
            let kicks = stats.queues[0].kicks;
            assert_eq!(kicks < 32, events == EventMode::Ioeventfd, "{kicks}");
            drop(driver);
            stand.finish();
        })
        .unwrap();
    }
}

#[test]
fn a_guest_that_lends_its_pages_is_refused_with_device_socket_and_remedy() {
    let stand = Stand::new();
    let (path, _) = stand.image("image", 1 << 20);
    let socket = stand.path("socket");
    let _back_end = BackEnd::serve(&socket, disk(&path));
    let device = in_front(Way::DIRECT.config(&socket, DeviceType::BLOCK.0));
    let place = stand.place(0, Addresses::Grants);

    let error = stand.guest().add(slot(&place, device)).unwrap_err();

    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    for word in [
        "virtio_disk/0",
        socket.to_str().unwrap(),
        "grant_usage=0",
        "bounce",
    ] {
        assert!(text.contains(word), "{text}");
    }
    assert!(stand.guest().snapshot().devices.is_empty());
    stand.finish();
}

#[test]
fn a_device_with_a_guests_memory_is_not_served_to_another_front_end() {
    let stand = Stand::new();
    let (path, _) = stand.image("image", 1 << 20);
    let socket = stand.path("socket");
    let _back_end = BackEnd::serve(&socket, disk(&path));
    let served = |memory| {
        let way = Way {
            memory,
            ..Way::PLAIN
        };
        let device = in_front(way.config(&socket, DeviceType::BLOCK.0));
        let outer = stand.path(&format!("{memory:?}"));
        devices::vhost_user::backend::Server::bind(&outer, device, "outer").map(drop)
    };

    let (bounce, foreign) = (served(Memory::Bounce), served(Memory::Foreign));

    assert!(bounce.is_ok());
    let text = foreign.unwrap_err().source().unwrap().to_string();
    assert!(text.contains("foreign"), "{text}");
    stand.finish();
}

/// A frame beside the driver's own memory.
const FRAME: u64 = 0x43000;
const PAGE: u64 = 4096;

/// A source of random numbers in front of a back end, and its driver.
fn source_of(stand: &Stand) -> (BackEnd, RawDriver) {
    let socket = stand.path("socket");
    let spec = RngConfig::default().validate().unwrap();
    let back_end = BackEnd::serve(&socket, DeviceSpec::Rng(spec).open().unwrap());
    let device = in_front(Way::DIRECT.config(&socket, DeviceType::ENTROPY.0));
    let place = stand.add(0, Addresses::Plain, device);
    let driver = stand.raw(&place, 0);
    driver.negotiate();
    (back_end, driver)
}

/// Asks for random numbers in [`FRAME`]; whether some came.
fn ask(stand: &Stand, driver: &RawDriver, queue: &mut RawQueue) -> bool {
    let buffer = Descriptor {
        addr: FRAME * PAGE,
        len: 64,
        flags: WRITE,
        next: 0,
    };
    queue.describe(&driver.memory, 0, buffer);
    queue.offer(&driver.memory, 0);
    driver.kick(queue);
    driver.wait(queue).unwrap();
    let mut bytes = [0; 64];
    stand.domain.read_memory(FRAME * PAGE, &mut bytes).unwrap();
    bytes != [0; 64]
}

#[test]
fn a_back_end_reaches_the_memory_that_has_come_in_place_of_another() {
    within("the test", LIMIT, || {
        let stand = Stand::new();
        let (_back_end, driver) = source_of(&stand);
        let mut queue = driver.queue(0, 8);
        driver.go();

        let before = ask(&stand, &driver, &mut queue);
        stand.domain.exchange(FRAME, 1).unwrap();
        eventually("the new page is written", || {
            ask(&stand, &driver, &mut queue)
        });

        assert!(before);
        driver.reset();
        stand.finish();
    })
    .unwrap();
}

#[test]
fn a_back_end_reaches_the_memory_that_has_come_though_none_has_left() {
    within("the test", LIMIT, || {
        let stand = Stand::new();
        stand.domain.balloon_out(FRAME, 2).unwrap();
        let (_back_end, driver) = source_of(&stand);
        let mut queue = driver.queue(0, 8);
        driver.go();
        let told = || {
            let device = stand.guest().snapshot().devices.remove(0);
            let list = device.statistics;
            list.iter()
                .find(|(name, _)| *name == "memory_told")
                .map(|(_, count)| *count)
        };
        eventually("the back end has the memory", || told() == Some(1));

        stand.domain.balloon_in(FRAME, 2).unwrap();
        eventually("it is given what has come", || told() == Some(2));

        assert!(ask(&stand, &driver, &mut queue));
        driver.reset();
        stand.finish();
    })
    .unwrap();
}

#[test]
fn nothing_of_a_guest_is_written_once_its_reset_was_answered() {
    within("the test", LIMIT, || {
        let stand = Stand::new();
        let (path, _) = stand.image("image", 1 << 20);
        let socket = stand.path("socket");
        let _back_end = BackEnd::serve(&socket, disk(&path));
        let device = in_front(Way::DIRECT.config(&socket, DeviceType::BLOCK.0));
        let place = stand.add(0, Addresses::Plain, device);
        let driver = stand.raw(&place, 0);
        let read = Request {
            readable: vec![vec![0; 16]],
            writable: vec![8192, 1],
        };

        for _ in 0..100 {
            driver.negotiate();
            let mut queue = driver.queue(0, 16);
            driver.go();
            let requests: Vec<_> = (0..4).map(|_| read.share(&driver.memory)).collect();
            for (first, request) in (0..).step_by(3).zip(&requests) {
                request.submit(&driver.memory, &mut queue, first);
            }
            driver.kick(&queue);
            driver.reset();
            // freed and poisoned, as a driver's that does not look back
            queue.free(&driver.memory);
            for request in requests {
                request.take_back(&driver.memory);
            }
        }

        stand.check();
        stand.finish();
    })
    .unwrap();
}
