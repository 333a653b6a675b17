//! irqfds.

use std::os::fd::AsFd;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::support::{Rig, SOON, errno, eventually, op};
use crate::fake::{DomainConfig, MachineConfig, PrivcmdEventfd};
use crate::sys::borrow_fd;

fn raise(irq: u8) -> [u8; 32] {
    op(19, &[irq, 0, 0, 0, 1, 0, 0, 0])
}

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

#[test]
fn signalled_irqfd_raises_its_interrupt() {
    let rig = Rig::new();
    let interrupts = rig.domain.interrupts().unwrap();
    let (one, two) = (eventfd(), eventfd());
    for (fd, irq) in [(&one, 33), (&two, 34)] {
        rig.privcmd
            .irqfd(rig.dom, &raise(irq), borrow_fd(fd), true)
            .unwrap();
    }
    one.write(1).unwrap();
    assert_eq!(interrupts.wait_past(33, 0, SOON), Some(1));
    two.write(1).unwrap();
    assert_eq!(interrupts.wait_past(34, 0, SOON), Some(1));
    one.write(1).unwrap();
    assert_eq!(interrupts.wait_past(33, 1, SOON), Some(2));
    assert_eq!(rig.machine.census()[&rig.dom].irqfds, 2);
}

#[test]
fn event_pending_when_assigned_is_not_lost() {
    let rig = Rig::new();
    let fd = eventfd();
    fd.write(1).unwrap();
    rig.privcmd
        .irqfd(rig.dom, &raise(33), borrow_fd(&fd), true)
        .unwrap();
    let interrupts = rig.domain.interrupts().unwrap();
    assert_eq!(interrupts.wait_past(33, 0, SOON), Some(1));
}

#[test]
fn irqfd_is_silent_once_deassigned() {
    let rig = Rig::new();
    let (fd, other) = (eventfd(), eventfd());
    let assign = |fd, on| {
        rig.privcmd
            .irqfd(rig.dom, &raise(33), borrow_fd(fd), on)
            .unwrap();
    };
    assign(&fd, true);
    assign(&other, true);
    assign(&fd, false);
    assign(&fd, false);
    fd.write(1).unwrap();
    other.write(1).unwrap();
    let interrupts = rig.domain.interrupts().unwrap();
    assert_eq!(interrupts.wait_past(33, 0, SOON), Some(1));
    assert_eq!(fd.read().unwrap(), 1, "nobody has taken the event");
    assert_eq!(interrupts.count(33), 1);
    assign(&fd, true);
}

#[test]
fn eventfd_serves_one_irqfd_of_all_files() {
    let rig = Rig::new();
    let other = rig.machine.open_privcmd().unwrap();
    let fd = eventfd();
    let duplicate = fd.try_clone().unwrap();
    rig.privcmd
        .irqfd(rig.dom, &raise(33), borrow_fd(&fd), true)
        .unwrap();
    let again = other.irqfd(rig.dom, &raise(34), borrow_fd(&duplicate), true);
    assert_eq!(errno(again), libc::EBUSY);
}

#[test]
fn file_that_is_no_eventfd_is_refused() {
    let rig = Rig::new();
    let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let result = rig.privcmd.irqfd(rig.dom, &raise(33), stream.as_fd(), true);
    assert_eq!(errno(result), libc::EINVAL);
}

#[test]
fn irqfd_of_a_bad_operation_raises_nothing_and_goes_on() {
    let rig = Rig::new();
    let fd = eventfd();
    rig.privcmd
        .irqfd(rig.dom, &raise(5), borrow_fd(&fd), true)
        .unwrap();
    fd.write(1).unwrap();
    eventually("the event to be taken", || fd.read().is_err());
    assert_eq!(rig.domain.interrupts().unwrap().count(5), 0);
}

#[test]
fn closing_the_file_ends_its_irqfds() {
    let rig = Rig::new();
    let other = rig.machine.open_privcmd().unwrap();
    let fd = eventfd();
    other
        .irqfd(rig.dom, &raise(33), borrow_fd(&fd), true)
        .unwrap();
    drop(other);
    assert!(rig.machine.census()[&rig.dom].is_clean());
    fd.write(1).unwrap();
    assert_eq!(fd.read().unwrap(), 1);
}

#[test]
fn kernel_without_eventfds_says_so() {
    for (kernel, expected) in [
        (PrivcmdEventfd::NotConfigured, libc::EOPNOTSUPP),
        (PrivcmdEventfd::Unknown, libc::ENOTTY),
    ] {
        let config = MachineConfig {
            privcmd_eventfd: kernel,
            ..MachineConfig::default()
        };
        let rig = Rig::with(config, DomainConfig::default());
        let fd = eventfd();
        let irqfd = rig.privcmd.irqfd(rig.dom, &raise(33), borrow_fd(&fd), true);
        assert_eq!(errno(irqfd), expected);
        let request = super::kicks::request(&rig, 0, &[], &fd);
        assert_eq!(errno(rig.privcmd.ioeventfd(&request, true)), expected);
    }
}

#[test]
fn restricted_file_has_no_eventfds_of_others() {
    let rig = Rig::new();
    let other = rig.machine.create_domain(DomainConfig::default()).unwrap();
    rig.privcmd.restrict(rig.dom).unwrap();
    let fd = eventfd();
    let irqfd = rig
        .privcmd
        .irqfd(other.id(), &raise(33), borrow_fd(&fd), true);
    assert_eq!(errno(irqfd), libc::EPERM);
    rig.privcmd
        .irqfd(rig.dom, &raise(33), borrow_fd(&fd), true)
        .unwrap();
}

#[test]
fn listener_hears_every_edge() {
    let rig = Rig::new();
    let fd = eventfd();
    let interrupts = rig.domain.interrupts().unwrap();
    interrupts.listen(33, borrow_fd(&fd)).unwrap();
    rig.set_irq(33, 1).unwrap();
    rig.set_irq(33, 1).unwrap();
    rig.set_irq(34, 1).unwrap();
    assert_eq!(fd.read().unwrap(), 2);
}
