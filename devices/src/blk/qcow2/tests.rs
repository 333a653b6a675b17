//! Images that are not what they should be.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::hostile;
use super::made::{CLUSTER, L1, L2, Maker, put, put32};
use crate::blk::image::Image;
use crate::blk::{BlkConfig, Format};
use crate::virtio::worker::with_causes;

/// A disk of a megabyte.
const SIZE: u64 = 1 << 20;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn place(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn config(path: &Path) -> BlkConfig {
    BlkConfig {
        format: Format::Qcow2,
        ..BlkConfig::new(path)
    }
}

/// The error with its causes, as a log shows it, and without the folder.
fn refusal(path: &Path) -> String {
    let spec = config(path).validate().unwrap();
    let error = Image::open(path, &spec).unwrap_err();
    let folder = format!("{}/", path.parent().unwrap().display());
    with_causes(&error).replace(&folder, "")
}

fn sound() -> Vec<u8> {
    Maker::full(&vec![1; SIZE as usize]).make()
}

/// What is said of an image with a word of its own.
fn spoilt(spoil: impl FnOnce(&mut Vec<u8>)) -> String {
    let folder = folder();
    let mut image = sound();
    spoil(&mut image);
    let text = refusal(&place(&folder, "disk", &image));
    text.replace("image disk cannot be served as qcow2: ", "")
}

#[test]
fn an_image_is_as_large_as_it_says() {
    let folder = folder();
    let path = place(&folder, "disk", &Maker::empty(SIZE).make());

    let image = Image::open(&path, &config(&path).validate().unwrap()).unwrap();

    let shape = image.shape();
    assert_eq!((image.size(), shape.size, shape.logical), (SIZE, SIZE, 512));
    assert_eq!(shape.discard, Some(CLUSTER as u32));
}

#[test]
fn what_the_header_says_wrongly_is_told_with_its_value() {
    let word = |at, value: u32| spoilt(|image| put32(image, at, value));
    let long = |at, value: u64| spoilt(|image| put(image, at, value));

    assert!(word(0, 7).starts_with("it does not begin as a qcow2 image does"));
    assert_eq!(word(4, 9), "qcow2 version 9 is neither 2 nor 3");
    let bits = "clusters of 2^8 bytes are not from 2^9 to 2^21";
    assert_eq!(word(20, 8), bits);
    assert_eq!(word(20, 200), bits.replace("2^8 ", "2^200 "));
    assert_eq!(
        long(24, u64::MAX),
        "a disk of 18446744073709551615 bytes is larger than 2^60"
    );
    assert_eq!(
        long(24, 4 << 20),
        "its L1 table has 1 entries, and a disk of 4194304 bytes needs 2"
    );
    assert_eq!(
        word(32, 1),
        "it is encrypted (method 1), which is not served"
    );
    assert_eq!(word(96, 7), "refcounts of 2^7 bits are wider than 2^6");
    assert_eq!(
        word(100, 80),
        "its header of 80 bytes is not from 104 to a cluster"
    );
    assert_eq!(
        long(72, 1 | 1 << 4 | 1 << 40),
        "it needs what is not served: a repair, for it was not closed (qemu-img check -r all), \
         extended L2 entries, feature bit 40"
    );
    assert_eq!(
        spoilt(|image| {
            put32(image, 104, 0x6803_f857);
            put32(image, 108, 47);
        }),
        "its header extension 0x6803f857 of 47 bytes is cut off"
    );
    assert_eq!(
        spoilt(|image| {
            put32(image, 104, 0x1234);
            put32(image, 108, u32::MAX);
        }),
        "its header extension 0x1234 of 4294967295 bytes is cut off"
    );
    assert_eq!(
        spoilt(|image| {
            put(image, 8, 4000);
            put32(image, 16, 1000);
        }),
        "the name of its backing file, 1000 bytes at 4000, is no text in its header"
    );
}

#[test]
fn tables_that_are_not_there_are_told_with_their_place() {
    let end = sound().len();
    let misplaced = |table: &str, len: u64, offset: u64, end: usize| {
        format!(
            "its {table} of {len} bytes at offset {offset} does not lie in its {end} bytes, in \
             whole clusters: it is cut off or corrupt"
        )
    };

    let l1_far = spoilt(|image| put(image, 40, 1 << 40));
    let l1_odd = spoilt(|image| put(image, 40, 12_000));
    let l1_large = spoilt(|image| put32(image, 36, u32::MAX));
    let refcounts = spoilt(|image| put(image, 48, 0));
    let many_refcounts = spoilt(|image| put32(image, 56, 1 << 20));
    let l2 = spoilt(|image| put(image, L1 * CLUSTER, 1 << 63 | 1 << 50));
    let odd = spoilt(|image| put(image, L1 * CLUSTER, 3));

    assert_eq!(l1_far, misplaced("L1 table", 8, 1 << 40, end));
    assert_eq!(l1_odd, misplaced("L1 table", 8, 12_000, end));
    assert_eq!(
        l1_large,
        "its L1 table of 34359738360 bytes is larger than 33554432"
    );
    assert_eq!(refcounts, misplaced("refcount table", 4096, 0, end));
    assert_eq!(
        many_refcounts,
        "its refcount table of 4294967296 bytes is larger than 8388608"
    );
    assert_eq!(l2, misplaced("L2 table", 4096, 1 << 50, end));
    assert_eq!(odd, "its L1 table is corrupt: entry 0 is 0x3");
    let no_block = spoilt(|image| put(image, CLUSTER, 0));
    let far_block = spoilt(|image| put(image, CLUSTER + 64, 1 << 45));
    let same_block = spoilt(|image| put(image, CLUSTER + 64, 2 * CLUSTER as u64));
    let corrupt = "its refcount table is corrupt: entry ";
    assert_eq!(no_block, format!("{corrupt}0 is 0x0"));
    assert_eq!(far_block, misplaced("refcount block", 4096, 1 << 45, end));
    assert_eq!(same_block, format!("{corrupt}8 is 0x2000"));
}

#[test]
fn an_image_that_is_cut_off_in_its_tables_is_refused_wherever_that_is() {
    let folder = folder();
    let image = sound();

    for end in (0..(L2 + 1) * CLUSTER).step_by(97) {
        let text = refusal(&place(&folder, "disk", &image[..end]));

        assert!(
            text.contains("cut off") || text.contains("is empty"),
            "{end}: {text}"
        );
    }
}

#[test]
fn backing_files_in_a_circle_are_refused() {
    let folder = folder();
    place(&folder, "self", &Maker::over(SIZE, "self", "qcow2").make());
    place(&folder, "a", &Maker::over(SIZE, "./b", "qcow2").make());
    place(&folder, "b", &Maker::over(SIZE, "a", "qcow2").make());
    std::os::unix::fs::symlink("a", folder.path().join("link")).unwrap();

    let own = refusal(&folder.path().join("self"));
    let both = refusal(&folder.path().join("a"));
    let linked = refusal(&folder.path().join("link"));

    let told = |top: &str, image: &str, backing: &str| {
        format!(
            "image {top} has a backing file that cannot be served: image {image} has backing file \
             {backing:?}, which stands on it: backing files in a circle"
        )
    };
    assert_eq!(own, told("self", "self", "self"));
    assert_eq!(both, told("a", "./b", "a"));
    assert_eq!(linked, told("link", "./b", "a"));
}

#[test]
fn backing_files_that_cannot_be_served_are_named_with_their_image() {
    let folder = folder();
    let over = |name: &str, format| {
        let image = Maker::over(SIZE, name, format).make();
        refusal(&place(&folder, "top", &image))
    };
    place(&folder, "bad", b"no image");
    std::fs::create_dir(folder.path().join("folder")).unwrap();

    let missing = over("gone.img", "raw");
    let bad = over("bad", "qcow2");
    let directory = over("folder", "raw");
    let network = over("nbd://host/disk", "raw");
    let other = over("base", "vmdk");
    let unknown = refusal(&place(
        &folder,
        "top",
        &Maker {
            backing: Some(("base".into(), None)),
            ..Maker::empty(SIZE)
        }
        .make(),
    ));

    let start = "image top has a backing file that cannot be served: image ";
    assert!(missing.starts_with(&format!(
        "{start}gone.img cannot be opened for reading: No such"
    )));
    assert!(bad.starts_with(&format!(
        "{start}bad cannot be served as qcow2: it has only 8 bytes"
    )));
    assert!(directory.starts_with(&format!("{start}folder is a directory")));
    assert_eq!(
        network,
        format!("{start}top has backing \"nbd://host/disk\", which is no file")
    );
    assert!(other.ends_with("has format \"vmdk\", and raw and qcow2 are served"));
    assert!(unknown.contains("does not say which format its backing file \"base\" has"));
}

#[test]
fn a_chain_has_an_end() {
    let folder = folder();
    place(&folder, "0", &vec![9; SIZE as usize]);
    for number in 1..=64 {
        let format = if number == 1 { "raw" } else { "qcow2" };
        let image = Maker::over(SIZE, &(number - 1).to_string(), format).make();
        place(&folder, &number.to_string(), &image);
    }
    let longest = folder.path().join("63");

    let deep = refusal(&folder.path().join("64"));
    let served = Image::open(&longest, &config(&longest).validate().unwrap());

    assert!(served.is_ok());
    assert_eq!(
        deep,
        "image 64 has a backing file that cannot be served: image 1 is the last of 64 files on \
         each other, and has a backing file still"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn an_image_with_any_words_in_its_tables_harms_nobody(
        changes in prop::collection::vec((place_in_image(), word()), 1..6),
        cut in prop::option::weighted(0.1, any::<u32>()),
    ) {
        hostile::play(folder().path(), &changes, cut);
    }
}

#[test]
fn most_images_with_a_word_changed_in_their_tables_are_opened() {
    let folder = folder();
    let l2 = (L2 * CLUSTER) as u16;

    let opened = (0..40).filter(|index| {
        let change = (l2 + index * 8, 0x1234_5678_9abc_def0 << index);
        hostile::play(folder.path(), &[change], None)
    });

    // or the property above says nothing of what is in flight
    assert_eq!(opened.count(), 40);
}

/// In the header, in the extensions, or in a table's first entries.
fn place_in_image() -> impl Strategy<Value = u16> {
    prop_oneof![
        0u16..160,
        (1u16..5, 0u16..20).prop_map(|(cluster, entry)| cluster * CLUSTER as u16 + entry * 8),
        0u16..hostile::REACH as u16,
    ]
}

/// Anything, or what looks like an entry.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (any::<bool>(), 0u64..40).prop_map(|(own, cluster)| u64::from(own) << 63 | cluster << 12),
        (0u64..64).prop_map(|bit| 1 << bit),
    ]
}

#[test]
fn an_image_does_not_grow_to_where_a_table_says_it_ends() {
    let folder = folder();

    // a table at 5 TiB; `play` looks at how large the image is in the end
    let opened = hostile::play(folder.path(), &[(0x4000, 0x8000_0500_0000_4000)], None);

    assert!(opened);
}

#[test]
fn an_image_that_the_library_gives_up_on_fails_every_request() {
    let folder = folder();
    let path = place(&folder, "disk", &sound());
    let image = Image::open(&path, &config(&path).validate().unwrap()).unwrap();
    let qcow2 = image.qcow2().unwrap();

    let first = qcow2.contained(|_| -> std::io::Result<()> { panic!("as the library would") });
    let then = qcow2.sync();

    let given_up = "the image was given up after an earlier error";
    assert_eq!(first.unwrap_err().to_string(), given_up);
    assert_eq!(then.unwrap_err().to_string(), given_up);
    let file = std::fs::File::open(&path).unwrap();
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).unwrap();
    assert_eq!(magic, super::MAGIC);
}
