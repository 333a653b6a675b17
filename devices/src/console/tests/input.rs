//! What the host writes, on its way to the guest.

use std::io::Write;

use super::*;

#[test]
fn input_fills_chains_in_order_and_only_as_far_as_there_is_some() {
    let mut rig = Rig::socket();
    let mut client = connect(&rig.path());
    let buffers = [rig.offer(4), rig.offer(100), rig.offer(100)];

    client.write_all(b"abcdefg").unwrap();
    rig.until("no input", |rig| rig.stats().input_bytes == 7);

    assert_eq!(rig.received(&buffers), [b"abcd".to_vec(), b"efg".to_vec()]);
    assert!(rig.receive.line.edges() >= 1);
    assert_eq!(rig.stats().input_chains, 2);
    rig.rests();
}

#[test]
fn a_chain_of_buffers_and_grants_is_filled_across_them() {
    let mut rig = Rig::socket();
    let page = rig.ram.alloc(8192).next_multiple_of(4096);
    let buffers = [
        Buffer::writable(rig.ram.alloc(3), 3),
        Buffer::writable(GuestRam::granted(page + 100), 10),
    ];
    rig.receive.ring.add_indirect(&buffers);
    rig.receive.serve().unwrap();

    connect(&rig.path()).write_all(b"abcdef").unwrap();
    rig.until("no input", |rig| rig.stats().input_bytes == 6);

    assert_eq!(rig.receive.ring.used(), [(0, 6)]);
    assert_eq!(rig.ram.read(buffers[0].address, 3), b"abc");
    assert_eq!(rig.ram.read(page + 100, 4), b"def\0");
}

#[test]
fn the_host_is_not_read_while_the_guest_has_no_room() {
    let mut rig = Rig::socket();
    let mut client = connect(&rig.path());
    rig.until("the client is not let in", |rig| rig.stats().clients == 1);
    rig.receive.settle_down();

    let mut taken = 0;
    while let Ok(count) = client.write(&[0x55; 65536]) {
        taken += count;
    }
    // whoever let the client in may ring once more, from a thread of its own
    rig.receive.settle_down();
    let more = client.write(&[0x55]);
    let mut seen = 0;
    while seen < taken {
        let buffer = rig.offer(65536);
        rig.until("no input", |rig| rig.stats().input_bytes > seen as u64);
        let bytes = rig.received(&[buffer]).concat();
        assert!(bytes.iter().all(|byte| *byte == 0x55));
        seen += bytes.len();
    }

    assert!(more.is_err(), "what nobody wants is read");
    assert!(taken < 1 << 23, "the writer was not held back");
    assert_eq!(seen, taken);
}

#[test]
fn a_client_that_goes_is_read_to_its_end_and_the_handler_rests_then() {
    let mut rig = Rig::socket();
    let mut client = connect(&rig.path());
    client.write_all(b"farewell").unwrap();
    drop(client);
    rig.until("nobody came", |rig| rig.stats().clients == 1);
    rig.until("nobody went", |rig| rig.stats().hangups == 1);

    let buffers = [rig.offer(100), rig.offer(100)];
    rig.until("no input", |rig| rig.stats().input_bytes == 8);

    assert_eq!(rig.received(&buffers), [b"farewell"]);
    rig.rests();
}

#[test]
fn what_clients_have_sent_one_after_the_other_arrives_so() {
    let mut rig = Rig::socket();
    for number in 0..5u8 {
        connect(&rig.path()).write_all(&[number; 3]).unwrap();
        rig.until("nobody went", |rig| {
            rig.stats().hangups == u64::from(number) + 1
        });
    }

    let buffers: Vec<Buffer> = (0..5).map(|_| rig.offer(100)).collect();
    rig.until("no input", |rig| rig.stats().input_bytes == 15);

    let expected: Vec<Vec<u8>> = (0..5u8).map(|number| vec![number; 3]).collect();
    assert_eq!(rig.received(&buffers), expected);
}

#[test]
fn a_client_that_only_stops_writing_still_reads() {
    let mut rig = Rig::socket();
    let mut client = connect(&rig.path());
    client.write_all(b"question").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let buffers = [rig.offer(100), rig.offer(100)];
    rig.until("no input", |rig| rig.stats().input_bytes == 8);

    rig.write(b"answer");
    let answer = rig.read_host(&mut client, 6);

    assert_eq!(rig.received(&buffers), [b"question"]);
    assert_eq!(answer, b"answer");
    // its end is not seen again and again
    rig.rests();
}

#[test]
fn a_buffer_that_is_not_there_breaks_the_queue_and_loses_no_input() {
    let mut rig = Rig::socket();
    let mut client = connect(&rig.path());
    rig.offer(2);
    rig.receive.ring.add(&[Buffer::writable(1 << 40, 2)]);
    rig.offer(100);
    rig.until("the client is not let in", |rig| rig.stats().clients == 1);

    client.write_all(b"abcdef").unwrap();
    let error = loop {
        assert!(readable(rig.receive.handler.event().unwrap(), PATIENCE));
        if let Err(error) = rig.receive.handler.advance(&mut rig.receive.queue) {
            break error;
        }
    };
    rig.reset();
    let buffers = [rig.offer(100), rig.offer(100)];
    rig.until("no input", |rig| rig.stats().input_bytes == 6);

    assert!(matches!(error, QueueError::Request { head: 1, .. }));
    assert_eq!(rig.received(&buffers), [b"cdef"]);
}

#[test]
fn a_chain_without_room_is_given_back_empty() {
    let mut rig = Rig::pty();
    let readable = Buffer::readable(rig.ram.alloc(16), 16);
    rig.receive.ring.add(&[readable]);

    rig.receive.serve().unwrap();

    assert_eq!(rig.receive.ring.used(), [(0, 0)]);
    assert_eq!(rig.stats().bad_requests, 1);
}

#[test]
fn no_more_chains_wait_than_the_queue_has() {
    let mut rig = Rig::new(|_| ConsoleConfig {
        queue_size: 4,
        ..ConsoleConfig::default()
    });

    for _ in 0..10 {
        rig.offer(16);
    }

    assert_eq!(rig.receive.handler.room(), 0);
    assert_eq!(rig.receive.ring.used(), []);
}
