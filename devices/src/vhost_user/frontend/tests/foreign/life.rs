//! Resets, and back ends that go away, hang, and come back.

use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::message::FrontendReq;

use super::super::eventually;
use super::super::partner::{Character, PROTOCOL, Partner};
use super::Rig;
use crate::testing::{DriverRing, Line};
use crate::vhost_user::frontend::config::AfterRestart;
use crate::virtio::mmio::{Answer, Register};

/// INFLIGHT_SHMFD, by its number.
const INFLIGHT: u64 = 1 << 12;

fn tracking() -> Partner {
    Partner::with(Character {
        protocol: PROTOCOL | INFLIGHT,
        ..Character::default()
    })
}

#[test]
fn a_reset_is_answered_when_the_back_end_has_stopped_the_ring() {
    let mut rig = Rig::new(Partner::new());
    rig.partner.wait_for(FrontendReq::SET_VRING_ENABLE);

    let answer = rig.transport.write(Register::Status as u64, 4, 0);
    rig.await_returned();
    let stopped = rig.partner.bodies(FrontendReq::GET_VRING_BASE).len();
    rig.partner.wait_for(FrontendReq::RESET_DEVICE);
    rig.ring = DriverRing::new(&rig.ram, 8);
    rig.drive();
    eventually("the fresh ring is started", || {
        rig.partner.bodies(FrontendReq::SET_VRING_KICK).len() == 2
    });
    let head = rig.offer(b"fresh");
    let (taken, _) = rig.partner.take();

    assert_eq!((answer, stopped), (Answer::Later, 1));
    assert_eq!((taken, rig.partner.connections()), (head, 1));
}

#[test]
fn a_reset_does_not_wait_where_there_is_no_back_end() {
    let mut rig = Rig::new(Partner::new());
    rig.partner.wait_for(FrontendReq::SET_VRING_ENABLE);
    rig.partner.change(|character| {
        character.instead = Some((FrontendReq::GET_FEATURES, vec![0; 12]));
    });
    rig.partner.die();
    eventually("it is away", || {
        let list = rig.transport.device().statistics();
        list.contains(&("connected", 0))
    });

    let _ = rig.transport.write(Register::Status as u64, 4, 0);
    let at_once = rig.transport.collect();

    assert!(at_once);
    assert_eq!(rig.get(Register::Status), 0);
}

#[test]
fn a_back_end_that_hangs_over_a_reset_is_given_up_and_the_driver_answered() {
    let mut rig = Rig::with(
        Partner::new(),
        |config| config.answer_timeout = 1,
        Arc::new(Line::default()),
    );
    rig.partner.wait_for(FrontendReq::SET_VRING_ENABLE);
    rig.partner.change(|character| {
        character.instead = Some((FrontendReq::GET_VRING_BASE, Vec::new()));
    });

    let answer = rig.transport.write(Register::Status as u64, 4, 0);
    rig.await_returned();

    assert_eq!(answer, Answer::Later);
    eventually("another connection", || rig.partner.connections() == 2);
}

#[test]
fn the_next_back_end_goes_on_where_the_used_ring_ends() {
    let line = Arc::new(Line::default());
    let mut rig = Rig::with(Partner::new(), |_| {}, line.clone());
    let heads: Vec<u16> = (0..4).map(|number| rig.offer(&[number; 4])).collect();
    let (first, _) = rig.partner.take();
    rig.partner.take();
    rig.partner.push_used(&[(first.into(), 0)]);
    eventually("an interrupt", || line.edges() == 1);

    rig.die_and_come_back();
    let again: Vec<u16> = (0..3).map(|_| rig.partner.take().0).collect();
    let has_more = rig.partner.has_more();
    let entries: Vec<(u32, u32)> = again.iter().map(|head| ((*head).into(), 0)).collect();
    rig.partner.push_used(&entries);

    assert_eq!((again.as_slice(), has_more), (&heads[1..], false));
    let used: Vec<u16> = rig.ring.used().iter().map(|(head, _)| *head).collect();
    assert_eq!(used, heads);
    assert!(line.edges() >= 2, "what was done may not have been told");
    assert!(!rig.needs_reset());
}

#[test]
fn out_of_order_and_untracked_the_next_one_gets_what_was_not_done_once_and_in_order() {
    let mut rig = Rig::new(Partner::new());
    let heads: Vec<u16> = (0..4).map(|number| rig.offer(&[number; 4])).collect();
    rig.partner.take();
    let (second, _) = rig.partner.take();
    rig.partner.push_used(&[(second.into(), 0)]);

    rig.die_and_come_back();
    let again: Vec<_> = (0..3).map(|_| rig.partner.take()).collect();
    let numbers: Vec<u8> = again
        .iter()
        .map(|(_, chain)| rig.partner.read(chain[0].addr, 4)[0])
        .collect();
    let has_more = rig.partner.has_more();
    let entries: Vec<(u32, u32)> = again.iter().map(|(head, _)| ((*head).into(), 0)).collect();
    rig.partner.push_used(&entries);

    assert_eq!((numbers.as_slice(), has_more), (&[0, 2, 3][..], false));
    let mut used: Vec<u16> = rig.ring.used().iter().map(|(head, _)| *head).collect();
    used.sort_unstable();
    assert_eq!(used, heads);
    assert!(!rig.needs_reset());
}

#[test]
fn a_ring_that_does_not_show_what_was_not_done_breaks_the_device() {
    let mut rig = Rig::new(Partner::new());
    for _ in 0..8 {
        rig.offer(b"done");
        let (head, _) = rig.partner.take();
        rig.partner.push_used(&[(head.into(), 0)]);
    }
    // each descriptor is there once: nothing tells a new entry from an old one
    for number in 0..4 {
        rig.offer(&[number; 4]);
    }
    rig.partner.take();
    let (second, _) = rig.partner.take();
    rig.partner.push_used(&[(second.into(), 0)]);

    rig.partner.die();

    eventually("the guest is told", || rig.needs_reset());
    assert!(rig.partner.bodies(FrontendReq::SET_VRING_KICK).is_empty());
}

#[test]
fn the_record_of_what_is_in_flight_goes_to_the_next_and_not_past_a_reset() {
    let mut rig = Rig::new(tracking());
    for number in 0..4 {
        rig.offer(&[number; 4]);
    }
    rig.partner.take();
    let (second, _) = rig.partner.take();
    rig.partner.push_used(&[(second.into(), 0)]);

    rig.die_and_come_back();
    let counts = |partner: &Partner| {
        let asked = partner.bodies(FrontendReq::GET_INFLIGHT_FD).len();
        (asked, partner.bodies(FrontendReq::SET_INFLIGHT_FD))
    };
    let (asked, given) = counts(&rig.partner);
    let base = rig.partner.bodies(FrontendReq::SET_VRING_BASE).remove(0);
    let _ = rig.transport.write(Register::Status as u64, 4, 0);
    rig.await_returned();
    rig.ring = DriverRing::new(&rig.ram, 8);
    rig.drive();
    eventually("a new record", || counts(&rig.partner).0 == 1);

    let told = [
        0x40, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 16, 0, 0, 0, 0, 0,
    ];
    assert_eq!((asked, given), (0, vec![told.to_vec()]));
    assert_eq!(base, [0, 0, 0, 0, 1, 0, 0, 0]);
    assert!(!rig.needs_reset());
}

#[test]
fn a_back_end_that_tracks_gets_no_record_of_one_that_did_not_and_the_ring_in_order() {
    let mut rig = Rig::new(tracking());
    let track = |rig: &Rig, protocol| rig.partner.change(|it| it.protocol = protocol);
    rig.partner.wait_for(FrontendReq::SET_VRING_ENABLE);
    track(&rig, PROTOCOL);
    rig.die_and_come_back();
    for number in 0..4 {
        rig.offer(&[number; 4]);
    }
    rig.partner.take();
    let (second, _) = rig.partner.take();
    rig.partner.push_used(&[(second.into(), 0)]);
    track(&rig, PROTOCOL | INFLIGHT);

    rig.die_and_come_back();
    let again: Vec<u8> = (0..3)
        .map(|_| rig.partner.read(rig.partner.take().1[0].addr, 4)[0])
        .collect();

    assert_eq!(rig.partner.bodies(FrontendReq::GET_INFLIGHT_FD).len(), 1);
    assert_eq!(
        (again.as_slice(), rig.partner.has_more()),
        (&[0, 2, 3][..], false)
    );
}

#[test]
fn requests_that_must_not_be_repeated_break_the_device_and_buffers_do_not() {
    let broken = |offer: fn(&mut Rig) -> u16| {
        let mut rig = Rig::with(
            tracking(),
            |config| config.after_restart = AfterRestart::Reset,
            Arc::new(Line::default()),
        );
        offer(&mut rig);
        rig.partner.take();
        rig.partner.die();
        eventually("an end", || {
            let back = rig.partner.bodies(FrontendReq::SET_VRING_ENABLE);
            rig.needs_reset() || !back.is_empty()
        });
        rig.needs_reset()
    };

    assert!(broken(|rig| rig.offer(b"data")));
    assert!(!broken(Rig::offer_room));
}

#[test]
fn a_device_that_is_taken_away_while_its_driver_is_up_leaves_at_once() {
    let rig = Rig::new(Partner::new());
    rig.partner.wait_for(FrontendReq::SET_VRING_ENABLE);
    rig.partner.change(|character| {
        character.instead = Some((FrontendReq::GET_VRING_BASE, Vec::new()));
    });
    let begin = std::time::Instant::now();

    drop(rig.transport);

    // as long as the back end may take to answer, which nobody waits for
    assert!(begin.elapsed() < Duration::from_secs(10));
}
