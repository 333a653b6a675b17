//! What a guest is told of a lost back end where its device's type demands it.

use vhost::vhost_user::message::FrontendReq;

use super::partner::{Character, Partner};
use super::{Rig, config, eventually, open};
use crate::vhost_user::frontend::VhostUserConfig;
use crate::vhost_user::frontend::config::AfterRestart;
use crate::virtio::Device;

/// TRANSPORT_RESET and what is behind it in a buffer of 8 bytes of 0x55.
const RESET: [u8; 8] = [0, 0, 0, 0, 0x55, 0x55, 0x55, 0x55];
const UNTOLD: [u8; 8] = [0x55; 8];

/// Queue `queue` of a socket device.
fn socket_queue(queue: u16, change: fn(&mut VhostUserConfig)) -> Rig {
    let partner = Partner::with(Character {
        queues: 3,
        ..Character::default()
    });
    let mut config = VhostUserConfig {
        virtio_id: 19,
        queues: 3,
        ..config(partner.socket())
    };
    change(&mut config);
    let device = open(config).unwrap();
    Rig::of_queue(partner, device, queue)
}

/// The back end dies, and its queue's worker hears of it.
fn lose(rig: &mut Rig) {
    let lost = rig.stat("lost");
    rig.partner.die();
    eventually("it has gone", || rig.stat("lost") > lost);
    rig.advance().unwrap();
}

/// Has the worker hear of the next back end, and serve what it may.
fn go_on(rig: &mut Rig) {
    rig.advance_until_lane();
    rig.serve().unwrap();
}

#[test]
fn a_sockets_driver_is_told_of_each_back_end_that_has_gone_once() {
    let mut rig = socket_queue(2, |_| {});
    let buffers: Vec<_> = (0..3).map(|_| rig.writable(8)).collect();
    for buffer in &buffers {
        rig.ring.add(&[*buffer]);
    }
    rig.serve().unwrap();

    lose(&mut rig);
    let first = rig.ring.used();
    go_on(&mut rig);
    let again = [rig.partner.take().0, rig.partner.take().0];
    let rest = (rig.partner.has_more(), rig.ring.used());
    lose(&mut rig);
    let second = rig.ring.used();

    assert_eq!((first, second), (vec![(0, 4)], vec![(1, 4)]));
    assert_ne!(again[0], again[1]);
    assert_eq!(rest, (false, vec![]));
    let told: Vec<_> = buffers.iter().map(|buffer| rig.read(*buffer)).collect();
    assert_eq!(told, [RESET, RESET, UNTOLD]);
    assert_eq!((rig.stat("losses_told"), rig.stat("repeated")), (2, 2 + 1));
}

#[test]
fn what_nobody_has_room_for_is_told_in_the_next_buffer_even_without_a_back_end() {
    let mut rig = socket_queue(2, |_| {});
    let small = rig.writable(3);
    rig.ring.add(&[small]);
    rig.serve().unwrap();
    rig.partner.take();
    rig.partner.push_used(&[(0, 0)]);
    rig.advance().unwrap();
    let before = rig.ring.used();
    rig.partner.change(|character| {
        character.left_lying = Some(FrontendReq::GET_FEATURES);
    });

    lose(&mut rig);
    let untold = rig.ring.used();
    let (first, second) = (rig.writable(8), rig.writable(8));
    rig.ring.add(&[first]);
    rig.serve().unwrap();
    let told = rig.ring.used();
    rig.ring.add(&[second]);
    let room = rig.handler.room();
    rig.partner.change(|character| character.left_lying = None);
    go_on(&mut rig);
    rig.partner.take();

    assert_eq!(before, [(0, 0)]);
    assert_eq!((untold, told.len(), told[0].1), (vec![], 1, 4));
    assert_eq!(room, 0, "what comes next is for the next one");
    assert_eq!(
        (rig.read(first), rig.read(second)),
        (RESET.into(), UNTOLD.into())
    );
}

#[test]
fn a_buffer_too_small_for_it_goes_to_the_next_one() {
    let mut rig = socket_queue(2, |_| {});
    let (small, large) = (rig.writable(3), rig.writable(8));
    rig.ring.add(&[small]);
    rig.ring.add(&[large]);
    rig.serve().unwrap();

    lose(&mut rig);
    go_on(&mut rig);
    let (_, chain) = rig.partner.take();

    assert_eq!(rig.ring.used(), [(1, 4)]);
    assert_eq!((chain[0].len, rig.partner.has_more()), (3, false));
}

#[test]
fn what_was_lost_is_told_though_requests_must_not_be_repeated() {
    let mut rig = socket_queue(2, |config| config.after_restart = AfterRestart::Reset);
    let buffer = rig.writable(8);
    rig.ring.add(&[buffer]);
    rig.serve().unwrap();

    lose(&mut rig);

    assert_eq!(rig.read(buffer), RESET);
}

#[test]
fn a_sockets_packets_and_the_room_for_them_go_to_the_next_one() {
    for queue in [0, 1] {
        let mut rig = socket_queue(queue, |_| {});
        let (packet, room) = (rig.readable(b"packet"), rig.writable(8));
        rig.ring.add(&[packet]);
        rig.ring.add(&[room]);
        rig.serve().unwrap();

        lose(&mut rig);
        go_on(&mut rig);
        let lens = [rig.partner.take(), rig.partner.take()].map(|(_, chain)| chain[0].len);

        assert_eq!(lens, [6, 8]);
        assert_eq!((rig.read(room), rig.ring.used()), (UNTOLD.into(), vec![]));
        assert_eq!(rig.stat("losses_told"), 0);
    }
}

#[test]
fn a_reset_forgets_what_was_owed() {
    let mut rig = socket_queue(2, |_| {});

    lose(&mut rig);
    rig.handler.settle(&mut rig.queue);
    rig.device.reset();
    rig.ring = crate::testing::DriverRing::new(&rig.ram, 16);
    rig.queue = rig.ring.activate(super::GUEST).0;
    rig.handler = rig.device.start_queue(2, super::GUEST).unwrap();
    let buffer = rig.writable(8);
    rig.ring.add(&[buffer]);
    go_on(&mut rig);
    rig.partner.take();

    assert_eq!(
        (rig.read(buffer), rig.stat("losses_told")),
        (UNTOLD.into(), 0)
    );
}
