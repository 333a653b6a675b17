//! Frames, whole and in order, and those that are not.

use super::*;

#[test]
fn frames_go_both_ways_as_they_are() {
    let mut rig = Rig::listening();
    let mut other = rig.connect();
    let (out, back) = (frame(BROADCAST, 1514, 1), frame(MAC, 60, 2));

    rig.send(&out);
    let read = rig.read_frame(&mut other);
    let buffer = rig.offer(2048);
    write_frame(&mut other, &back);
    rig.until("no frame comes", |rig| rig.stats().rx_frames == 1);

    assert!(read == out);
    assert_eq!(rig.transmit.ring.used(), [(0, 0)]);
    let used = rig.receive.ring.used();
    assert_eq!(used, [(0, (HEADER_LEN + back.len()) as u32)]);
    let bytes = rig.ram.read(buffer.address, HEADER_LEN + back.len());
    assert_eq!(bytes[..HEADER_LEN], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert!(bytes[HEADER_LEN..] == back);
    assert_eq!(rig.stats().tx_frames, 1);
    assert_eq!(rig.ram.lent(), 0);
}

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs() {
    let mut rig = Rig::listening();
    let mut other = rig.connect();
    let large = frame(MAC, 9000, 3);
    let buffers: Vec<_> = (0..6).map(|_| rig.offer(2048)).collect();

    write_frame(&mut other, &large);
    rig.until("no frame comes", |rig| rig.stats().rx_frames == 1);

    let used = rig.receive.ring.used();
    let lens: Vec<_> = used.iter().map(|(_, len)| *len as usize).collect();
    assert_eq!(lens, [2048, 2048, 2048, 2048, HEADER_LEN + 9000 - 8192]);
    let bytes: Vec<u8> = buffers
        .iter()
        .zip(&lens)
        .flat_map(|(buffer, len)| rig.ram.read(buffer.address, *len))
        .collect();
    assert_eq!(bytes[10..12], [5, 0]);
    assert!(bytes[HEADER_LEN..] == large);
}

#[test]
fn a_driver_without_mergeable_buffers_gets_what_fits_into_one() {
    let mut rig = Rig::new(listening, net::MRG_RXBUF);
    let mut other = rig.connect();
    rig.offer(1000);
    rig.offer(1000);

    write_frame(&mut other, &frame(MAC, 1500, 1));
    write_frame(&mut other, &frame(MAC, 500, 2));
    rig.until("no frame comes", |rig| rig.stats().rx_frames == 1);

    assert_eq!(rig.stats().rx_dropped, 1);
    assert_eq!(rig.receive.ring.used(), [(0, 512)]);
}

#[test]
fn a_frame_that_finds_too_few_buffers_waits_for_more_and_not_for_ever() {
    let mut rig = Rig::listening();
    let mut other = rig.connect();
    rig.offer(1000);
    write_frame(&mut other, &frame(MAC, 2500, 1));
    rig.settle_down();
    let before = rig.receive.ring.used();

    rig.offer(1000);
    rig.offer(1000);
    rig.until("no frame comes", |rig| rig.stats().rx_frames == 1);
    let after = rig.receive.ring.used().len();
    rig.offer(1000);
    write_frame(&mut other, &frame(MAC, 2500, 2));
    write_frame(&mut other, &frame(MAC, 100, 3));
    rig.until("no frame follows", |rig| rig.stats().rx_frames == 2);

    assert_eq!((before, after), (vec![], 3));
    assert_eq!(rig.stats().rx_dropped, 1, "there were never enough");
}

#[test]
fn a_flood_is_held_back_while_the_guest_gives_no_buffers() {
    let mut rig = Rig::listening();
    let mut other = rig.connect();
    let framed = [&1000u32.to_be_bytes()[..], &frame(MAC, 1000, 1)].concat();

    let mut sent = 0;
    while let Ok(count) = other.write(&framed[sent % framed.len()..]) {
        sent += count;
        rig.settle_down();
        assert!(sent < 64 << 20, "nobody holds the sender back");
    }
    let whole = sent / framed.len();
    let buffer = Buffer::writable(rig.ram.alloc(2048), 2048);
    let mut received = 0;
    rig.until("frames are lost", |rig| {
        rig.receive.ring.add(&[buffer]);
        rig.receive.serve().unwrap();
        received += rig.receive.ring.used().len();
        received == whole
    });

    assert_eq!(rig.stats().rx_dropped, 0);
}

#[test]
fn frames_of_the_guest_that_break_a_rule_are_given_back_and_not_sent() {
    let mut rig = Rig::listening();
    let mut other = rig.connect();
    let good = frame(BROADCAST, 60, 1);
    let packet = |header: [u8; 2]| {
        let mut packet = [&[0; HEADER_LEN][..], &good].concat();
        packet[..2].copy_from_slice(&header);
        packet
    };

    // an open checksum, and segmentation, that a socket does not offer
    rig.send_packet(&packet([1, 0]));
    rig.send_packet(&packet([0, 1]));
    rig.send_packet(&packet([0, 5]));
    // too short, and too long
    rig.send_packet(&[0; HEADER_LEN + 13]);
    rig.send_packet(&vec![0; HEADER_LEN + 65554]);
    // nothing to read
    let page = rig.ram.alloc(64);
    rig.transmit.ring.add(&[Buffer::writable(page, 64)]);
    rig.transmit.serve().unwrap();
    rig.send(&good);

    assert!(rig.read_frame(&mut other) == good);
    assert_eq!(rig.stats().bad_requests, 6);
    assert_eq!(rig.transmit.ring.used().len(), 7);
}

#[test]
fn buffers_without_room_for_a_header_are_given_back() {
    let mut rig = Rig::listening();
    let page = rig.ram.alloc(64);

    rig.receive.ring.add(&[Buffer::writable(page, 11)]);
    rig.receive.ring.add(&[Buffer::readable(page, 64)]);
    rig.receive.serve().unwrap();

    assert_eq!(rig.receive.ring.used(), [(0, 0), (1, 0)]);
    assert_eq!(rig.stats().bad_requests, 2);
}

#[test]
fn memory_that_is_not_there_breaks_its_queue() {
    let mut rig = Rig::listening();
    let mut other = rig.connect();
    rig.transmit.ring.add(&[Buffer::readable(1 << 40, 100)]);
    rig.receive.ring.add(&[Buffer::writable(1 << 40, 2048)]);
    rig.receive.serve().unwrap();
    let command = [Buffer::readable(1 << 40, 3), Buffer::writable(1 << 40, 1)];
    rig.control.ring.add(&command);

    let sent = rig.transmit.serve().unwrap_err();
    let commanded = rig.control.serve().unwrap_err();
    write_frame(&mut other, &frame(MAC, 60, 1));
    let event = rig.receive.handler.event().unwrap();
    assert!(readable(event, PATIENCE));
    let received = rig.receive.handler.advance(&mut rig.receive.queue);

    for error in [sent, commanded, received.unwrap_err()] {
        assert!(matches!(error, QueueError::Request { .. }), "{error}");
    }
}

#[test]
fn batches_of_frames_keep_their_order() {
    let mut rig = Rig::listening();
    let mut other = rig.connect();
    let frames: Vec<_> = (0..50)
        .map(|n| frame(MAC, 200 + usize::from(n), n))
        .collect();

    let buffers: Vec<_> = frames.iter().map(|_| rig.offer(1024)).collect();
    for frame in &frames {
        write_frame(&mut other, frame);
    }
    rig.until("frames are lost", |rig| rig.stats().rx_frames == 50);
    for frame in &frames {
        rig.send(frame);
    }

    for (buffer, frame) in buffers.iter().zip(&frames) {
        let bytes = rig.ram.read(buffer.address, HEADER_LEN + frame.len());
        assert!(bytes[HEADER_LEN..] == *frame);
    }
    for frame in &frames {
        assert!(rig.read_frame(&mut other) == *frame);
    }
    let listed = rig.device.statistics();
    assert_eq!(timed(&listed, "transmit"), 50);
}
