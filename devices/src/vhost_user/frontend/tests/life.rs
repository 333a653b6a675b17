//! Back ends that come late, go away, hang, and come back as another device.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::eventfd::EventFd;

use super::partner::{Character, PROTOCOL, Partner};
use super::{GUEST, Rig, config, eventually, open, registers};
use crate::testing::{DriverRing, GuestRam};
use crate::vhost_user::frontend::VhostUserConfig;
use crate::vhost_user::frontend::config::AfterRestart;
use crate::virtio::features::VERSION_1;
use crate::virtio::mmio::Answer;
use crate::virtio::{Device, Transport};

#[test]
fn what_the_back_end_is_the_guest_is_offered() {
    let partner = Partner::new();
    let device = open(VhostUserConfig {
        queues: 1,
        ..config(partner.socket())
    })
    .unwrap();
    let mut space = [0; 8];

    device.read_config(56, &mut space);

    assert_eq!(device.device_type().0, 42);
    assert_eq!(device.queue_sizes(), [16]);
    assert_eq!(device.features(), 1 << 5);
    assert_eq!(space, [7, 7, 7, 7, 0, 0, 0, 0], "zero from its end on");
}

#[test]
fn refused_features_and_a_configured_space_go_before_the_back_ends() {
    let partner = Partner::new();
    let device = open(VhostUserConfig {
        refuse_features: vec![5],
        config_space: Some("0102".into()),
        ..config(partner.socket())
    })
    .unwrap();
    let mut space = [0xff; 4];

    device.read_config(0, &mut space);

    assert_eq!((device.features(), space), (0, [1, 2, 0, 0]));
    assert!(partner.bodies(FrontendReq::GET_CONFIG).is_empty());
}

#[test]
fn a_back_end_that_comes_late_is_waited_for() {
    let mut partner = Partner::absent(Character::default());
    let mut device = open(config(partner.socket())).unwrap();
    let before = device.features();
    let ram = GuestRam::new(64);
    let ring = DriverRing::new(&ram, 16);
    let (mut queue, _) = ring.activate(GUEST);
    let mut handler = device.start_queue(0, VERSION_1).unwrap();
    let room = handler.room();

    partner.come();
    while handler.room() == 0 {
        assert!(crate::testing::readable(
            handler.event().unwrap(),
            super::PATIENCE
        ));
        handler.advance(&mut queue).unwrap();
    }

    assert_eq!((before, room), (0, 0));
    assert_eq!(device.features(), 1 << 5);
}

#[test]
fn no_worker_kicks_a_ring_that_is_not_enabled_yet() {
    let partner = Partner::with(Character {
        protocol: PROTOCOL & !(1 << 3), // acknowledges nothing
        left_lying: Some(FrontendReq::SET_VRING_ENABLE),
        ..Character::default()
    });
    let mut device = open(config(partner.socket())).unwrap();
    let handler = device.start_queue(0, VERSION_1).unwrap();

    partner.wait_for(FrontendReq::SET_VRING_KICK);
    let at_once = crate::testing::readable(handler.event().unwrap(), Duration::from_millis(200));
    partner.change(|character| character.left_lying = None);
    let then = crate::testing::readable(handler.event().unwrap(), super::PATIENCE);

    assert_eq!((at_once, then), (false, true));
    assert_eq!(partner.bodies(FrontendReq::SET_VRING_ENABLE).len(), 1);
}

/// The registers of a device in front of a back end that is not there.
fn waiting(partner: &Partner, start_wait: u32) -> (Transport, EventFd) {
    registers(VhostUserConfig {
        start_wait,
        ..config(partner.socket())
    })
}

const STATUS: u64 = 0x70;

#[test]
fn a_drivers_first_word_waits_for_the_back_end_and_finds_what_it_offers() {
    let mut partner = Partner::absent(Character::default());
    let (mut transport, event) = waiting(&partner, 3600);

    let reset = transport.write(STATUS, 4, 0);
    let first = transport.write(STATUS, 4, 1);
    let before = (transport.collect(), transport.read(STATUS, 4));
    partner.come();
    eventually("the word is heard", || {
        event.read().is_ok() && transport.collect()
    });

    assert_eq!((reset, first), (Answer::Now, Answer::Later));
    assert_eq!(before, (false, 0));
    assert_eq!(transport.read(STATUS, 4), 1);
    assert_eq!(transport.offered() & 1 << 5, 1 << 5);
    assert_eq!(transport.write(STATUS, 4, 3), Answer::Now);
}

#[test]
fn a_driver_waits_for_a_bounded_time_only_and_can_be_reset_meanwhile() {
    let partner = Partner::absent(Character::default());
    let (mut transport, _event) = waiting(&partner, 1);
    let (mut other, _) = waiting(&partner, 3600);

    let first = transport.write(STATUS, 4, 1);
    eventually("the word is heard", || transport.collect());
    let kept = other.write(STATUS, 4, 1);
    let reset = other.write(STATUS, 4, 0);

    assert_eq!(
        (first, kept, reset),
        (Answer::Later, Answer::Later, Answer::Now)
    );
    assert_eq!(transport.read(STATUS, 4), 1);
    assert!(other.collect());
    assert_eq!(other.read(STATUS, 4), 0);
}

#[test]
fn a_reset_stops_the_ring_and_the_next_driver_finds_it_usable() {
    let mut rig = Rig::new();
    let left = rig.readable(b"left behind");
    rig.ring.add(&[left]);
    rig.serve().unwrap();
    rig.partner.take();

    rig.handler.settle(&mut rig.queue);
    rig.device.reset();
    rig.partner.wait_for(FrontendReq::GET_VRING_BASE);
    rig.partner.wait_for(FrontendReq::RESET_DEVICE);
    rig.ring = DriverRing::new(&rig.ram, 16);
    rig.queue = rig.ring.activate(GUEST).0;
    rig.handler = rig.device.start_queue(0, GUEST).unwrap();
    rig.advance_until_served();
    let fresh = rig.readable(b"fresh");
    rig.ring.add(&[fresh]);
    rig.serve().unwrap();
    let (head, chain) = rig.partner.take();
    let used = rig.used(&[(head.into(), 0)]).unwrap();

    assert_eq!(rig.partner.read(chain[0].addr, 5), b"fresh");
    assert_eq!(used, [(0, 0)]);
    assert_eq!(rig.partner.connections(), 1);
    assert_eq!(rig.partner.bodies(FrontendReq::SET_FEATURES).len(), 2);
}

#[test]
fn what_was_not_done_is_done_by_the_next_one_once_and_in_order() {
    let mut rig = Rig::new();
    let buffers: Vec<_> = (1..=4).map(|i| rig.readable(&[i; 8])).collect();
    for buffer in &buffers {
        rig.ring.add(&[*buffer]);
    }
    rig.serve().unwrap();
    let (_first, second) = (rig.partner.take(), rig.partner.take());
    // done, and nobody has looked yet
    rig.partner.push_used(&[(second.0.into(), 0)]);

    rig.partner.die();
    eventually("it is gone", || rig.stat("lost") == 1);
    while rig.stat("connections") < 2 || rig.handler.room() == 0 {
        rig.advance().unwrap();
    }
    let done_before = rig.ring.used();
    let again: Vec<_> = (0..3).map(|_| rig.partner.take()).collect();
    let has_more = rig.partner.has_more();
    let firsts: Vec<u8> = again
        .iter()
        .map(|(_, chain)| rig.partner.read(chain[0].addr, 8)[0])
        .collect();
    let entries: Vec<(u32, u32)> = again.iter().map(|(head, _)| ((*head).into(), 0)).collect();
    let used = rig.used(&entries).unwrap();

    assert_eq!(done_before, [(1, 0)]);
    assert_eq!(firsts, [1, 3, 4]);
    assert!(!has_more);
    assert_eq!(used, [(0, 0), (2, 0), (3, 0)]);
    assert_eq!((rig.stat("repeated"), rig.stat("lost")), (3, 1));
}

#[test]
fn requests_that_must_not_be_repeated_break_the_device_and_buffers_do_not() {
    let repeated = |with_data: bool| {
        let mut rig = Rig::with(Partner::new(), |config| {
            config.after_restart = AfterRestart::Reset;
        });
        let (data, buffer) = (rig.readable(b"data"), rig.writable(8));
        match with_data {
            true => rig.ring.add(&[data, buffer]),
            false => rig.ring.add(&[buffer]),
        };
        rig.serve().unwrap();
        rig.partner.take();
        rig.partner.die();
        rig.advance()
    };

    let (asked, offered) = (repeated(true), repeated(false));

    let error = asked.unwrap_err().to_string();
    assert!(error.contains("must not be repeated"), "{error}");
    assert!(offered.is_ok());
}

#[test]
fn whoever_had_the_memory_before_does_not_have_the_next_ones() {
    let mut rig = Rig::new();
    let old = rig.partner.memory();
    let buffer = rig.writable(4096);
    rig.ring.add(&[buffer]);
    rig.serve().unwrap();
    rig.partner.take();

    rig.partner.die();
    while rig.stat("connections") < 2 || rig.handler.room() == 0 {
        rig.advance().unwrap();
    }
    let (head, _) = rig.partner.take();
    let size = old.size();
    vm_memory::VolatileMemory::get_slice(&*old, 0, size)
        .unwrap()
        .copy_from(&vec![0xee; size]);
    let used = rig.used(&[(head.into(), 4096)]).unwrap();

    assert_eq!(used, [(0, 4096)]);
    assert_eq!(rig.read(buffer), [0; 4096]);
}

#[test]
fn a_back_end_that_hangs_delays_no_reset_and_is_given_up() {
    let mut rig = Rig::with(Partner::new(), |config| config.answer_timeout = 1);
    rig.partner.change(|character| {
        character.instead = Some((FrontendReq::GET_VRING_BASE, Vec::new()));
    });
    let begin = Instant::now();

    rig.handler.settle(&mut rig.queue);
    rig.device.reset();
    let took = begin.elapsed();
    eventually("another connection", || rig.stat("connections") == 2);

    assert!(took < Duration::from_millis(900), "{took:?}");
    assert_eq!((rig.stat("hung"), rig.stat("lost")), (1, 1));
}

#[test]
fn a_back_end_that_makes_its_kick_wait_keeps_no_worker_that_is_to_leave() {
    let mut rig = Rig::new();
    rig.partner.block_kick();
    let buffer = rig.readable(b"kicks");
    rig.ring.add(&[buffer]);
    let Rig {
        mut queue,
        mut handler,
        mut device,
        partner: _partner,
        ..
    } = rig;

    let worker = std::thread::spawn(move || {
        let chains = queue.take(1).unwrap();
        handler.serve(&mut queue, chains).unwrap();
        handler.settle(&mut queue);
    });
    std::thread::sleep(Duration::from_millis(50));
    let kept = !worker.is_finished();
    device.stopping(0);
    eventually("it leaves", || worker.is_finished());

    assert!(kept, "it was not made to wait");
    assert!(worker.join().is_ok());
}

#[test]
fn a_back_end_that_makes_its_kick_wait_and_dies_keeps_no_worker_from_the_next() {
    let mut rig = Rig::new();
    rig.partner.block_kick();
    let buffer = rig.readable(b"kicks");
    rig.ring.add(&[buffer]);
    let Rig {
        mut queue,
        mut handler,
        device: _device,
        partner,
        ..
    } = rig;

    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);

    let worker = std::thread::spawn(move || {
        let chains = queue.take(1).unwrap();
        handler.serve(&mut queue, chains).unwrap();
        while !is_over.load(Ordering::SeqCst) {
            if crate::testing::readable(handler.event().unwrap(), Duration::from_millis(10)) {
                handler.advance(&mut queue).unwrap();
            }
        }
    });
    std::thread::sleep(Duration::from_millis(50));
    partner.die();
    let (head, _) = partner.take();
    over.store(true, Ordering::SeqCst);

    assert!(worker.join().is_ok());
    assert_eq!(head, 0, "the next one has the request");
}

#[test]
fn a_back_end_that_says_nothing_by_itself_any_more_is_used_on() {
    let mut rig = Rig::new();

    rig.partner.close_requests();
    for value in 1..4 {
        assert!(rig.device.write_config(4, &[value]));
        eventually("the write", || {
            rig.partner.bodies(FrontendReq::SET_CONFIG).len() == usize::from(value)
        });
    }

    assert_eq!((rig.partner.connections(), rig.stat("lost")), (1, 0));
}

#[test]
fn another_device_in_its_place_is_refused_and_the_guest_told() {
    let changes: [fn(&mut Character); 4] = [
        |character| character.features &= !(1 << 5),
        |character| character.features &= !VERSION_1,
        |character| character.queues = 0,
        |character| character.config[9] = 0,
    ];
    for change in changes {
        let rig = Rig::new();
        rig.partner.change(change);

        rig.partner.die();
        eventually("the guest is told", || rig.notifier.needs_reset());
        let before = rig.partner.connections();
        eventually("another try", || rig.partner.connections() > before);

        assert_eq!(rig.stat("connected"), 0);
    }
}

#[test]
fn a_back_end_that_is_what_it_was_comes_back_unnoticed() {
    let rig = Rig::new();

    rig.partner.die();
    eventually("it is back", || rig.stat("connections") == 2);

    assert!(!rig.notifier.needs_reset());
    assert_eq!(rig.stat("connected"), 1);
}

#[test]
fn a_guest_is_told_of_a_back_end_that_stays_away_where_that_is_wanted() {
    let rig = Rig::with(Partner::new(), |config| config.give_up_after = Some(1));
    rig.partner.change(|character| {
        character.instead = Some((FrontendReq::GET_FEATURES, vec![0; 12]));
    });

    rig.partner.die();

    eventually("the guest is told", || rig.notifier.needs_reset());
}
