//! vhost-device-console: bytes every ways, between the guest and a port of this
//! host.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use tests::Stand;
use tests::console::Console;
use tests::stand::PATIENCE;

use super::peer::Peer;
use super::{Kind, every, serve};

/// Input and output of the first port, those of control, and of the others.
const CONSOLE: Kind = Kind {
    id: 3,
    queues: 4,
    size: 128,
    refused: &[],
};
const BYTES: usize = 4096;
/// What it needs to be done with a buffer, and to spare.
const REST: Duration = Duration::from_millis(50);

/// A port that nobody else has just now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
#[ignore = "tests/vhost-user/back-ends runs it"]
fn what_one_end_types_the_other_end_reads() {
    every(|way| {
        let port = free_port();
        let (served, _peer) = serve(way, CONSOLE, |stand: &Stand| Peer::console(stand, port));
        let mut host = TcpStream::connect(("127.0.0.1", port)).unwrap();
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut guest = Console::new(&served.stand, &served.place);
        let text: Vec<u8> = (0..BYTES).map(|at| b'a' + (at % 26) as u8).collect();

        guest.send(&text);
        let mut read = vec![0; BYTES];
        host.read_exact(&mut read).unwrap();
        // it uses a buffer once for each byte that it has: no more than one may be;
        // and it loses a buffer that comes while it is still at the last one
        let mut answer = Vec::new();
        for byte in b"an answer" {
            host.write_all(&[*byte]).unwrap();
            answer.extend(guest.receive_slowly(REST));
        }

        assert!(read == text, "the host reads something else");
        assert_eq!(answer, b"an answer");
        drop(guest);
        served.stand.finish();
    });
}
