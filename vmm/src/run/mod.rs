//! One guest in the foreground: what the command line says becomes the
//! daemon's [`Scope`].
//!
//! The command line calls it before anything is touched. [`vhost_user`] serves
//! devices of the same syntax without a guest of Xen's.

mod argument;
mod text;
pub mod vhost_user;

pub use argument::{ArgumentError, DeviceArgument, parse_disk, parse_irq, parse_mmio};

use thiserror::Error;
use xen::DomId;

use crate::daemon::Scope;
use crate::guest::{MmioWindow, SLOT_SIZE};
use crate::spec::SlotSpec;

/// Where devices go that have no place of their own: each in the next slot,
/// with the next interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// The first one's registers.
    pub mmio: u64,
    /// The first one's interrupt.
    pub irq: u32,
    /// They use grants.
    pub grants: bool,
}

/// As libxl allots them on Arm.
impl Default for Places {
    fn default() -> Self {
        Places {
            mmio: MmioWindow::ARM.base,
            // GUEST_VIRTIO_MMIO_SPI_FIRST, xen/include/public/arch-arm.h
            irq: 33,
            grants: false,
        }
    }
}

/// Why a device has no place. Devices are counted from 1, in the order of the
/// command line with disks first.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum PlaceError {
    /// Addresses or interrupts run out.
    #[error(
        "there is no place for device {number} after {mmio:#x}, interrupt {irq}: give it mmio= and \
         irq= of its own"
    )]
    None {
        /// The device.
        number: usize,
        /// Where the first one was to be.
        mmio: u64,
        /// The first one's interrupt.
        irq: u32,
    },
    /// Two devices have the same registers.
    #[error("device {number} has its registers at {mmio:#x}, where those of device {other} are")]
    Registers {
        /// The later device.
        number: usize,
        /// The earlier one.
        other: usize,
        /// The address.
        mmio: u64,
    },
    /// Two devices have the same interrupt.
    #[error("device {number} has interrupt {irq}, which is that of device {other}")]
    Interrupt {
        /// The later device.
        number: usize,
        /// The earlier one.
        other: usize,
        /// The interrupt.
        irq: u32,
    },
}

/// What is to be served: `devices`, or, if there are none, what xenstore has
/// for guest `domid`. Whether the guest is mapped 1:1 is left to its
/// configuration unless `direct_mapped` says so.
///
/// # Errors
/// [`PlaceError`].
pub fn scope(
    domid: DomId,
    devices: Vec<DeviceArgument>,
    places: Places,
    direct_mapped: Option<bool>,
) -> Result<Scope, PlaceError> {
    let Places { mmio, irq, grants } = places;
    let mut next = Some((mmio, irq));
    let mut specs: Vec<SlotSpec> = Vec::new();
    for (number, argument) in (1..).zip(devices) {
        let (base, line) = match (argument.mmio, argument.irq) {
            (Some(base), Some(line)) => (base, line),
            (base, line) => {
                let (free, free_line) = next.ok_or(PlaceError::None { number, mmio, irq })?;
                next = free.checked_add(SLOT_SIZE).zip(free_line.checked_add(1));
                (base.unwrap_or(free), line.unwrap_or(free_line))
            }
        };
        for (other, spec) in (1..).zip(&specs) {
            if spec.base == base {
                let mmio = base;
                return Err(PlaceError::Registers {
                    number,
                    other,
                    mmio,
                });
            }
            if spec.irq == line {
                let irq = line;
                return Err(PlaceError::Interrupt { number, other, irq });
            }
        }
        specs.push(SlotSpec {
            section: None,
            base,
            irq: line,
            grants: argument.grants.unwrap_or(grants),
            name: None,
            device: argument.device,
        });
    }
    Ok(Scope::One {
        domid,
        devices: specs,
        direct_mapped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(devices: &[&str], places: Places) -> Result<Vec<(u64, u32, bool)>, PlaceError> {
        let devices = devices.iter().map(|text| text.parse().unwrap()).collect();
        let Scope::One { domid, devices, .. } = scope(DomId(5), devices, places, None)? else {
            panic!("not one guest")
        };
        assert_eq!(domid, DomId(5));
        let place = |spec: &SlotSpec| (spec.base, spec.irq, spec.grants);
        Ok(devices.iter().map(place).collect())
    }

    #[test]
    fn devices_without_a_place_follow_each_other_and_others_keep_theirs() {
        let devices = [
            "blk,path=/a",
            "blk,path=/b,mmio=0xa000000,irq=40,grants=true",
            "blk,path=/c",
        ];

        let found = places(&devices, Places::default()).unwrap();

        let expected = [
            (0x0200_0000, 33, false),
            (0x0a00_0000, 40, true),
            (0x0200_0200, 34, false),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn the_first_place_and_grants_can_be_given_for_all() {
        let given = Places {
            mmio: 0x0a00_0000,
            irq: 50,
            grants: true,
        };

        let found = places(&["blk,path=/a", "blk,path=/b,grants=false"], given).unwrap();

        assert_eq!(found, [(0x0a00_0000, 50, true), (0x0a00_0200, 51, false)]);
    }

    #[test]
    fn places_that_run_out_are_told() {
        let last = Places {
            mmio: u64::MAX - 0x1ff,
            ..Places::default()
        };

        let error = places(&["blk,path=/a", "blk,path=/b"], last).unwrap_err();

        assert!(error.to_string().contains("device 2"), "{error}");
    }

    #[test]
    fn two_devices_in_one_place_are_refused() {
        let registers = places(
            &["blk,path=/a,mmio=0xa000000", "rng,mmio=0xa000000"],
            Places::default(),
        );
        let interrupt = places(&["blk,path=/a", "rng,irq=33"], Places::default());

        let (number, other) = (2, 1);
        let mmio = 0x0a00_0000;
        let taken = PlaceError::Registers {
            number,
            other,
            mmio,
        };
        assert_eq!(registers, Err(taken));
        let irq = 33;
        let taken = PlaceError::Interrupt { number, other, irq };
        assert_eq!(interrupt, Err(taken));
    }
}
