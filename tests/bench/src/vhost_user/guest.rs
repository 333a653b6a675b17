//! A guest on the fake Xen, whose driver keeps a number of requests in flight
//! and rings once for as many as there are.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use devices::registry::DeviceSpec;
use devices::vhost_user::frontend::VhostUserConfig;
use devices::vhost_user::frontend::config::Memory;
use devices::virtio::Trial;
use devices::virtio::queue::Descriptor;
use tests::Stand;
use tests::back_end::Way;
use tests::raw::{NEXT, RawDriver, RawQueue, WRITE};
use vmm::demo::guest::DriverMemory;

use super::kernel::Registers;
use crate::blk::client::Burst;
use crate::blk::workload::{Access, Workload};

/// Entries of the queue: three for each request.
const SIZE: u16 = 128;
/// Most requests in flight.
const DEPTH: u16 = 32;
/// The largest request.
const BYTES: usize = 131_072;
/// Longest wait for a request.
const PATIENCE: Duration = Duration::from_secs(10);
const SECTOR: u64 = 512;

/// What passes the guest's kicks and interrupts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// The fake Xen: a vCPU's accesses, and a thread that raises interrupts.
    Fake,
    /// Eventfds alone.
    Kernel,
}

/// Where the device's registers are.
enum Bus {
    Fake(Box<RawDriver>),
    Kernel(Box<Registers>),
}

impl Bus {
    /// Brings the driver up on its one queue.
    fn start(&mut self, queue: &RawQueue) -> anyhow::Result<()> {
        match self {
            Bus::Fake(driver) => {
                driver.negotiate_exactly(driver.offered());
                driver.install(queue);
                driver.go();
                Ok(())
            }
            Bus::Kernel(registers) => registers.start(queue),
        }
    }

    fn kick(&self, queue: &RawQueue) -> anyhow::Result<()> {
        match self {
            Bus::Fake(driver) => {
                driver.kick(queue);
                Ok(())
            }
            Bus::Kernel(registers) => registers.kick(queue),
        }
    }

    /// Interrupts so far, where they are counted.
    fn interrupts(&self) -> u64 {
        match self {
            Bus::Fake(driver) => driver.interrupts(),
            Bus::Kernel(_) => 0,
        }
    }

    /// Waits for an interrupt beyond those `seen`.
    fn wait(&self, seen: u64) -> anyhow::Result<()> {
        match self {
            Bus::Fake(driver) => {
                driver.wait_interrupt(seen, PATIENCE);
                Ok(())
            }
            Bus::Kernel(registers) => registers.wait(PATIENCE),
        }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        if let Bus::Fake(driver) = self {
            driver.reset();
        }
    }
}

/// A request's buffers: addresses as the device has them.
struct Place {
    header: u64,
    data: u64,
    status: u64,
}

/// See the module.
pub struct Guest {
    // the device is gone before its guest is
    bus: Bus,
    memory: DriverMemory,
    queue: RawQueue,
    places: Vec<Place>,
    avail: u16,
    used: u16,
    sectors: u64,
    random: u64,
    /// The thread that moves its requests, where there is one.
    worker: Option<u32>,
    _stand: Stand,
}

impl Guest {
    /// A guest with the disk of a back end on `socket`, which has `sectors`.
    ///
    /// # Errors
    /// A device that cannot be made, or that is without the worker that its way
    /// has.
    pub fn new(
        socket: &std::path::Path,
        way: Way,
        events: Events,
        sectors: u64,
    ) -> anyhow::Result<Self> {
        let stand = Stand::new();
        let config = VhostUserConfig {
            queue_size: SIZE,
            ..way.config(socket, 2)
        };
        let device = DeviceSpec::VhostUser(config.validate()?).open()?;
        if let Trial::Failed(why) = device.trial(Duration::MAX) {
            bail!(why);
        }
        let memory = stand.memory(way.addresses);
        let mut bus = match events {
            Events::Fake => Bus::Fake(Box::new(stand.raw(&stand.add(0, way.addresses, device), 0))),
            Events::Kernel => Bus::Kernel(Box::new(Registers::new(device, &stand)?)),
        };
        let queue = RawQueue::new(&memory, 0, SIZE);
        let before = threads()?;
        bus.start(&queue)?;
        let mut started = threads()?;
        started.retain(|thread| !before.contains(thread));
        let worker = started.first().copied();
        ensure!(
            worker.is_some() == (way.memory == Memory::Bounce),
            "threads of the queue: {started:?}"
        );
        let places = (0..DEPTH).map(|_| {
            let first = memory.alloc(1, false)?;
            Ok(Place {
                header: first,
                status: first + 64,
                data: memory.alloc(BYTES / 4096, false)?,
            })
        });
        let places = places.collect::<anyhow::Result<_>>()?;
        Ok(Guest {
            bus,
            memory,
            queue,
            places,
            avail: 0,
            used: 0,
            sectors,
            random: 0x9e37_79b9_7f4a_7c15,
            worker,
            _stand: stand,
        })
    }

    /// The processor time that the worker has had; none without one.
    ///
    /// # Errors
    /// A worker that is gone.
    pub fn worker_time(&self) -> anyhow::Result<Duration> {
        let Some(worker) = self.worker else {
            return Ok(Duration::ZERO);
        };
        let path = format!("/proc/self/task/{worker}/schedstat");
        let text = std::fs::read_to_string(&path).context(path)?;
        let nanos = text.split(' ').next().context("no figures")?.parse()?;
        Ok(Duration::from_nanos(nanos))
    }

    /// Requests of one kind for `length`; one of them at a time is timed.
    ///
    /// # Errors
    /// A request that failed, or is not answered.
    pub fn burst(&mut self, workload: &Workload, length: Duration) -> anyhow::Result<Burst> {
        let depth = u16::try_from(workload.depth).unwrap_or(DEPTH).min(DEPTH);
        (0..depth).try_for_each(|place| self.describe(place, workload))?;
        let mut latencies = Vec::with_capacity(1 << 16);
        let start = Instant::now();
        let (mut now, mut timed) = (start, start);
        let (mut requests, mut left) = (0, depth);
        (0..depth).try_for_each(|place| self.request(place, workload))?;
        self.publish(depth)?;
        while left > 0 {
            let done = self.completed()?;
            now = Instant::now();
            let goes_on = now - start < length;
            let mut more = 0;
            for place in done {
                requests += 1;
                if place == 0 {
                    latencies.push(now - timed);
                    timed = now;
                }
                match goes_on {
                    true => {
                        self.request(place, workload)?;
                        more += 1;
                    }
                    false => left -= 1,
                }
            }
            self.publish(more)?;
        }
        (0..depth).try_for_each(|place| self.succeeded(place))?;
        latencies.sort_unstable();
        let at = |percent: usize| latencies.get(latencies.len() * percent / 100).copied();
        Ok(Burst {
            requests,
            took: now - start,
            p50: at(50).unwrap_or_default(),
            p99: at(99).unwrap_or_default(),
        })
    }

    /// Writes the descriptors of a place. virtio 1.3 §5.2.6
    fn describe(&self, place: u16, workload: &Workload) -> anyhow::Result<()> {
        let Place {
            header,
            data,
            status,
        } = self.place(place)?;
        let kind = u32::from(workload.access == Access::Write);
        let memory = &self.memory;
        memory.write(*header, &kind.to_le_bytes())?;
        memory.write(*status, &[0xff])?;
        let filled = match workload.access {
            Access::Read => WRITE,
            Access::Write => 0,
        };
        let len = u32::try_from(workload.bytes.min(BYTES))?;
        let parts = [(*header, 16, 0), (*data, len, filled), (*status, 1, WRITE)];
        for (at, (addr, len, flags)) in (3 * place..).zip(parts) {
            let last = at == 3 * place + 2;
            let descriptor = Descriptor {
                addr,
                len,
                flags: if last { flags } else { flags | NEXT },
                next: if last { 0 } else { at + 1 },
            };
            self.queue.describe(memory, at, descriptor);
        }
        Ok(())
    }

    /// Puts a place's request into the ring, for somewhere on the disk.
    fn request(&mut self, place: u16, workload: &Workload) -> anyhow::Result<()> {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let each = workload.bytes as u64 / SECTOR;
        let sector = self.random % (self.sectors / each) * each;
        let header = self.place(place)?.header;
        let memory = &self.memory;
        memory.write(header + 8, &sector.to_le_bytes())?;
        let slot = self.queue.layout.avail + 4 + 2 * u64::from(self.avail % SIZE);
        memory.write(slot, &(3 * place).to_le_bytes())?;
        self.avail = self.avail.wrapping_add(1);
        Ok(())
    }

    /// Shows `count` new requests, and rings if the device wants that.
    /// virtio 1.3 §2.7.13
    fn publish(&self, count: u16) -> anyhow::Result<()> {
        if count == 0 {
            return Ok(());
        }
        let memory = &self.memory;
        self.queue.show(memory, self.avail);
        // orders the index before what the device says of it
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let event = self.load(self.queue.layout.used + 4 + 8 * u64::from(SIZE))?;
        if self.avail.wrapping_sub(event).wrapping_sub(1) < count {
            self.bus.kick(&self.queue)?;
        }
        Ok(())
    }

    /// The places whose requests are done; at least one.
    fn completed(&mut self) -> anyhow::Result<Vec<u16>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.bus.interrupts();
            let index = self.queue.used(&self.memory);
            let mut done = Vec::new();
            while self.used != index {
                let slot = self.queue.layout.used + 4 + 8 * u64::from(self.used % SIZE);
                done.push(self.load(slot)? / 3);
                self.used = self.used.wrapping_add(1);
            }
            if !done.is_empty() {
                return Ok(done);
            }
            ensure!(
                Instant::now() < deadline,
                "no request was done for {PATIENCE:?}"
            );
            // the next one interrupts
            let event = self.queue.layout.avail + 4 + 2 * u64::from(SIZE);
            self.memory.write(event, &self.used.to_le_bytes())?;
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            if self.queue.used(&self.memory) == self.used {
                self.bus.wait(seen)?;
            }
        }
    }

    fn succeeded(&self, place: u16) -> anyhow::Result<()> {
        let mut status = [0xff];
        self.memory.read(self.place(place)?.status, &mut status)?;
        ensure!(status == [0], "a request ended with status {}", status[0]);
        Ok(())
    }

    fn load(&self, address: u64) -> anyhow::Result<u16> {
        let mut bytes = [0; 2];
        self.memory.read(address, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn place(&self, place: u16) -> anyhow::Result<&Place> {
        self.places
            .get(usize::from(place))
            .context("the device used what was not asked for")
    }
}

/// This process's threads.
fn threads() -> anyhow::Result<Vec<u32>> {
    let mut threads = Vec::new();
    for thread in std::fs::read_dir("/proc/self/task")? {
        let name = thread?.file_name();
        threads.push(name.to_string_lossy().parse()?);
    }
    Ok(threads)
}
