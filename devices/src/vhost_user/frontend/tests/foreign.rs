//! Back ends that are given the guest's memory and its rings.

mod life;
mod memory;
mod semantics;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use swiotlb::Dma;
use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::partner::{Character, PROTOCOL, PROTOCOL_FEATURES, Partner};
use super::{config, eventually, open};
use crate::testing::{Buffer, DriverRing, GuestRam, Line};
use crate::vhost_user::frontend::VhostUserConfig;
use crate::vhost_user::frontend::config::Memory;
use crate::virtio::descriptor::borrow;
use crate::virtio::features::{ACCESS_PLATFORM, RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1};
use crate::virtio::mmio::{Answer, Register};
use crate::virtio::{
    DeviceError, DmaProvider, Interrupt, SharedRegion, Sharing, Transport, TransportOptions,
};

/// By its number.
const REPLY_ACK: u64 = 1 << 3;

struct Provider(GuestRam, Result<Sharing, &'static str>);

impl DmaProvider for Provider {
    fn open(&self) -> Result<Dma, DeviceError> {
        Ok(self.0.dma())
    }
    fn sharing(&self) -> Result<Sharing, DeviceError> {
        Ok(self.1?)
    }
    fn share(&self) -> Result<Vec<SharedRegion>, DeviceError> {
        Ok(vec![self.0.region(self.sharing()?)])
    }
}

/// A line that somebody else can raise, too.
struct Open(EventFd);

impl Interrupt for Open {
    fn raise(&self) -> std::io::Result<()> {
        self.0.write(1)
    }
    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(borrow(&self.0))
    }
}

/// A guest with a device of one queue, and the back end.
struct Rig {
    transport: Transport,
    returned: EventFd,
    /// Which of its queues is used.
    queue: u16,
    ram: GuestRam,
    ring: DriverRing,
    partner: Partner,
}

fn put_behind_registers(
    partner: &Partner,
    change: fn(&mut VhostUserConfig),
    line: Arc<dyn Interrupt>,
    provider: impl DmaProvider + 'static,
) -> std::io::Result<(Transport, EventFd)> {
    let mut config = VhostUserConfig {
        memory: Memory::Foreign,
        pool_mib: 16,
        ..config(partner.socket())
    };
    change(&mut config);
    let device = open(config).unwrap();
    let returned = EventFd::new(EFD_NONBLOCK).unwrap();
    let options = TransportOptions {
        label: "test".into(),
        access_platform: false,
    };
    let event = returned.try_clone().unwrap();
    let provider = Arc::new(provider);
    Ok((
        Transport::new(Box::new(device), options, line, provider, event)?,
        returned,
    ))
}

impl Rig {
    fn new(partner: Partner) -> Rig {
        Rig::with(partner, |_| {}, Arc::new(Line::default()))
    }

    fn with(partner: Partner, change: fn(&mut VhostUserConfig), line: Arc<dyn Interrupt>) -> Rig {
        Rig::of_queue(partner, change, line, 0)
    }

    fn of_queue(
        partner: Partner,
        change: fn(&mut VhostUserConfig),
        line: Arc<dyn Interrupt>,
        queue: u16,
    ) -> Rig {
        let ram = GuestRam::new(64);
        let provider = Provider(ram.clone(), Ok(Sharing::File));
        let mut rig = Rig {
            queue,
            ..Rig::undriven(partner, change, line, ram, provider)
        };
        rig.drive();
        rig
    }

    /// Whose driver is not up yet.
    fn undriven(
        partner: Partner,
        change: fn(&mut VhostUserConfig),
        line: Arc<dyn Interrupt>,
        ram: GuestRam,
        provider: impl DmaProvider + 'static,
    ) -> Rig {
        let (transport, returned) = put_behind_registers(&partner, change, line, provider).unwrap();
        Rig {
            transport,
            returned,
            queue: 0,
            ring: DriverRing::new(&ram, 8),
            ram,
            partner,
        }
    }

    fn set(&mut self, register: Register, value: u64) {
        let answer = self.transport.write(register as u64, 4, value);
        assert_eq!(answer, Answer::Now);
    }

    fn get(&mut self, register: Register) -> u64 {
        self.transport.read(register as u64, 4)
    }

    /// Does what a driver does until it is up.
    fn drive(&mut self) {
        let features = self.transport.offered();
        self.negotiate(features);
        let layout = self.ring.layout();
        self.install(layout.desc, layout.avail, layout.used);
    }

    fn negotiate(&mut self, features: u64) {
        self.set(Register::Status, 3);
        for (sel, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.set(Register::DriverFeaturesSel, sel);
            self.set(Register::DriverFeatures, half);
        }
        self.set(Register::Status, 11);
        assert_eq!(self.get(Register::Status), 11);
    }

    fn install(&mut self, desc: u64, avail: u64, used: u64) {
        self.set(Register::QueueSel, self.queue.into());
        self.set(Register::QueueSize, 8);
        for (register, address) in [
            (Register::QueueDescLow, desc),
            (Register::QueueDriverLow, avail),
            (Register::QueueDeviceLow, used),
        ] {
            let at = register as u64;
            let low = self.transport.write(at, 4, address & 0xffff_ffff);
            let high = self.transport.write(at + 4, 4, address >> 32);
            assert_eq!((low, high), (Answer::Now, Answer::Now));
        }
        self.set(Register::QueueReady, 1);
        self.set(Register::Status, 15);
    }

    /// A buffer that holds `bytes`, in the ring.
    fn offer(&mut self, bytes: &[u8]) -> u16 {
        let address = self.ram.alloc_bytes(bytes);
        self.ring
            .add(&[Buffer::readable(address, bytes.len() as u32)])
    }

    /// A buffer to be filled, in the ring.
    fn offer_room(&mut self) -> u16 {
        let address = self.ram.alloc(16);
        self.ring.add(&[Buffer::writable(address, 16)])
    }

    fn needs_reset(&self) -> bool {
        self.transport.notifier().needs_reset()
    }

    /// Waits until every queue was given back.
    fn await_returned(&mut self) {
        eventually("the queue is given back", || {
            let _ = self.returned.read();
            self.transport.collect()
        });
    }

    /// Has the back end go away and waits until the next one has the ring.
    fn die_and_come_back(&mut self) {
        let before = self.partner.connections();
        self.partner.die();
        eventually("it is back", || self.partner.connections() > before);
        self.partner.wait_for(FrontendReq::SET_VRING_ENABLE);
    }
}

#[test]
fn the_back_end_serves_the_guests_own_ring_in_the_guests_memory() {
    let mut rig = Rig::new(Partner::new());

    rig.offer(b"of the guest");
    let (head, chain) = rig.partner.take();
    let layout = rig.ring.layout();

    assert_eq!(
        rig.partner.rings(),
        [layout.desc, layout.used, layout.avail]
    );
    assert_eq!(rig.partner.read(chain[0].addr, 12), b"of the guest");
    rig.partner.push_used(&[(head.into(), 0)]);
    assert_eq!(rig.ring.used(), [(0, 0)]);
}

#[test]
fn the_doorbell_is_the_kick_and_is_rung_once_at_the_start() {
    let mut rig = Rig::new(Partner::new());
    rig.partner.wait_for(FrontendReq::SET_VRING_ENABLE);
    eventually("the ring is looked at", || rig.partner.is_kicked());
    let quiet = rig.partner.is_kicked();

    rig.set(Register::QueueNotify, 0);

    assert!(!quiet && rig.partner.is_kicked());
    let stats = rig.transport.queue_stats(0).unwrap();
    assert_eq!(stats.kicks.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn a_ring_is_known_to_be_enabled_before_its_first_kick() {
    let partner = Partner::with(Character {
        protocol: PROTOCOL & !REPLY_ACK,
        ..Character::default()
    });
    let mut rig = Rig::new(partner);

    eventually("a kick", || rig.partner.is_kicked());

    // asked for the first time before there was a ring
    let asked = rig.partner.bodies(FrontendReq::GET_FEATURES).len();
    let last = rig.partner.last();
    assert_eq!((asked, last), (2, FrontendReq::GET_FEATURES as u32));
    rig.set(Register::QueueNotify, 0);
    assert!(rig.partner.is_kicked());
}

#[test]
fn a_driver_is_offered_what_the_back_end_can_do_with_its_ring() {
    let rings = RING_INDIRECT_DESC | RING_EVENT_IDX;
    let basic = VERSION_1 | PROTOCOL_FEATURES;
    for can in [RING_INDIRECT_DESC, rings, 0] {
        let rig = Rig::new(Partner::with(Character {
            features: basic | ACCESS_PLATFORM | can,
            ..Character::default()
        }));

        rig.partner.wait_for(FrontendReq::SET_FEATURES);
        let told = rig.partner.bodies(FrontendReq::SET_FEATURES).remove(0);

        assert_eq!(rig.transport.offered() & rings, can);
        // how the guest's addresses are meant is not the back end's affair
        assert_eq!(u64::from_ne_bytes(told.try_into().unwrap()), basic | can);
    }
}

#[test]
fn a_call_past_this_process_reads_as_used_buffers_and_configuration_is_exact() {
    let line = Arc::new(Open(EventFd::new(EFD_NONBLOCK).unwrap()));
    let mut rig = Rig::with(Partner::new(), |_| {}, line.clone());
    rig.partner.wait_for(FrontendReq::SET_VRING_ENABLE);
    let before = rig.get(Register::InterruptStatus);
    let _ = line.0.read();

    let head = rig.offer(b"x");
    rig.partner.take();
    rig.partner.push_used(&[(head.into(), 0)]);
    let edges = line.0.read().unwrap();
    rig.set(Register::InterruptAck, 1);
    let after = rig.get(Register::InterruptStatus);
    rig.transport.notifier().config_changed();
    let changed = rig.get(Register::InterruptStatus);
    rig.set(Register::InterruptAck, 3);
    let acknowledged = rig.get(Register::InterruptStatus);

    assert_eq!((before, edges, after), (1, 1, 1));
    assert_eq!((changed, acknowledged), (3, 1));
}

#[test]
fn a_call_is_passed_on_where_nobody_else_can_interrupt() {
    let line = Arc::new(Line::default());
    let mut rig = Rig::with(Partner::new(), |_| {}, line.clone());
    rig.partner.wait_for(FrontendReq::SET_VRING_ENABLE);
    let before = (rig.get(Register::InterruptStatus), line.edges());

    let head = rig.offer(b"x");
    rig.partner.take();
    rig.partner.push_used(&[(head.into(), 0)]);
    eventually("an interrupt", || line.edges() == 1);
    let after = rig.get(Register::InterruptStatus);

    assert_eq!((before, after), ((0, 0), 1));
}
