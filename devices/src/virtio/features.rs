//! Feature bits that belong to the transport and the rings, and status bits.

use virtio_bindings::virtio_config as config;
use virtio_bindings::virtio_ring as ring;

/// A table of descriptors in place of one. virtio 1.3 §2.7.5.3
pub const RING_INDIRECT_DESC: u64 = 1 << ring::VIRTIO_RING_F_INDIRECT_DESC;
/// Notifications by index. virtio 1.3 §2.7.10
pub const RING_EVENT_IDX: u64 = 1 << ring::VIRTIO_RING_F_EVENT_IDX;
/// Not a legacy device. virtio 1.3 §6
pub const VERSION_1: u64 = 1 << config::VIRTIO_F_VERSION_1;
/// Addresses go through the platform: grants, on Xen. virtio 1.3 §6
pub const ACCESS_PLATFORM: u64 = 1 << config::VIRTIO_F_ACCESS_PLATFORM;
/// Queues can be reset one by one. virtio 1.3 §2.6.1
pub const RING_RESET: u64 = 1 << config::VIRTIO_F_RING_RESET;

/// The guest has noticed the device. virtio 1.3 §2.1
pub const STATUS_ACKNOWLEDGE: u32 = config::VIRTIO_CONFIG_S_ACKNOWLEDGE;
/// The guest has a driver for it.
pub const STATUS_DRIVER: u32 = config::VIRTIO_CONFIG_S_DRIVER;
/// The driver is set up.
pub const STATUS_DRIVER_OK: u32 = config::VIRTIO_CONFIG_S_DRIVER_OK;
/// The driver has chosen features, and the device takes them.
pub const STATUS_FEATURES_OK: u32 = config::VIRTIO_CONFIG_S_FEATURES_OK;
/// The device has met an error that only a reset mends.
pub const STATUS_NEEDS_RESET: u32 = config::VIRTIO_CONFIG_S_NEEDS_RESET;
/// The driver has given up.
pub const STATUS_FAILED: u32 = config::VIRTIO_CONFIG_S_FAILED;
