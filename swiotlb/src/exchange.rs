//! Coherent memory of paravirtualised domains: pages that have to be
//! contiguous and low on the bus are exchanged for pages that are.

use crate::error::Error;
use crate::range::PAGE_SIZE;
use crate::space::AddressSpace;

/// Pages, and the hypervisor's exchange of them.
pub trait Exchange {
    /// Whole pages, at a guest address that is aligned to `2^order` pages.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    fn allocate(&mut self, pages: u64, order: u32) -> Result<u64, Error>;

    /// Zeroes them.
    fn zero(&mut self, address: u64, pages: u64);

    /// Gives them back.
    fn free(&mut self, address: u64, pages: u64);

    /// Exchanges `2^order` pages at `address` for an extent that is contiguous,
    /// aligned to its size and below `2^address_bits` on the bus. Returns its
    /// bus address.
    ///
    /// # Errors
    /// [`Error::Remap`]; the frames are as before.
    fn exchange(&mut self, address: u64, order: u32, address_bits: u32) -> Result<u64, Error>;

    /// Undoes the exchange.
    fn restore(&mut self, address: u64, order: u32);
}

/// Coherent memory. Whether it was exchanged is remembered, never found out
/// anew.
#[must_use = "coherent memory is given back by freeing it"]
#[derive(Debug, PartialEq, Eq)]
pub struct Exchanged {
    /// The domain's address.
    pub address: u64,
    /// The device's address.
    pub bus: u64,
    pages: u64,
    remapped: bool,
}

impl Exchanged {
    /// Whether its pages were exchanged.
    pub fn is_remapped(&self) -> bool {
        self.remapped
    }
}

/// The order of the power of two of pages that `len` bytes need.
fn order(len: u64) -> Result<u32, Error> {
    let pages = len.div_ceil(PAGE_SIZE).checked_next_power_of_two();
    let pages = pages.filter(|pages| pages.checked_mul(PAGE_SIZE).is_some());
    let too_large = Error::TooLarge { len, max: 1 << 63 };
    Ok(pages.ok_or(too_large)?.trailing_zeros())
}

/// Whether memory at `address` must be exchanged because the domain sees it
/// aligned to its size and the bus does not. Memory that the domain itself does
/// not see aligned need not be: asking for that exhausted low memory for
/// nothing.
///
/// # Errors
/// [`Error::NoTranslation`], [`Error::TooLarge`].
pub fn needs_alignment(space: &AddressSpace, address: u64, len: u64) -> Result<bool, Error> {
    let mask = (PAGE_SIZE << order(len)?) - 1;
    Ok(address & mask == 0 && space.bus(address)? & mask != 0)
}

/// Whether `len` bytes at `address` must be exchanged for a device that reaches
/// up to `mask`.
///
/// # Errors
/// [`Error::ZeroLength`], [`Error::AddressOverflow`], and as [`needs_alignment`].
pub fn needs_exchange(
    space: &AddressSpace,
    address: u64,
    len: u64,
    mask: u64,
) -> Result<bool, Error> {
    if len == 0 {
        return Err(Error::ZeroLength { address });
    }
    if address.checked_add(len - 1).is_none() {
        return Err(Error::AddressOverflow { address, len });
    }
    let last = space.bus(address)?.checked_add(len - 1);
    Ok(last.is_none_or(|last| last > mask)
        || space.straddles(address, len)?
        || needs_alignment(space, address, len)?)
}

/// Allocates zeroed, contiguous memory of `len` bytes that a device which
/// reaches up to `mask` reaches.
///
/// # Errors
/// Those of `exchange`, and of [`needs_exchange`]; nothing is held then.
pub fn allocate(
    exchange: &mut impl Exchange,
    space: &AddressSpace,
    len: u64,
    mask: u64,
) -> Result<Exchanged, Error> {
    if len == 0 {
        return Err(Error::ZeroLength { address: 0 });
    }
    let order = order(len)?;
    let pages = len.div_ceil(PAGE_SIZE);
    let address = exchange.allocate(pages, order)?;
    exchange.zero(address, pages);
    let bits = 64 - mask.leading_zeros();
    let placed = needs_exchange(space, address, len, mask).and_then(|remapped| {
        let bus = match remapped {
            true => exchange.exchange(address, order, bits)?,
            false => space.bus(address)?,
        };
        Ok((bus, remapped))
    });
    match placed {
        Ok((bus, remapped)) => Ok(Exchanged {
            address,
            bus,
            pages,
            remapped,
        }),
        Err(error) => {
            exchange.free(address, pages);
            Err(error)
        }
    }
}

/// Gives memory back, and undoes its exchange if there was one.
pub fn free(exchange: &mut impl Exchange, memory: Exchanged) {
    if memory.remapped {
        exchange.restore(
            memory.address,
            memory.pages.next_power_of_two().trailing_zeros(),
        );
    }
    exchange.free(memory.address, memory.pages);
}
