//! A device's register window, accessed by a fake vCPU.

use std::sync::{Arc, Mutex, PoisonError};

use devices::virtio::features::ACCESS_PLATFORM;
use devices::virtio::mmio::Register;
use devices::virtio::mmio::register::{CONFIG, MAGIC, VERSION};
use thiserror::Error;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr, Result};
use xen::fake::{AccessFault, Vcpu};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Why there is no device.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// An access failed.
    #[error(transparent)]
    Access(#[from] AccessFault),
    /// Not a virtio-mmio device of version 2.
    #[error("no virtio-mmio device at {base:#x}: magic {magic:#x}, version {version}")]
    NoDevice {
        /// Where.
        base: u64,
        /// What MagicValue reads.
        magic: u64,
        /// What Version reads.
        version: u64,
    },
    /// A slot without a device, or a device that virtio-drivers has no name for.
    #[error("device type {device_type} at {base:#x} has no driver")]
    NoDriver {
        /// Where.
        base: u64,
        /// What DeviceID reads.
        device_type: u64,
    },
}

/// The registers of one device.
///
/// virtio-drivers cannot be told of a failed access: it is noted, and reads as
/// zero. Dropping it resets the device, without polling, as Linux does.
pub struct Registers {
    vcpu: Vcpu,
    base: u64,
    device_type: DeviceType,
    faults: Arc<Mutex<Vec<AccessFault>>>,
}

impl Registers {
    /// The device at `base`.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub fn probe(vcpu: &Vcpu, base: u64) -> std::result::Result<Self, ProbeError> {
        let id = identify(vcpu, base)?;
        let device_type = DeviceType::try_from(id).map_err(|_| ProbeError::NoDriver {
            base,
            device_type: id.into(),
        })?;
        Ok(Registers::new(vcpu, base, device_type))
    }

    /// The device of type `id` at `base`, for a driver that knows by itself
    /// what it drives: virtio-drivers names no type above 25, so what it is told
    /// of the type means nothing.
    ///
    /// # Errors
    /// [`ProbeError`], also for a device of another type.
    pub fn probe_type(vcpu: &Vcpu, base: u64, id: u32) -> std::result::Result<Self, ProbeError> {
        match identify(vcpu, base)? {
            found if found == id => Ok(Registers::new(vcpu, base, DeviceType::Timer)),
            found => Err(ProbeError::NoDriver {
                base,
                device_type: found.into(),
            }),
        }
    }

    fn new(vcpu: &Vcpu, base: u64, device_type: DeviceType) -> Self {
        Registers {
            vcpu: vcpu.clone(),
            base,
            device_type,
            faults: Arc::default(),
        }
    }

    /// Accesses that failed; shared with whoever keeps it.
    #[must_use]
    pub fn faults(&self) -> Arc<Mutex<Vec<AccessFault>>> {
        Arc::clone(&self.faults)
    }

    /// Reads a register.
    #[must_use]
    pub fn get(&self, register: Register) -> u32 {
        let value = self.vcpu.read(self.base + register as u64, 4);
        u32::try_from(self.noted(value)).unwrap_or(u32::MAX)
    }

    /// Writes a register.
    pub fn set(&self, register: Register, value: u32) {
        let written = self
            .vcpu
            .write(self.base + register as u64, 4, u64::from(value));
        self.noted(written.map(|()| 0));
    }

    fn set_address(&self, low: Register, high: Register, address: u64) {
        let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
        self.set(low, u32::from_le_bytes([a, b, c, d]));
        self.set(high, u32::from_le_bytes([e, f, g, h]));
    }

    fn noted(&self, result: std::result::Result<u64, AccessFault>) -> u64 {
        result.unwrap_or_else(|fault| {
            tracing::error!(%fault, "a register access failed");
            self.faults
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(fault);
            0
        })
    }
}

/// What DeviceID reads, where there is a virtio-mmio device of version 2.
fn identify(vcpu: &Vcpu, base: u64) -> std::result::Result<u32, ProbeError> {
    let read = |register: Register| vcpu.read(base + register as u64, 4);
    let magic = read(Register::MagicValue)?;
    let version = read(Register::Version)?;
    if magic != u64::from(MAGIC) || version != u64::from(VERSION) {
        return Err(ProbeError::NoDevice {
            base,
            magic,
            version,
        });
    }
    let id = read(Register::DeviceId)?;
    u32::try_from(id).map_err(|_| ProbeError::NoDriver {
        base,
        device_type: id,
    })
}

impl Transport for Registers {
    fn device_type(&self) -> DeviceType {
        self.device_type
    }

    fn read_device_features(&mut self) -> u64 {
        self.set(Register::DeviceFeaturesSel, 0);
        let low = u64::from(self.get(Register::DeviceFeatures));
        self.set(Register::DeviceFeaturesSel, 1);
        low | u64::from(self.get(Register::DeviceFeatures)) << 32
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        // the driver knows nothing of it: in a kernel the platform's layer
        // takes it when it is offered
        let platform = self.read_device_features() & ACCESS_PLATFORM;
        let [a, b, c, d, e, f, g, h] = (driver_features | platform).to_le_bytes();
        self.set(Register::DriverFeaturesSel, 0);
        self.set(Register::DriverFeatures, u32::from_le_bytes([a, b, c, d]));
        self.set(Register::DriverFeaturesSel, 1);
        self.set(Register::DriverFeatures, u32::from_le_bytes([e, f, g, h]));
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.set(Register::QueueSel, queue.into());
        self.get(Register::QueueSizeMax)
    }

    fn notify(&mut self, queue: u16) {
        self.set(Register::QueueNotify, queue.into());
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(self.get(Register::Status))
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.set(Register::Status, status.bits());
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {
        // legacy devices alone want to know
    }

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.set(Register::QueueSel, queue.into());
        self.set(Register::QueueSize, size);
        self.set_address(Register::QueueDescLow, Register::QueueDescHigh, descriptors);
        self.set_address(
            Register::QueueDriverLow,
            Register::QueueDriverHigh,
            driver_area,
        );
        self.set_address(
            Register::QueueDeviceLow,
            Register::QueueDeviceHigh,
            device_area,
        );
        self.set(Register::QueueReady, 1);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.set(Register::QueueSel, queue.into());
        self.set(Register::QueueReady, 0);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.set(Register::QueueSel, queue.into());
        self.get(Register::QueueReady) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let status = self.get(Register::InterruptStatus);
        if status != 0 {
            self.set(Register::InterruptAck, status);
        }
        InterruptStatus::from_bits_truncate(status)
    }

    fn read_config_generation(&self) -> u32 {
        self.get(Register::ConfigGeneration)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let mut value = T::new_zeroed();
        // a field of another size, such as an address of six bytes, is read
        // byte by byte: there is no such access. virtio 1.3 §4.2.2.2
        let width = match size_of::<T>() {
            size @ (1 | 2 | 4 | 8) => size,
            _ => 1,
        };
        let size = u32::try_from(width).map_err(|_| Error::ConfigSpaceTooSmall)?;
        let mut at = self.base + CONFIG + offset as u64;
        for piece in value.as_mut_bytes().chunks_mut(width) {
            let bytes = self.noted(self.vcpu.read(at, size)).to_le_bytes();
            for (to, from) in piece.iter_mut().zip(bytes) {
                *to = from;
            }
            at += width as u64;
        }
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<()> {
        let mut bytes = [0; 8];
        bytes
            .get_mut(..size_of::<T>())
            .ok_or(Error::ConfigSpaceTooSmall)?
            .copy_from_slice(value.as_bytes());
        let size = u32::try_from(size_of::<T>()).map_err(|_| Error::ConfigSpaceTooSmall)?;
        let written = self.vcpu.write(
            self.base + CONFIG + offset as u64,
            size,
            u64::from_le_bytes(bytes),
        );
        self.noted(written.map(|()| 0));
        Ok(())
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        self.set(Register::Status, 0);
    }
}

impl std::fmt::Debug for Registers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registers")
            .field("base", &format_args!("{:#x}", self.base))
            .field("device_type", &self.device_type)
            .finish_non_exhaustive()
    }
}
