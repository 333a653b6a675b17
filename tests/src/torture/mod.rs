//! What every device has to endure.
//!
//! A table of cases, each applied to every [`Subject`] by every one of [`WAYS`]. After each case the device works again after a reset, no vCPU
//! has waited in vain, nothing was written to memory that the guest had freed,
//! no grant was found in use, and at the end nothing of the guest's is held.

mod hostile;
mod load;
mod registers;

use std::time::Duration;

use vmm::demo::guest::{Addresses, Pattern, within};
use vmm::guest::EventMode;
use xen::fake::MachineConfig;

use crate::raw::{RawDriver, RawQueue, Request, Shared};
use crate::stand::{Place, Setup, Stand};
use crate::subjects::{SUBJECTS, Subject};

/// One case, on one device.
pub type Case = fn(&mut Bench);

/// Every case, by name.
pub const CASES: &[(&str, Case)] = &[
    ("rebind", load::rebind),
    ("reset under load", load::reset_under_load),
    ("queue reset under load", load::queue_reset_under_load),
    ("queue stop under load", load::queue_stop_under_load),
    ("stop under load", load::stop_under_load),
    ("two vCPUs at once", load::two_vcpus_at_once),
    ("hostile chains", hostile::chains),
    ("hostile indirect tables", hostile::tables),
    ("hostile indices", hostile::indices),
    ("random descriptors", hostile::random_descriptors),
    ("rings anywhere", hostile::rings_anywhere),
    ("bad registers", registers::every_offset),
    ("bad queue registers", registers::queue_registers),
    ("registers out of order", registers::out_of_order),
];

/// Longest that a case may take on one device; a vCPU that hangs is found
/// sooner.
const LIMIT: Duration = Duration::from_secs(120);

/// How drivers name memory, and how interrupts and kicks pass.
pub const WAYS: [(Addresses, EventMode); 3] = [
    (Addresses::Grants, EventMode::Auto),
    (Addresses::Plain, EventMode::Plain),
    (Addresses::Grants, EventMode::Ioeventfd),
];

/// How long the kernel holds a request that it looks at for an ioeventfd: long
/// enough to be seen.
const LINGER: Duration = Duration::from_micros(20);

/// Applies the case of a name to every device, in every way.
pub fn torture(name: &str) {
    let (_, case) = CASES
        .iter()
        .find(|(known, _)| *known == name)
        .expect("a case of that name");
    for subject in SUBJECTS {
        for (addresses, events) in WAYS {
            let case = *case;
            let run = move || {
                let mut bench = Bench::new(subject, addresses, events);
                case(&mut bench);
                bench.works();
                bench.stand.finish();
            };
            if let Err(error) = within("the case", LIMIT, run) {
                panic!(
                    "{name}, {}, queue {}, {addresses:?}, {events:?}: {error}",
                    subject.kind, subject.queue
                );
            }
        }
    }
}

/// A device, its driver, and a source of numbers.
pub struct Bench {
    pub stand: Stand,
    pub subject: &'static Subject,
    pub place: Place,
    pub driver: RawDriver,
    pub pattern: Pattern,
}

/// Descriptors of the rings that are used here.
pub const RING: u16 = 64;

impl Bench {
    fn new(subject: &'static Subject, addresses: Addresses, events: EventMode) -> Self {
        let stand = Stand::with(Setup {
            machine: MachineConfig {
                ioeventfd_linger: match events {
                    EventMode::Ioeventfd => LINGER,
                    _ => Duration::ZERO,
                },
                ..MachineConfig::default()
            },
            events,
            ..Setup::default()
        });
        let place = stand.add(0, addresses, (subject.make)(&stand, 0));
        let driver = stand.raw(&place, 0);
        Bench {
            stand,
            subject,
            place,
            driver,
            pattern: Pattern::new(0x746f_7274),
        }
    }

    /// Brings the driver up with one queue.
    pub fn up(&self) -> RawQueue {
        bring_up(&self.driver, self.subject)
    }

    pub fn request(&mut self) -> Request {
        (self.subject.request)(&mut self.pattern)
    }

    /// Fills the queue with requests, kicked, and does not wait for them.
    pub fn load(&mut self, queue: &mut RawQueue) -> Vec<Shared> {
        load(&self.driver, self.subject, &mut self.pattern, queue)
    }

    /// Whether the device works, after a reset.
    pub fn works(&mut self) {
        works(&self.driver, self.subject, &mut self.pattern);
        self.stand.check();
    }
}

/// Brings a driver up with the subject's queue.
pub fn bring_up(driver: &RawDriver, subject: &Subject) -> RawQueue {
    driver.negotiate();
    let queue = driver.queue(subject.queue, RING);
    driver.go();
    queue
}

/// Fills the queue with requests, kicked.
pub fn load(
    driver: &RawDriver,
    subject: &Subject,
    pattern: &mut Pattern,
    queue: &mut RawQueue,
) -> Vec<Shared> {
    let mut shared = Vec::new();
    let mut first = 0;
    loop {
        let request = (subject.request)(pattern).share(&driver.memory);
        if first + request.len() > RING {
            request.take_back(&driver.memory);
            break;
        }
        request.submit(&driver.memory, queue, first);
        first += request.len();
        shared.push(request);
    }
    driver.kick(queue);
    shared
}

/// One request, from the first descriptor on, waited for and checked.
pub fn one_request(
    driver: &RawDriver,
    subject: &Subject,
    pattern: &mut Pattern,
    queue: &mut RawQueue,
) {
    let request = (subject.request)(pattern);
    let shared = request.share(&driver.memory);
    shared.submit(&driver.memory, queue, 0);
    driver.kick(queue);
    let used = driver.wait(queue).expect("the device works");
    let written = shared.take_back(&driver.memory);
    assert_eq!(used.0, 0, "another head was used than offered");
    assert!(
        (subject.is_answer)(&request, &written),
        "the answer to {request:?} is wrong"
    );
}

/// Resets the device, brings it up, has requests answered, and resets it.
pub fn works(driver: &RawDriver, subject: &Subject, pattern: &mut Pattern) {
    driver.reset();
    let mut queue = bring_up(driver, subject);
    for _ in 0..4 {
        one_request(driver, subject, pattern, &mut queue);
    }
    assert!(!driver.needs_reset());
    driver.reset();
    queue.free(&driver.memory);
    assert_eq!(driver.memory.failures(), Vec::<String>::new());
}
