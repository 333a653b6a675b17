//! vhost-device-sound: a stream is played, into nothing.

use virtio_drivers::device::sound::{PcmFeatures, PcmFormat, PcmFormats, PcmRate, VirtIOSound};
use vmm::demo::guest::hal::enter;
use vmm::demo::guest::{GuestHal, Pattern, Registers};

use super::peer::Peer;
use super::{Kind, Served, every, serve};

/// Control, events, output, input.
const SOUND: Kind = Kind {
    id: 25,
    queues: 4,
    size: 64,
    // EVENT_IDX: it looks for ever at the events' queue, which it never empties
    refused: &[29],
};

const PERIOD: u32 = 1024;

fn drive(served: &Served) -> VirtIOSound<GuestHal, Registers> {
    let Served { stand, place } = served;
    enter(stand.memory(place.addresses));
    VirtIOSound::new(Registers::probe(&stand.vcpu(0), place.base).unwrap()).unwrap()
}

#[test]
#[ignore = "tests/vhost-user/back-ends runs it"]
fn a_stream_is_played_to_its_end() {
    every(|way| {
        let (served, _peer) = serve(way, SOUND, Peer::sound);
        let mut driver = drive(&served);
        let frames = Pattern::new(3).bytes(32 * PERIOD as usize);

        let stream = driver.output_streams().unwrap()[0];
        let formats = driver.formats_supported(stream).unwrap();
        driver
            .pcm_set_params(
                stream,
                4 * PERIOD,
                PERIOD,
                PcmFeatures::empty(),
                2,
                PcmFormat::S16,
                PcmRate::Rate44100,
            )
            .unwrap();
        driver.pcm_prepare(stream).unwrap();
        driver.pcm_start(stream).unwrap();
        driver.pcm_xfer(stream, &frames).unwrap();
        driver.pcm_stop(stream).unwrap();
        driver.pcm_release(stream).unwrap();

        assert!(formats.contains(PcmFormats::S16), "{formats:?}");
        drop(driver);
        served.stand.finish();
    });
}
