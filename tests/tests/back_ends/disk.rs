//! QEMU's storage daemon, and SPDK's vhost target: a disk that is read, written,
//! and loses nothing when who serves it is killed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tests::Stand;
use tests::back_end::Way;
use tests::stand::eventually;
use virtio_drivers::device::blk::RespStatus;
use vmm::demo::guest::{Disk, Pattern, SECTOR};

use super::peer::Peer;
use super::{Kind, alone, bounced, every, run, serve};

pub const DISK: Kind = Kind {
    id: 2,
    queues: 2,
    size: 256,
    refused: &[],
};

const BYTES: usize = 8 << 20;
const SECTORS: usize = BYTES / SECTOR;
const IMAGE: &str = "image";

fn of_qemu(stand: &Stand) -> Peer {
    let (image, _) = stand.image(IMAGE, BYTES);
    Peer::storage_daemon(stand, &image)
}

fn of_spdk(stand: &Stand) -> Peer {
    let (image, _) = stand.image(IMAGE, BYTES);
    Peer::spdk(stand, &image)
}

/// What the disk should hold, and a load that changes it.
struct Load {
    content: Vec<u8>,
    pattern: Pattern,
}

impl Load {
    fn on(image: &Path) -> Load {
        Load {
            content: std::fs::read(image).unwrap(),
            pattern: Pattern::new(99),
        }
    }

    /// An extent of 1 to 256 sectors.
    fn extent(&mut self) -> (usize, usize) {
        let sectors = 1 + self.pattern.below(256) as usize;
        let first = self.pattern.below((SECTORS - sectors) as u64) as usize;
        (first, sectors * SECTOR)
    }

    /// As many writes at once as the queue takes, and no more than `most`, none
    /// over another; all succeed.
    fn write(&mut self, disk: &mut Disk, most: usize) {
        let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
        while disk.has_room() && taken.len() < most {
            let (first, len) = self.extent();
            let end = first + len / SECTOR;
            let before = taken.range(..end).next_back();
            if before.is_some_and(|(_, other)| *other > first) {
                break;
            }
            taken.insert(first, end);
            let data = self.pattern.bytes(len);
            self.content[first * SECTOR..][..len].copy_from_slice(&data);
            disk.write(first, data).unwrap();
        }
        for outcome in disk.drain().unwrap() {
            assert_eq!(outcome.status, RespStatus::OK);
        }
    }

    /// Reads all of the disk and compares.
    fn verify(&self, disk: &mut Disk) {
        const PIECE: usize = 128 << 10;
        for first in (0..SECTORS).step_by(8 * PIECE / SECTOR) {
            for piece in 0..8 {
                disk.read(first + piece * PIECE / SECTOR, PIECE).unwrap();
            }
            for outcome in disk.drain().unwrap() {
                let wanted = &self.content[outcome.sector * SECTOR..][..PIECE];
                assert_eq!(outcome.status, RespStatus::OK);
                assert!(outcome.data == wanted, "at sector {}", outcome.sector);
            }
        }
    }
}

#[test]
#[ignore = "tests/vhost-user/back-ends runs it"]
fn a_disk_holds_what_was_written() {
    every(|way| write_and_read(way, of_qemu));
}

#[test]
#[ignore = "tests/vhost-user/back-ends runs it"]
fn a_disk_of_spdk_holds_what_was_written() {
    alone(|way| write_and_read(way, of_spdk));
}

#[test]
#[ignore = "tests/vhost-user/back-ends runs it"]
fn a_disk_whose_back_end_is_killed_loses_nothing() {
    bounced(|way| kill_under_load(way, of_qemu, usize::MAX));
    // it tracks no requests: a ring of the guest's goes on where they were done in
    // their order
    run(Way::DIRECT, |way| kill_under_load(way, of_qemu, 1));
}

#[test]
#[ignore = "tests/vhost-user/back-ends runs it"]
fn a_disk_of_spdk_that_is_killed_loses_nothing() {
    alone(|way| kill_under_load(way, of_spdk, usize::MAX));
}

fn write_and_read(way: Way, start: fn(&Stand) -> Peer) {
    let (served, _peer) = serve(way, DISK, start);
    let image = served.stand.path(IMAGE);
    let mut load = Load::on(&image);
    let mut disk = served.stand.drive(&served.place);

    load.verify(&mut disk);
    for _ in 0..40 {
        load.write(&mut disk, usize::MAX);
    }
    load.verify(&mut disk);
    disk.flush().unwrap();

    assert_eq!(disk.sectors(), SECTORS as u64);
    assert!(
        std::fs::read(image).unwrap() == load.content,
        "the image differs"
    );
    drop(disk);
    served.stand.finish();
}

/// With at most `most` requests at once.
fn kill_under_load(way: Way, start: fn(&Stand) -> Peer, most: usize) {
    let (served, mut peer) = serve(way, DISK, start);
    let image = served.stand.path(IMAGE);
    let mut load = Load::on(&image);
    let mut disk = served.stand.drive(&served.place);
    let rounds = Arc::new(AtomicUsize::new(0));
    let written = Arc::clone(&rounds);
    let assassin = thread::spawn(move || {
        for _ in 0..5 {
            // each has its share of the load, however long it took to come
            let before = written.load(Ordering::SeqCst);
            eventually("the load", || written.load(Ordering::SeqCst) > before + 1);
            thread::sleep(Duration::from_millis(100));
            peer.kill();
            thread::sleep(Duration::from_millis(100));
            peer.start_again();
        }
        peer
    });

    while !assassin.is_finished() || rounds.load(Ordering::SeqCst) < 20 {
        load.write(&mut disk, most);
        rounds.fetch_add(1, Ordering::SeqCst);
    }
    let _peer = assassin.join().unwrap();
    load.verify(&mut disk);
    disk.flush().unwrap();

    assert!(
        std::fs::read(image).unwrap() == load.content,
        "the image differs"
    );
    drop(disk);
    served.stand.finish();
}
