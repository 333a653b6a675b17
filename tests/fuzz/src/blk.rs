//! Requests of a disk: headers, data, segments of discards, the configuration.
//! virtio 1.3 §5.2.6

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use arbitrary::Arbitrary;
use devices::blk::{BlkConfig, BlkDevice, EngineKind};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::driver::{Driver, Piece};

/// Sectors of the image.
const SECTORS: u64 = 128;
const BYTES: usize = 512 * SECTORS as usize;

/// What happens to a disk.
#[derive(Arbitrary, Debug)]
pub struct Story {
    features: u64,
    readonly: bool,
    null: bool,
    direct: bool,
    blocks: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Request {
        kind: Kind,
        sector: u8,
        beyond: Option<u64>,
        /// Where the header is cut in two.
        cut: u8,
        data: Vec<Piece>,
        status: bool,
    },
    Chain(Vec<Piece>),
    Configure(u16, Vec<u8>),
    Advance,
    Reset(u64),
}

#[derive(Arbitrary, Debug)]
enum Kind {
    In,
    Out,
    Flush,
    GetId,
    Discard(Vec<Segment>),
    WriteZeroes(Vec<Segment>),
    Other(u32),
}

/// virtio 1.3 §5.2.6, `struct virtio_blk_discard_write_zeroes`
#[derive(Arbitrary, Debug)]
struct Segment {
    sector: u8,
    sectors: u8,
    beyond: Option<(u64, u32)>,
    flags: u8,
}

impl Segment {
    fn bytes(&self) -> Vec<u8> {
        let (sector, sectors) = self
            .beyond
            .unwrap_or((self.sector.into(), self.sectors.into()));
        let flags = u32::from(self.flags).to_le_bytes();
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags].concat()
    }
}

impl Kind {
    fn number(&self) -> u32 {
        match self {
            Kind::In => 0,
            Kind::Out => 1,
            Kind::Flush => 4,
            Kind::GetId => 8,
            Kind::Discard(_) => 11,
            Kind::WriteZeroes(_) => 13,
            Kind::Other(number) => *number,
        }
    }
}

/// Plays a story; what it finds is a failed assertion.
pub fn play(story: Story) {
    let image = File::from(memfd_create("image", MemfdFlags::CLOEXEC).expect("a memory file"));
    image.write_all_at(&[0x5a; BYTES], 0).expect("memory");
    let config = BlkConfig {
        readonly: story.readonly,
        // memory files know no O_DIRECT; a null disk only acts as if
        direct: story.direct && story.null,
        engine: EngineKind::Sync,
        logical_block_size: story.blocks.then_some(4096),
        ..match story.null {
            true => BlkConfig::null(BYTES as u64),
            false => BlkConfig::new(format!("/proc/self/fd/{}", image.as_raw_fd())),
        }
    };
    let spec = config.validate().expect("a disk");
    let device = BlkDevice::open(spec).expect("a disk on memory");
    let mut driver = Driver::new(Box::new(device), story.features);
    for step in story.steps {
        match step {
            Step::Request {
                kind,
                sector,
                beyond,
                cut,
                data,
                status,
            } => driver.offer(
                0,
                &request(&kind, beyond.unwrap_or(sector.into()), cut, data, status),
            ),
            Step::Chain(pieces) => driver.offer(0, &pieces),
            Step::Configure(offset, bytes) => driver.configure(offset, &bytes),
            Step::Advance => driver.advance(),
            Step::Reset(features) => driver.reset(features),
        }
        if story.readonly {
            let mut bytes = vec![0; BYTES];
            image.read_exact_at(&mut bytes, 0).expect("memory");
            assert!(bytes.iter().all(|byte| *byte == 0x5a), "it was written");
        }
    }
    driver.finish();
    let len = image.metadata().expect("a file").len();
    assert_eq!(len, BYTES as u64, "its length is another one");
}

fn request(kind: &Kind, sector: u64, cut: u8, data: Vec<Piece>, status: bool) -> Vec<Piece> {
    let mut header = kind.number().to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    if let Kind::Discard(segments) | Kind::WriteZeroes(segments) = kind {
        header.extend(segments.iter().flat_map(Segment::bytes));
    }
    let rest = header.split_off(usize::from(cut).min(header.len()));
    let mut pieces = Vec::new();
    let bytes = [header, rest].into_iter().filter(|bytes| !bytes.is_empty());
    pieces.extend(bytes.map(Piece::Bytes));
    pieces.extend(data);
    if status {
        pieces.push(Piece::Room(1));
    }
    pieces
}
