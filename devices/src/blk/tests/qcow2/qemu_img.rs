//! What QEMU's own tool makes of our images, and we of its: run with
//! `--ignored`.

use std::process::{Command, Output};

use super::*;

fn qemu_img(arguments: &[&str]) -> String {
    // it measures the processor for a LUKS key, and finds no time used where that
    // is counted by ticks and none has passed
    let unmeasured = b"Unable to get accurate CPU usage";
    let run = || Command::new("qemu-img").args(arguments).output().unwrap();
    let is_measured =
        |output: &Output| !contains(&output.stderr, unmeasured) || output.status.success();
    let output = std::iter::repeat_with(run).take(100).find(is_measured);
    let output = output.unwrap();
    assert!(
        output.status.success(),
        "qemu-img {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

fn contains(text: &[u8], words: &[u8]) -> bool {
    text.windows(words.len()).any(|window| window == words)
}

/// Writes and zeroes all over a disk; returns what is expected of it.
fn use_it(rig: &mut Rig, mut expected: Vec<u8>) -> Vec<u8> {
    let most = 290;
    let sectors = expected.len() / 512 - most;
    let (data, list) = (rig.ram.alloc(most as u64 * 512), rig.ram.alloc(16));
    for round in 0..400_usize {
        let (at, count) = (round * 7919 % sectors, 1 + round * 31 % most);
        let range = at * 512..(at + count) * 512;
        let bytes: Vec<u8> = (0..range.len()).map(|i| (i / 512 + round) as u8).collect();
        let extent = [extent(at as u64, count as u32, UNMAP)];
        rig.ram.write(data, &bytes);
        rig.ram.write(list, extent.as_bytes());
        let write = Buffer::readable(data, bytes.len() as u32);

        let answers = [
            rig.request(blk::VIRTIO_BLK_T_OUT, at as u64, &[write]),
            rig.request(
                blk::VIRTIO_BLK_T_WRITE_ZEROES,
                0,
                &[Buffer::readable(list, 16)],
            ),
            // a part of it again
            rig.request(blk::VIRTIO_BLK_T_OUT, at as u64, &[part(write, round)]),
        ];

        assert_eq!(answers, [(OK, 1); 3]);
        let again = part(write, round).len as usize;
        expected[range.clone()].fill(0);
        expected[range][..again].copy_from_slice(&bytes[..again]);
    }
    rig.flush();
    expected
}

/// Nothing of a buffer, or half of it, or more.
fn part(whole: Buffer, round: usize) -> Buffer {
    let sectors = whole.len / 512;
    let len = 512 * (sectors * (round as u32 % 4) / 3).max(1);
    Buffer { len, ..whole }
}

fn compare(folder: &Folder, name: &str, expected: &[u8]) {
    let image = folder.path(name);
    let image = image.to_str().unwrap();
    let raw = folder.put("expected", expected);
    qemu_img(&["check", "-f", "qcow2", image]);
    let raw = raw.to_str().unwrap();
    qemu_img(&["compare", "-f", "qcow2", "-F", "raw", image, raw]);
}

#[test]
#[ignore = "needs qemu-img"]
fn images_of_every_kind_are_sound_and_the_same_after_use() {
    for options in [
        &["-o", "cluster_size=512"][..],
        &["-o", "cluster_size=4k,refcount_bits=1"],
        &[],
        &["-o", "cluster_size=2M,refcount_bits=64"],
        &["-o", "preallocation=metadata"],
        &["-o", "preallocation=falloc,lazy_refcounts=on"],
        &["-o", "compat=0.10"],
    ] {
        let folder = Folder::new();
        let path = folder.path("disk");
        let path = path.to_str().unwrap();
        let create = ["create", "-q", "-f", "qcow2"];
        qemu_img(&[&create[..], options, &[path, "8M"]].concat());
        let mut rig = folder.rig("disk", EngineKind::Threads);

        let expected = use_it(&mut rig, vec![0; 8 << 20]);
        drop(rig);

        compare(&folder, "disk", &expected);
    }
}

#[test]
#[ignore = "needs qemu-img"]
fn a_chain_with_compression_and_a_snapshot_is_kept_in_order() {
    let folder = Folder::new();
    let base: Vec<u8> = (0..8 << 20_usize).map(|i| (i / 4096) as u8).collect();
    folder.put("base.raw", &base);
    let path = |name: &str| folder.path(name).to_str().unwrap().to_owned();
    let (raw, middle, top) = (path("base.raw"), path("middle"), path("top"));
    qemu_img(&[
        "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", &raw, &middle,
    ]);
    qemu_img(&[
        "create", "-q", "-f", "qcow2", "-b", "middle", "-F", "qcow2", &top,
    ]);
    let mut rig = folder.rig("top", EngineKind::Threads);
    let first = use_it(&mut rig, base);
    drop(rig);
    qemu_img(&["snapshot", "-q", "-c", "one", &top]);
    let mut rig = folder.rig("top", EngineKind::Threads);

    let second = use_it(&mut rig, first.clone());
    drop(rig);

    compare(&folder, "top", &second);
    qemu_img(&["snapshot", "-q", "-a", "one", &top]);
    compare(&folder, "top", &first);
}

#[test]
#[ignore = "needs qemu-img"]
fn a_compressed_image_is_written_over() {
    let folder = Folder::new();
    let base: Vec<u8> = (0..8 << 20_usize).map(|i| (i / 4096) as u8).collect();
    let raw = folder.put("base.raw", &base);
    let packed = folder.path("packed");
    let (raw, path) = (raw.to_str().unwrap(), packed.to_str().unwrap());
    qemu_img(&["convert", "-q", "-c", "-f", "raw", "-O", "qcow2", raw, path]);
    let mut rig = folder.rig("packed", EngineKind::Threads);

    let expected = use_it(&mut rig, base);
    drop(rig);

    compare(&folder, "packed", &expected);
}

#[test]
#[ignore = "needs qemu-img"]
fn nobody_resizes_an_image_in_use() {
    let folder = Folder::new();
    let path = folder.put("disk", &Maker::full(&pattern(0, SIZE)).make());
    let _rig = folder.rig("disk", EngineKind::Threads);

    let output = Command::new("qemu-img")
        .args(["resize", "-f", "qcow2", path.to_str().unwrap(), "2M"])
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("lock"), "{said}");
}

#[test]
#[ignore = "needs qemu-img"]
fn what_is_not_served_is_said_of_its_images() {
    let folder = Folder::new();
    let refusal = |name: &str, options: &[&str]| {
        let path = folder.path(name);
        let create = ["create", "-q", "-f", "qcow2"];
        let tail = [path.to_str().unwrap(), "8M"];
        qemu_img(&[&create[..], options, &tail].concat());
        refused(&path)
    };
    let secret = "secret,id=s,data=none";
    let key = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";

    let luks = refusal("luks", &["--object", secret, "-o", key]);
    let data = refusal("ext", &["-o", "data_file=/dev/shm/none,data_file_raw=on"]);
    let subclusters = refusal("sub", &["-o", "extended_l2=on"]);
    let zstd = refusal("zstd", &["-o", "compression_type=zstd"]);

    std::fs::remove_file("/dev/shm/none").unwrap();
    assert!(luks.contains("it is encrypted (method 2)"), "{luks}");
    assert!(data.contains("external data file"), "{data}");
    assert!(subclusters.contains("extended L2"), "{subclusters}");
    assert!(zstd.contains("compression"), "{zstd}");
}

fn refused(path: &Path) -> String {
    let config = BlkConfig {
        format: Format::Qcow2,
        ..BlkConfig::new(path)
    };
    let error = BlkDevice::open(config.validate().unwrap()).unwrap_err();
    crate::virtio::worker::with_causes(&error)
}
