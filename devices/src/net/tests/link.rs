//! Other ends that come, stall and go.

use super::*;
use crate::testing::lines::lines_of;

fn connecting(directory: &std::path::Path) -> NetConfig {
    NetConfig::socket(directory.join("card"))
}

#[test]
fn a_link_is_down_without_another_end_and_frames_are_dropped() {
    let mut rig = Rig::listening();

    let before = rig.link();
    rig.send(&frame(BROADCAST, 60, 1));
    let dropped = rig.stats().tx_dropped;
    let other = rig.connect();
    let connected = rig.link();
    drop(other);
    rig.until("the link stays up", |rig| rig.link() == 0);

    assert_eq!((before, dropped, connected), (0, 1, 1));
    assert_eq!(rig.transmit.ring.used().len(), 1);
    let stats = rig.stats();
    assert_eq!((stats.link_ups, stats.link_downs), (1, 1));
}

#[test]
fn a_guest_that_resets_again_and_again_fills_no_log() {
    let mut rig = Rig::new(connecting, 0);

    let lines = lines_of(|| {
        for _ in 0..10 {
            rig.receive.settle_down();
            rig.receive.handler.settle(&mut rig.receive.queue);
            rig.receive = Side::start(&rig.ram, &mut rig.device, 0);
        }
    });

    assert_eq!(lines, 1);
}

#[test]
fn the_next_one_is_let_in_when_the_first_has_gone() {
    let mut rig = Rig::listening();
    let first = rig.connect();
    drop(first);
    rig.until("the link stays up", |rig| !rig.device.handle().is_up());

    let mut second = rig.connect();
    rig.send(&frame(BROADCAST, 60, 2));

    assert!(rig.read_frame(&mut second) == frame(BROADCAST, 60, 2));
}

#[test]
fn a_card_connects_when_somebody_listens_and_again_after_that() {
    let mut rig = Rig::new(connecting, 0);
    rig.settle_down();
    let before = rig.link();

    let mut read = Vec::new();
    for number in [1, 2] {
        let listener = UnixListener::bind(rig.path()).unwrap();
        rig.until("it does not connect", |rig| rig.link() == 1);
        let (mut other, _) = listener.accept().unwrap();
        other.set_nonblocking(true).unwrap();
        rig.send(&frame(BROADCAST, 60, number));
        read.push(rig.read_frame(&mut other));
        std::fs::remove_file(rig.path()).unwrap();
        drop((listener, other));
        rig.until("the link stays up", |rig| rig.link() == 0);
    }

    assert_eq!(before, 0);
    assert_eq!(read, [frame(BROADCAST, 60, 1), frame(BROADCAST, 60, 2)]);
}

#[test]
fn an_end_that_takes_nothing_holds_frames_for_a_while_and_then_they_are_dropped() {
    let mut rig = Rig::listening();
    let mut other = rig.connect();
    let large = frame(BROADCAST, 9000, 1);

    let mut sent = 0;
    while rig.stats().tx_stalls == 0 {
        rig.send(&large);
        sent += 1;
        assert!(sent < 100, "nobody holds the guest back");
    }
    let held = (rig.transmit.ring.used().len(), rig.transmit.handler.room());
    rig.until("the guest waits for ever", |rig| {
        rig.transmit.handler.room() > 0
    });
    let dropped = rig.stats().tx_dropped;
    rig.send(&large);
    let at_once = rig.transmit.ring.used().len();
    let mut whole = 0;
    for _ in 0..held.0 {
        whole += usize::from(rig.read_frame(&mut other) == large);
    }
    rig.settle_down();
    rig.send(&large);
    let again = rig.read_frame(&mut other);

    assert_eq!(held.1, 0, "no more chains are taken");
    assert_eq!((dropped, at_once), (1, 2));
    assert_eq!(whole, held.0, "what was taken over is whole");
    assert!(again == large);
}

#[test]
fn an_end_that_sends_nonsense_is_left() {
    let mut rig = Rig::listening();
    let mut other = rig.connect();
    rig.offer(2048);

    other.write_all(&[0xff; 64]).unwrap();
    rig.until("it is kept", |_| {
        !matches!(other.read(&mut [0; 16]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    });
    let used = rig.receive.ring.used();
    let _next = rig.connect();

    assert_eq!(used, []);
    assert_eq!((rig.stats().rx_dropped, rig.stats().link_ups), (1, 2));
}

#[test]
fn a_cable_that_is_pulled_out_stops_all_frames_and_is_told() {
    let mut rig = Rig::listening();
    let mut other = rig.connect();
    rig.offer(2048);

    rig.plug(Cable::Down);
    let out = rig.link();
    rig.send(&frame(BROADCAST, 60, 1));
    write_frame(&mut other, &frame(MAC, 60, 2));
    rig.until("the frame is kept", |rig| rig.stats().rx_filtered == 1);
    rig.plug(Cable::Up);
    rig.send(&frame(BROADCAST, 60, 3));

    assert_eq!((out, rig.link()), (0, 1));
    assert!(rig.read_frame(&mut other) == frame(BROADCAST, 60, 3));
    assert_eq!(rig.stats().tx_dropped, 1);
}

#[test]
fn a_card_begins_without_its_cable_where_that_is_configured() {
    let mut rig = Rig::new(
        |directory| NetConfig {
            link: Cable::Down,
            ..listening(directory)
        },
        0,
    );
    let mut other = UnixStream::connect(rig.path()).unwrap();
    rig.until("nobody is let in", |rig| rig.device.port().is_connected());

    let before = rig.link();
    rig.plug(Cable::Up);
    other.set_nonblocking(true).unwrap();
    rig.send(&frame(BROADCAST, 60, 1));

    assert_eq!((before, rig.link()), (0, 1));
    assert!(rig.read_frame(&mut other) == frame(BROADCAST, 60, 1));
    assert_eq!((rig.stats().link_ups, rig.stats().link_downs), (1, 0));
}

#[test]
fn a_guest_whose_link_has_come_up_is_asked_to_announce_itself_a_moment_later() {
    let mut rig = Rig::listening();
    let _other = rig.connect();

    let at_once = rig.status();
    rig.until("it is not asked", |rig| rig.status() == 3);
    rig.command(3, 0, &[]);
    rig.plug(Cable::Down);
    let down = rig.status();
    rig.plug(Cable::Up);
    rig.until("it is not asked again", |rig| rig.status() == 3);

    assert_eq!((at_once, down), (1, 0));
    assert_eq!(rig.stats().announcements, 2);
}

#[test]
fn a_guest_that_cannot_announce_itself_is_not_asked_to() {
    let mut rig = Rig::new(listening, net::GUEST_ANNOUNCE);
    let _other = rig.connect();

    rig.device.port().announce();

    assert_eq!((rig.status(), rig.stats().announcements), (1, 0));
}

#[test]
fn a_path_that_is_taken_is_told_by_name() {
    let rig = Rig::listening();
    let config = listening(rig.directory.path());

    let error = NetDevice::open(config.validate().unwrap()).unwrap_err();

    assert!(error.to_string().contains(rig.path().to_str().unwrap()));
}
