//! The registers of virtio-mmio version 2. virtio 1.3 §4.2.2

/// Reads "virt", little-endian.
pub const MAGIC: u32 = 0x7472_6976;
/// Version 2: not legacy.
pub const VERSION: u32 = 2;
/// Who made the device: "XENV", as other Xen back ends answer.
pub const VENDOR: u32 = 0x564e_4558;
/// Where the configuration space begins.
pub const CONFIG: u64 = 0x100;

macro_rules! registers {
    ($($(#[$doc:meta])* $name:ident = $offset:literal,)*) => {
        /// A register, by its offset.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Register {
            $($(#[$doc])* $name = $offset,)*
        }

        impl Register {
            /// Every register.
            pub const ALL: &[Register] = &[$(Register::$name,)*];

            /// The register at `offset`, if there is one.
            pub fn at(offset: u64) -> Option<Self> {
                match offset {
                    $($offset => Some(Register::$name),)*
                    _ => None,
                }
            }
        }
    };
}

registers! {
    /// "virt".
    MagicValue = 0x000,
    /// 2.
    Version = 0x004,
    /// The device's type; 0 where there is none.
    DeviceId = 0x008,
    /// Who made it.
    VendorId = 0x00c,
    /// 32 of the offered features.
    DeviceFeatures = 0x010,
    /// Which 32.
    DeviceFeaturesSel = 0x014,
    /// 32 of the features that the driver takes.
    DriverFeatures = 0x020,
    /// Which 32.
    DriverFeaturesSel = 0x024,
    /// Which queue the queue registers speak of.
    QueueSel = 0x030,
    /// The largest size of it; 0 where there is no such queue.
    QueueSizeMax = 0x034,
    /// Its size.
    QueueSize = 0x038,
    /// Whether it is in use.
    QueueReady = 0x044,
    /// Kicks the queue whose number is written.
    QueueNotify = 0x050,
    /// Why the interrupt came.
    InterruptStatus = 0x060,
    /// What of it was handled.
    InterruptAck = 0x064,
    /// The device status; writing 0 resets.
    Status = 0x070,
    /// Descriptor table, low half of the address.
    QueueDescLow = 0x080,
    /// Descriptor table, high half.
    QueueDescHigh = 0x084,
    /// Available ring, low half.
    QueueDriverLow = 0x090,
    /// Available ring, high half.
    QueueDriverHigh = 0x094,
    /// Used ring, low half.
    QueueDeviceLow = 0x0a0,
    /// Used ring, high half.
    QueueDeviceHigh = 0x0a4,
    /// Which shared-memory region the next four speak of.
    ShmSel = 0x0ac,
    /// Its length, low half; all ones: there is no such region.
    ShmLenLow = 0x0b0,
    /// Its length, high half.
    ShmLenHigh = 0x0b4,
    /// Its address, low half.
    ShmBaseLow = 0x0b8,
    /// Its address, high half.
    ShmBaseHigh = 0x0bc,
    /// Resets one queue.
    QueueReset = 0x0c0,
    /// Changes whenever the configuration space does.
    ConfigGeneration = 0x0fc,
}

/// What a slot of the window answers where no device is: a driver reads
/// device id 0 and leaves it alone. virtio 1.3 §4.2.2.2
pub fn read_empty_slot(offset: u64, size: u8) -> u64 {
    match (Register::at(offset), size) {
        (Some(Register::MagicValue), 4) => u64::from(MAGIC),
        (Some(Register::Version), 4) => u64::from(VERSION),
        (Some(Register::VendorId), 4) => u64::from(VENDOR),
        _ => 0,
    }
}
