//! What a guest reads and writes: from an offset to the register, its value,
//! or what follows from it.

use super::register;
use super::{Answer, Register, Transport};
use crate::virtio::features::{STATUS_FEATURES_OK, STATUS_NEEDS_RESET};

impl Transport {
    /// Reads `size` bytes at `offset` into the device's window.
    pub fn read(&mut self, offset: u64, size: u8) -> u64 {
        if offset >= register::CONFIG {
            return self.read_config(offset - register::CONFIG, size);
        }
        match (Register::at(offset), size) {
            (Some(register), 4) => u64::from(self.read_register(register)),
            _ => {
                self.malformed += 1;
                tracing::debug!(offset, size, "malformed read of a register");
                0
            }
        }
    }

    fn read_register(&mut self, register: Register) -> u32 {
        let selected = self.registers.queue_sel;
        match register {
            Register::MagicValue => register::MAGIC,
            Register::Version => register::VERSION,
            Register::DeviceId => self.device.device_type().0,
            Register::VendorId => register::VENDOR,
            Register::DeviceFeatures => half(self.offered(), self.registers.device_features_sel),
            Register::QueueSizeMax => self.queues.max_size(selected),
            Register::QueueReady => u32::from(self.queues.is_ready(selected)),
            Register::QueueReset => u32::from(self.queues.is_resetting(selected)),
            Register::InterruptStatus => self.notifier.status(),
            Register::Status => self.status(),
            Register::ConfigGeneration => self.notifier.generation(),
            // virtio 1.3 §4.2.2: a region that does not exist has all ones
            Register::ShmLenLow
            | Register::ShmLenHigh
            | Register::ShmBaseLow
            | Register::ShmBaseHigh => u32::MAX,
            Register::DeviceFeaturesSel
            | Register::DriverFeatures
            | Register::DriverFeaturesSel
            | Register::QueueSel
            | Register::QueueSize
            | Register::QueueNotify
            | Register::InterruptAck
            | Register::QueueDescLow
            | Register::QueueDescHigh
            | Register::QueueDriverLow
            | Register::QueueDriverHigh
            | Register::QueueDeviceLow
            | Register::QueueDeviceHigh
            | Register::ShmSel => {
                // write-only
                self.malformed += 1;
                0
            }
        }
    }

    fn status(&self) -> u32 {
        match self.notifier.needs_reset() {
            true => self.registers.status | STATUS_NEEDS_RESET,
            false => self.registers.status,
        }
    }

    fn read_config(&mut self, offset: u64, size: u8) -> u64 {
        let mut bytes = [0; 8];
        match bytes.get_mut(..usize::from(size)) {
            Some(data) if is_natural(offset, size) => self.device.read_config(offset, data),
            _ => self.malformed += 1,
        }
        u64::from_le_bytes(bytes)
    }

    /// Writes `size` bytes at `offset` into the device's window.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) -> Answer {
        if offset >= register::CONFIG {
            return self.write_config(offset - register::CONFIG, size, value);
        }
        match (Register::at(offset), size, u32::try_from(value)) {
            (Some(register), 4, Ok(value)) => self.write_register(register, value),
            _ => {
                tracing::debug!(offset, size, value, "malformed write to a register");
                self.ignore()
            }
        }
    }

    fn write_config(&mut self, offset: u64, size: u8, value: u64) -> Answer {
        let bytes = value.to_le_bytes();
        let written = match bytes.get(..usize::from(size)) {
            Some(data) if is_natural(offset, size) => self.device.write_config(offset, data),
            _ => false,
        };
        match (written, self.device.is_settled()) {
            (true, true) => Answer::Now,
            (true, false) => Answer::Later,
            (false, _) => self.ignore(),
        }
    }

    fn write_register(&mut self, register: Register, value: u32) -> Answer {
        if register == Register::Status {
            return self.write_status(value);
        }
        if register == Register::InterruptAck {
            self.notifier.acknowledge(value);
            return Answer::Now;
        }
        if self.resetting {
            // a driver that resets its device has nothing else to say to it
            return self.ignore();
        }
        let selected = self.registers.queue_sel;
        let negotiable = self.registers.status & STATUS_FEATURES_OK == 0;
        let known = match register {
            Register::DeviceFeaturesSel => {
                self.registers.device_features_sel = value;
                true
            }
            Register::DriverFeaturesSel => {
                self.registers.driver_features_sel = value;
                true
            }
            Register::DriverFeatures if negotiable => {
                let sel = self.registers.driver_features_sel;
                set_half(&mut self.registers.driver_features, sel, value)
            }
            Register::QueueSel => {
                self.registers.queue_sel = value;
                true
            }
            Register::ShmSel => {
                self.registers.shm_sel = value;
                true
            }
            Register::QueueSize => self.queues.set_size(selected, value),
            Register::QueueDescLow
            | Register::QueueDescHigh
            | Register::QueueDriverLow
            | Register::QueueDriverHigh
            | Register::QueueDeviceLow
            | Register::QueueDeviceHigh => self.queues.set_address(selected, register, value),
            Register::QueueNotify => self.queues.ring(value),
            Register::QueueReady => return self.write_queue_ready(selected, value),
            Register::QueueReset => return self.write_queue_reset(selected, value),
            _ => false,
        };
        match known {
            true => Answer::Now,
            false => {
                tracing::debug!(?register, value, "write to a register ignored");
                self.ignore()
            }
        }
    }

    pub(super) fn ignore(&mut self) -> Answer {
        self.malformed += 1;
        Answer::Now
    }
}

/// Half `sel` of 64 feature bits; there are no more.
fn half(features: u64, sel: u32) -> u32 {
    let bytes = features.to_le_bytes();
    let (halves, _) = bytes.as_chunks::<4>();
    usize::try_from(sel)
        .ok()
        .and_then(|sel| halves.get(sel))
        .map_or(0, |half| u32::from_le_bytes(*half))
}

/// Puts `value` into half `sel` of 64 bits; false if there is no such half.
pub(super) fn set_half(features: &mut u64, sel: u32, value: u32) -> bool {
    let value = u64::from(value);
    match sel {
        0 => *features = *features & !0xffff_ffff | value,
        1 => *features = *features & 0xffff_ffff | value << 32,
        // bits that do not exist are not taken
        _ => return value == 0,
    }
    true
}

/// virtio 1.3 §4.2.2.2: 8, 16, 32 or 64 bit wide, and aligned.
fn is_natural(offset: u64, size: u8) -> bool {
    matches!(size, 1 | 2 | 4 | 8) && offset.is_multiple_of(u64::from(size))
}
