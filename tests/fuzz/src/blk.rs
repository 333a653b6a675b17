//! Requests of a disk: headers, data, segments of discards, the configuration.
//! virtio 1.3 §5.2.6
//!
//! Beside the disk is what its image must hold: a request that is said to be
//! carried out has been, in its place and nowhere else, and one that is said to
//! have failed has changed nothing. By default requests are as they should be.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use devices::blk::{BlkConfig, BlkDevice, EngineKind};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::driver::{Answer, Driver, Piece, UNWRITTEN};
use crate::script::{Record, Script};

const SECTOR: usize = 512;
/// Sectors of the image.
const SECTORS: u64 = 128;
const BYTES: usize = SECTOR * SECTORS as usize;
/// Bytes of a device's ID string.
const ID: usize = 20;

/// virtio 1.3 §5.2.6
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// What a request asks for, and what else is in its chain.
#[derive(Default)]
struct Request {
    kind: u32,
    sector: u64,
    /// Data that the device reads, and bytes that it may write.
    data: Vec<u8>,
    room: usize,
    /// Where data and room are cut in two.
    cut: usize,
    granted: bool,
}

struct Disk {
    driver: Driver,
    image: File,
    /// What it holds.
    model: Vec<u8>,
    readonly: bool,
    null: bool,
    /// It wants a pool, which this guest has none of.
    direct: bool,
    broken: bool,
}

/// Plays a story; what it finds is a failed assertion.
pub fn play(input: &[u8]) {
    let mut script = Script::new(input);
    let head = script.next().unwrap_or_default();
    let [readonly, null, direct, blocks] = [1, 2, 4, 8].map(|bit| head.what & bit != 0);
    let features = u64::MAX << (head.a % 64);
    let image = File::from(memfd_create("image", MemfdFlags::CLOEXEC).expect("a memory file"));
    let model: Vec<u8> = (0..BYTES).map(|at| (at / SECTOR * 5 + at) as u8).collect();
    image.write_all_at(&model, 0).expect("memory");
    let config = BlkConfig {
        readonly,
        // memory files know no O_DIRECT; a null disk only acts as if
        direct: direct && null,
        engine: EngineKind::Sync,
        logical_block_size: blocks.then_some(4096),
        ..match null {
            true => BlkConfig::null(BYTES as u64),
            false => BlkConfig::new(format!("/proc/self/fd/{}", image.as_raw_fd())),
        }
    };
    let spec = config.validate().expect("a disk");
    let device = BlkDevice::open(spec).expect("a disk on memory");
    let mut disk = Disk {
        driver: Driver::new(Box::new(device), features),
        image,
        model,
        readonly,
        null,
        direct: direct && null,
        broken: false,
    };
    for record in script {
        disk.step(record);
    }
    disk.driver.finish();
}

impl Disk {
    fn step(&mut self, record: Record) {
        let Record { what, a, b, c } = record;
        let granted = what & 0x10 != 0;
        let sectors = usize::from(b % 8);
        let mut request = Request {
            sector: u64::from(a) % SECTORS,
            cut: usize::from(c) * 4,
            granted,
            ..Request::default()
        };
        // some are at the end, or beyond it, or far away
        match what >> 5 {
            5 => request.sector += SECTORS - 4,
            6 => request.sector += 1 << (c % 64),
            7 => request.sector = SECTORS,
            _ => {}
        }
        match what % 16 {
            0 | 1 => request.room = sectors * SECTOR,
            2 | 3 => {
                request.kind = OUT;
                request.data = (0..sectors * SECTOR).map(|at| c ^ at as u8).collect();
            }
            4 => request.kind = FLUSH,
            5 => {
                request.kind = GET_ID;
                request.room = ID + usize::from(c % 2);
            }
            6 | 7 => {
                request.kind = if what & 1 == 0 { DISCARD } else { WRITE_ZEROES };
                let (sector, flags) = (request.sector, u32::from(c % 4));
                let len = u32::from(b).wrapping_mul(if c & 0x80 == 0 { 1 } else { 0x0101_0101 });
                request.data = segment(sector, len, flags);
                if c & 0x40 != 0 {
                    request.data.extend(segment(a.into(), 1, 0));
                }
            }
            // both ways, or a number that is none, or bytes that are no sectors
            8 => (request.data, request.room) = (vec![c; SECTOR], sectors * SECTOR),
            9 => {
                request.kind = OUT;
                (request.data, request.room) = (vec![c; sectors * SECTOR], SECTOR);
            }
            10 => request.kind = c.into(),
            11 => request.room = usize::from(b) * 9,
            12 => {
                self.anything(record);
                return;
            }
            13 => {
                self.driver.configure(record.word(), &[c; 8]);
                return;
            }
            14 => {
                self.driver.advance();
                return;
            }
            _ => {
                self.driver.reset(u64::MAX << (a % 64));
                self.broken = false;
                return;
            }
        }
        self.ask(&request);
    }

    /// A chain that is no request, or only nearly.
    fn anything(&mut self, record: Record) {
        let Record { a, b, c, .. } = record;
        let header = header(c % 4, b.into());
        let short = header.get(..usize::from(b % 17)).unwrap_or_default();
        let chain = match a % 6 {
            0 => vec![Piece::Bytes(short.to_vec()), Piece::Room(1)],
            1 => vec![Piece::Bytes(header)],
            2 => vec![Piece::Bytes(header), Piece::Room(1), Piece::Bytes(vec![c])],
            3 => vec![Piece::Room(b.into())],
            kind => vec![
                Piece::Bytes(header),
                Piece::Anything {
                    // beyond the guest's memory, up to what means a grant
                    address: (1 << 24 | u64::from(b)) << (c % 40),
                    len: SECTOR as u32 * u32::from(a / 8),
                    writable: kind == 4,
                },
                Piece::Room(1),
            ],
        };
        self.broken |= self.driver.ask(0, &chain).is_none();
        // it may have been one that writes
        if !self.readonly {
            self.model = self.read();
        }
        self.look(None);
    }

    fn ask(&mut self, request: &Request) {
        let answer = self.driver.ask(0, &request.pieces());
        let Some(Answer { written, bytes }) = answer else {
            // without memory or a ring nothing comes
            self.look(None);
            return;
        };
        let (status, data) = bytes.split_last().expect("a status");
        assert!(*status <= 2, "its status is none");
        assert!(
            written as usize <= bytes.len(),
            "more than there is room for"
        );
        let kind = request.kind;
        if *status != 0 {
            assert!(
                self.direct || self.broken || !self.must_do(request),
                "{kind} has failed"
            );
            self.look(None);
            return;
        }
        let place = request.place();
        let is_write = matches!(kind, OUT | DISCARD | WRITE_ZEROES);
        assert!(!(is_write && self.readonly), "it is written");
        match kind {
            IN => {
                let held = place.and_then(|place| self.model.get(place));
                let held = held.expect("what was read is on the disk");
                assert!(request.data.is_empty(), "it has both ways");
                assert!(self.null || data == held, "it reads something else");
            }
            OUT => {
                let held = place.and_then(|place| self.model.get_mut(place));
                let held = held.expect("what was written is on the disk");
                assert_eq!(request.room, 0, "it has both ways");
                held.copy_from_slice(&request.data);
                self.look(None);
            }
            DISCARD | WRITE_ZEROES => self.look_at_segments(request),
            GET_ID => assert!(!data.contains(&UNWRITTEN), "an ID has 20 bytes"),
            FLUSH => self.look(None),
            _ => panic!("there is no request {kind}"),
        }
    }

    /// Whether a request can only be carried out.
    fn must_do(&self, request: &Request) -> bool {
        let Request { kind, room, .. } = *request;
        let is_there = request.place().is_some_and(|place| place.end <= BYTES);
        let len = request.data.len();
        match kind {
            IN => is_there && room > 0 && room.is_multiple_of(SECTOR) && len == 0,
            OUT => is_there && !self.readonly && len > 0 && room == 0,
            GET_ID => room == ID && len == 0,
            _ => false,
        }
    }

    /// Segments are on the disk, and nothing else of it has changed.
    fn look_at_segments(&mut self, request: &Request) {
        let image = self.read();
        let (segments, _) = request.data.as_chunks::<16>();
        for segment in segments {
            let sector = u64::from_le_bytes(segment[..8].try_into().expect("eight"));
            let sectors = u32::from_le_bytes(segment[8..12].try_into().expect("four"));
            let place = place(sector, sectors as usize * SECTOR);
            let held = place.clone().and_then(|place| self.model.get_mut(place));
            let held = held.expect("what was cleared is on the disk");
            let now = &image[place.expect("it is there")];
            let is_zero = now.iter().all(|byte| *byte == 0);
            assert!(
                self.null || request.kind == DISCARD || is_zero,
                "it is not zero"
            );
            held.copy_from_slice(now);
        }
        self.look(Some(image));
    }

    /// The image holds what it must.
    fn look(&self, image: Option<Vec<u8>>) {
        let image = image.unwrap_or_else(|| self.read());
        assert!(self.null || image == self.model, "it holds something else");
        let len = self.image.metadata().expect("a file").len();
        assert_eq!(len, BYTES as u64, "its length is another one");
    }

    fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        self.image.read_exact_at(&mut bytes, 0).expect("memory");
        bytes
    }
}

impl Request {
    /// Its place in the image.
    fn place(&self) -> Option<Range<usize>> {
        place(self.sector, self.data.len().max(self.room))
    }

    fn pieces(&self) -> Vec<Piece> {
        let mut pieces = vec![Piece::Bytes(header(self.kind as u8, self.sector))];
        let (first, second) = self.data.split_at(self.cut.min(self.data.len()));
        for bytes in [first, second] {
            if !bytes.is_empty() {
                pieces.push(match self.granted {
                    true => Piece::GrantedBytes(bytes.to_vec()),
                    false => Piece::Bytes(bytes.to_vec()),
                });
            }
        }
        let first = self.cut.min(self.room);
        for room in [first, self.room - first] {
            if room > 0 {
                pieces.push(match self.granted {
                    true => Piece::GrantedRoom(room as u16),
                    false => Piece::Room(room as u16),
                });
            }
        }
        pieces.push(Piece::Room(1));
        pieces
    }
}

/// Bytes of the image, if there can be such.
fn place(sector: u64, len: usize) -> Option<Range<usize>> {
    let start = usize::try_from(sector).ok()?.checked_mul(SECTOR)?;
    Some(start..start.checked_add(len)?)
}

fn header(kind: u8, sector: u64) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0], &sector.to_le_bytes()[..]].concat()
}

/// virtio 1.3 §5.2.6, `struct virtio_blk_discard_write_zeroes`
fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}
