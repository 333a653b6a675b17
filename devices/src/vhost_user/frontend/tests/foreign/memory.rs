//! The memory that a back end is given, and what cannot be given it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use swiotlb::Dma;
use swiotlb::range::GRANT_BIT;
use vhost::vhost_user::message::FrontendReq;

use super::super::eventually;
use super::super::partner::{Character, PROTOCOL, Partner, message};
use super::{Provider, Rig, put_behind_registers};
use crate::testing::{GuestRam, Line};
use crate::vhost_user::frontend::foreign::LOOK;
use crate::virtio::mmio::Register;
use crate::virtio::{DeviceError, DmaProvider, SharedRegion, Sharing};

/// XEN_MMAP, by its number.
const XEN_MMAP: u64 = 1 << 17;

#[test]
fn a_ring_that_is_granted_or_outside_of_memory_breaks_the_device_and_nothing_is_said_of_it() {
    let places: [fn(&mut u64); 2] = [|at| *at |= GRANT_BIT, |at| *at += 1 << 30];
    for change in places {
        let ram = GuestRam::new(64);
        let partner = Partner::new();
        let provider = Provider(ram.clone(), Ok(Sharing::File));
        let line = Arc::new(Line::default());
        let mut rig = Rig::undriven(partner, |_| {}, line, ram, provider);
        let layout = rig.ring.layout();
        let mut used = layout.used;
        change(&mut used);

        let offered = rig.transport.offered();
        rig.negotiate(offered);
        rig.install(layout.desc, layout.avail, used);

        eventually("the guest is told", || rig.needs_reset());
        assert!(rig.partner.bodies(FrontendReq::SET_VRING_ADDR).is_empty());
        let _ = rig.transport.write(Register::Status as u64, 4, 0);
        rig.await_returned();
        assert!(!rig.needs_reset());
    }
}

fn refusal(partner: &Partner, sharing: Result<Sharing, &'static str>) -> String {
    let provider = Provider(GuestRam::new(16), sharing);
    let line = Arc::new(Line::default());
    let refused = put_behind_registers(partner, |_| {}, line, provider).unwrap_err();
    crate::virtio::worker::with_causes(&refused)
}

#[test]
fn memory_that_cannot_be_shared_is_refused_with_the_socket_and_the_reason() {
    let partner = Partner::new();

    let text = refusal(&partner, Err("grants"));

    assert!(text.contains(partner.socket().to_str().unwrap()), "{text}");
    assert!(text.contains("grants"), "{text}");
}

#[test]
fn a_back_end_that_cannot_map_foreign_memory_is_refused_with_what_would_help() {
    let partner = Partner::new();

    let text = refusal(&partner, Ok(Sharing::Foreign { domid: 7 }));

    assert!(text.contains(partner.socket().to_str().unwrap()), "{text}");
    assert!(
        text.contains("XEN_MMAP") && text.contains("bounce"),
        "{text}"
    );
}

#[test]
fn a_back_end_that_comes_later_and_cannot_map_foreign_memory_is_not_used() {
    let mut partner = Partner::absent(Character::default());
    let provider = Provider(GuestRam::new(16), Ok(Sharing::Foreign { domid: 7 }));
    let line = Arc::new(Line::default());
    let (transport, _returned) = put_behind_registers(&partner, |_| {}, line, provider).unwrap();

    partner.come();
    eventually("a second try", || partner.connections() > 1);

    let list = transport.device().statistics();
    assert!(list.contains(&("connected", 0)), "{list:?}");
}

#[test]
fn foreign_memory_is_told_by_the_extended_table_and_a_file_too_if_it_is_negotiated() {
    for (sharing, own) in [
        (
            Sharing::Foreign { domid: 0x1234 },
            [1, 0, 0, 0, 0x34, 0x12, 0, 0],
        ),
        (Sharing::File, [0; 8]),
    ] {
        let partner = Partner::with(Character {
            protocol: PROTOCOL | XEN_MMAP,
            ..Character::default()
        });
        let ram = GuestRam::new(64);
        let provider = Provider(ram.clone(), Ok(sharing));
        let line = Arc::new(Line::default());
        let mut rig = Rig::undriven(partner, |_| {}, line, ram, provider);

        rig.drive();
        rig.partner.wait_for(FrontendReq::SET_VRING_ENABLE);

        let table = rig.partner.bodies(FrontendReq::SET_MEM_TABLE).remove(0);
        assert_eq!(table.len(), 8 + 40);
        assert_eq!(table[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(table[40..], own);
    }
}

#[test]
fn memory_that_has_left_the_guest_is_told_and_the_ring_goes_on_where_it_was() {
    let mut rig = Rig::new(Partner::new());
    let head = rig.offer(b"before");
    rig.partner.take();
    rig.partner.push_used(&[(head.into(), 0)]);
    let stopped = [0, 0, 0, 0, 1, 0, 0, 0];
    rig.partner.change(|character| {
        let request = FrontendReq::GET_VRING_BASE;
        character.instead = Some((request, message(request as u32, 5, &stopped)));
    });

    rig.transport.memory_changed();
    eventually("the ring goes on", || {
        rig.partner.bodies(FrontendReq::SET_VRING_KICK).len() == 2
    });
    rig.offer(b"after");
    let (_, chain) = rig.partner.take();

    assert_eq!(rig.partner.bodies(FrontendReq::SET_MEM_TABLE).len(), 2);
    let bases = rig.partner.bodies(FrontendReq::SET_VRING_BASE);
    assert_eq!(bases, [vec![0; 8], stopped.to_vec()]);
    assert_eq!(rig.partner.read(chain[0].addr, 5), b"after");
    assert!(!rig.needs_reset());
}

/// A guest whose pages are counted.
struct Counted(Provider, Arc<AtomicU64>);

impl DmaProvider for Counted {
    fn open(&self) -> Result<Dma, DeviceError> {
        self.0.open()
    }
    fn sharing(&self) -> Result<Sharing, DeviceError> {
        self.0.sharing()
    }
    fn pages(&self) -> Option<u64> {
        Some(self.1.load(Ordering::SeqCst))
    }
    fn share(&self) -> Result<Vec<SharedRegion>, DeviceError> {
        self.0.share()
    }
}

/// A guest of so many pages, with its driver up.
fn counted(pages: &Arc<AtomicU64>) -> Rig {
    let ram = GuestRam::new(64);
    let provider = Provider(ram.clone(), Ok(Sharing::File));
    let provider = Counted(provider, Arc::clone(pages));
    let line = Arc::new(Line::default());
    let mut rig = Rig::undriven(Partner::new(), |_| {}, line, ram, provider);
    rig.drive();
    rig.partner.wait_for(FrontendReq::SET_VRING_ENABLE);
    rig
}

fn tables(rig: &Rig) -> usize {
    rig.partner.bodies(FrontendReq::SET_MEM_TABLE).len()
}

#[test]
fn memory_that_has_come_is_told_and_the_ring_goes_on() {
    let pages = Arc::new(AtomicU64::new(64));
    let mut rig = counted(&pages);
    std::thread::sleep(LOOK * 3);
    let before = tables(&rig);

    pages.store(65, Ordering::SeqCst);
    eventually("the ring goes on", || {
        rig.partner.bodies(FrontendReq::SET_VRING_KICK).len() == 2
    });
    rig.offer(b"after");
    let (_, chain) = rig.partner.take();
    std::thread::sleep(LOOK * 3);

    assert_eq!((before, tables(&rig)), (1, 2));
    assert_eq!(rig.partner.read(chain[0].addr, 5), b"after");
    assert!(!rig.needs_reset());
}

#[test]
fn memory_that_has_left_is_told_once_more_when_the_back_end_has_given_it_up() {
    let pages = Arc::new(AtomicU64::new(64));
    let mut rig = counted(&pages);

    rig.transport.memory_changed();
    eventually("it is told twice", || tables(&rig) == 3);
    std::thread::sleep(LOOK * 3);

    assert_eq!(tables(&rig), 3);
}

#[test]
fn a_guest_that_gives_memory_back_all_the_time_has_it_told_now_and_then() {
    let mut rig = counted(&Arc::new(AtomicU64::new(64)));
    let begun = Instant::now();

    for _ in 0..100 {
        rig.transport.memory_changed();
        std::thread::sleep(LOOK / 20);
    }

    let told = tables(&rig) as f64;
    let most = begun.elapsed().div_duration_f64(LOOK) + 2.0;
    assert!(told > 2.0 && told <= most, "{told}, of {most} at most");
}
