//! qcow2 images as the library makes and reads them by itself, with files of its
//! own.

use std::path::Path;

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{
    FormatAccess, FormatCreateBuilder, FormatDriverBuilder, PermissiveImplicitOpenGate, Storage,
    StorageCreateOptions,
};

/// Makes an image of a disk of `bytes`, over a raw backing file if one is named.
pub fn create(path: &Path, bytes: u64, backing: Option<&str>) {
    let file = File::create_open(StorageCreateOptions::new().filename(path)).unwrap();
    let image = Qcow2::<File>::create_builder(file).size(bytes);
    let image = match backing {
        Some(name) => image.backing(name.into(), "raw".into()),
        None => image,
    };
    image.create().unwrap();
}

/// The disk in an image, with what its backing files have.
pub fn disk(path: &Path) -> Vec<u8> {
    let image = Qcow2::<File>::builder_path(path);
    let image = image.open(PermissiveImplicitOpenGate::default()).unwrap();
    let image = FormatAccess::new(image);
    let mut bytes = vec![0; usize::try_from(image.size()).unwrap()];
    image.read(bytes.as_mut_slice(), 0).unwrap();
    bytes
}
