//! Who may send how much.

use super::*;
use crate::testing::lines::lines_of;

fn credit(buf_alloc: u32, fwd_cnt: u32) -> Header {
    Header {
        buf_alloc: buf_alloc.into(),
        fwd_cnt: fwd_cnt.into(),
        ..Rig::packet(Op::CreditUpdate)
    }
}

#[test]
fn the_host_is_held_back_by_the_guests_credit_and_goes_on_with_more() {
    let mut rig = Rig::usual();
    let mut host = rig.connected();
    rig.send(credit(5000, 0), &[]);
    let bytes = pattern(12_000);
    host.write_all(&bytes).unwrap();
    let mut received = Vec::new();
    let mut asked = 0;

    let mut seen = Vec::new();
    for taken in [0, 5000, 10_000, 12_000] {
        rig.send(credit(5000, taken), &[]);
        for (header, payload) in rig.received() {
            asked += usize::from(op(&header) == Op::CreditRequest);
            received.extend(payload);
        }
        seen.push(received.len());
    }

    assert_eq!(seen, [5000, 10_000, 12_000, 12_000]);
    assert!(received == bytes);
    assert_eq!(asked, 2, "credit is asked for once each time");
    assert_eq!(rig.stats().credit_stalls, 2);
    assert!(!rig.receive.rings(), "nobody is waited for in vain");
}

#[test]
fn the_guest_hears_when_its_bytes_were_taken() {
    let mut rig = Rig::new(|config| config.buffer = 4096);
    let mut host = rig.connected();

    rig.send_bytes(&pattern(1000));
    let too_little = rig.received();
    rig.send_bytes(&pattern(100));
    let update = rig.next();

    assert!(too_little.is_empty());
    assert_eq!(op(&update), Op::CreditUpdate);
    assert_eq!((update.buf_alloc.get(), update.fwd_cnt.get()), (4096, 1100));
    assert_eq!(rig.read_host(&mut host, 1100).len(), 1100);
}

#[test]
fn a_guest_that_asks_is_told() {
    let mut rig = Rig::new(|config| config.buffer = 8192);
    let _host = rig.connected();

    rig.send_bytes(b"abc");
    rig.send(Rig::packet(Op::CreditRequest), &[]);
    let update = rig.next();

    assert_eq!(op(&update), Op::CreditUpdate);
    assert_eq!((update.buf_alloc.get(), update.fwd_cnt.get()), (8192, 3));
}

#[test]
fn a_reader_that_stalls_holds_its_guest_back_and_gets_everything() {
    let mut rig = Rig::new(|config| config.buffer = 64 << 10);
    let mut host = rig.connected();
    let bytes = pattern(2 << 20);
    let (mut sent, mut taken) = (0usize, 0usize);
    let mut read = Vec::new();

    let mut stalled = false;
    rig.until("the bytes do not get through", |rig| {
        // an honest guest: never more than it has credit for
        let room = (64 << 10) - (sent - taken);
        let len = room.min(bytes.len() - sent).min(10_000);
        if len > 0 {
            rig.send_bytes(&bytes[sent..sent + len]);
            sent += len;
        } else if sent < bytes.len() {
            rig.send(Rig::packet(Op::CreditRequest), &[]);
        }
        for (header, _) in rig.received() {
            taken = header.fwd_cnt.get() as usize;
        }
        stalled |= rig.stats().reader_stalls > 0;
        // nobody reads until the guest can send nothing more
        if stalled && room == 0 || sent == bytes.len() {
            let mut piece = vec![0; 50_000];
            if let Ok(count) = host.read(&mut piece) {
                read.extend_from_slice(&piece[..count]);
            }
        }
        read.len() == bytes.len()
    });

    assert!(stalled && read == bytes);
    assert_eq!((rig.stats().dropped_bytes, rig.stats().resets), (0, 0));
}

#[test]
fn bytes_without_credit_end_their_connection_and_no_other() {
    let mut rig = Rig::new(|config| config.buffer = 4096);
    let mut flooded = rig.connected();
    let listener = rig.listen(HOST + 1);
    let other = Header {
        dst_port: (HOST + 1).into(),
        ..Rig::packet(Op::Request)
    };
    rig.send(other, &[]);
    rig.received();
    let (mut spared, _) = listener.accept().unwrap();
    spared.set_nonblocking(true).unwrap();

    rig.send_bytes(&pattern(4097));
    let answer = rig.next();
    let header = Header {
        op: (Op::ReadWrite as u16).into(),
        len: 3.into(),
        ..other
    };
    rig.send(header, b"abc");

    assert_eq!(op(&answer), Op::Reset);
    rig.until("the host sees no end", |_| read_now(&mut flooded) == Ok(0));
    assert_eq!(rig.read_host(&mut spared, 3), b"abc");
    assert_eq!(rig.stats().bad_packets, 1);
}

#[test]
fn a_guest_that_resets_again_and_again_fills_no_log() {
    let mut rig = Rig::usual();

    let lines = lines_of(|| {
        for _ in 0..10 {
            while rig.transmit.handler.room() > 0 {
                rig.offer_packet(Rig::packet(Op::ReadWrite), &[]);
                rig.transmit.serve().unwrap();
            }
            rig.stop();
            rig.device.reset();
            rig.start();
        }
    });

    assert_eq!(lines, 1);
}

#[test]
fn a_guest_that_takes_no_replies_is_not_listened_to_for_ever() {
    let mut rig = Rig::usual();
    let mut taken = 0;

    for _ in 0..1000 {
        rig.offer_packet(Rig::packet(Op::ReadWrite), &[]);
        rig.transmit.serve().unwrap();
        taken += rig.transmit.ring.used().len();
        if rig.transmit.handler.room() == 0 {
            break;
        }
    }
    let stalled = taken;
    let mut resets = 0;
    rig.until("the guest is not answered", |rig| {
        resets += rig.received().len();
        rig.transmit.handler.room() > 0 && resets >= stalled
    });

    assert_eq!(stalled, 256);
    assert_eq!(rig.stats().resets, 256);
}
