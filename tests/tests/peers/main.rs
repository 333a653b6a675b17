//! What other device models for Xen got wrong, each as a test of this one.
//!
//! | defect | test |
//! |---|---|
//! | 1. An error of a device leaves the vCPU without an answer: unassigned registers, DEVICE_FEATURES_SEL = 2, SHM registers | `peer_01_*` |
//! | 2. QUEUE_SEL beyond the queues panics, with a lock held that other devices need | `peer_02_*` |
//! | 3. Ring address 0 panics; so does QUEUE_NUM above the maximum or no power of two | `peer_03_*` |
//! | 4. DRIVER_FEATURES only ever grows, over resets, too; sel 1 must come before sel 0 | `peer_04_*` |
//! | 5. QUEUE_READY = 0 drops all queues; STATUS = 0 resets nothing | `peer_05_*` |
//! | 6. The device's type is read as decimal where xl writes hexadecimal | cannot happen: `backend/virtio`, whose `type` node that is, is not served; numbers of `backend/virtio_disk` in either notation: `vmm::discovery::tests::numbers_may_be_hexadecimal_too` |
//! | 7. Foreign memory is one bank: a guest of more than 3 GiB faults | `peer_07_*` |
//! | 8. EVENT_IDX is tested as bits 0, 2, 3 and 4: a driver with SEG_MAX and without EVENT_IDX hears too little | `peer_08_*` |
//! | 9. A guest reaches assertions | `peer_09_*`, and all of `torture.rs` |
//! | 10. Only domains with higher ids than the last one are noticed | `peer_10_*` |
//! | 11. A ring is mapped as exactly one page | `peer_11_*` |
//! | 12. A grant's offset does not count towards its pages; vCPU 0 alone is served; a device's range covers its neighbours; INTERRUPT_STATUS clears on reading; no configuration space; a reset leaks | `peer_12_*` |
//! | 13. Each access maps and unmaps; failures panic; per-page errors are ignored | `peer_13_*`; that nothing is mapped per access: `peer_13_a_ring_is_not_mapped_for_each_access` |
//! | 14. A failing map or an unknown grant ends the process | `peer_14_*` |

mod memory;
mod registers;

use std::fs;
use std::time::Duration;

use devices::blk::BlkConfig;
use devices::virtio::features::{RING_EVENT_IDX, STATUS_FEATURES_OK};
use devices::virtio::mmio::Register;
use devices::virtio::queue::Descriptor;
use tests::disk::{IOERR, OK, ask, header, read, write};
use tests::raw::{NEXT, RawDriver, RawQueue, WRITE};
use tests::stand::{PATIENCE, Setup, configured, disk, eventually};
use tests::{Place, Stand};
use vmm::demo::guest::Addresses;
use vmm::guest::{Guest, GuestConfig, MmioWindow};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use xen::Host;
use xen::fake::{Call, DomainConfig, GuestHeap, Machine, Target};

/// `errno.h`
const ENOMEM: i32 = 12;
const IMAGE: usize = 1 << 20;
const BOTH: [Addresses; 2] = [Addresses::Grants, Addresses::Plain];

/// A served disk, its driver up with a queue.
struct Up {
    stand: Stand,
    place: Place,
    driver: RawDriver,
    queue: RawQueue,
    content: Vec<u8>,
}

fn up(addresses: Addresses) -> Up {
    up_on(Stand::new(), addresses, 0)
}

fn up_on(stand: Stand, addresses: Addresses, vcpu: u32) -> Up {
    let (place, path) = stand.add_disk(0, addresses, IMAGE);
    let driver = stand.raw(&place, vcpu);
    driver.negotiate();
    let queue = driver.queue(0, 64);
    driver.go();
    Up {
        content: fs::read(path).unwrap(),
        stand,
        place,
        driver,
        queue,
    }
}

impl Up {
    /// The disk answers, and rightly.
    fn works(&mut self) {
        let (data, status) = ask(&self.driver, &mut self.queue, &read(3, 1024));
        assert_eq!(status, OK);
        assert_eq!(data, self.content[1536..2560]);
    }

    fn finish(self) {
        self.driver.reset();
        self.queue.free(&self.driver.memory);
        self.stand.finish();
    }
}

/// Reads sectors into any address; gives the status.
fn ask_at(up: &mut Up, address: u64, len: u32) -> u8 {
    let memory = &up.driver.memory;
    let head = memory.share(0, 16, &header(0, 0), true).unwrap();
    let status = memory.share(0x10, 1, &[0xff], false).unwrap();
    let descriptors = [
        (head, 16, NEXT, 1),
        (address, len, WRITE | NEXT, 2),
        (status, 1, WRITE, 0),
    ];
    for (at, (addr, len, flags, next)) in (0..).zip(descriptors) {
        let descriptor = Descriptor {
            addr,
            len,
            flags,
            next,
        };
        up.queue.describe(memory, at, descriptor);
    }
    up.queue.offer(memory, 0);
    up.driver.kick(&up.queue);
    up.driver
        .wait_for(&mut up.queue, Duration::from_secs(10))
        .expect("the request is answered")
        .expect("the device goes on");
    let mut found = [0];
    memory.read(status, &mut found).unwrap();
    memory.free(head).unwrap();
    memory.free(status).unwrap();
    found[0]
}
