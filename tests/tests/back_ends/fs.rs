//! virtiofsd: trees of files, read and written.

use std::fs;
use std::path::Path;

use tests::drivers::fs::{Errno, FileSystem, ROOT, Tree};
use vmm::demo::guest::Pattern;

use super::peer::Peer;
use super::{Kind, every, serve};

/// A queue of high priority, and one of requests.
const FILE_SYSTEM: Kind = Kind {
    id: 26,
    queues: 2,
    size: 1024,
    refused: &[],
};

const FILES: usize = 300;
const LARGE: usize = 5 << 20;
const ENOENT: i32 = 2;

/// Small files in directories, an empty one, and a large one.
fn tree(seed: u64) -> Tree {
    let mut pattern = Pattern::new(seed);
    let mut tree = Tree::from([
        ("/empty".into(), Vec::new()),
        ("/deep/down/large".into(), pattern.bytes(LARGE)),
    ]);
    for number in 0..FILES {
        let len = pattern.below(9000) as usize;
        tree.insert(
            format!("/small-{}/{number}", number % 7),
            pattern.bytes(len),
        );
    }
    tree
}

fn store(directory: &Path, tree: &Tree) {
    for (path, content) in tree {
        let path = directory.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

fn load(directory: &Path, path: &str) -> Tree {
    let mut tree = Tree::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{path}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            tree.append(&mut load(&entry.path(), &path));
        } else {
            tree.insert(path, fs::read(entry.path()).unwrap());
        }
    }
    tree
}

#[test]
#[ignore = "tests/vhost-user/back-ends runs it"]
fn a_tree_of_the_host_is_read_and_one_of_the_guest_arrives() {
    every(|way| {
        let (of_host, of_guest) = (tree(1), tree(2));
        let (served, _peer) = serve(way, FILE_SYSTEM, |stand| {
            store(&stand.path("shared/host"), &of_host);
            Peer::virtiofsd(stand, &stand.path("shared"))
        });
        let mut fs = FileSystem::mount(&served.stand, &served.place);

        let told = (fs.tag(), fs.request_queues());
        let missing = fs.lookup(ROOT, "missing");
        let host = fs.lookup(ROOT, "host").unwrap();
        let read = fs.load(host, "").unwrap();
        let guest = fs.make_directory(ROOT, "guest").unwrap();
        fs.store(guest, &of_guest).unwrap();
        fs.unmount();

        assert_eq!(told, ("shared".into(), 1));
        assert_eq!(missing, Err(Errno(ENOENT)));
        assert!(read == of_host, "the guest reads something else");
        let arrived = load(&served.stand.path("shared/guest"), "");
        assert!(arrived == of_guest, "the host finds something else");
        served.stand.finish();
    });
}
