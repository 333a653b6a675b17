use std::io::Write;

use tempfile::NamedTempFile;

use super::*;
use crate::blk::BlkConfig;

fn image_of(bytes: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

fn config(path: &Path) -> BlkConfig {
    BlkConfig::new(path)
}

fn readonly(path: &Path) -> BlkConfig {
    BlkConfig {
        readonly: true,
        ..config(path)
    }
}

fn open(config: BlkConfig) -> Result<Image, ImageError> {
    let spec = config.validate().unwrap();
    Image::open(spec.path().unwrap(), &spec)
}

/// The error with its causes, as a log shows it.
fn refusal(config: BlkConfig) -> String {
    crate::virtio::worker::with_causes(&open(config).unwrap_err())
}

#[test]
fn an_image_is_opened_once_for_writing() {
    let file = image_of(4096);
    let _first = open(config(file.path())).unwrap();

    let second = open(config(file.path()));
    let reader = open(readonly(file.path()));

    assert!(matches!(second, Err(ImageError::InUse { .. })));
    assert!(matches!(reader, Err(ImageError::InUse { .. })));
    let text = refusal(config(file.path()));
    let path = file.path().display();
    assert_eq!(
        text,
        format!("image {path} is in use by another process or guest")
    );
}

#[test]
fn readers_share_an_image_and_keep_writers_out() {
    let file = image_of(4096);
    let _first = open(readonly(file.path())).unwrap();

    let second = open(readonly(file.path()));
    let writer = open(config(file.path()));

    assert!(second.is_ok());
    assert!(matches!(writer, Err(ImageError::InUse { .. })));
}

#[test]
fn an_image_is_free_again_once_it_is_dropped() {
    let file = image_of(4096);

    drop(open(config(file.path())).unwrap());

    assert!(open(config(file.path())).is_ok());
}

#[test]
fn opening_changes_neither_size_nor_bytes() {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&[5; 4096 + 512]).unwrap();

    let image = open(config(file.path())).unwrap();

    assert_eq!(image.shape().size, 9 * SECTOR);
    assert_eq!(std::fs::read(file.path()).unwrap(), vec![5; 4096 + 512]);
}

#[test]
fn a_size_that_is_no_whole_number_of_blocks_is_named() {
    let file = image_of(1000);
    let blocks = image_of(4096 + 512);
    let config_4k = BlkConfig {
        logical_block_size: Some(4096),
        ..config(blocks.path())
    };

    let path = file.path().display();
    assert_eq!(
        refusal(config(file.path())),
        format!(
            "image {path} has 1000 bytes, no multiple of its block size of 512; the next is 1024"
        )
    );
    assert!(matches!(
        open(config_4k),
        Err(ImageError::Size {
            size: 4608,
            block: 4096,
            next: 8192,
            ..
        })
    ));
}

#[test]
fn what_is_no_image_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing.img");
    let empty = image_of(0);

    assert!(refusal(config(directory.path())).contains("is a directory"));
    assert!(refusal(config(Path::new("/dev/null"))).contains("is a character device"));
    assert!(refusal(config(empty.path())).contains("is empty: give it a size"));
    let text = refusal(config(&missing));
    assert!(text.starts_with(&format!("image {} cannot be opened", missing.display())));
    assert!(text.contains("No such file"));
}

#[test]
fn block_sizes_follow_the_configuration() {
    let file = image_of(1 << 20);
    let config = BlkConfig {
        logical_block_size: Some(4096),
        physical_block_size: Some(16384),
        ..config(file.path())
    };

    let image = open(config).unwrap();

    assert_eq!(
        (image.shape().logical, image.shape().physical),
        (4096, 16384)
    );
}

#[test]
fn discard_is_there_only_where_it_was_asked_for_and_can_be_written() {
    let file = image_of(1 << 20);
    let without = BlkConfig {
        discard: false,
        ..config(file.path())
    };

    let asked = open(config(file.path())).unwrap().shape().discard;
    let refused = open(without).unwrap().shape().discard;
    let reader = open(readonly(file.path())).unwrap().shape().discard;

    assert!(asked.is_some_and(|granularity| granularity >= 512));
    assert_eq!((refused, reader), (None, None));
}
