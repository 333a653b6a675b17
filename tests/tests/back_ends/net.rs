//! DPDK's testpmd: every frame comes back, whole and in order, with its two
//! addresses changed for each other.

use std::thread;
use std::time::Duration;

use tests::drivers::net::Card;
use virtio_drivers::device::net::{TxBuffer, VirtIONet};
use vmm::demo::guest::hal::enter;
use vmm::demo::guest::{GuestHal, Pattern, Registers};

use super::peer::Peer;
use super::{Kind, Served, alone, serve};

/// A pair of queues. The control queue and what is asked through it, the
/// announcements and the number of pairs (17, 18, 21, 22) DPDK leaves to whoever
/// is between it and the guest; a size of frames (3) it does not tell.
const CARD: Kind = Kind {
    id: 1,
    queues: 2,
    size: 256,
    refused: &[3, 17, 18, 21, 22],
};

/// Frames underway at once. Their buffers fit the receive queue twice, as those
/// of the last ones may be on their way back: what does not fit is dropped.
const WINDOW: usize = 3;
const ADDRESSES: usize = 12;
/// How long a frame may be underway before it is taken for lost.
const LOST: Duration = Duration::from_millis(500);

/// Frames of these lengths.
fn frames(seed: u64, lens: impl Iterator<Item = usize>) -> Vec<Vec<u8>> {
    let mut pattern = Pattern::new(seed);
    lens.map(|len| pattern.bytes(len)).collect()
}

/// What comes back of a frame.
fn swapped(frame: &[u8]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(ADDRESSES);
    let (destination, source) = addresses.split_at(ADDRESSES / 2);
    [source, destination, rest].concat()
}

fn all_swapped(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    frames.iter().map(|frame| swapped(frame)).collect()
}

#[test]
#[ignore = "tests/vhost-user/back-ends runs it"]
fn every_frame_comes_back_to_virtio_drivers_card() {
    alone(|way| {
        let (served, _peer) = serve(way, CARD, Peer::testpmd);
        let Served { stand, place } = &served;
        enter(stand.memory(place.addresses));
        let registers = Registers::probe(&stand.vcpu(0), place.base).unwrap();
        let mut driver = VirtIONet::<GuestHal, _, 32>::new(registers, 2048).unwrap();
        let frames = frames(1, (0..400).map(|n| 60 + n * 37 % 1455));
        let mut received = Vec::new();

        for frame in &frames {
            driver.send(TxBuffer::from(frame)).unwrap();
            tests::stand::eventually("the frame is back", || driver.can_recv());
            let buffer = driver.receive().unwrap();
            received.push(buffer.packet().to_vec());
            driver.recycle_rx_buffer(buffer).unwrap();
        }

        assert!(received == all_swapped(&frames));
        drop(driver);
        served.stand.finish();
    });
}

#[test]
#[ignore = "tests/vhost-user/back-ends runs it"]
fn large_frames_come_back_in_as_many_buffers_as_they_need() {
    alone(|way| {
        let (served, _peer) = serve(way, CARD, Peer::testpmd);
        let mut card = Card::new(&served.stand, &served.place);
        let frames = frames(2, (0..600).map(|n| 60 + n * 1009 % 8941));

        let received = card.exchange(&frames, WINDOW);

        assert_eq!(received.len(), frames.len());
        assert!(received == all_swapped(&frames), "a frame differs");
        assert_eq!(card.widest, 9);
        drop(card);
        served.stand.finish();
    });
}

#[test]
#[ignore = "tests/vhost-user/back-ends runs it"]
fn a_card_whose_back_end_is_killed_has_its_frames_back_from_the_next() {
    alone(|way| {
        let (served, mut peer) = serve(way, CARD, Peer::testpmd);
        let mut card = Card::new(&served.stand, &served.place);
        let assassin = thread::spawn(move || {
            for _ in 0..3 {
                thread::sleep(Duration::from_millis(300));
                peer.kill();
                thread::sleep(Duration::from_millis(100));
                peer.start_again();
            }
            peer
        });
        let wanted = frames(3, std::iter::repeat_n(1514, 300));

        // a network may lose frames, and what was underway may come twice
        let mut repeated = 0;
        while !assassin.is_finished() {
            card.send(&wanted[0]);
            repeated += usize::from(card.receive(LOST).is_none());
        }
        let _peer = assassin.join().unwrap();
        while card.receive(LOST).is_some() {}
        let received = card.exchange(&wanted, WINDOW);

        assert!(received == all_swapped(&wanted), "a frame differs");
        assert!(repeated <= 3, "{repeated} frames were lost");
        drop(card);
        served.stand.finish();
    });
}
