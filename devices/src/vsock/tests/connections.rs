//! Connections that the guest opens, uses and ends.

use super::super::packet::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;

fn shutdown(flags: u32) -> Header {
    Header {
        flags: flags.into(),
        ..Rig::packet(Op::Shutdown)
    }
}

#[test]
fn bytes_go_both_ways_whole_and_in_order() {
    let mut rig = Rig::usual();
    let mut host = rig.connected();
    let bytes = pattern(100_000);

    rig.send_bytes(&bytes[..40_000]);
    rig.send_bytes(&bytes[40_000..]);
    let sent = rig.read_host(&mut host, bytes.len());
    host.write_all(&bytes).unwrap();
    let mut received = Vec::new();
    rig.until("the guest gets too little", |rig| {
        for (header, payload) in rig.received() {
            if op(&header) == Op::ReadWrite {
                received.extend(payload);
            }
        }
        received.len() >= bytes.len()
    });

    assert!(sent == bytes && received == bytes);
    let stats = rig.stats();
    assert_eq!((stats.tx_bytes, stats.rx_bytes), (100_000, 100_000));
    assert_eq!((stats.opened_by_guest, stats.resets), (1, 0));
    assert_eq!(rig.ram.lent(), 0);
}

#[test]
fn a_port_that_nobody_listens_on_is_refused() {
    let mut rig = Rig::usual();

    rig.send(Rig::packet(Op::Request), &[]);
    let answer = rig.next();

    assert_eq!(op(&answer), Op::Reset);
    assert_eq!(
        (answer.src_port.get(), answer.dst_port.get()),
        (HOST, GUEST)
    );
    assert_eq!(rig.stats().refused, 1);
}

#[test]
fn more_connections_than_there_may_be_are_refused_and_others_go_on() {
    let mut rig = Rig::new(|config| config.connections = 1);
    let mut host = rig.connected();
    let _listener = rig.listen(HOST + 1);

    let second = Header {
        dst_port: (HOST + 1).into(),
        ..Rig::packet(Op::Request)
    };
    rig.send(second, &[]);
    let answer = rig.next();
    rig.send_bytes(b"still there");

    assert_eq!(op(&answer), Op::Reset);
    assert_eq!(rig.read_host(&mut host, 11), b"still there");
    assert_eq!(rig.stats().refused, 1);
}

#[test]
fn a_guest_that_closes_is_answered_at_once_and_its_bytes_are_not_lost() {
    let mut rig = Rig::new(|config| config.buffer = 4 << 20);
    let mut host = rig.connected();
    let bytes = pattern(1 << 20);
    for piece in bytes.chunks(64 << 10) {
        rig.send_bytes(piece);
    }

    rig.send(shutdown(SHUTDOWN_BOTH), &[]);
    let answers = rig.received();
    let read = rig.read_host(&mut host, bytes.len());
    rig.until("the host sees no end", |_| read_now(&mut host) == Ok(0));

    assert_eq!(op(&answers.last().unwrap().0), Op::Reset);
    assert!(read == bytes);
    assert_eq!(rig.stats().dropped_bytes, 0);
    assert!(rig.device.statistics().contains(&("connections", 0)));
}

#[test]
fn what_is_left_of_closed_connections_makes_room_for_a_new_one() {
    let mut rig = Rig::new(|config| {
        config.connections = 1;
        config.buffer = 4 << 20;
    });
    let listener = rig.listen(HOST);
    rig.send(Rig::packet(Op::Request), &[]);
    assert_eq!(op(&rig.next()), Op::Response);
    let _unread = listener.accept().unwrap();
    for _ in 0..16 {
        rig.send_bytes(&pattern(64 << 10));
    }
    rig.send(shutdown(SHUTDOWN_BOTH), &[]);
    rig.received();

    // the guest uses its port again
    rig.send(Rig::packet(Op::Request), &[]);
    let answer = rig.next();

    assert_eq!(op(&answer), Op::Response);
    assert!(rig.stats().dropped_bytes > 0);
}

#[test]
fn each_direction_ends_by_itself() {
    let mut rig = Rig::usual();
    let mut host = rig.connected();

    rig.send_bytes(b"all");
    rig.send(shutdown(SHUTDOWN_SEND), &[]);
    let read = rig.read_host(&mut host, 3);
    let end = read_now(&mut host);
    host.write_all(b"answer").unwrap();
    let (_, answer) = rig.received().pop().unwrap();
    host.shutdown(std::net::Shutdown::Write).unwrap();
    let ended = rig.next();

    assert_eq!((read.as_slice(), end), (&b"all"[..], Ok(0)));
    assert_eq!(answer, b"answer");
    // with the second direction both are over
    assert_eq!(
        (op(&ended), ended.flags.get()),
        (Op::Shutdown, SHUTDOWN_BOTH)
    );
}

#[test]
fn a_host_that_only_sends_no_more_still_hears_the_guest() {
    let mut rig = Rig::usual();
    let mut host = rig.connected();

    host.shutdown(std::net::Shutdown::Write).unwrap();
    let ended = rig.next();
    rig.send_bytes(b"answer");
    let read = rig.read_host(&mut host, 6);
    drop(host);
    let gone = rig.next();

    assert_eq!(
        (op(&ended), ended.flags.get()),
        (Op::Shutdown, SHUTDOWN_SEND)
    );
    assert_eq!(read, b"answer");
    assert_eq!((op(&gone), gone.flags.get()), (Op::Shutdown, SHUTDOWN_BOTH));
}

#[test]
fn a_guest_that_takes_no_more_breaks_the_hosts_writes() {
    let mut rig = Rig::usual();
    let mut host = rig.connected();

    rig.send(shutdown(SHUTDOWN_RECEIVE), &[]);
    let write = host.write(b"x").map_err(|error| error.kind());
    rig.send_bytes(b"but it sends");

    assert_eq!(write, Err(ErrorKind::BrokenPipe));
    assert_eq!(rig.read_host(&mut host, 12), b"but it sends");
}

#[test]
fn a_host_that_closes_is_told_to_the_guest_behind_its_last_bytes() {
    let mut rig = Rig::usual();
    let mut host = rig.connected();

    host.write_all(b"bye").unwrap();
    drop(host);
    let packets = rig.received();
    // late bytes harm nobody
    rig.send_bytes(b"too late");
    rig.send(Rig::packet(Op::Reset), &[]);
    let after = rig.received();

    let told: Vec<_> = packets.iter().map(|(header, _)| op(header)).collect();
    assert_eq!(told, [Op::ReadWrite, Op::Shutdown]);
    assert_eq!(packets[0].1, b"bye");
    assert_eq!(packets[1].0.flags.get(), SHUTDOWN_BOTH);
    assert!(after.is_empty(), "{after:?}");
    assert_eq!(rig.stats().dropped_bytes, 8);
}

#[test]
fn a_guest_that_resets_ends_the_hosts_end() {
    let mut rig = Rig::usual();
    let mut host = rig.connected();

    rig.send(Rig::packet(Op::Reset), &[]);
    rig.until("the host sees no end", |_| read_now(&mut host) == Ok(0));
    rig.send_bytes(b"of what?");

    assert_eq!(op(&rig.next()), Op::Reset);
}

#[test]
fn a_reset_of_the_device_ends_all_connections_and_keeps_the_door() {
    let mut rig = Rig::usual();
    let mut host = rig.connected();

    rig.stop();
    rig.device.reset();
    rig.start();
    rig.until("the host sees no end", |_| read_now(&mut host) == Ok(0));
    let _client = rig.client();

    assert_eq!(op(&rig.next()), Op::Request);
}

#[test]
fn a_queue_that_is_taken_away_and_given_again_loses_no_connection() {
    let mut rig = Rig::new(|config| config.buffer = 4 << 20);
    let mut host = rig.connected();
    let bytes = pattern(1 << 20);
    for piece in bytes.chunks(64 << 10) {
        rig.send_bytes(piece);
    }
    rig.received();

    rig.stop();
    rig.start();
    let read = rig.read_host(&mut host, bytes.len());
    host.write_all(b"and back").unwrap();
    let mut packets = Vec::new();
    rig.until("nothing comes back", |rig| {
        packets.extend(rig.received());
        packets.iter().any(|(_, payload)| payload == b"and back")
    });

    assert!(read == bytes);
}

#[test]
fn the_guest_is_told_when_all_its_connections_have_ended() {
    let mut rig = Rig::usual();
    let mut host = rig.connected();
    let buffer = rig.ram.alloc_bytes(&[0xff; 4]);

    let handle = rig.device.handle();
    let there = handle.end_connections();
    rig.until("the host sees no end", |_| read_now(&mut host) == Ok(0));
    rig.event.ring.add(&[Buffer::writable(buffer, 4)]);
    rig.event.serve().unwrap();
    rig.settle_down();

    assert!(there);
    assert_eq!(rig.event.ring.used(), [(0, 4)]);
    assert_eq!(rig.ram.read(buffer, 4), [0; 4]);
    assert_eq!(rig.stats().transport_resets, 1);
    drop(rig);
    assert!(!handle.end_connections());
}

#[test]
fn the_guests_address_is_in_the_configuration_space() {
    let rig = Rig::new(|config| config.cid = 0x1234_5678);

    let mut config = [0xff; 12];
    rig.device.read_config(0, &mut config);
    let mut upper = [0xff; 4];
    rig.device.read_config(4, &mut upper);

    assert_eq!(config, [0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(upper, [0; 4]);
    assert_eq!(rig.device.host_path(), Some(rig.path().as_path()));
}
