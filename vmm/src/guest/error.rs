//! What can go wrong with a guest, for those who run it.

use std::io;
use std::time::Duration;

use thiserror::Error;
use xen::DomId;

use super::config::{DeviceKey, MmioWindow};

/// Why a guest, or a device of it, is not served.
#[derive(Debug, Error)]
pub enum GuestError {
    /// A device file of Xen cannot be opened.
    #[error("domain {domid}: {file} cannot be opened")]
    Open {
        /// The guest.
        domid: DomId,
        /// Which file.
        file: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The ioreq server cannot be set up.
    #[error("domain {domid}: accesses to its virtio devices at {windows} cannot be taken over")]
    Ioreq {
        /// The guest.
        domid: DomId,
        /// What was to be claimed.
        windows: String,
        /// Why.
        #[source]
        source: xen::ioreq::Error,
    },
    /// Requests could not be taken or answered.
    #[error("domain {domid}: serving its accesses")]
    Serve {
        /// The guest.
        domid: DomId,
        /// Why.
        #[source]
        source: xen::ioreq::Error,
    },
    /// No event file, no thread.
    #[error("domain {domid}: {what}")]
    Host {
        /// The guest.
        domid: DomId,
        /// What was to be done.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The window is empty, or wraps around, or does not consist of whole slots.
    #[error("domain {domid}: {window} is no range of whole register windows")]
    Window {
        /// The guest.
        domid: DomId,
        /// The window.
        window: MmioWindow,
    },
    /// A device's registers lie outside of the guest's windows, or not on a
    /// slot of one.
    #[error("{device}: registers at {base:#x} are no slot of {windows}")]
    Base {
        /// The device.
        device: DeviceKey,
        /// Its base address.
        base: u64,
        /// The windows.
        windows: String,
    },
    /// Another device is at that address, or is just being removed from it.
    #[error("{device}: {base:#x} is taken by {other}")]
    Overlap {
        /// The device.
        device: DeviceKey,
        /// Its base address.
        base: u64,
        /// Who has it.
        other: DeviceKey,
    },
    /// A device of that name is there already, or is just being removed.
    #[error("{0} is there already")]
    Exists(DeviceKey),
    /// There is no such device.
    #[error("there is no {0}")]
    Unknown(DeviceKey),
    /// The interrupt is no SPI, or another device has it.
    #[error("{device}: interrupt {irq} {why}")]
    Irq {
        /// The device.
        device: DeviceKey,
        /// The interrupt's number.
        irq: u32,
        /// What is wrong with it.
        why: String,
    },
    /// The kernel does not have the events that the configuration asks for.
    #[error("{device}: {what} was asked for and this kernel does not have it")]
    Events {
        /// The device.
        device: DeviceKey,
        /// irqfd or ioeventfd.
        what: &'static str,
        /// What it said.
        #[source]
        source: xen::privcmd::Error,
    },
    /// The device's event files could not be made.
    #[error("{device}: {what}")]
    Device {
        /// The device.
        device: DeviceKey,
        /// What was to be done.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The guest's thread has ended.
    #[error("domain {0} is not served any more")]
    Ended(DomId),
    /// The guest's thread does not answer.
    #[error("domain {domid}: no answer from its thread within {waited:?}")]
    Silent {
        /// The guest.
        domid: DomId,
        /// How long was waited.
        waited: Duration,
    },
    /// Devices still had requests in flight when the guest ended; what they
    /// hold stays held until the process ends.
    #[error("domain {domid}: {} did not stop within {waited:?}", devices.join(", "))]
    StillBusy {
        /// The guest.
        domid: DomId,
        /// Which.
        devices: Vec<String>,
        /// How long was waited.
        waited: Duration,
    },
    /// A defect of this program.
    #[error("domain {domid}: {context} failed unexpectedly: {message}")]
    Panic {
        /// The guest.
        domid: DomId,
        /// What was going on.
        context: String,
        /// What was said.
        message: String,
    },
}
