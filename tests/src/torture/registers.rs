//! Registers read and written as no driver would.

use devices::virtio::features::{STATUS_DRIVER_OK, STATUS_FEATURES_OK};
use devices::virtio::mmio::Register;

use super::Bench;
use crate::raw::RawQueue;

const SIZES: [u32; 4] = [1, 2, 4, 8];

/// Every offset of the window, by every width, read and written, in every
/// state of the device.
pub(super) fn every_offset(bench: &mut Bench) {
    for state in 0..3 {
        let queue = match state {
            0 => None,
            1 => {
                bench.driver.negotiate();
                None
            }
            _ => Some(bench.up()),
        };
        for offset in 0..0x200 {
            for size in SIZES {
                // an access must not leave the window it begins in
                let _ = bench.driver.peek(offset, size);
                let value = bench.pattern.number();
                bench.driver.poke(offset, size, value);
            }
        }
        bench.driver.reset();
        if let Some(queue) = queue {
            queue.free(&bench.driver.memory);
        }
        bench.works();
    }
    let malformed = bench.stand.guest().snapshot();
    assert!(malformed.devices[0].malformed > 0, "{malformed:?}");
}

/// Queues that do not exist, sizes and addresses that no queue has.
pub(super) fn queue_registers(bench: &mut Bench) {
    let driver = &bench.driver;
    driver.negotiate();
    let exists = |queue: &u32| {
        driver.set(Register::QueueSel, *queue);
        driver.get(Register::QueueSizeMax) != 0
    };
    let count = (0..64).take_while(exists).count() as u32;
    assert!((1..64).contains(&count), "{count} queues");
    for selected in [count, 64, 255, 256, 0xffff, 0x1_0000, u32::MAX] {
        driver.set(Register::QueueSel, selected);
        assert_eq!(driver.get(Register::QueueSizeMax), 0);
        assert_eq!(driver.get(Register::QueueReady), 0);
        driver.set(Register::QueueSize, 8);
        driver.set(Register::QueueReady, 1);
        assert_eq!(driver.get(Register::QueueReady), 0);
        driver.set(Register::QueueReset, 1);
        driver.set(Register::QueueNotify, selected);
    }
    let queue = RawQueue::new(&driver.memory, bench.subject.queue, 8);
    driver.set(Register::QueueSel, bench.subject.queue.into());
    let max = driver.get(Register::QueueSizeMax);
    for size in [0, 3, 7, max + 1, 2 * max, 0x8000, 0x1_0000, u32::MAX] {
        driver.install(&queue);
        driver.set(Register::QueueReady, 0);
        driver.set(Register::QueueReset, 1);
        driver.set(Register::QueueSize, size);
        driver.set(Register::QueueReady, 1);
        assert_eq!(driver.get(Register::QueueReady), 0, "size {size} was taken");
    }
    for (low, misaligned) in [
        (Register::QueueDescLow, queue.layout.desc + 8),
        (Register::QueueDriverLow, queue.layout.avail + 1),
        (Register::QueueDeviceLow, queue.layout.used + 2),
    ] {
        driver.install(&queue);
        driver.set(Register::QueueReady, 0);
        driver.set_address(low, misaligned);
        driver.set(Register::QueueReady, 1);
        assert_eq!(driver.get(Register::QueueReady), 0, "{low:?} misaligned");
    }
    for sel in [2, 3, 0xffff_ffff] {
        driver.set(Register::DeviceFeaturesSel, sel);
        assert_eq!(driver.get(Register::DeviceFeatures), 0);
        driver.set(Register::DriverFeaturesSel, sel);
        driver.set(Register::DriverFeatures, u32::MAX);
    }
    driver.set(Register::ShmSel, 1);
    assert_eq!(driver.get(Register::ShmLenLow), u32::MAX);
    assert_eq!(driver.get(Register::ShmLenHigh), u32::MAX);
    driver.reset();
    queue.free(&driver.memory);
}

/// Steps of the set-up left out, doubled and turned around.
pub(super) fn out_of_order(bench: &mut Bench) {
    let driver = &bench.driver;
    // DRIVER_OK without features
    driver.set(Register::Status, 0xff);
    driver.reset();
    driver.go();
    assert_eq!(driver.get(Register::Status) & STATUS_DRIVER_OK, 0);
    driver.reset();
    // features that were not offered
    driver.set(Register::Status, 3);
    driver.choose(u64::MAX);
    driver.set(Register::Status, 3 | STATUS_FEATURES_OK);
    assert_eq!(driver.get(Register::Status) & STATUS_FEATURES_OK, 0);
    driver.reset();
    // a queue before the features
    let queue = driver.queue(bench.subject.queue, 8);
    assert_eq!(driver.get(Register::QueueReady), 0);
    // kicks for queues that are not there yet
    driver.kick(&queue);
    driver.negotiate();
    driver.go();
    driver.kick(&queue);
    // ready twice, and changed while in use
    driver.install(&queue);
    driver.install(&queue);
    driver.set_address(Register::QueueDescLow, 0);
    driver.set(Register::QueueSize, 4);
    driver.go();
    driver.set(Register::Status, 1);
    driver.reset();
    driver.reset();
    queue.free(&driver.memory);
}
