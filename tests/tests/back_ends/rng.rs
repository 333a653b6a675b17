//! vhost-device-rng: numbers of every length.

use virtio_drivers::device::rng::VirtIORng;
use vmm::demo::guest::hal::enter;
use vmm::demo::guest::{GuestHal, Registers};

use super::peer::Peer;
use super::{Kind, Served, every, serve};

const RNG: Kind = Kind {
    id: 4,
    queues: 1,
    size: 256,
    refused: &[],
};

fn drive(served: &Served) -> VirtIORng<GuestHal, Registers> {
    let Served { stand, place } = served;
    enter(stand.memory(place.addresses));
    VirtIORng::new(Registers::probe(&stand.vcpu(0), place.base).unwrap()).unwrap()
}

#[test]
#[ignore = "tests/vhost-user/back-ends runs it"]
fn every_number_asked_for_comes_and_none_comes_twice() {
    every(|way| {
        let (served, _peer) = serve(way, RNG, Peer::rng);
        let mut driver = drive(&served);
        let mut pieces = Vec::new();

        for len in [16, 64, 4096, 4097, 16384].repeat(4) {
            let mut bytes = vec![0; len];
            assert_eq!(driver.request_entropy(&mut bytes).unwrap(), len);
            pieces.extend(bytes.chunks_exact(16).map(<[u8]>::to_vec));
        }

        let asked = pieces.len();
        pieces.sort();
        pieces.dedup();
        assert_eq!(pieces.len(), asked);
        drop(driver);
        served.stand.finish();
    });
}
