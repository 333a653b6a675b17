//! What DM_OP and the resource call refuse.

use super::support::{Rig, errno, op};
use crate::DomId;
use crate::fake::{DomainConfig, MachineConfig};

#[test]
fn header_padding_has_to_be_zero() {
    let rig = Rig::new();
    let mut op = op(20, &[]);
    op[4] = 1;
    assert_eq!(
        errno(rig.privcmd.dm_op(rig.dom, &mut [&mut op])),
        libc::EINVAL
    );
}

#[test]
fn padding_of_every_operation_has_to_be_zero() {
    let rig = Rig::new();
    let id = rig.create().unwrap();
    assert_eq!(id, 0);
    for (number, at) in [
        (1, 1),
        (1, 2),
        (1, 3),
        (3, 2),
        (4, 3),
        (5, 3),
        (6, 2),
        (6, 3),
    ] {
        let mut payload = [0; 24];
        payload[at] = 1;
        assert_eq!(errno(rig.call(number, &payload)), libc::EINVAL, "{number}");
    }
    for at in 5..8 {
        let mut payload = [33, 0, 0, 0, 1, 0, 0, 0];
        payload[at] = 1;
        assert_eq!(errno(rig.call(19, &payload)), libc::EINVAL);
    }
    rig.destroy(id).unwrap();
}

#[test]
fn buffered_requests_are_refused() {
    let rig = Rig::new();
    for mode in [1, 2, 3] {
        assert_eq!(errno(rig.call(1, &[mode, 0, 0, 0, 0, 0])), libc::EINVAL);
    }
}

#[test]
fn operations_of_x86_are_unknown() {
    let rig = Rig::new();
    for number in [0, 7, 11, 14, 18, 21, 1000] {
        assert_eq!(errno(rig.call(number, &[0; 24])), libc::EOPNOTSUPP);
    }
}

#[test]
fn short_buffer_faults() {
    let rig = Rig::new();
    let mut op = op(20, &[]);
    assert_eq!(
        errno(rig.privcmd.dm_op(rig.dom, &mut [&mut op[..7]])),
        libc::EFAULT
    );
    assert_eq!(
        errno(rig.privcmd.dm_op(rig.dom, &mut [&mut op[..11]])),
        libc::EFAULT
    );
}

#[test]
fn too_many_or_too_large_buffers_are_refused() {
    let rig = Rig::new();
    let (mut a, mut b, mut c) = (op(20, &[]), [0; 1], [0; 1]);
    assert_eq!(
        errno(rig.privcmd.dm_op(rig.dom, &mut [&mut a, &mut b, &mut c])),
        libc::E2BIG
    );
    let mut large = [0; 4097];
    assert_eq!(
        errno(rig.privcmd.dm_op(rig.dom, &mut [&mut large])),
        libc::E2BIG
    );
}

#[test]
fn unknown_domain_is_esrch_and_our_own_is_eperm() {
    let rig = Rig::new();
    let mut op = op(20, &[]);
    assert_eq!(
        errno(rig.privcmd.dm_op(DomId(77), &mut [&mut op])),
        libc::ESRCH
    );
    assert_eq!(
        errno(rig.privcmd.dm_op(DomId(0), &mut [&mut op])),
        libc::EPERM
    );
}

#[test]
fn number_of_vcpus_is_reported() {
    let rig = Rig::with(MachineConfig::default(), DomainConfig::default().vcpus(3));
    let op = rig.call(20, &[]).unwrap();
    assert_eq!(op[8..12], [3, 0, 0, 0]);
}

#[test]
fn xen_without_ioreq_servers_knows_no_dm_op() {
    let config = MachineConfig {
        ioreq_server: false,
        ..MachineConfig::default()
    };
    let rig = Rig::with(config, DomainConfig::default());
    assert_eq!(errno(rig.create()), libc::ENOSYS);
    assert_eq!(errno(rig.set_irq(33, 1)), libc::ENOSYS);
    assert_eq!(errno(rig.page(0)), libc::EINVAL);
}

#[test]
fn eight_servers_and_no_more() {
    let rig = Rig::new();
    let ids: Vec<u16> = (0..8).map(|_| rig.create().unwrap()).collect();
    assert_eq!(ids, (0..8).collect::<Vec<u16>>());
    assert_eq!(errno(rig.create()), libc::ENOSPC);
}

#[test]
fn lowest_free_id_is_given_again() {
    let rig = Rig::new();
    for _ in 0..4 {
        rig.create().unwrap();
    }
    rig.destroy(1).unwrap();
    rig.destroy(2).unwrap();
    assert_eq!(rig.create().unwrap(), 1);
    assert_eq!(rig.create().unwrap(), 2);
    assert_eq!(rig.create().unwrap(), 4);
}

#[test]
fn everything_about_an_unknown_server_is_enoent() {
    let rig = Rig::new();
    let id = rig.create().unwrap();
    rig.destroy(id).unwrap();
    for unknown in [id, 7, 8, 0xffff] {
        assert_eq!(errno(rig.destroy(unknown)), libc::ENOENT);
        assert_eq!(errno(rig.set_state(unknown, true)), libc::ENOENT);
        assert_eq!(errno(rig.map_range(unknown, 0, 1)), libc::ENOENT);
        assert_eq!(errno(rig.page(unknown)), libc::ENOENT);
        let id = unknown.to_le_bytes();
        let mut info = [0; 24];
        info[..2].copy_from_slice(&id);
        info[2] = 1;
        assert_eq!(errno(rig.call(2, &info)), libc::ENOENT);
    }
}

#[test]
fn pages_are_not_placed_in_the_guest() {
    let rig = Rig::new();
    rig.create().unwrap();
    let mut info = [0; 24];
    assert_eq!(errno(rig.call(2, &info)), libc::EOPNOTSUPP);
    info[2] = 1;
    rig.call(2, &info).unwrap();
    info[2] = 2;
    assert_eq!(errno(rig.call(2, &info)), libc::EINVAL);
}

#[test]
fn only_frame_one_of_a_server_exists() {
    let rig = Rig::new();
    let id = rig.create().unwrap();
    let frame = |kind, frame, count| {
        rig.privcmd
            .mmap_resource(rig.dom, kind, id.into(), frame, count)
    };
    assert_eq!(frame(0, 1, 1).unwrap().len(), 4096);
    assert_eq!(errno(frame(0, 0, 1)), libc::ENOENT);
    assert_eq!(errno(frame(0, 2, 1)), libc::EINVAL);
    assert_eq!(errno(frame(0, 1, 2)), libc::EINVAL);
    assert_eq!(errno(frame(0, 1, 0)), libc::EINVAL);
    assert_eq!(errno(frame(1, 1, 1)), libc::EINVAL);
    let wide = rig.privcmd.mmap_resource(rig.dom, 0, 0x1_0000, 1, 1);
    assert_eq!(errno(wide), libc::EINVAL);
}

#[test]
fn only_shared_interrupts_that_exist_are_raised() {
    let config = DomainConfig {
        irqs: 64,
        xen_irqs: vec![40],
        ..DomainConfig::default()
    };
    let rig = Rig::with(MachineConfig::default(), config);
    for irq in [0, 31, 64, 1000, 40] {
        assert_eq!(errno(rig.set_irq(irq, 1)), libc::EINVAL, "{irq}");
    }
    assert_eq!(errno(rig.set_irq(33, 2)), libc::EINVAL);
    rig.set_irq(32, 1).unwrap();
    rig.set_irq(63, 1).unwrap();
}

#[test]
fn rising_edges_are_counted_and_falling_ones_are_not() {
    let rig = Rig::new();
    let interrupts = rig.domain.interrupts().unwrap();
    rig.set_irq(33, 1).unwrap();
    rig.set_irq(33, 0).unwrap();
    rig.set_irq(33, 1).unwrap();
    assert_eq!(interrupts.count(33), 2);
    assert_eq!(interrupts.count(34), 0);
}

#[test]
fn restricted_file_makes_no_hypercall_and_sees_one_domain() {
    let rig = Rig::new();
    let other = rig.machine.create_domain(DomainConfig::default()).unwrap();
    rig.privcmd.restrict(rig.dom).unwrap();
    assert_eq!(errno(rig.privcmd.features(0)), libc::EPERM);
    assert_eq!(errno(rig.privcmd.version()), libc::EPERM);
    assert_eq!(errno(rig.privcmd.maximum_gpfn(rig.dom)), libc::EPERM);
    let mut op = op(20, &[]);
    assert_eq!(
        errno(rig.privcmd.dm_op(other.id(), &mut [&mut op])),
        libc::EPERM
    );
    let mut errors = [0];
    assert_eq!(
        errno(
            rig.privcmd
                .mmap_batch(other.id(), &[0x40000], &mut errors, true)
        ),
        libc::EPERM
    );
    assert_eq!(
        errno(rig.privcmd.mmap_resource(other.id(), 0, 0, 1, 1)),
        libc::EPERM
    );
    rig.privcmd.dm_op(rig.dom, &mut [&mut op]).unwrap();
    rig.privcmd.restrict(rig.dom).unwrap();
    assert_eq!(errno(rig.privcmd.restrict(other.id())), libc::EINVAL);
}

#[test]
fn hypercalls_answer_for_dom0_and_the_guest() {
    let rig = Rig::with(
        MachineConfig::default(),
        DomainConfig::with_memory(4 << 30).features(0x0006_6005),
    );
    assert_eq!(rig.privcmd.features(0).unwrap(), 0x0006_6805);
    assert_eq!(errno(rig.privcmd.features(1)), libc::EINVAL);
    assert_eq!(rig.privcmd.version().unwrap(), (4, 20));
    assert_eq!(
        rig.privcmd.maximum_gpfn(rig.dom).unwrap(),
        (0x2_0000_0000 + (1u64 << 30)) / 4096 - 1
    );
    assert_eq!(errno(rig.privcmd.maximum_gpfn(DomId(9))), libc::ESRCH);
    assert_eq!(rig.domain.features().unwrap(), 0x0006_6005);
}
