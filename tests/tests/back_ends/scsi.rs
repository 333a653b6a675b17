//! vhost-device-scsi: two units, read and written.

use tests::drivers::scsi::{Failure, Scsi};
use vmm::demo::guest::Pattern;

use super::peer::Peer;
use super::{Kind, every, serve};

/// A control queue, one of events, one of requests.
const SCSI: Kind = Kind {
    id: 8,
    queues: 3,
    size: 128,
    refused: &[],
};

const BLOCK: usize = 512;
/// Blocks of a request: 64 KiB.
const PIECE: usize = 128;
const BYTES: usize = 1 << 20;

/// All of a unit.
fn read(scsi: &mut Scsi, unit: u8) -> Vec<u8> {
    let mut content = vec![0; BYTES];
    for (piece, data) in content.chunks_mut(PIECE * BLOCK).enumerate() {
        let block = (piece * PIECE) as u32;
        scsi.read(unit, block, PIECE as u16, data).unwrap();
    }
    content
}

#[test]
#[ignore = "tests/vhost-user/back-ends runs it"]
fn units_are_found_read_and_written() {
    every(|way| {
        let mut contents = Vec::new();
        let (served, _peer) = serve(way, SCSI, |stand| {
            let (images, bytes): (Vec<_>, Vec<_>) = ["first", "second"]
                .map(|name| stand.image(name, BYTES))
                .into_iter()
                .unzip();
            contents = bytes;
            Peer::scsi(stand, &images)
        });
        let mut scsi = Scsi::new(&served.stand, &served.place);
        let written = Pattern::new(77).bytes(PIECE * BLOCK);

        let identity = scsi.inquire(0).unwrap();
        let capacity = [0, 1].map(|unit| scsi.capacity(unit).unwrap());
        let found = [0, 1].map(|unit| read(&mut scsi, unit));
        scsi.write(1, 8, PIECE as u16, &written).unwrap();
        let after = read(&mut scsi, 1);
        let beyond = scsi.read(0, (BYTES / BLOCK) as u32, 1, &mut [0; BLOCK]);

        assert_eq!(identity[0] & 0x1f, 0, "it is no disk");
        assert_eq!(capacity, [((BYTES / BLOCK) as u32, BLOCK as u32); 2]);
        assert!(found[..] == contents[..], "the units differ");
        contents[1][8 * BLOCK..][..PIECE * BLOCK].copy_from_slice(&written);
        assert!(after == contents[1], "what was written is not there");
        let image = std::fs::read(served.stand.path("second")).unwrap();
        assert!(image == contents[1], "the image differs");
        // ILLEGAL REQUEST, LOGICAL BLOCK ADDRESS OUT OF RANGE
        let told = Failure {
            response: 0,
            status: 2,
            sense: [5, 0x21, 0],
        };
        assert_eq!(beyond, Err(told));
        drop(scsi);
        served.stand.finish();
    });
}
