//! What a disk's bytes are on: an image, or nothing.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use swiotlb::Need;

use super::config::{BlkSpec, SECTOR, Source};
use super::image::{Image, ImageError, Shape, shape_of_null};

/// See the module. A clone is the same medium.
#[derive(Clone, Debug)]
pub(super) enum Medium {
    /// An image.
    Image(Arc<Image>),
    /// Nothing: writes are forgotten, and reads bring nothing.
    Null {
        /// What it looks like.
        shape: Shape,
        /// Data goes the way that it does on a disk past the page cache.
        direct: bool,
    },
}

impl Medium {
    /// Opens and locks what `spec` says.
    ///
    /// # Errors
    /// An image that cannot be served.
    pub(super) fn open(spec: &BlkSpec) -> Result<Self, ImageError> {
        Ok(match &spec.source {
            Source::Image(path) => Medium::Image(Arc::new(Image::open(path, spec)?)),
            Source::Null(size) => Medium::Null {
                shape: shape_of_null(*size, spec)?,
                direct: spec.direct,
            },
        })
    }

    /// Its sizes.
    pub(super) fn shape(&self) -> &Shape {
        match self {
            Medium::Image(image) => image.shape(),
            Medium::Null { shape, .. } => shape,
        }
    }

    /// Its number of sectors, as it was known last.
    pub(super) fn sectors(&self) -> u64 {
        let size = match self {
            Medium::Image(image) => image.size(),
            Medium::Null { shape, .. } => shape.size,
        };
        size / SECTOR
    }

    /// Looks at its size again.
    ///
    /// # Errors
    /// What the host said; the size is then what it was.
    pub(super) fn look_again(&self) -> io::Result<()> {
        match self {
            Medium::Image(image) => image.look_again(),
            Medium::Null { .. } => Ok(()),
        }
    }

    /// What is to be known of a request's memory.
    pub(super) fn need(&self) -> Need {
        let align = match self {
            Medium::Image(image) => image.direct_align(),
            Medium::Null { shape, direct } => direct.then_some(shape.logical),
        };
        match align {
            // the kernel writes to the pages themselves, from another thread
            Some(align) => Need {
                scatter: true,
                pinned: true,
                limit: None,
                align,
            },
            None => Need::COPY,
        }
    }

    /// What it is called in logs: the image's path.
    pub(super) fn name(&self) -> PathBuf {
        match self {
            Medium::Image(image) => image.path().to_owned(),
            Medium::Null { .. } => "null".into(),
        }
    }
}
