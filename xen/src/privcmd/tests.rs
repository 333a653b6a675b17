//! Hypercalls, foreign pages, irqfd and probes over the fake.

use vm_memory::Bytes;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::Host;
use crate::dm_op;
use crate::fake::{Domain, DomainConfig, Machine, MachineConfig, PrivcmdEventfd};
use crate::sys::borrow_fd;

const GFN: u64 = 0x40000;

fn guest_on(machine: &Machine, config: DomainConfig) -> (Domain, Privcmd) {
    let domain = machine.create_domain(config).unwrap();
    let privcmd = Host::Fake(machine.clone()).open_privcmd().unwrap();
    (domain, privcmd)
}

fn guest() -> (Machine, Domain, Privcmd) {
    let machine = Machine::new().unwrap();
    let (domain, privcmd) = guest_on(&machine, DomainConfig::default());
    (machine, domain, privcmd)
}

fn machine_with(privcmd_eventfd: PrivcmdEventfd) -> Machine {
    Machine::with_config(MachineConfig {
        privcmd_eventfd,
        ..MachineConfig::default()
    })
    .unwrap()
}

#[test]
fn the_machine_is_described() {
    let (_machine, domain, privcmd) = guest();

    let features = privcmd.features().unwrap();

    assert!(features.contains(FeatureWord::DOM0));
    assert_eq!(privcmd.version().unwrap(), (4, 20));
    assert!(privcmd.maximum_gpfn(domain.id()).unwrap() >= GFN + 0xffff);
}

#[test]
fn the_pages_of_a_domain_are_fewer_while_some_are_out() {
    let (_machine, domain, privcmd) = guest();
    let pages = || privcmd.current_reservation(domain.id()).unwrap();

    let before = pages();
    domain.balloon_out(GFN, 3).unwrap();
    let out = pages();
    domain.balloon_in(GFN + 1, 2).unwrap();

    assert_eq!(before, privcmd.maximum_reservation(domain.id()).unwrap());
    assert_eq!((out, pages()), (before - 3, before - 1));
}

#[test]
fn a_domain_that_is_not_there_is_named() {
    let (_machine, _domain, privcmd) = guest();

    let error = privcmd.maximum_gpfn(DomId(99)).unwrap_err();

    assert!(error.is_no_domain());
    assert!(error.to_string().contains("domain 99"));
}

#[test]
fn foreign_pages_come_in_the_order_given() {
    let (_machine, domain, privcmd) = guest();
    domain.write_memory(Domain::address_of(GFN), &[1]).unwrap();
    domain
        .write_memory(Domain::address_of(GFN + 7), &[7])
        .unwrap();

    let pages = privcmd
        .map_foreign(domain.id(), &[GFN + 7, GFN], true)
        .unwrap();

    let first: u8 = pages.page(0).unwrap().read_obj(0).unwrap();
    let second: u8 = pages.page(1).unwrap().read_obj(0).unwrap();
    assert!(pages.is_complete());
    assert_eq!((first, second), (7, 1));
}

#[test]
fn a_missing_frame_does_not_fail_its_neighbours() {
    let machine = Machine::new().unwrap();
    let (domain, privcmd) = guest_on(&machine, DomainConfig::default().hole(GFN + 1, 1));

    let pages = privcmd
        .map_foreign(domain.id(), &[GFN, GFN + 1, GFN + 2], true)
        .unwrap();

    assert!(!pages.is_complete() && !pages.is_void());
    assert_eq!(pages.first_error().unwrap().0, 1);
    assert!(pages.page(0).is_some() && pages.page(2).is_some());
    assert!(pages.page(1).is_none() && pages.page(3).is_none());
    assert!(pages.into_complete().is_err());
}

#[test]
fn a_read_only_mapping_says_so() {
    let (_machine, domain, privcmd) = guest();

    let pages = privcmd.map_foreign(domain.id(), &[GFN], false).unwrap();

    assert!(!pages.mapping().is_writable());
}

#[test]
fn a_restricted_file_serves_its_domain_and_nothing_else() {
    let (machine, domain, privcmd) = guest();
    let other = machine.create_domain(DomainConfig::default()).unwrap();

    privcmd.restrict(domain.id()).unwrap();

    let features = privcmd.features().unwrap_err();
    let foreign = privcmd.map_foreign(other.id(), &[GFN], false).unwrap_err();
    let dm_op = privcmd.nr_vcpus(other.id()).unwrap_err();
    assert!(matches!(features, Error::Restricted { .. }));
    assert!(matches!(foreign, Error::Restricted { .. }));
    assert!(matches!(dm_op, dm_op::Error::Restricted { .. }));
    privcmd.map_foreign(domain.id(), &[GFN], false).unwrap();
    assert_eq!(privcmd.nr_vcpus(domain.id()).unwrap(), 1);
}

#[test]
fn the_probes_tell_three_kernels_apart() {
    let machines = [
        PrivcmdEventfd::Present,
        PrivcmdEventfd::NotConfigured,
        PrivcmdEventfd::Unknown,
    ]
    .map(machine_with);

    let found = machines.map(|machine| {
        let privcmd = Host::Fake(machine).open_privcmd().unwrap();
        (privcmd.irqfd_support(), privcmd.ioeventfd_support())
    });

    let expected = [
        EventfdSupport::Available,
        EventfdSupport::NotConfigured,
        EventfdSupport::Unknown,
    ];
    assert_eq!(found, expected.map(|support| (support, support)));
}

#[test]
fn an_irqfd_of_a_kernel_without_is_refused_by_name() {
    let machine = machine_with(PrivcmdEventfd::NotConfigured);
    let (domain, privcmd) = guest_on(&machine, DomainConfig::default());
    let event = EventFd::new(EFD_NONBLOCK).unwrap();

    let result = privcmd.irqfd(domain.id(), 33, borrow_fd(&event));

    let error = result.unwrap_err();
    assert!(matches!(error, Error::NotInKernel { .. }));
    assert!(error.to_string().contains("CONFIG_XEN_PRIVCMD_EVENTFD"));
}

#[test]
fn an_irqfd_raises_its_interrupt_until_dropped() {
    let (machine, domain, privcmd) = guest();
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let irqfd = privcmd.irqfd(domain.id(), 33, borrow_fd(&event)).unwrap();
    let twice = privcmd.irqfd(domain.id(), 34, borrow_fd(&event));

    event.write(1).unwrap();

    let raised = domain
        .interrupts()
        .unwrap()
        .wait_past(33, 0, std::time::Duration::from_secs(10));
    assert!(twice.is_err());
    assert_eq!(raised, Some(1));
    drop(irqfd);
    assert_eq!(machine.census()[&domain.id()].irqfds, 0);
}

#[test]
fn an_interrupt_is_raised_by_its_level() {
    let (_machine, domain, privcmd) = guest();

    privcmd.set_irq_level(domain.id(), 34, true).unwrap();

    let refused = privcmd.set_irq_level(domain.id(), 20, true);
    assert_eq!(domain.interrupts().unwrap().count(34), 1);
    assert!(matches!(refused, Err(dm_op::Error::Failed { .. })));
}

#[test]
fn an_operation_of_x86_is_not_there_on_arm() {
    let (_machine, domain, privcmd) = guest();
    let op = dm_op::X86Op::InjectMsi {
        address: 0xfee0_0000,
        data: 0x41,
    };

    let result = privcmd.x86_op(domain.id(), &op);

    assert!(matches!(result, Err(dm_op::Error::Failed { .. })));
}
