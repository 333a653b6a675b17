//! Rings as a driver without manners fills them: descriptors, tables, indices.
//! A source of random numbers serves them, which parses nothing else.

use std::sync::Arc;

use arbitrary::Arbitrary;
use devices::rng::{RngConfig, RngDevice};
use devices::testing::{DriverRing, GuestRam};
use devices::virtio::queue::Descriptor;
use devices::virtio::{Device, QueueError};

/// Descriptors of the ring.
const RING: u16 = 16;
const PAGES: u64 = 16;
/// Where buffers and tables are, and how many bytes there are of them.
const ARENA: u64 = 8 * 4096;

/// What a driver does.
#[derive(Arbitrary, Debug)]
pub struct Story {
    features: u64,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// Writes a descriptor of the ring's table.
    Describe(u8, Description),
    /// Writes a descriptor into memory that may be an indirect table.
    Table(u8, Description),
    Offer(u16),
    /// Moves the available index.
    Index(u16),
    /// Writes anywhere, the rings included.
    Write(u16, u8),
    Serve,
}

#[derive(Arbitrary, Debug)]
struct Description {
    address: Where,
    len: u32,
    flags: u16,
    next: u16,
}

#[derive(Arbitrary, Debug)]
enum Where {
    Arena(u16),
    Granted(u16),
    Anywhere(u64),
}

impl Description {
    fn descriptor(&self) -> Descriptor {
        let arena = |at: u16| ARENA + u64::from(at) % ARENA;
        Descriptor {
            addr: match self.address {
                Where::Arena(at) => arena(at),
                Where::Granted(at) => GuestRam::granted(arena(at)),
                Where::Anywhere(address) => address,
            },
            len: self.len,
            flags: self.flags,
            next: self.next,
        }
    }
}

/// Plays a story; what it finds is a failed assertion.
pub fn play(story: Story) {
    let ram = GuestRam::new(PAGES);
    let mut ring = DriverRing::new(&ram, RING);
    let mut device = RngDevice::open(RngConfig::default().validate().expect("a source"))
        .expect("random numbers");
    let (mut queue, line) = ring.activate(story.features);
    let mut handler = device.start_queue(0, 0).expect("a queue");
    let mut alive = true;
    for step in story.steps {
        match step {
            Step::Describe(index, description) => {
                ring.set_descriptor(u16::from(index) % RING, description.descriptor());
            }
            Step::Table(at, description) => {
                let entry = zerocopy::IntoBytes::as_bytes(&description.descriptor()).to_vec();
                ram.write(ARENA + 16 * u64::from(at), &entry);
            }
            Step::Offer(head) => ring.offer(head),
            Step::Index(index) => ring.set_avail_index(index),
            Step::Write(at, byte) => ram.write(u64::from(at) % (PAGES * 4096), &[byte]),
            Step::Serve => {}
        }
        let mut serve = || -> Result<(), QueueError> {
            queue.kicks_off()?;
            while handler.room() > 0 {
                let chains = queue.take(handler.room())?;
                if chains.is_empty() {
                    break;
                }
                handler.serve(&mut queue, chains)?;
            }
            queue.notify()?;
            queue.kicks_on().map(drop)
        };
        // a ring that is broken stays so until it is set up anew
        alive = alive && serve().is_ok();
        assert_eq!(ram.lent(), 0, "nothing is in flight");
    }
    handler.settle(&mut queue);
    drop(handler);
    queue.give_back();
    assert_eq!(Arc::strong_count(&line), 1, "the queue is still there");
}
