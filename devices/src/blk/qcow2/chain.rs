//! The files that an image stands on: each is named by the one above it.
//!
//! Backing files are read, never written, and locked like a disk that is read
//! only: many images may stand on one, and none on what a guest is writing.
//! Where a format is not said it is not guessed: a guest that has written the
//! bytes of a raw image may have made it look like any other.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use imago::FormatAccess;
use imago::qcow2::Qcow2;
use imago::raw::Raw;

use super::header::{Backing, BackingFormat, Header};
use super::layer::Layer;
use crate::blk::image::{Direct, ImageError, lock, open_file};
use crate::blk::sys;

/// Most files of a chain.
const FILES_MAX: usize = 64;

/// A file of the chain, open.
pub(super) struct Opened {
    pub file: File,
    pub path: PathBuf,
    pub block_device: bool,
}

/// Reads and judges what a file says of itself.
///
/// # Errors
/// [`ImageError`]
pub(super) fn read_header(opened: &Opened) -> Result<Header, ImageError> {
    let path = &opened.path;
    let end = sys::end(&opened.file, opened.block_device).map_err(|source| ImageError::Sizes {
        path: path.clone(),
        source,
    })?;
    Header::read(&opened.file, end).map_err(|source| ImageError::Qcow2 {
        path: path.clone(),
        source,
    })
}

/// Opens what is below `top`, and makes one disk of all.
///
/// # Errors
/// [`ImageError`]
pub(super) fn build(
    top: Opened,
    direct: Option<Direct>,
    header: &Header,
    writable: bool,
) -> Result<FormatAccess<Layer>, ImageError> {
    let path = top.path.clone();
    let below = open_below(&top, header).map_err(|source| ImageError::Backing {
        path: path.clone(),
        source: Box::new(source),
    })?;
    // what it asserts of an image is not all checked before
    let made = catch_unwind(AssertUnwindSafe(|| {
        assemble(top, direct, header, writable, below)
    }));
    let made = made.unwrap_or_else(|_| Err(io::Error::other("its tables are corrupt")));
    made.map_err(|source| ImageError::Refused { path, source })
}

/// From the file below `top` down to the last one; raw ones have no header.
fn open_below(top: &Opened, header: &Header) -> Result<Vec<(Opened, Option<Header>)>, ImageError> {
    let mut seen = vec![identity(&top.file, &top.path)?];
    let mut below = Vec::new();
    let (mut above, mut next) = (top.path.clone(), header.backing.clone());
    while let Some(Backing { name, format }) = next {
        if seen.len() == FILES_MAX {
            let most = FILES_MAX;
            return Err(ImageError::Deep { path: above, most });
        }
        let path = resolve(&above, &name)?;
        let (file, block_device) = open_file(&path, true)?;
        let id = identity(&file, &path)?;
        if seen.contains(&id) {
            return Err(ImageError::Loop { path: above, name });
        }
        seen.push(id);
        lock(&file, &path, true)?;
        let opened = Opened {
            file,
            path,
            block_device,
        };
        above.clone_from(&opened.path);
        let header = match format {
            BackingFormat::Raw => None,
            BackingFormat::Qcow2 => Some(read_header(&opened)?),
        };
        next = header.as_ref().and_then(|header| header.backing.clone());
        below.push((opened, header));
    }
    Ok(below)
}

/// Which file it is, whatever it is called: device and inode, or what a block
/// device stands for.
fn identity(file: &File, path: &Path) -> Result<(u64, u64), ImageError> {
    let metadata = file.metadata().map_err(|source| ImageError::Sizes {
        path: path.to_owned(),
        source,
    })?;
    Ok(match metadata.file_type().is_block_device() {
        true => (u64::MAX, metadata.rdev()),
        false => (metadata.dev(), metadata.ino()),
    })
}

/// The path of a backing file: from the folder of the image that names it.
fn resolve(above: &Path, name: &str) -> Result<PathBuf, ImageError> {
    let file = name.strip_prefix("file:").unwrap_or(name);
    // nbd://host, json:{...}: QEMU's words for what is no file
    let first = file.split('/').next().unwrap_or_default();
    if first.contains(':') {
        return Err(ImageError::NoFile {
            path: above.to_owned(),
            name: name.to_owned(),
        });
    }
    Ok(above.parent().unwrap_or(Path::new("")).join(file))
}

fn assemble(
    top: Opened,
    direct: Option<Direct>,
    header: &Header,
    writable: bool,
    below: Vec<(Opened, Option<Header>)>,
) -> io::Result<FormatAccess<Layer>> {
    let mut lower = None;
    for (opened, header) in below.into_iter().rev() {
        lower = Some(match header {
            Some(header) => qcow2(opened, None, &header, false, lower)?,
            None => FormatAccess::new(Raw::open_image(layer(opened, None, 1)?, false)?),
        });
    }
    qcow2(top, direct, header, writable, lower)
}

/// Backing files are read by way of the page cache, which those who share them
/// share, too.
fn layer(opened: Opened, direct: Option<Direct>, cluster: u64) -> io::Result<Layer> {
    let Opened {
        file,
        path,
        block_device,
    } = opened;
    Layer::new(file, direct, &path, block_device, cluster)
}

fn qcow2(
    opened: Opened,
    direct: Option<Direct>,
    header: &Header,
    writable: bool,
    lower: Option<FormatAccess<Layer>>,
) -> io::Result<FormatAccess<Layer>> {
    let layer = layer(opened, direct, header.cluster.into())?;
    let mut image = Qcow2::<Layer>::open_image(layer, writable)?;
    // nothing is opened that was not opened here
    image.set_data_file(None);
    image.set_backing(lower);
    Ok(FormatAccess::new(image))
}
