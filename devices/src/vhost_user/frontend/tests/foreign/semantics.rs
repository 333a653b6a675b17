//! What a guest is told of a lost back end where its device's type demands it, in
//! its own ring.

use std::sync::Arc;

use vhost::vhost_user::message::FrontendReq;

use super::super::eventually;
use super::super::partner::{Character, PROTOCOL, Partner};
use super::Rig;
use crate::testing::Line;

/// INFLIGHT_SHMFD, by its number.
const INFLIGHT: u64 = 1 << 12;

/// Queue `queue` of a socket device, of a back end that could track its requests.
fn socket_queue(queue: u16, line: Arc<Line>) -> Rig {
    let partner = Partner::with(Character {
        protocol: PROTOCOL | INFLIGHT,
        queues: 3,
        ..Character::default()
    });
    let change = |config: &mut super::VhostUserConfig| {
        config.virtio_id = 19;
        config.queues = 3;
    };
    Rig::of_queue(partner, change, line, queue)
}

fn told(rig: &Rig) -> u64 {
    let list = rig.transport.device().statistics();
    let found = list.iter().find(|(name, _)| *name == "losses_told");
    found.unwrap().1
}

/// The back end dies, and none comes back until it may.
fn lose(rig: &Rig) {
    rig.partner.change(|character| {
        character.instead = Some((FrontendReq::GET_FEATURES, vec![0; 12]));
    });
    let before = rig.partner.connections();
    rig.partner.die();
    eventually("another one is tried", || {
        rig.partner.connections() > before
    });
}

fn come_back(rig: &Rig) {
    rig.partner.change(|character| character.instead = None);
    rig.partner.wait_for(FrontendReq::SET_VRING_ENABLE);
}

#[test]
fn a_sockets_driver_is_told_once_of_each_while_nobody_has_its_ring() {
    let line = Arc::new(Line::default());
    let mut rig = socket_queue(2, Arc::clone(&line));
    let heads: Vec<u16> = (0..4).map(|_| rig.offer_room()).collect();
    rig.partner.take();
    let (second, _) = rig.partner.take();
    rig.partner.push_used(&[(second.into(), 7)]);
    eventually("an interrupt", || line.edges() == 1);

    lose(&rig);
    let first = (rig.ring.used(), line.edges());
    come_back(&rig);
    let next = [rig.partner.take().0, rig.partner.take().0];
    let has_more = rig.partner.has_more();
    lose(&rig);
    let then = rig.ring.used();
    come_back(&rig);
    let last = rig.partner.take().0;

    assert_eq!(first, (vec![(heads[1], 7), (heads[0], 4)], 2));
    assert_eq!((next, has_more), ([heads[2], heads[3]], false));
    assert_eq!((then, last), (vec![(heads[2], 4)], heads[3]));
    assert_eq!((told(&rig), rig.needs_reset()), (2, false));
    assert!(rig.partner.bodies(FrontendReq::GET_INFLIGHT_FD).is_empty());
}

#[test]
fn what_is_told_is_that_the_transport_was_reset() {
    let mut rig = socket_queue(2, Arc::default());
    let address = rig.ram.alloc_bytes(&[0x55; 16]);
    rig.ring
        .add(&[crate::testing::Buffer::writable(address, 16)]);
    rig.partner.take();

    lose(&rig);

    let expected = [[0; 4].as_slice(), &[0x55; 12]].concat();
    assert_eq!(rig.ram.read(address, 16), expected);
}

#[test]
fn a_driver_without_a_buffer_is_served_on() {
    let mut rig = socket_queue(2, Arc::default());
    rig.partner.wait_for(FrontendReq::SET_VRING_ENABLE);

    lose(&rig);
    come_back(&rig);
    let head = rig.offer_room();

    assert_eq!((rig.partner.take().0, told(&rig)), (head, 0));
}

#[test]
fn a_sockets_packets_are_for_the_next_one_and_say_nothing_of_it() {
    for queue in [0, 1] {
        let mut rig = socket_queue(queue, Arc::default());
        let head = rig.offer_room();
        rig.partner.take();

        lose(&rig);
        come_back(&rig);

        assert_eq!((rig.partner.take().0, told(&rig)), (head, 0));
        assert_eq!(rig.ring.used(), []);
    }
}
