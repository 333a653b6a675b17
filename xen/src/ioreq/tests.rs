//! The server over the fake: a guest's vCPUs run on threads of their own.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::Bytes;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::dm_op::IoRange;
use crate::fake::{Call, Domain, DomainConfig, Machine, MachineConfig, Target};
use crate::privcmd::{IoeventfdRequest, Privcmd};
use crate::sys::abi::ioreq as abi;
use crate::{Host, Mapping};

mod life;

const BASE: u64 = 0x0200_0000;
const STATUS: u64 = BASE + 0x70;
const WINDOW: IoRange = IoRange::Memory(BASE, BASE + 0x1fff);
/// Longer than anything here takes; no test passes by waiting for it.
const PATIENCE: Duration = Duration::from_secs(10);

struct Fixture {
    machine: Machine,
    domain: Domain,
    privcmd: Privcmd,
    server: IoreqServer,
}

/// A guest and a server that claims the virtio window, not enabled.
fn server_on(config: MachineConfig, vcpus: u32) -> Fixture {
    let machine = Machine::with_config(config).unwrap();
    let domain = machine
        .create_domain(DomainConfig::default().vcpus(vcpus))
        .unwrap();
    let host = Host::Fake(machine.clone());
    let privcmd = host.open_privcmd().unwrap();
    let evtchn = host.open_evtchn().unwrap();
    let mut server = IoreqServer::create(&privcmd, evtchn, domain.id()).unwrap();
    server.map_range(WINDOW).unwrap();
    Fixture {
        machine,
        domain,
        privcmd,
        server,
    }
}

fn enabled_server(vcpus: u32) -> Fixture {
    let mut fixture = server_on(MachineConfig::default(), vcpus);
    fixture.server.enable().unwrap();
    fixture
}

/// An enabled server whose guest is past its first request, INVALIDATE.
fn running_server_on(config: MachineConfig, vcpus: u32) -> Fixture {
    let mut fixture = server_on(config, vcpus);
    fixture.server.enable().unwrap();
    let (domain, server) = (&fixture.domain, &mut fixture.server);
    thread::scope(|scope| {
        let guest = scope.spawn(|| domain.vcpu(0).read(STATUS, 4));
        for kind in [IoreqKind::Invalidate, IoreqKind::Copy] {
            let pending = one(server);
            assert_eq!(pending.request().kind, kind);
            pending.respond(0).unwrap();
        }
        guest.join().unwrap().unwrap();
    });
    fixture
}

fn running_server(vcpus: u32) -> Fixture {
    running_server_on(MachineConfig::default(), vcpus)
}

/// Drains the server until `count` requests wait; gives them, and how often
/// the server asked to look again.
fn wait_for(server: &mut IoreqServer, count: usize) -> (Vec<Pending>, usize) {
    let deadline = Instant::now() + PATIENCE;
    let mut requests = Vec::new();
    let mut again = 0;
    while requests.len() < count {
        assert!(Instant::now() < deadline, "{} of {count}", requests.len());
        match server.pending(&mut requests).unwrap() {
            Drained::Idle => thread::sleep(Duration::from_millis(1)),
            Drained::LookAgain(pause) => {
                again += 1;
                thread::sleep(pause);
            }
        }
    }
    (requests, again)
}

fn one(server: &mut IoreqServer) -> Pending {
    wait_for(server, 1).0.pop().unwrap()
}

/// A second view of the ioreq page.
fn page(fixture: &Fixture) -> Mapping {
    fixture
        .privcmd
        .mmap_resource(
            fixture.domain.id(),
            abi::RESOURCE_IOREQ_SERVER,
            fixture.server.id().0.into(),
            abi::RESOURCE_FRAME_IOREQ,
            1,
        )
        .unwrap()
}

#[test]
fn event_channels_exist_only_after_enabling() {
    let mut fixture = server_on(MachineConfig::default(), 3);
    let page = page(&fixture);
    let port = |vcpu: usize| {
        page.volatile()
            .load::<u32>(vcpu * 32 + 24, Ordering::Relaxed)
    };
    let before: Vec<u32> = (0..3).map(|vcpu| port(vcpu).unwrap()).collect();
    let bound_before = fixture.server.ports();

    fixture.server.enable().unwrap();

    assert_eq!(before, [0, 0, 0]);
    assert!(bound_before.is_empty());
    assert!((0..3).all(|vcpu| port(vcpu).unwrap() != 0));
    let mut ports = fixture.server.ports();
    ports.dedup();
    assert_eq!(ports.len(), 3);
}

#[test]
fn a_read_gets_the_answer() {
    let Fixture {
        domain, mut server, ..
    } = running_server(1);

    let (request, read) = thread::scope(|scope| {
        let guest = scope.spawn(|| domain.vcpu(0).read(STATUS, 4));
        let pending = one(&mut server);
        let request = *pending.request();
        pending.respond(0x1122_3344).unwrap();
        (request, guest.join().unwrap())
    });

    assert_eq!(read.unwrap(), 0x1122_3344);
    assert_eq!(
        request,
        Ioreq {
            vcpu: 0,
            address: STATUS,
            data: request.data,
            count: 1,
            size: 4,
            direction: Direction::Read,
            kind: IoreqKind::Copy,
            df: false,
            data_is_ptr: false,
        }
    );
}

#[test]
fn a_write_carries_its_value() {
    let Fixture {
        domain, mut server, ..
    } = running_server(1);

    let (request, written) = thread::scope(|scope| {
        let guest = scope.spawn(|| domain.vcpu(0).write(STATUS, 2, 0xabcd));
        let pending = one(&mut server);
        let request = *pending.request();
        pending.respond(0).unwrap();
        (request, guest.join().unwrap())
    });

    written.unwrap();
    assert_eq!(request.direction, Direction::Write);
    assert_eq!(request.size, 2);
    assert_eq!(request.data & 0xffff, 0xabcd);
}

#[test]
fn the_descriptor_is_readable_while_a_vcpu_waits() {
    let Fixture {
        domain, mut server, ..
    } = running_server(1);
    let mut drained = Vec::new();
    let _ = server.pending(&mut drained).unwrap();
    let epoll = Epoll::new().unwrap();
    epoll
        .ctl(
            ControlOperation::Add,
            server.as_raw_fd(),
            EpollEvent::new(EventSet::IN, 0),
        )
        .unwrap();

    let woken = thread::scope(|scope| {
        let guest = scope.spawn(|| domain.vcpu(0).read(STATUS, 4));
        let mut events = [EpollEvent::default()];
        let woken = epoll.wait(10_000, &mut events).unwrap();
        one(&mut server).respond(0).unwrap();
        guest.join().unwrap().unwrap();
        woken
    });

    assert!(drained.is_empty());
    assert_eq!(woken, 1);
}

#[test]
fn every_vcpu_that_fired_is_served() {
    let Fixture {
        domain, mut server, ..
    } = running_server(4);

    let reads = thread::scope(|scope| {
        let guests: Vec<_> = (0..4)
            .map(|vcpu| {
                scope.spawn({
                    let vcpu = domain.vcpu(vcpu);
                    move || vcpu.read(STATUS, 4)
                })
            })
            .collect();
        for pending in wait_for(&mut server, 4).0 {
            let vcpu = pending.request().vcpu;
            pending.respond(u64::from(vcpu) + 100).unwrap();
        }
        guests
            .into_iter()
            .map(|guest| guest.join().unwrap().unwrap())
            .collect::<Vec<_>>()
    });

    assert_eq!(reads, [100, 101, 102, 103]);
}

#[test]
fn a_dropped_request_is_answered_as_nothing() {
    let Fixture {
        domain, mut server, ..
    } = running_server(1);

    let read = thread::scope(|scope| {
        let guest = scope.spawn(|| domain.vcpu(0).read(STATUS, 2));
        drop(one(&mut server));
        guest.join().unwrap()
    });

    assert_eq!(read.unwrap(), 0xffff);
}

#[test]
fn an_answer_may_come_later_and_from_elsewhere() {
    let Fixture {
        domain, mut server, ..
    } = running_server(2);

    let (first, second) = thread::scope(|scope| {
        let first = scope.spawn(|| domain.vcpu(0).read(STATUS, 4));
        let deferred = one(&mut server);
        let second = scope.spawn(|| domain.vcpu(1).read(STATUS, 4));
        one(&mut server).respond(2).unwrap();
        let second = second.join().unwrap();
        scope.spawn(move || deferred.respond(1).unwrap());
        (first.join().unwrap(), second)
    });

    assert_eq!((first.unwrap(), second.unwrap()), (1, 2));
}

#[test]
fn a_slot_that_the_kernel_holds_is_looked_at_again() {
    let linger = Duration::from_millis(30);
    let config = MachineConfig {
        ioeventfd_linger: linger,
        ..MachineConfig::default()
    };
    let mut fixture = running_server_on(config, 1);
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    let ioeventfd = fixture
        .privcmd
        .ioeventfd(&IoeventfdRequest {
            dom: fixture.domain.id(),
            ioreq_page: fixture.server.page_address(),
            ports: &fixture.server.ports(),
            address: BASE,
            queue: 0,
            event_fd: crate::sys::borrow_fd(&kick),
        })
        .unwrap();
    let (domain, server) = (&fixture.domain, &mut fixture.server);

    let (again, address, written) = thread::scope(|scope| {
        let guest = scope.spawn(|| domain.vcpu(0).write(STATUS, 4, 0));
        let (mut requests, again) = wait_for(server, 1);
        let pending = requests.pop().unwrap();
        let address = pending.request().address;
        pending.respond(0).unwrap();
        (again, address, guest.join().unwrap())
    });
    drop(ioeventfd);

    written.unwrap();
    assert_eq!(address, STATUS);
    assert!(again > 0, "the slot was never seen INPROCESS");
    assert_eq!(kick.read().unwrap_err().raw_os_error(), Some(libc::EAGAIN));
}

#[test]
fn a_kick_that_the_kernel_answers_is_not_served_twice() {
    let mut fixture = running_server(1);
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    let ioeventfd = fixture
        .privcmd
        .ioeventfd(&IoeventfdRequest {
            dom: fixture.domain.id(),
            ioreq_page: fixture.server.page_address(),
            ports: &fixture.server.ports(),
            address: BASE,
            queue: 3,
            event_fd: crate::sys::borrow_fd(&kick),
        })
        .unwrap();

    let (domain, server) = (&fixture.domain, &mut fixture.server);
    let served = thread::scope(|scope| {
        let guest = scope.spawn(|| domain.vcpu(0).write(BASE + 0x50, 4, 3));
        let deadline = Instant::now() + PATIENCE;
        let mut requests = Vec::new();
        let mut served = 0;
        // Until then the port may be masked, and the kernel's handler with it.
        while !guest.is_finished() {
            assert!(Instant::now() < deadline);
            let _ = server.pending(&mut requests).unwrap();
            served += requests.len();
            requests.drain(..).for_each(|one| one.respond(0).unwrap());
            thread::sleep(Duration::from_millis(1));
        }
        guest.join().unwrap().unwrap();
        served
    });
    drop(ioeventfd);

    // Whoever takes it first: the kernel does, unless it is slow.
    let kicked = kick
        .read()
        .map_or(0, |count| usize::try_from(count).unwrap());
    assert_eq!(served + kicked, 1);
}

#[test]
fn invalidate_is_yielded_and_answered() {
    let Fixture {
        domain, mut server, ..
    } = running_server(1);

    let (kind, frames) = thread::scope(|scope| {
        let guest = scope.spawn(|| domain.balloon_out(0x40100, 2));
        let pending = one(&mut server);
        let kind = pending.request().kind;
        pending.respond(0).unwrap();
        (kind, guest.join().unwrap())
    });

    assert_eq!(kind, IoreqKind::Invalidate);
    assert_eq!(frames.unwrap(), 2);
}

/// Places a request in vCPU 0's slot, as an x86 or newer Xen might, and has
/// the server find it at its first look.
fn served_raw(bits: u8, kind: u8) -> (Ioreq, abi::Ioreq) {
    let mut fixture = enabled_server(1);
    let page = page(&fixture);
    let slot = page.volatile();
    slot.store(0x1000_u64, 0, Ordering::Relaxed).unwrap();
    slot.store(0xdead_0000_u64, 8, Ordering::Relaxed).unwrap();
    slot.store(7_u32, 16, Ordering::Relaxed).unwrap();
    slot.store(4_u32, 20, Ordering::Relaxed).unwrap();
    slot.store(kind, 31, Ordering::Relaxed).unwrap();
    slot.store(abi::STATE_READY | bits, 30, Ordering::Release)
        .unwrap();

    let pending = one(&mut fixture.server);
    let request = *pending.request();
    pending.reject().unwrap();

    let after = abi::Ioreq {
        data: slot.load(8, Ordering::Relaxed).unwrap(),
        bits: slot.load(30, Ordering::Acquire).unwrap(),
        ..abi::Ioreq::default()
    };
    (request, after)
}

#[test]
fn a_repeated_request_keeps_its_fields_and_its_pointer() {
    let bits = abi::BITS_DIR | abi::BITS_DF | abi::BITS_DATA_IS_PTR;

    let (request, after) = served_raw(bits, abi::TYPE_PIO);

    assert_eq!((request.count, request.size), (7, 4));
    assert!(request.df && request.data_is_ptr);
    assert_eq!(request.direction, Direction::Read);
    assert_eq!(after.data, 0xdead_0000);
    assert_eq!(after.bits, bits | abi::STATE_RESP_READY);
}

#[test]
fn a_request_of_unknown_kind_is_yielded_and_answered() {
    let (request, after) = served_raw(0, 99);

    assert_eq!(request.kind, IoreqKind::Unknown(99));
    assert_eq!(after.bits, abi::STATE_RESP_READY);
}

#[test]
fn an_overflow_of_event_channels_loses_no_request() {
    let Fixture {
        machine,
        domain,
        mut server,
        ..
    } = running_server(2);
    let mut none = Vec::new();
    let _ = server.pending(&mut none).unwrap();

    let reads = thread::scope(|scope| {
        let guests = [0, 1].map(|vcpu| {
            let vcpu = domain.vcpu(vcpu);
            scope.spawn(move || vcpu.read(STATUS, 4))
        });
        machine.fail(Target::Call(Call::Read), 1, libc::EFBIG);
        for pending in wait_for(&mut server, 2).0 {
            pending.respond(5).unwrap();
        }
        guests.map(|guest| guest.join().unwrap().unwrap())
    });

    assert!(none.is_empty());
    assert_eq!(reads, [5, 5]);
}

#[test]
fn all_ones_are_as_wide_as_the_access() {
    let request = |size| Ioreq {
        vcpu: 0,
        address: 0,
        data: 0,
        count: 1,
        size,
        direction: Direction::Read,
        kind: IoreqKind::Copy,
        df: false,
        data_is_ptr: false,
    };

    let ones = [0, 1, 2, 4, 7, 8, 64].map(|size| request(size).all_ones());

    let expected = [
        0,
        0xff,
        0xffff,
        0xffff_ffff,
        0x00ff_ffff_ffff_ffff,
        u64::MAX,
        u64::MAX,
    ];
    assert_eq!(ones, expected);
}
