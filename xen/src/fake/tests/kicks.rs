//! ioeventfds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::slot::{STATE_INPROCESS, STATE_NONE, STATE_READY};
use super::support::{Attached, BASE, Rig, Server, errno, eventually};
use crate::fake::{DomainConfig, MachineConfig};
use crate::privcmd::IoeventfdRequest;
use crate::sys::borrow_fd;

const NOTIFY: u64 = BASE + 0x50;

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

pub(super) fn request<'a>(
    rig: &Rig,
    ioreq_page: usize,
    ports: &'a [u32],
    fd: &'a EventFd,
) -> IoeventfdRequest<'a> {
    IoeventfdRequest {
        dom: rig.dom,
        ioreq_page,
        ports,
        address: BASE,
        queue: 0,
        event_fd: borrow_fd(fd),
    }
}

fn of<'a>(rig: &Rig, attached: &'a Attached, fd: &'a EventFd) -> IoeventfdRequest<'a> {
    request(rig, attached.page.address(), &attached.ports, fd)
}

/// A started guest with an attached server whose first events are dealt with.
fn setup(config: MachineConfig, vcpus: u32) -> (Arc<Rig>, Arc<Attached>) {
    let rig = Rig::with(config, DomainConfig::default().vcpus(vcpus));
    rig.start_unheard();
    let attached = rig.attach(vcpus);
    for port in rig.read_ports() {
        rig.evtchn.unmask(port).unwrap();
    }
    (Arc::new(rig), Arc::new(attached))
}

fn lingering() -> MachineConfig {
    MachineConfig {
        ioeventfd_linger: Duration::from_millis(100),
        ..MachineConfig::default()
    }
}

#[test]
fn matching_kick_is_answered_by_the_kernel() {
    let (rig, attached) = setup(MachineConfig::default(), 1);
    let fd = eventfd();
    rig.privcmd
        .ioeventfd(&of(&rig, &attached, &fd), true)
        .unwrap();
    // Nobody serves the page.
    rig.domain.vcpu(0).write(NOTIFY, 4, 0).unwrap();
    assert_eq!(fd.read().unwrap(), 1);
    assert_eq!(attached.slot(0).state(), STATE_NONE);
    assert_eq!(rig.machine.census()[&rig.dom].ioeventfds, 1);
}

#[test]
fn event_channel_reports_a_kick_and_has_to_be_written_back() {
    let (rig, attached) = setup(MachineConfig::default(), 1);
    let fd = eventfd();
    rig.privcmd
        .ioeventfd(&of(&rig, &attached, &fd), true)
        .unwrap();
    let vcpu = rig.domain.vcpu(0);
    vcpu.write(NOTIFY, 4, 0).unwrap();
    let second = std::thread::spawn(move || vcpu.write(NOTIFY, 4, 0));
    eventually("a second kick", || attached.slot(0).state() == STATE_READY);
    assert_eq!(fd.read().unwrap(), 1);
    assert!(fd.read().is_err());
    assert_eq!(rig.read_ports(), attached.ports);
    rig.evtchn.unmask(attached.ports[0]).unwrap();
    second.join().unwrap().unwrap();
    assert_eq!(fd.read().unwrap(), 1);
    assert_eq!(rig.read_ports(), attached.ports);
}

#[test]
fn other_accesses_still_reach_user_space() {
    let (rig, attached) = setup(MachineConfig::default(), 1);
    let fd = eventfd();
    rig.privcmd
        .ioeventfd(&of(&rig, &attached, &fd), true)
        .unwrap();
    let _server = Server::run(rig.clone(), attached, |_, request| {
        let what = (request.read, request.address, request.data, request.size);
        assert_ne!(what, (false, NOTIFY, 0, 4));
        0x77
    });
    let vcpu = rig.domain.vcpu(0);
    vcpu.write(NOTIFY, 4, 1).unwrap();
    vcpu.write(NOTIFY, 2, 0).unwrap();
    vcpu.write(NOTIFY + 4, 4, 0).unwrap();
    assert_eq!(vcpu.read(NOTIFY, 4).unwrap(), 0x77);
    assert!(fd.read().is_err());
}

#[test]
fn upper_half_of_the_kick_is_not_looked_at() {
    let (rig, attached) = setup(MachineConfig::default(), 1);
    let fd = eventfd();
    rig.privcmd
        .ioeventfd(&of(&rig, &attached, &fd), true)
        .unwrap();
    rig.domain.vcpu(0).write(NOTIFY, 4, 0xabcd_0000).unwrap();
    assert_eq!(fd.read().unwrap(), 1);
}

#[test]
fn queues_have_their_own_eventfds() {
    let (rig, attached) = setup(MachineConfig::default(), 1);
    let (zero, one) = (eventfd(), eventfd());
    for (queue, fd) in [(0, &zero), (1, &one)] {
        let request = IoeventfdRequest {
            queue,
            ..of(&rig, &attached, fd)
        };
        rig.privcmd.ioeventfd(&request, true).unwrap();
    }
    rig.domain.vcpu(0).write(NOTIFY, 4, 1).unwrap();
    assert!(zero.read().is_err());
    assert_eq!(one.read().unwrap(), 1);
}

#[test]
fn unmatched_write_is_seen_in_process_and_becomes_ready_again() {
    let (rig, attached) = setup(lingering(), 1);
    let fd = eventfd();
    rig.privcmd
        .ioeventfd(&of(&rig, &attached, &fd), true)
        .unwrap();
    let vcpu = rig.domain.vcpu(0);
    let guest = std::thread::spawn(move || vcpu.write(NOTIFY, 4, 5));
    let mut ports = Vec::new();
    eventually("the port", || {
        ports.extend(rig.read_ports());
        !ports.is_empty()
    });
    assert_eq!(attached.slot(0).state(), STATE_INPROCESS);
    eventually("the request", || attached.slot(0).state() == STATE_READY);
    attached.answer(0, 0);
    rig.evtchn.notify(attached.ports[0]).unwrap();
    guest.join().unwrap().unwrap();
}

#[test]
fn two_vcpus_kick_and_write_without_loss() {
    let (rig, attached) = setup(
        MachineConfig {
            ioeventfd_linger: Duration::from_micros(200),
            ..MachineConfig::default()
        },
        2,
    );
    let fd = eventfd();
    rig.privcmd
        .ioeventfd(&of(&rig, &attached, &fd), true)
        .unwrap();
    // A kick that comes before the port is written back can be met by user
    // space, which has to take it as one.
    let met = Arc::new(AtomicU64::new(0));
    let server = Server::run(rig.clone(), attached, {
        let met = met.clone();
        move |_, request| {
            if request.data == 0 {
                met.fetch_add(1, Ordering::SeqCst);
            }
            0
        }
    });
    let guests: Vec<_> = (0..2)
        .map(|number| {
            let vcpu = rig.domain.vcpu(number);
            std::thread::spawn(move || {
                (0..50).all(|round| vcpu.write(NOTIFY, 4, round % 2).is_ok())
            })
        })
        .collect();
    for guest in guests {
        assert!(guest.join().unwrap());
    }
    drop(server);
    assert_eq!(fd.read().unwrap() + met.load(Ordering::SeqCst), 50);
}

#[test]
fn page_and_ports_have_to_exist() {
    let (rig, attached) = setup(MachineConfig::default(), 1);
    let fd = eventfd();
    let page = attached.page.address();
    let try_with = |page, ports: &[u32]| {
        errno(
            rig.privcmd
                .ioeventfd(&request(&rig, page, ports, &fd), true),
        )
    };
    assert_eq!(try_with(0x1000, &attached.ports), libc::EFAULT);
    assert_eq!(try_with(page, &[]), libc::EINVAL);
    assert_eq!(try_with(page, &[4097]), libc::EINVAL);
}

#[test]
fn later_calls_have_to_agree_with_the_first() {
    let (rig, attached) = setup(MachineConfig::default(), 2);
    let (fd, other) = (eventfd(), eventfd());
    rig.privcmd
        .ioeventfd(&of(&rig, &attached, &fd), true)
        .unwrap();
    let again = rig.privcmd.ioeventfd(&of(&rig, &attached, &fd), true);
    assert_eq!(errno(again), libc::EBUSY);
    let fewer = request(&rig, attached.page.address(), &attached.ports[..1], &other);
    assert_eq!(errno(rig.privcmd.ioeventfd(&fewer, true)), libc::EINVAL);
    let beyond = IoeventfdRequest {
        address: u64::MAX - 1,
        ..of(&rig, &attached, &other)
    };
    assert_eq!(errno(rig.privcmd.ioeventfd(&beyond, true)), libc::EINVAL);
}

#[test]
fn deassigned_kick_reaches_user_space_again() {
    let (rig, attached) = setup(MachineConfig::default(), 1);
    let fd = eventfd();
    let request = of(&rig, &attached, &fd);
    assert_eq!(errno(rig.privcmd.ioeventfd(&request, false)), libc::ENODEV);
    rig.privcmd.ioeventfd(&request, true).unwrap();
    rig.privcmd.ioeventfd(&request, false).unwrap();
    assert_eq!(errno(rig.privcmd.ioeventfd(&request, false)), libc::ENODEV);
    let other = eventfd();
    let kept = of(&rig, &attached, &other);
    rig.privcmd.ioeventfd(&kept, true).unwrap();
    assert_eq!(errno(rig.privcmd.ioeventfd(&request, false)), libc::ENODEV);
    rig.privcmd.ioeventfd(&kept, false).unwrap();
    let _server = Server::run(rig.clone(), attached.clone(), |_, _| 0);
    rig.domain.vcpu(0).write(NOTIFY, 4, 0).unwrap();
    assert!(fd.read().is_err());
}
