//! The front end before back ends of which each word and each byte in the
//! shadow ring is the test's.

mod by_hand;
mod config_space;
mod foreign;
mod hostile;
mod life;
mod messages;
mod partner;
mod ring;
mod semantics;
mod trial;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swiotlb::Dma;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{VhostUserConfig, VhostUserDevice};
use crate::testing::{Buffer, DriverRing, GuestRam, Line, readable};
use crate::virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1};
use crate::virtio::{
    ActiveQueue, Chain, Device, DeviceError, DmaProvider, Notifier, QueueError, QueueHandler,
    Transport, TransportOptions, Trial,
};
use partner::Partner;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the guest's driver uses.
const GUEST: u64 = VERSION_1 | RING_INDIRECT_DESC | RING_EVENT_IDX;

/// A configuration for small tests.
fn config(socket: &Path) -> VhostUserConfig {
    VhostUserConfig {
        queue_size: 16,
        pool_mib: 1,
        ..VhostUserConfig::new(socket, 42)
    }
}

/// A device whose back end has been heard, if it says anything.
fn open(config: VhostUserConfig) -> Result<VhostUserDevice, DeviceError> {
    let device = VhostUserDevice::open(config.validate().unwrap()).unwrap();
    match device.trial(PATIENCE) {
        Trial::Failed(why) => Err(why),
        Trial::Passed | Trial::Pending => Ok(device),
    }
}

/// Waits until something is so.
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Provider(GuestRam);

impl DmaProvider for Provider {
    fn open(&self) -> Result<Dma, DeviceError> {
        Ok(self.0.dma())
    }
}

/// A device behind its registers, and what rings when a driver that waits is to
/// be looked after.
fn registers(config: VhostUserConfig) -> (Transport, EventFd) {
    behind_registers(open(config).unwrap())
}

fn behind_registers(device: VhostUserDevice) -> (Transport, EventFd) {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let options = TransportOptions {
        label: "test".into(),
        access_platform: false,
    };
    let transport = Transport::new(
        Box::new(device),
        options,
        Arc::new(Line::default()),
        Arc::new(Provider(GuestRam::new(16))),
        event.try_clone().unwrap(),
    );
    (transport.unwrap(), event)
}

/// A guest, its device and the back end.
struct Rig {
    ram: GuestRam,
    ring: DriverRing,
    queue: ActiveQueue,
    handler: Box<dyn QueueHandler>,
    device: VhostUserDevice,
    notifier: Arc<Notifier>,
    partner: Partner,
}

impl Rig {
    fn new() -> Self {
        Rig::with(Partner::new(), |_| {})
    }

    /// A device in front of `partner`, with its first queue served.
    fn with(partner: Partner, change: fn(&mut VhostUserConfig)) -> Self {
        let mut config = config(partner.socket());
        change(&mut config);
        let device = open(config).unwrap();
        Rig::of_queue(partner, device, 0)
    }

    /// A device in front of `partner`, with one of its queues served.
    fn of_queue(partner: Partner, mut device: VhostUserDevice, index: u16) -> Self {
        let notifier = Arc::new(Notifier::new(Arc::new(Line::default())));
        device.attach(&notifier, EventFd::new(EFD_NONBLOCK).unwrap());
        let ram = GuestRam::new(1024);
        let ring = DriverRing::new(&ram, 16);
        let (queue, _) = ring.activate(GUEST);
        let features = GUEST | device.features();
        let handler = device.start_queue(index, features).unwrap();
        let mut rig = Rig {
            ram,
            ring,
            queue,
            handler,
            device,
            notifier,
            partner,
        };
        rig.advance_until_served();
        rig
    }

    /// Has the handler hear that there is a back end.
    fn advance_until_served(&mut self) {
        while self.handler.room() == 0 {
            self.advance().unwrap();
        }
    }

    /// Has the handler hear that there is a back end, though it has no room.
    fn advance_until_lane(&mut self) {
        while !self.handler.is_idle() {
            self.advance().unwrap();
        }
    }

    /// Waits for the handler's event and has it act.
    fn advance(&mut self) -> Result<(), QueueError> {
        assert!(readable(self.handler.event().unwrap(), PATIENCE));
        self.handler.advance(&mut self.queue)
    }

    /// Has the handler serve what is available, as its worker does.
    fn serve(&mut self) -> Result<(), QueueError> {
        loop {
            let chains: Vec<Chain> = self.queue.take(self.handler.room())?;
            if chains.is_empty() {
                return self.queue.notify();
            }
            self.handler.serve(&mut self.queue, chains)?;
        }
    }

    /// A buffer that holds `bytes`, for the device to read.
    fn readable(&self, bytes: &[u8]) -> Buffer {
        Buffer::readable(self.ram.alloc_bytes(bytes), bytes.len() as u32)
    }

    /// A buffer of `len` bytes of 0x55, for the device to write.
    fn writable(&self, len: usize) -> Buffer {
        let address = self.ram.alloc_bytes(&vec![0x55; len]);
        Buffer::writable(address, len as u32)
    }

    fn read(&self, buffer: Buffer) -> Vec<u8> {
        self.ram.read(buffer.address, buffer.len as usize)
    }

    /// Has the back end say that it is done, and the handler take it.
    fn used(&mut self, entries: &[(u32, u32)]) -> Result<Vec<(u16, u32)>, QueueError> {
        self.partner.push_used(entries);
        self.advance()?;
        Ok(self.ring.used())
    }

    fn stat(&self, name: &str) -> u64 {
        let list = self.device.statistics();
        let found = list.iter().find(|(known, _)| *known == name);
        found.unwrap().1
    }
}
