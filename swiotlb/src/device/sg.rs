//! Lists of ranges, mapped all or not at all.

use std::ops::Deref;

use crate::device::{Attrs, Device, Keeper, Mapping, Worker};
use crate::direction::Direction;
use crate::error::Error;
use crate::originals::Originals;
use crate::sync::Arc;

/// One range of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SgElement {
    /// The domain's address.
    pub address: u64,
    /// Bytes.
    pub len: u64,
}

/// A mapped list. Dropping it unmaps all of it without copying back: a caller
/// who fails after mapping cannot forget to.
#[must_use = "a mapping ends when it is dropped"]
#[derive(Debug)]
pub struct SgMapping<H: Deref<Target = Device>> {
    mappings: Vec<Mapping<H>>,
}

impl<H: Deref<Target = Device>> SgMapping<H> {
    /// The mappings, one for each element, in their order.
    pub fn mappings(&self) -> &[Mapping<H>] {
        &self.mappings
    }

    /// Ends the mappings: what the device may have written is copied back.
    ///
    /// # Errors
    /// The first [`Error::OrigFault`]; everything is unmapped even so.
    pub fn unmap(self, originals: &(impl Originals + ?Sized)) -> Result<(), Error>
    where
        H: Keeper,
    {
        let mut result = Ok(());
        for mapping in self.mappings {
            result = result.and(mapping.unmap(originals));
        }
        result
    }

    /// The mappings, each to be ended by itself.
    pub fn into_mappings(self) -> Vec<Mapping<H>> {
        self.mappings
    }
}

impl Worker {
    /// Maps each element by itself, never merging any. If one fails, those
    /// before it are unmapped without copying anything back.
    ///
    /// # Errors
    /// Those of [`Worker::map`] for the element that failed.
    pub fn map_sg(
        &self,
        originals: &(impl Originals + ?Sized),
        elements: &[SgElement],
        direction: Direction,
        attrs: &Attrs,
    ) -> Result<SgMapping<&Device>, Error> {
        let device = &**self.device();
        self.map_each(
            originals,
            elements.iter().copied(),
            direction,
            attrs,
            || device,
        )
    }

    /// As [`Worker::map_sg`], for mappings that outlive the worker.
    ///
    /// # Errors
    /// As [`Worker::map_sg`].
    pub fn map_sg_owned(
        &self,
        originals: &(impl Originals + ?Sized),
        elements: &[SgElement],
        direction: Direction,
        attrs: &Attrs,
    ) -> Result<SgMapping<Arc<Device>>, Error> {
        let device = || Arc::clone(self.device());
        self.map_each(
            originals,
            elements.iter().copied(),
            direction,
            attrs,
            device,
        )
    }

    /// Maps one range in pieces of at most the device's largest mapping, all or
    /// none.
    ///
    /// # Errors
    /// As [`Worker::map_sg`].
    pub fn map_split(
        &self,
        originals: &(impl Originals + ?Sized),
        range: SgElement,
        direction: Direction,
        attrs: &Attrs,
    ) -> Result<SgMapping<&Device>, Error> {
        let device = &**self.device();
        let pieces = range.pieces(device.max_mapping_size())?;
        self.map_each(originals, pieces, direction, attrs, || device)
    }

    fn map_each<H: Deref<Target = Device>>(
        &self,
        originals: &(impl Originals + ?Sized),
        elements: impl Iterator<Item = SgElement>,
        direction: Direction,
        attrs: &Attrs,
        device: impl Fn() -> H,
    ) -> Result<SgMapping<H>, Error> {
        let mappings = elements
            .map(|SgElement { address, len }| {
                self.map_with(device(), originals, address, len, direction, attrs)
            })
            .collect::<Result<_, Error>>()?;
        Ok(SgMapping { mappings })
    }
}

impl SgElement {
    /// Pieces of at most `max` bytes.
    fn pieces(self, max: u64) -> Result<impl Iterator<Item = SgElement>, Error> {
        let SgElement { address, len } = self;
        if len == 0 {
            return Err(Error::ZeroLength { address });
        }
        if address.checked_add(len - 1).is_none() {
            return Err(Error::AddressOverflow { address, len });
        }
        if max == 0 {
            return Err(Error::TooLarge { len, max });
        }
        Ok((0..len.div_ceil(max)).map(move |index| SgElement {
            address: address + index * max,
            len: max.min(len - index * max),
        }))
    }
}
