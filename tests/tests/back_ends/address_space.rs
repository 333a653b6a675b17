//! What a back end can reach: its own memory, read as the kernel shows it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use tests::Stand;
use tests::back_end::Way;
use vmm::demo::guest::hal::enter;
use vmm::demo::guest::{Disk, Pattern, Registers, SECTOR};

use super::disk::DISK;
use super::peer::Peer;
use super::{add, bounced};

const BYTES: usize = 1 << 20;
const PIECE: usize = 64 << 10;

/// A mapping of a process. proc_pid_maps(5)
struct Mapping {
    start: u64,
    end: u64,
    readable: bool,
    shared: bool,
    inode: u64,
    name: String,
}

fn mappings(process: u32) -> Vec<Mapping> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    maps.lines().map(mapping).collect()
}

fn mapping(line: &str) -> Mapping {
    let mut words = line.split_ascii_whitespace();
    let mut word = || words.next().unwrap_or_default();
    let (start, end) = word().split_once('-').unwrap();
    let permissions = word();
    let (_offset, _device) = (word(), word());
    Mapping {
        start: u64::from_str_radix(start, 16).unwrap(),
        end: u64::from_str_radix(end, 16).unwrap(),
        readable: permissions.starts_with('r'),
        shared: permissions.ends_with('s'),
        inode: word().parse().unwrap(),
        name: word().into(),
    }
}

/// Inodes of the memory files that a process has open.
fn memory_files(process: u32) -> BTreeSet<u64> {
    let directory = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let paths = directory.map(|entry| entry.unwrap().path());
    let of_memory = |path: &PathBuf| {
        let target = fs::read_link(path).unwrap_or_default();
        target.to_string_lossy().starts_with("/memfd:")
    };
    paths
        .filter(of_memory)
        .map(|path| fs::metadata(path).unwrap().ino())
        .collect()
}

/// Inodes of what a process has mapped and shares with others.
fn shared(process: u32) -> BTreeSet<u64> {
    let of_memory = |mapping: &Mapping| mapping.shared && mapping.name.starts_with("/memfd:");
    let shared = mappings(process).into_iter().filter(of_memory);
    shared.map(|mapping| mapping.inode).collect()
}

/// Whether anything that a process can read holds these bytes.
fn holds(process: u32, needle: &[u8]) -> bool {
    let memory = File::open(format!("/proc/{process}/mem")).unwrap();
    mappings(process)
        .into_iter()
        .filter(|mapping| mapping.readable && !mapping.name.starts_with("[v"))
        .any(|mapping| {
            let mut bytes = vec![0; (mapping.end - mapping.start) as usize];
            // what was unmapped in between, or lies past a file's end, is not there
            let read = memory.read_at(&mut bytes, mapping.start).unwrap_or(0);
            memchr::memmem::find(&bytes[..read], needle).is_some()
        })
}

/// A disk of the storage daemon's, driven with this thread's memory.
fn disk(stand: &Stand, number: u32, way: Way) -> (Peer, Disk) {
    let (image, _) = stand.image(&format!("{number}.img"), BYTES);
    let peer = Peer::storage_daemon_named(stand, &number.to_string(), &image);
    let place = add(stand, number, way, DISK, &peer);
    let registers = Registers::probe(&stand.vcpu(0), place.base).unwrap();
    let interrupts = stand.domain.interrupts().unwrap();
    (peer, Disk::new(registers, interrupts, place.irq).unwrap())
}

fn write(disk: &mut Disk, data: &[u8]) {
    for sector in (0..BYTES / SECTOR).step_by(PIECE / SECTOR) {
        disk.write(sector, data.to_vec()).unwrap();
        disk.drain().unwrap();
    }
}

#[test]
#[ignore = "tests/vhost-user/back-ends runs it"]
fn a_back_end_has_its_own_pool_and_no_guest_page_nor_another_devices_data() {
    bounced(|way| {
        let stand = Stand::new();
        let ours = shared(std::process::id());
        let [secret, first, second] = [1, 2, 3].map(|seed| Pattern::new(seed).bytes(PIECE));
        let memory = stand.memory(way.addresses);
        enter(memory.clone());
        let page = memory.alloc(PIECE / 4096, false).unwrap();
        memory.write(page, &secret).unwrap();
        let (peer, mut disk_of_peer) = disk(&stand, 0, way);
        let (other, mut disk_of_other) = disk(&stand, 1, way);

        write(&mut disk_of_peer, &first);
        write(&mut disk_of_other, &second);

        let (process, another) = (peer.process(), other.process());
        let (pool, pool_of_other) = (shared(process), shared(another));
        // the guest's memory is a file of this process
        assert!(!ours.is_empty());
        assert!(pool.is_disjoint(&ours) && memory_files(process).is_disjoint(&ours));
        assert!(!pool.is_empty() && pool.is_disjoint(&pool_of_other));
        assert!(memory_files(process).is_subset(&pool));
        // what it was given is found, so that what is not found is not there
        let [found, of_other, of_guest] =
            [&first, &second, &secret].map(|bytes| holds(process, &bytes[..64]));
        assert!(found, "its own data is not seen");
        assert!(
            holds(another, &second[..64]),
            "the other's data is not seen"
        );
        assert!(!of_other, "it has data of another device");
        assert!(!of_guest, "it has a page of the guest's");
        drop((disk_of_peer, disk_of_other));
        memory.free(page).unwrap();
        stand.finish();
    });
}
