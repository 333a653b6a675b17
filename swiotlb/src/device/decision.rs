//! Whether a range is bounced: the order of the questions is the
//! specification's, and the first reason is the one that is counted.

use crate::constraints::capable;
use crate::device::Device;
use crate::direction::Direction;
use crate::error::Error;
use crate::features::Arch;
use crate::reason::Reason;

/// What a caller says about one mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attrs {
    /// Alignment of the allocation if it is bounced, bytes; a power of two.
    pub align: u64,
    /// On unmap: nothing is copied back. On map it changes nothing: the
    /// original is always copied in.
    pub skip_cpu_sync: bool,
    /// The range is another device's registers: its address is the bus's, and
    /// it is never bounced.
    pub mmio: bool,
    /// Bouncing would break the caller, who accesses the original while it is
    /// mapped.
    pub require_coherent: bool,
    /// The original is memory that the device may see (confidential guests).
    pub shared: bool,
    /// No line in the log if there is no room.
    pub no_warn: bool,
}

impl Default for Attrs {
    fn default() -> Self {
        Attrs {
            align: 1,
            skip_cpu_sync: false,
            mmio: false,
            require_coherent: false,
            shared: false,
            no_warn: false,
        }
    }
}

/// What is done about a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The device is given this address.
    Direct(u64),
    /// It is given a bounce buffer's.
    Bounce {
        /// Why.
        reason: Reason,
        /// The address it would have been given.
        dma: u64,
    },
}

impl Device {
    /// Decides about a range, without looking for slots.
    #[inline(always)]
    pub(super) fn decide(
        &self,
        address: u64,
        len: u64,
        direction: Direction,
        attrs: &Attrs,
    ) -> Result<Decision, Error> {
        if direction == Direction::None {
            return Err(Error::BadDirection);
        }
        let Some(more) = len.checked_sub(1) else {
            return Err(Error::ZeroLength { address });
        };
        if address.checked_add(more).is_none() {
            return Err(Error::AddressOverflow { address, len });
        }
        if attrs.mmio {
            return self.decide_mmio(address, len);
        }
        let (reason, dma) = match self.sees_originals() {
            true if self.force => (Some(Reason::Forced), address),
            true => {
                let reason = self.reason(address, len, address, false, direction, attrs)?;
                (reason, address)
            }
            false => self.look_up(address, len, direction, attrs)?,
        };
        let Some(reason) = reason else {
            return Ok(Decision::Direct(dma));
        };
        if attrs.require_coherent {
            return Err(Error::BounceForbidden("its caller"));
        }
        if !self.allocator.is_active() {
            return Err(Error::NoPool);
        }
        Ok(Decision::Bounce { reason, dma })
    }

    /// Whether the device has the domain's own addresses: nothing to look up,
    /// and no windows.
    #[inline(always)]
    fn sees_originals(&self) -> bool {
        self.constraints.ranges.is_empty() && self.allocator.space().is_identity()
    }

    /// The first reason to bounce a range whose address is another one for the
    /// device, and that address.
    #[inline(never)]
    fn look_up(
        &self,
        address: u64,
        len: u64,
        direction: Direction,
        attrs: &Attrs,
    ) -> Result<(Option<Reason>, u64), Error> {
        let space = self.allocator.space();
        let bus = space.bus(address)?;
        // outside its windows a device reaches nothing
        let reached = self.constraints.dma(bus, len);
        let reason = match reached {
            Ok(dma) => {
                // an original that is not there is an error, bounced or not
                let straddles = space.straddles(address, len)?;
                match self.force {
                    true => Some(Reason::Forced),
                    false => self.reason(address, len, dma, straddles, direction, attrs)?,
                }
            }
            Err(_) if self.force => Some(Reason::Forced),
            Err(_) => Some(Reason::OutOfReach),
        };
        Ok((reason, reached.unwrap_or(bus)))
    }

    fn decide_mmio(&self, address: u64, len: u64) -> Result<Decision, Error> {
        if self.force {
            return Err(Error::BounceForbidden("being registers"));
        }
        let limit = self.limit();
        if !capable(address, len, limit) {
            return Err(Error::NotCapable {
                address,
                len,
                limit,
            });
        }
        Ok(Decision::Direct(address))
    }

    /// The first reason but force to bounce a range that the device would see
    /// at `dma`.
    #[inline(always)]
    fn reason(
        &self,
        address: u64,
        len: u64,
        dma: u64,
        straddles: bool,
        direction: Direction,
        attrs: &Attrs,
    ) -> Result<Option<Reason>, Error> {
        let device = &self.constraints;
        Ok(if !capable(dma, len, self.limit()) {
            Some(Reason::OutOfReach)
        } else if straddles {
            Some(Reason::Straddles)
        } else if !device.coherent && self.needs_flush(address)? {
            Some(Reason::ForeignCache)
        } else if device.untrusted && !is_whole(address, len, device.granule) {
            Some(Reason::Granule)
        } else if !device.coherent
            && direction.from_device()
            && !is_whole(address, len, device.cache_line)
        {
            Some(Reason::CacheLine)
        } else if device.shared_only && !attrs.shared {
            Some(Reason::Sharing)
        } else {
            None
        })
    }

    /// Whether the range is somebody else's frame and nobody flushes it.
    fn needs_flush(&self, address: u64) -> Result<bool, Error> {
        let allocator = &self.allocator;
        Ok(allocator.settings().arch == Arch::Arm
            && !allocator.flushes_caches()
            && allocator.space().is_foreign(address)?)
    }
}

/// Whether a range is made of whole `unit`s; any range is, of a unit of 0.
#[inline(always)]
fn is_whole(address: u64, len: u64, unit: u32) -> bool {
    unit == 0 || (address | len) & (u64::from(unit) - 1) == 0
}
