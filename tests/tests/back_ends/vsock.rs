//! vhost-device-vsock: every byte comes back over connections of every sides.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use tests::Stand;
use tests::socket::{drive, echo, exchange, wait_for};
use virtio_drivers::device::socket::{VsockAddr, VsockEventType};
use vmm::demo::guest::Pattern;

use super::peer::Peer;
use super::{Kind, every, serve};

const SOCKET: Kind = Kind {
    id: 19,
    queues: 3,
    size: 256,
    refused: &[],
};

const CID: u64 = 3;
const PORT: u32 = 52;
const GUEST: u32 = 1024;
const HOST: VsockAddr = VsockAddr { cid: 2, port: PORT };
const BYTES: usize = 256 << 10;

fn start(stand: &Stand) -> Peer {
    Peer::vsock(stand, CID, &stand.path("v"))
}

#[test]
#[ignore = "tests/vhost-user/back-ends runs it"]
fn every_byte_comes_back_over_a_connection_of_the_guest() {
    every(|way| {
        let (served, _peer) = serve(way, SOCKET, start);
        let listener = UnixListener::bind(served.stand.path(&format!("v_{PORT}"))).unwrap();
        let mut driver = drive(&served.stand, &served.place);
        let host = thread::spawn(move || echo(listener.accept().unwrap().0));
        let output = Pattern::new(1).bytes(BYTES);

        let cid = driver.guest_cid();
        driver.connect(HOST, GUEST).unwrap();
        wait_for(&mut driver, |event| *event == VsockEventType::Connected);
        let input = exchange(&mut driver, HOST, GUEST, &output);
        driver.shutdown(HOST, GUEST).unwrap();
        host.join().unwrap();

        assert_eq!(cid, CID);
        assert!(input == output, "bytes differ");
        drop(driver);
        served.stand.finish();
    });
}

#[test]
#[ignore = "tests/vhost-user/back-ends runs it"]
fn every_byte_comes_back_over_a_connection_of_the_host() {
    every(|way| {
        let (served, _peer) = serve(way, SOCKET, start);
        let path = served.stand.path("v");
        let _listener = UnixListener::bind(served.stand.path(&format!("v_{PORT}"))).unwrap();
        let mut driver = drive(&served.stand, &served.place);
        driver.listen(GUEST);
        // its thread ends over a client of before the rings run; a connection
        // says that they do
        driver.connect(HOST, GUEST + 1).unwrap();
        wait_for(&mut driver, |event| *event == VsockEventType::Connected);
        let host = thread::spawn(move || {
            let mut stream = UnixStream::connect(path).unwrap();
            stream.write_all(b"CONNECT 1024\n").unwrap();
            let mut answer = Vec::new();
            while answer.last() != Some(&b'\n') {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                answer.push(byte[0]);
            }
            echo(stream);
            String::from_utf8(answer).unwrap()
        });
        let output = Pattern::new(2).bytes(BYTES);

        let peer = wait_for(&mut driver, |event| {
            *event == VsockEventType::ConnectionRequest
        });
        let input = exchange(&mut driver, peer, GUEST, &output);
        driver.shutdown(peer, GUEST).unwrap();
        let answer = host.join().unwrap();

        assert!(input == output, "bytes differ");
        assert!(answer.starts_with("OK "), "{answer}");
        drop(driver);
        served.stand.finish();
    });
}
