//! Grants of another domain: `/dev/xen/gntdev`, or the fake's.
//!
//! A [`Gntdev`] is cheap to clone and usable from any thread; queue workers
//! map, copy and give back. Mapped grants are owned by their
//! [`GrantMapping`]: the guest may reuse the pages only once it is gone, and
//! disables a device whose grants are still held when it expects them back.

mod mapping;
mod segment;
mod status;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

pub use mapping::GrantMapping;
pub use segment::{CopyDirection, CopySegment};
pub use status::GrantStatus;

use crate::domid::DomId;
use crate::fake;
use crate::sys::abi::PAGE_SIZE;
use crate::sys::gntdev::GntdevFile;
use crate::sys::mapping::Mapping;

/// Why a call on gntdev failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The references could not be announced: too many at once (EINVAL,
    /// gntdev's limit), or no memory.
    #[error("{count} grants of domain {dom} from {first:#x} could not be announced to gntdev")]
    Announce {
        /// The granting domain (of the first reference).
        dom: DomId,
        /// The first reference.
        first: u32,
        /// How many.
        count: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The references could not be mapped; one that is bad, or granted
    /// read-only while `write` was asked for, fails all of them (EINVAL).
    #[error(
        "{count} grants of domain {dom} from {first:#x} could not be mapped {}",
        if *.write { "read-write (one is bad, or granted read-only)" } else { "read-only (one is bad)" }
    )]
    Map {
        /// The granting domain (of the first reference).
        dom: DomId,
        /// The first reference.
        first: u32,
        /// How many.
        count: usize,
        /// Whether writing was asked for.
        write: bool,
        /// What the kernel said.
        source: io::Error,
    },
    /// Nothing was named to be mapped.
    #[error("no grants to map")]
    Nothing,
    /// Grants could not be given back; the guest will see them in use.
    #[error("{count} grants of domain {dom} from {first:#x} could not be given back")]
    Unmap {
        /// The granting domain (of the first reference).
        dom: DomId,
        /// The first reference.
        first: u32,
        /// How many.
        count: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A batch of copies as a whole was refused; nothing is known of any of
    /// its segments.
    #[error("{count} grant copies were refused")]
    Copy {
        /// Segments of the batch.
        count: usize,
        /// What the kernel said. EFAULT: local memory that it cannot pin.
        source: io::Error,
    },
}

/// Result of a call on gntdev.
pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug)]
enum Backend {
    Kernel(GntdevFile),
    Fake(fake::GntdevFile),
}

macro_rules! on_file {
    ($self:expr, $file:ident => $call:expr) => {
        match &*$self.0 {
            Backend::Kernel($file) => $call,
            Backend::Fake($file) => $call,
        }
    };
}

/// How often a copy of a paged-out page is tried again, and after what pause.
/// Linux itself tries for about half a minute before it reports such a page.
const AGAIN_ATTEMPTS: u32 = 8;
const AGAIN_PAUSE: Duration = Duration::from_millis(1);

/// An open `/dev/xen/gntdev`; clones share it.
#[derive(Clone, Debug)]
pub struct Gntdev(Arc<Backend>);

impl Gntdev {
    pub(crate) fn kernel(file: GntdevFile) -> Gntdev {
        Gntdev(Arc::new(Backend::Kernel(file)))
    }

    pub(crate) fn fake(file: fake::GntdevFile) -> Gntdev {
        Gntdev(Arc::new(Backend::Fake(file)))
    }

    /// Maps granted pages as one contiguous range, in the order given: one
    /// ioctl and one `mmap`, whose protection decides whether the grants are
    /// taken read-only. Writing needs every page granted read-write.
    ///
    /// # Errors
    /// [`Error::Map`] if any reference is bad or does not allow it: then none
    /// is mapped. [`Error::Announce`], [`Error::Nothing`].
    pub fn map(&self, refs: &[(DomId, u32)], write: bool) -> Result<GrantMapping> {
        let &(dom, first) = refs.first().ok_or(Error::Nothing)?;
        let announce = |source| Error::Announce {
            dom,
            first,
            count: refs.len(),
            source,
        };
        let count = u32::try_from(refs.len())
            .map_err(|_| announce(io::Error::from_raw_os_error(libc::EINVAL)))?;
        let index = on_file!(self, file => file.map(refs)).map_err(announce)?;
        match on_file!(self, file => file.mmap(index, count, write)) {
            Ok(mapping) => Ok(GrantMapping::new(
                self.clone(),
                mapping,
                index,
                count,
                (dom, first),
            )),
            Err(source) => {
                // The announced range outlives a failed mmap.
                if let Err(error) = on_file!(self, file => file.unmap(index, count)) {
                    tracing::warn!(domain = %dom, first, count, %error, "unmapped grants stay announced");
                }
                Err(Error::Map {
                    dom,
                    first,
                    count: refs.len(),
                    write,
                    source,
                })
            }
        }
    }

    /// Gives several mappings back: all are unmapped from this process, then
    /// all are returned to their domains, whatever becomes of each.
    ///
    /// # Errors
    /// The first failure.
    pub fn unmap_all(mappings: impl IntoIterator<Item = GrantMapping>) -> Result<()> {
        let detached: Vec<_> = mappings.into_iter().map(GrantMapping::detach).collect();
        detached
            .into_iter()
            .map(mapping::Announced::give_back)
            .fold(Ok(()), Result::and)
    }

    /// Copies between local memory and granted pages, all in one call.
    /// Segments that go past their page go on in the page of the next
    /// reference. Each segment's [`result`](CopySegment::result) says what
    /// became of it; segments of which nothing is known are marked failed.
    ///
    /// # Errors
    /// [`Error::Copy`] if the kernel refused the batch: every segment is then
    /// marked failed. That a single segment failed is no error of this call.
    pub fn copy(&self, segments: &mut [CopySegment<'_>]) -> Result<()> {
        if segments.is_empty() {
            return Ok(());
        }
        let whole = segments
            .iter()
            .all(|s| usize::from(s.offset) + s.local.len() <= PAGE_SIZE && !s.local.is_empty());
        if whole {
            return self.copy_within_pages(segments);
        }
        let mut pieces = Vec::with_capacity(2 * segments.len());
        let mut counts = Vec::with_capacity(segments.len());
        for segment in segments.iter() {
            let before = pieces.len();
            let complete = segment.split(&mut pieces);
            counts.push((pieces.len() - before, complete));
        }
        let result = self.copy_within_pages(&mut pieces);
        let mut statuses = pieces.iter().map(|piece| piece.status);
        for (segment, (count, complete)) in segments.iter_mut().zip(counts) {
            let worst = statuses
                .by_ref()
                .take(count)
                .fold(GrantStatus::OKAY, |worst, status| match worst {
                    GrantStatus::OKAY => status,
                    worst => worst,
                });
            segment.status = match (worst, complete) {
                (GrantStatus::OKAY, false) => GrantStatus::BAD_REFERENCE,
                (worst, _) => worst,
            };
        }
        result
    }

    /// Segments that lie within their pages; pages that are paged out are
    /// tried again a few times.
    fn copy_within_pages(&self, segments: &mut [CopySegment<'_>]) -> Result<()> {
        self.copy_once(segments)?;
        for _ in 0..AGAIN_ATTEMPTS {
            let mut again: Vec<CopySegment<'_>> = segments
                .iter()
                .filter(|s| s.status == GrantStatus::AGAIN)
                .map(CopySegment::again)
                .collect();
            if again.is_empty() {
                break;
            }
            std::thread::sleep(AGAIN_PAUSE);
            let result = self.copy_once(&mut again);
            let retried = segments
                .iter_mut()
                .filter(|s| s.status == GrantStatus::AGAIN);
            for (segment, again) in retried.zip(&again) {
                segment.status = again.status;
            }
            result?;
        }
        Ok(())
    }

    fn copy_once(&self, segments: &mut [CopySegment<'_>]) -> Result<()> {
        if segments.is_empty() {
            return Ok(());
        }
        on_file!(self, file => file.copy(segments)).map_err(|source| {
            for segment in segments.iter_mut() {
                segment.status = GrantStatus::GENERAL;
            }
            Error::Copy {
                count: segments.len(),
                source,
            }
        })
    }

    fn unmap_raw(&self, index: u64, count: u32) -> io::Result<()> {
        on_file!(self, file => file.unmap(index, count))
    }
}

#[cfg(test)]
mod tests;
