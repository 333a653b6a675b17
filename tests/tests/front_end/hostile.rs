//! Back ends that lie or do not answer, beside a device that works.

use devices::vhost_user::frontend::VhostUserConfig;
use devices::virtio::{
    ActiveQueue, Chain, Device, DeviceError, DeviceType, QueueError, QueueHandler,
};
use tests::back_end::{BackEnd, in_front};
use tests::raw::Request;
use tests::stand::eventually;
use tests::{Place, Stand};
use vmm::demo::guest::Addresses;

use super::bounced;

/// What a back end says of each request; none: nothing, for ever.
type Word = Option<u32>;

/// A device that does nothing but say something.
struct Liar(Word);

impl Device for Liar {
    fn device_type(&self) -> DeviceType {
        DeviceType::ENTROPY
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn start_queue(
        &mut self,
        _index: u16,
        _features: u64,
    ) -> Result<Box<dyn QueueHandler>, DeviceError> {
        Ok(Box::new(Lies(self.0, Vec::new())))
    }
}

struct Lies(Word, Vec<Chain>);

impl QueueHandler for Lies {
    fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError> {
        for chain in chains {
            match self.0 {
                Some(len) => queue.push_copied(chain.head, len)?,
                None => self.1.push(chain),
            }
        }
        Ok(())
    }
}

/// A stand with a liar and a disk.
fn beside_a_disk(addresses: Addresses, word: Word) -> (Stand, BackEnd, Place, Place) {
    let stand = Stand::new();
    let socket = stand.path("socket");
    let back_end = BackEnd::serve(&socket, Box::new(Liar(word)));
    let device = in_front(VhostUserConfig {
        queue_size: 64,
        ..VhostUserConfig::new(&socket, DeviceType::ENTROPY.0)
    });
    let place = stand.add(0, addresses, device);
    let (disk, _) = stand.add_disk(1, addresses, 1 << 20);
    (stand, back_end, place, disk)
}

fn use_disk(stand: &Stand, place: &Place) {
    let mut disk = stand.drive(place);
    for sector in 0..50 {
        disk.read(sector, 512).unwrap();
        assert_eq!(disk.drain().unwrap().len(), 1);
    }
}

fn request() -> Request {
    Request {
        readable: Vec::new(),
        writable: vec![64, 64],
    }
}

#[test]
fn a_length_beyond_the_buffers_breaks_that_device_until_its_reset_and_no_other() {
    bounced(|addresses| {
        for len in [129, u32::MAX] {
            let (stand, _back_end, place, disk) = beside_a_disk(addresses, Some(len));
            let driver = stand.raw(&place, 0);

            for _ in 0..3 {
                driver.negotiate();
                let mut queue = driver.queue(0, 16);
                driver.go();
                let shared = request().share(&driver.memory);
                shared.submit(&driver.memory, &mut queue, 0);
                driver.kick(&queue);
                eventually("it needs a reset", || driver.needs_reset());
                let used = queue.pop(&driver.memory);
                use_disk(&stand, &disk);
                driver.reset();
                queue.free(&driver.memory);

                assert_eq!(used, None);
                assert_eq!(shared.take_back(&driver.memory), [[0; 64], [0; 64]]);
            }
            stand.finish();
        }
    });
}

#[test]
fn a_back_end_that_never_answers_stalls_neither_a_disk_nor_a_reset() {
    bounced(|addresses| {
        let (stand, _back_end, place, disk) = beside_a_disk(addresses, None);
        let driver = stand.raw(&place, 0);

        for _ in 0..3 {
            driver.negotiate();
            let mut queue = driver.queue(0, 16);
            driver.go();
            let shared = request().share(&driver.memory);
            shared.submit(&driver.memory, &mut queue, 0);
            driver.kick(&queue);
            use_disk(&stand, &disk);
            let used = queue.pop(&driver.memory);
            driver.reset();
            queue.free(&driver.memory);

            assert_eq!((used, driver.needs_reset()), (None, false));
            assert_eq!(shared.take_back(&driver.memory), [[0; 64], [0; 64]]);
        }
        stand.finish();
    });
}
