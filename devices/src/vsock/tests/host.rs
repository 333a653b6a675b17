//! Clients of the host that connect to the guest.

use super::*;

fn response(request: &Header) -> Header {
    Header {
        src_port: request.dst_port,
        dst_port: request.src_port,
        ..Rig::packet(Op::Response)
    }
}

#[test]
fn a_client_gets_the_port_it_asks_for_and_a_word_when_it_is_accepted() {
    let mut rig = Rig::usual();
    let mut client = rig.client();
    client.write_all(b"early").unwrap();

    let request = rig.next();
    let before = read_now(&mut client);
    rig.send(response(&request), &[]);
    let port = request.src_port.get();
    let answer = format!("OK {port}\n");
    let read = rig.read_host(&mut client, answer.len());
    let (early, bytes) = rig.received().pop().unwrap();

    assert_eq!((op(&request), request.dst_port.get()), (Op::Request, GUEST));
    assert!(request.buf_alloc.get() > 0);
    assert_eq!(before, Err(ErrorKind::WouldBlock));
    assert_eq!(read, answer.as_bytes());
    assert_eq!(
        (op(&early), bytes.as_slice()),
        (Op::ReadWrite, &b"early"[..])
    );
    assert_eq!(rig.stats().opened_by_host, 1);
    let listed = rig.device.statistics();
    assert_eq!(timed(&listed, "accept"), 1);
}

#[test]
fn clients_get_ports_of_their_own() {
    let mut rig = Rig::usual();
    let _clients = [rig.client(), rig.client(), rig.client()];
    let mut ports = Vec::new();

    rig.until("the guest is not asked", |rig| {
        ports.extend(
            rig.received()
                .iter()
                .map(|(header, _)| header.src_port.get()),
        );
        ports.len() == 3
    });

    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 3);
    assert!(ports.iter().all(|port| *port >= 1 << 30));
}

#[test]
fn a_client_that_the_guest_does_not_want_is_sent_away() {
    let mut rig = Rig::usual();
    let mut client = rig.client();

    let request = rig.next();
    let reset = Header {
        op: (Op::Reset as u16).into(),
        ..response(&request)
    };
    rig.send(reset, &[]);
    rig.until("the client sees no end", |_| read_now(&mut client) == Ok(0));

    assert_eq!(rig.stats().opened_by_host, 0);
}

#[test]
fn a_client_that_does_not_wait_is_forgotten() {
    let mut rig = Rig::new(|config| config.connections = 1);
    let client = rig.client();
    let request = rig.next();

    drop(client);
    let reset = rig.next();
    let _second = rig.client();
    let next = rig.next();

    assert_eq!(op(&reset), Op::Reset);
    assert_eq!(reset.src_port, request.src_port);
    assert_eq!(op(&next), Op::Request);
}

#[test]
fn clients_wait_at_the_door_while_there_is_no_room() {
    let mut rig = Rig::new(|config| config.connections = 1);
    let host = rig.connected();
    let _client = rig.client();

    let before = rig.received();
    drop(host);
    rig.next();
    rig.send(Rig::packet(Op::Reset), &[]);
    let request = rig.next();

    assert!(before.is_empty(), "{before:?}");
    assert_eq!(op(&request), Op::Request);
}

#[test]
fn a_line_may_come_in_pieces_and_nothing_else_gets_in() {
    let mut rig = Rig::usual();
    let mut slow = UnixStream::connect(rig.path()).unwrap();
    slow.write_all(b"CONN").unwrap();
    let before = rig.received();
    slow.write_all(b"ECT 1024\n").unwrap();
    let request = rig.next();

    let mut refused = Vec::new();
    for line in [
        "GET / HTTP/1.1\r\n",
        "CONNECT\n",
        "CONNECT 99999999999\n",
        "a line that is longer than any line of this kind",
    ] {
        let mut client = UnixStream::connect(rig.path()).unwrap();
        client.set_nonblocking(true).unwrap();
        client.write_all(line.as_bytes()).unwrap();
        rig.until("the client is kept", |_| {
            !matches!(read_now(&mut client), Err(ErrorKind::WouldBlock))
        });
        refused.push(line);
    }

    assert!(before.is_empty());
    assert_eq!(op(&request), Op::Request);
    assert_eq!(rig.stats().bad_clients, refused.len() as u64);
}

#[test]
fn a_guest_that_never_answers_keeps_a_client_for_a_bounded_time() {
    use std::time::Instant;

    use super::super::table::{REQUEST_LIMIT, Table};
    use crate::unix::Stream;

    let (stream, mut client) = UnixStream::pair().unwrap();
    client.set_nonblocking(true).unwrap();
    let mut table = Table::new(3, 4, 4096);
    table.set_receiving(true);
    let now = Instant::now();
    table
        .request(GUEST, Stream::new(stream.into()), now)
        .unwrap();
    let request = table.next_reply().unwrap();

    let early = table.expire(now + REQUEST_LIMIT / 2);
    let late = table.expire(now + REQUEST_LIMIT);

    assert_eq!((early, late), (0, 1));
    assert_eq!(op(&request), Op::Request);
    assert_eq!(op(&table.next_reply().unwrap()), Op::Reset);
    assert_eq!(read_now(&mut client), Ok(0));
}

#[test]
fn a_path_that_is_taken_is_told_by_name() {
    let rig = Rig::usual();
    let config = VsockConfig::new(rig.path());

    let error = VsockDevice::open(config.validate().unwrap()).unwrap_err();

    assert!(error.to_string().contains(rig.path().to_str().unwrap()));
}
